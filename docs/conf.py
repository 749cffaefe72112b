"""The site: `make docs` builds it into build/site, without the network.

The source folder is the whole checkout, so that the pages stay where they are
and their links lead to the same places here, on a forge and in an editor.
"""

import importlib
import pathlib
import pkgutil
import re
import sys

_ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(_ROOT))  # The documented package is that beside it.

project = "analogjax"
author = "the analogjax authors"
html_title = "analogjax"
release = importlib.import_module("analogjax").__version__
copyright = f"{author}. analogjax {release}, Apache-2.0"  # In the footer.

extensions = [
  "myst_parser",
  "sphinx.ext.autodoc",
  "sphinx.ext.napoleon",
  "sphinx.ext.githubpages",  # Or a forge hides folders that begin with _.
]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md"]
# Or every folder of the environment is searched for pages.
exclude_patterns = [".*", "analogjax", "build", "dist", "runs", "tests"]
# Or the sidebar of each page is made from every function there is.
toc_object_entries = False

# Anchors as a forge makes them, of headings of every level.
myst_heading_anchors = 6
# Docstrings write `code` as the pages do; what else looks like code is text.
default_role = "code"
highlight_language = "text"
smartquotes = False
python_maximum_signature_line_length = 80
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": True}
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # Or an attribute would be there twice.
# Names of attributes, which Sphinx would link to those of others.
suppress_warnings = ["ref.python"]

html_theme = "furo"
html_extra_path = ["site_root"]
html_show_sphinx = False
html_copy_source = False

_API, _INTERNALS = "docs/api", "docs/internals"
# What the sidebar lists, by heading. Names are from the root, without .md, and
# may be patterns; a page that is in none of them fails the build.
_CONTENTS = {
  "Try it": ["docs/tutorial", "README", "docs/fidelity", _API],
  "Run it at a lab": [
    "docs/lab_guide",
    "docs/running",
    "docs/running/*",
    "docs/plan*",
    "docs/scaling",
    "docs/config",
    "docs/data",
    "docs/cache",
    "docs/distillkit",
    "docs/losses",
    "docs/safety",
    "docs/release",
    "docs/gates",
  ],
  "Check a bundle": [
    "docs/verify",
    "docs/leaks",
    "docs/cache_format",
    "docs/fidelity_format",
  ],
  "Judge and change it": [
    "docs/benchmarks",
    "docs/experiments",
    "docs/how_it_works",
    "docs/architecture",
    "docs/glossary",
    _INTERNALS,
    "CONTRIBUTING",
    "CHANGELOG",
  ],
}


def setup(app):
  app.connect("source-read", _add)
  # Before napoleon, which writes such signs itself.
  app.connect("autodoc-process-docstring", _to_rest, priority=400)
  return {"parallel_read_safe": True}


def _add(app, docname, source):
  """Adds what would be noise to those who read the file itself."""
  if docname == root_doc:
    source[0] += "".join(_toctree(*item) for item in _CONTENTS.items())
  elif docname == _INTERNALS:
    source[0] += "".join(_module(name) for name in _internal_modules())


def _to_rest(app, what, name, obj, options, lines):
  """Docstrings are plain text with `code`; Sphinx reads reStructuredText.

  What is set off below a colon and an empty line is meant as it stands, and
  | and * are themselves.
  """
  literal = None  # The indentation of the line above a block as it stands.
  for i, line in enumerate(lines):
    indent = len(line) - len(line.lstrip())
    if literal is not None and (not line or indent > literal):
      continue
    literal = None
    below = [len(x) - len(x.lstrip()) for x in lines[i + 2 : i + 3]]
    if line.endswith(":") and lines[i + 1 : i + 2] == [""] and below > [indent]:
      literal = indent
    lines[i] = re.sub(
      r"`[^`]*`|[|*]",
      lambda found: found[0] if found[0][0] == "`" else "\\" + found[0],
      line,
    ) + ("" if literal is None else ":")


def _toctree(caption, pages):
  found = [p for page in pages for p in sorted(_ROOT.glob(f"{page}.md"))]
  names = [p.relative_to(_ROOT).with_suffix("").as_posix() for p in found]
  # Its heading is that of the first page, too.
  titles = {"README": "README </README>"}
  lines = "\n".join(titles.get(name, f"/{name}") for name in names)
  return f"\n```{{toctree}}\n:caption: {caption}\n:hidden:\n\n{lines}\n```\n"


def _module(name):
  return f"\n## `{name}`\n\n```{{eval-rst}}\n.. automodule:: {name}\n```\n"


def _internal_modules():
  """Every module that the API page does not have."""
  import analogjax

  api = (_ROOT / f"{_API}.md").read_text(encoding="utf-8")
  public = set(re.findall(r"automodule:: ([\w.]+)", api))
  found = pkgutil.walk_packages(analogjax.__path__, "analogjax.")
  return [m.name for m in found if not m.ispkg and m.name not in public]
