"""The demo's corpus: docstrings and documentation of installed packages.

Real prose and code under permissive licences that needs no download beyond the
pinned dependencies: matplotlib (a PSF-style licence), ml_collections and optax
(Apache-2.0), numpy (BSD-3-Clause and compatible) and rich (MIT). The packages
are read as files and never imported.

Letters: L tokens of a row.
"""

import ast
from collections.abc import Iterator, Sequence
import functools
import gc
import hashlib
import importlib.metadata
from pathlib import PurePosixPath
from typing import NamedTuple
import warnings

import grain

from analogjax.data import text as text_lib

PACKAGES = ("matplotlib", "ml_collections", "numpy", "optax", "rich")
# For the versions in constraints.txt.
SHA256 = "0afe7968ca3aa4fb6439f9b45b9e77db56bd869dfa07b86e7a738028b8f0608a"

_PROSE = (".md", ".rst", ".txt")
# Written when a wheel is built, so they differ between platforms.
_GENERATED = ("__config__.py", "_version.py", "version.py")
# numpy.distutils comes with numpy on Python 3.11 only.
_SKIPPED_FOLDERS = ("tests", "testing", "distutils", "sample_data", "fonts")
_SKIPPED_NAMES = ("license", "copying", "notice", "authors", "conftest", "test")
_MIN_CHARS = 200
_MAX_CHARS = 4000


class Document(NamedTuple):
  """One document of the corpus."""

  source: str  # The file it is from, e.g. "numpy/linalg/_linalg.py".
  text: str


def packed_rows(
  tokenizer: str,
  L: int,
  split: str = "train",
  *,
  packages: Sequence[str] = PACKAGES,
  sha256: str = SHA256,
  end_token: str = "<|endoftext|>",
  held_out_every: int = 8,
  seed: int = 0,
  num_threads: int = 2,
  only: Sequence[str] = (),
) -> grain.IterDataset:
  """Packed rows of the documentation of installed packages.

  Args:
    tokenizer: a tokenizer.json, or the folder that holds it.
    split: "train", "held_out" or "all". All documents of a file are on the same
      side, and no docstring is on both.
    sha256: expected `corpus_digest`; empty accepts any text.
    held_out_every: one in this many files is held out.
    seed: of the order of the documents. Any first part is a fair sample.
    num_threads: threads that tokenise ahead of the reader.
    only: prefix of the sources that are used, e.g. "numpy/"; empty: all. It
      does not affect the sides, nor which docstring counts.

  Raises:
    ValueError: the corpus differs from `sha256`, or `only` matches nothing.
  """
  text_lib.check_split(split, held_out_every)
  documents = corpus(tuple(sorted(set(packages))))
  found = corpus_digest(documents)
  if sha256 and found != sha256:
    versions = ", ".join(
      f"{p}=={importlib.metadata.version(p)}" for p in packages
    )
    raise ValueError(
      "config.data.arguments.sha256: the demo's corpus is not the expected "
      f"one: expected {sha256}, found {found}, from {versions}. Install the "
      "versions pinned in constraints.txt, or set data.arguments.sha256='' "
      "to accept this text."
    )
  texts = [
    d.text
    for d in documents
    if text_lib.in_split(d.source, split, held_out_every)
    if not only or d.source.startswith(tuple(only))
  ]
  if not texts:
    raise ValueError(
      f"config.data.arguments.only: expected how sources begin, e.g. 'numpy/';"
      f" found {tuple(only)}, and no document of split {split!r} is there."
    )
  return text_lib.pack(
    grain.MapDataset.source(text_lib.shuffled(texts, seed)),
    tokenizer,
    L,
    end_token,
    num_threads=num_threads,
  )


# Two splits are opened one after the other, and parsing takes a second or two.
@functools.lru_cache(maxsize=2)
def corpus(packages: tuple[str, ...] = PACKAGES) -> tuple[Document, ...]:
  """The documents of the installed packages, ordered by file.

  A docstring that occurs more than once counts at its first occurrence.
  """
  files = (file for p in packages for file in _installed_files(p))
  # Syntax trees hold no cycles, and searching for some doubles the time.
  collecting = gc.isenabled()
  gc.disable()
  try:
    return tuple(to_documents(files))
  finally:
    if collecting:
      gc.enable()


def corpus_digest(documents: Sequence[Document]) -> str:
  """SHA-256, in hex, over the sorted documents with their lengths."""
  h = hashlib.sha256()
  for document in sorted(documents):
    for part in document:
      data = part.encode()
      h.update(len(data).to_bytes(8, "little"))
      h.update(data)
  return h.hexdigest()


def to_documents(files: Iterator[tuple[str, bytes]]) -> Iterator[Document]:
  """The documents in files, given as (posix path, content)."""
  seen = set[str]()
  for path, content in files:
    source = content.decode("utf-8")
    if path.endswith(".py"):
      pieces = _docstrings(source, path)
    else:
      pieces = [_clean(source)]
    new = []
    for piece in pieces:
      if piece and piece not in seen:
        seen.add(piece)
        new.append(piece)
    for text in _join(new):
      if len(text) >= _MIN_CHARS:
        yield Document(path, text)


def _installed_files(package: str) -> list[tuple[str, bytes]]:
  try:
    distribution = importlib.metadata.distribution(package)
  except importlib.metadata.PackageNotFoundError as e:
    raise ValueError(
      f"config.data.arguments.packages: {package!r} is not installed. "
      f"Install it in the version pinned in constraints.txt."
    ) from e
  if not distribution.files:
    raise ValueError(
      f"config.data.arguments.packages: {package!r} is installed without a "
      "list of its files. Install it with pip."
    )
  read = []
  for path in sorted(f.as_posix() for f in distribution.files):
    if is_document(path):
      located = distribution.locate_file(path)
      try:
        with open(str(located), "rb") as f:
          read.append((path, f.read()))
      except OSError as e:
        raise ValueError(
          f"config.data.arguments.packages: {package!r} lacks its file "
          f"{path}: {e}. Install it again."
        ) from e
  return read


def is_document(path: str) -> bool:
  """Whether a file of a package, by its posix path, holds documentation."""
  *folders, name = PurePosixPath(path).parts
  if any(f in _SKIPPED_FOLDERS or f.endswith("-info") for f in folders):
    return False
  if ".." in folders or name in _GENERATED:
    return False
  if name.lower().startswith(_SKIPPED_NAMES) or name.endswith("_test.py"):
    return False
  return name.endswith((".py", *_PROSE))


def _docstrings(source: str, path: str) -> list[str]:
  """The docstrings of a module, its classes and functions, in source order."""
  with warnings.catch_warnings():
    warnings.simplefilter(
      "ignore", SyntaxWarning
    )  # "\d" in other people's code.
    warnings.simplefilter("ignore", DeprecationWarning)  # The same, on 3.11.
    try:
      module = ast.parse(source)
    except SyntaxError as e:
      raise ValueError(
        f"config.data.arguments.packages: cannot parse {path}: {e}."
      ) from e
  found = []

  def visit(node: ast.AST) -> None:
    if isinstance(
      node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    ):
      raw = ast.get_docstring(node, clean=False)
      if raw:
        found.append(_clean(raw))
    for child in ast.iter_child_nodes(node):
      if isinstance(child, (ast.stmt, ast.ExceptHandler)):
        visit(child)

  visit(module)
  return found


def _clean(text: str) -> str:
  """The text without common indentation, trailing spaces and outer blank lines.

  It also removes the carriage returns of wheels for Windows. Not
  inspect.cleandoc, which changed with Python 3.13.
  """
  first, *rest = text.expandtabs().split("\n")
  indents = [len(s) - len(s.lstrip(" ")) for s in rest if s.strip()]
  margin = min(indents, default=0)
  lines = [first.lstrip(" "), *(s[margin:] for s in rest)]
  return "\n".join(s.rstrip() for s in lines).strip("\n")


def _join(pieces: Sequence[str]) -> Iterator[str]:
  """Texts of up to _MAX_CHARS: pieces joined, long ones cut at blank lines.

  Some files hold 100 times as much text as others; without a bound the first
  rows of a shuffle would all be from one file.
  """
  text = ""
  for piece in pieces:
    parts = [piece] if len(piece) <= _MAX_CHARS else piece.split("\n\n")
    for i, part in enumerate(parts):
      gap = "\n\n" if i else "\n\n\n"  # The wider separator between docstrings.
      if text and len(text) + len(gap) + len(part) > _MAX_CHARS:
        yield text
        text = part
      else:
        text = text + gap + part if text else part
  if text:
    yield text
