"""Tests for analogjax/demo/docstrings.py."""

import ast
import importlib.metadata
import sys

import numpy as np
import pytest
import tokenizers

from analogjax.data import pipeline, text
from analogjax.demo import docstrings

END = "<|endoftext|>"

MODULE = '''"""Module.

  Indented.
"""

def f():
  """Of f."""
  def inner():
    """Of inner."""

class A:
  "Of A."
  x = 1
  """Not a docstring."""

  async def g(self):
    r"""Of g \\d."""

if f:
  def h():
    """Of h."""
try:
  pass
except ValueError:
  def k():
    """Of f."""
'''


def texts_of(source, monkeypatch, path="p/a.py"):
  monkeypatch.setattr(docstrings, "_MIN_CHARS", 0)
  return [d.text for d in docstrings.to_documents([(path, source.encode())])]


def test_docstrings_come_in_source_order_and_once(monkeypatch):
  expected = ["Module.\n\nIndented.", "Of f.", "Of inner.", "Of A."]
  expected += ["Of g \\d.", "Of h."]
  assert texts_of(MODULE, monkeypatch) == ["\n\n\n".join(expected)]


def test_a_docstring_counts_at_its_first_file(monkeypatch):
  monkeypatch.setattr(docstrings, "_MIN_CHARS", 0)
  files = [(f"p/{n}.py", f'"""Same."""\ndef f(): "{n}"'.encode()) for n in "ab"]
  assert list(docstrings.to_documents(files)) == [
    ("p/a.py", "Same.\n\n\na"),
    ("p/b.py", "b"),
  ]


def test_prose_is_taken_whole_and_windows_line_endings_do_not_matter():
  prose = "Title\n=====\n\n" + "word " * 60
  unix = list(docstrings.to_documents([("p/a.rst", prose.encode())]))
  dos = prose.replace("\n", "\r\n").encode()
  assert list(docstrings.to_documents([("p/a.rst", dos)])) == unix
  assert unix == [("p/a.rst", prose.strip())]


def test_tiny_documents_are_dropped():
  files = [
    ("p/a.py", b'"""Short."""'),
    ("p/b.py", b'"""' + b"x" * 200 + b'"""'),
  ]
  assert [d.source for d in docstrings.to_documents(files)] == ["p/b.py"]


def test_long_files_are_cut_at_blank_lines(monkeypatch):
  monkeypatch.setattr(docstrings, "_MAX_CHARS", 12)
  source = (
    'def f(): "aaaa"\ndef g(): "bbbb"\ndef h(): """cccc\n\ndddd\n\neeee"""'
  )
  assert texts_of(source, monkeypatch) == [
    "aaaa\n\n\nbbbb",
    "cccc\n\ndddd",
    "eeee",
  ]


def test_nothing_is_lost_by_cutting():
  for document in docstrings.corpus():
    assert 200 <= len(document.text) <= 6000
  path, source = "numpy/ma/core.py", _installed("numpy", "numpy/ma/core.py")
  documents = docstrings.to_documents([(path, source.encode())])
  joined = "".join("".join(d.text.split()) for d in documents)
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
      assert "".join((ast.get_docstring(node) or "").split()) in joined


def _installed(package, path):
  located = importlib.metadata.distribution(package).locate_file(path)
  with open(str(located), encoding="utf-8") as f:
    return f.read()


def trim(docstring):
  """The algorithm of PEP 257, "Handling Docstring Indentation"."""
  lines = docstring.expandtabs().splitlines()
  indent = sys.maxsize
  for line in lines[1:]:
    stripped = line.lstrip()
    if stripped:
      indent = min(indent, len(line) - len(stripped))
  trimmed = [lines[0].strip()]
  if indent < sys.maxsize:
    trimmed += [line[indent:].rstrip() for line in lines[1:]]
  while trimmed and not trimmed[-1]:
    trimmed.pop()
  while trimmed and not trimmed[0]:
    trimmed.pop(0)
  return "\n".join(trimmed)


def test_cleaning_is_that_of_pep_257():
  source = _installed("numpy", "numpy/lib/_function_base_impl.py")
  found = 0
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.FunctionDef):
      raw = ast.get_docstring(node, clean=False)
      if raw:
        assert docstrings._clean(raw) == trim(raw)
        found += 1
  assert found > 50


@pytest.mark.parametrize(
  ("path", "expected"),
  [
    ("numpy/linalg/_linalg.py", True),
    ("numpy/ma/README.rst", True),
    ("optax/CHANGELOG.md", True),
    ("numpy/linalg/tests/test_linalg.py", False),
    ("optax/_src/alias_test.py", False),
    ("numpy/conftest.py", False),
    ("numpy/version.py", False),
    ("matplotlib/_version.py", False),
    ("numpy/__config__.py", False),
    ("numpy/distutils/core.py", False),  # On Python 3.11 only.
    ("numpy/random/LICENSE.md", False),
    ("numpy-2.4.6.dist-info/entry_points.txt", False),
    ("../../../bin/f2py.py", False),
    ("numpy/_core/_multiarray_umath.cpython-311-x86_64-linux-gnu.so", False),
    ("numpy/__init__.pyi", False),
  ],
)
def test_which_files_are_documentation(path, expected):
  assert docstrings.is_document(path) == expected


def test_the_corpus_is_the_pinned_one():
  documents = docstrings.corpus()
  assert docstrings.corpus_digest(documents) == docstrings.SHA256
  assert len(documents) == 1218
  assert len({d.text for d in documents}) == len(documents)
  assert docstrings.corpus_digest(documents[::-1]) == docstrings.SHA256
  assert docstrings.corpus_digest(documents[1:]) != docstrings.SHA256


def test_the_packages_are_under_permissive_licences():
  named = {
    "matplotlib": "Python Software Foundation License",
    "ml_collections": "Apache Software License",
    "numpy": "BSD-3-Clause",
    "optax": "Apache Software License",
    "rich": "MIT License",
  }
  assert set(docstrings.PACKAGES) == set(named)
  for package, licence in named.items():
    metadata = importlib.metadata.metadata(package)
    stated = metadata.get_all("Classifier") or []
    stated += metadata.get_all("License-Expression") or []
    assert any(licence in s for s in stated), (package, stated)


def test_splits_share_no_file_and_lose_none():
  sources = {d.source for d in docstrings.corpus()}
  sides = {
    split: {s for s in sources if text.in_split(s, split, 8)}
    for split in text.SPLITS
  }
  assert not sides["train"] & sides["held_out"]
  assert sides["train"] | sides["held_out"] == sides["all"] == sources
  # A fair sample is not one package's.
  held_out = {s.split("/")[0] for s in sides["held_out"]}
  assert {"matplotlib", "numpy", "optax"} <= held_out


def test_rows_are_the_documents_of_the_split(tokenizer_folder):
  folder = str(tokenizer_folder)
  rows = list(docstrings.packed_rows(folder, 512, "held_out"))
  file = str(tokenizer_folder / "tokenizer.json")
  tokenizer = tokenizers.Tokenizer.from_file(file)
  ids = np.concatenate([r["tokens"][r["segments"] > 0] for r in rows])
  found = tokenizer.decode(list(ids), skip_special_tokens=False).split(END)
  expected = [d.text for d in docstrings.corpus() if text.held_out(d.source, 8)]
  assert sorted(found[:-1]) == sorted(expected) and found[-1] == ""
  assert found[:-1] != expected


def test_the_order_follows_from_the_seed(tokenizer_folder):
  def first(**options):
    rows = docstrings.packed_rows(str(tokenizer_folder), 64, **options)
    return next(iter(rows))["tokens"].tolist()

  assert first() == first(seed=0) != first(seed=1)


def test_another_corpus_is_refused_unless_accepted(tokenizer_folder):
  arguments = {
    "tokenizer": "{teacher}",
    "L": 64,
    "packages": ["ml_collections"],
  }

  def open_(**changes):
    return pipeline.open_pipeline(
      "analogjax.demo.docstrings:packed_rows",
      {**arguments, **changes},
      L=64,
      V=300,
      substitutions={"teacher": str(tokenizer_folder)},
    )

  found = docstrings.corpus_digest(docstrings.corpus(("ml_collections",)))
  version = importlib.metadata.version("ml_collections")
  with pytest.raises(ValueError) as error:
    open_()
  for part in (
    f"expected {docstrings.SHA256}, found {found}",
    f"ml_collections=={version}",
    "constraints.txt",
    "data.arguments.sha256=''",
  ):
    assert part in str(error.value)
  assert open_(sha256="").read([0]).tokens_BL.shape == (1, 64)
  assert open_(sha256=found).fingerprint


def test_the_name_from_before_it_moved_is_the_same_pipeline(tokenizer_folder):
  # Saved configs and caches have it.
  arguments = {"tokenizer": str(tokenizer_folder), "L": 64, "sha256": ""}
  arguments |= {"packages": ["ml_collections"]}
  before, now = (
    pipeline.open_pipeline(
      f"analogjax.{room}.docstrings:packed_rows", arguments, L=64, V=300
    )
    for room in ("data", "demo")
  )
  assert before.fingerprint == now.fingerprint


def test_a_package_that_is_not_there_is_refused(tokenizer_folder):
  with pytest.raises(ValueError, match="'no-such-package' is not installed"):
    docstrings.packed_rows(
      str(tokenizer_folder), 64, packages=["no-such-package"]
    )


def test_a_damaged_installation_is_refused(tmp_path, monkeypatch):
  info = tmp_path / "damaged-1.0.dist-info"
  info.mkdir()
  (info / "METADATA").write_text("Name: damaged\nVersion: 1.0\n")
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(ValueError, match="installed without a list of its files"):
    docstrings.corpus(("damaged",))
  (info / "RECORD").write_text("damaged/a.py,,\n")
  # From Python 3.12 on, files that are listed and missing are left out.
  said = r"lacks its file damaged/a\.py|installed without a list of its files"
  with pytest.raises(ValueError, match=said):
    docstrings.corpus(("damaged",))
  (tmp_path / "damaged").mkdir()
  (tmp_path / "damaged" / "a.py").write_text("def f(:\n")
  with pytest.raises(ValueError, match=r"cannot parse damaged/a\.py"):
    docstrings.corpus(("damaged",))


def test_one_package_alone_keeps_the_split(tokenizer_folder, monkeypatch):
  """Its documents are part of the whole corpus, each on the same side."""
  seen = []
  pack = text.pack

  def looking(texts, *args, **more):
    seen.append(set(texts))
    return pack(texts, *args, **more)

  monkeypatch.setattr(text, "pack", looking)
  packages = ("ml_collections", "optax")
  more = dict(packages=packages, sha256="", held_out_every=2)
  for only in ((), ("optax/",)):
    docstrings.packed_rows(
      str(tokenizer_folder), 64, "held_out", only=only, **more
    )
  every, some = seen
  assert some < every and len(some) > 3
  of = {d.text: d.source for d in docstrings.corpus(packages)}
  assert all(of[x].startswith("optax/") for x in some)
  assert not any(of[x].startswith("optax/") for x in every - some)
  with pytest.raises(ValueError, match=r"only: expected .*'optax/x'"):
    docstrings.packed_rows(str(tokenizer_folder), 64, only=("optax/x",), **more)
