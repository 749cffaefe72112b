"""Every byte of a folder that says something, as pages of text.

Weights are not text: of safetensors files the header is read, and what is
between the tensors and behind them. Everything else is read whole. A file that
is no file, or too large to read, is a finding by itself.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import json
import os
from pathlib import Path
import stat
from typing import Any

from analogjax.leaks import containers, tensors
from analogjax.leaks.secrets import Leak

MOST_TEXT = 256 << 20  # Bytes of a file that is read whole.
_MOST_DEPTH = 3  # Of encodings within encodings.
_LONG_ENTRY = 32  # Characters; no more than this is a word of a vocabulary.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt")


class Pairs(list):
  """A JSON object as (key, value) pairs; of a key that is there twice, both."""

  def get(self, key: str) -> Any:
    return next((value for name, value in self if name == key), None)


@dataclasses.dataclass(frozen=True)
class Page:
  """One text of a file.

  Attributes:
    file: path in the folder.
    text: as it stands; of JSON a line for each value, its keys before it.
    places: where each line is; where there are fewer, the last holds for all
      after it. Empty: by the number of the line.
    inside: where in the file all of this is, or "".
    binary: the text is what is printable among bytes of an unknown kind.
    value: of JSON, what it holds.
    vocabulary: entries of a tokenizer's.
    header: of a safetensors file.
    found: what reading alone found.
  """

  file: str
  text: str = ""
  places: tuple[str, ...] = ()
  inside: str = ""
  binary: bool = False
  value: Any = None
  vocabulary: tuple[str, ...] = ()
  header: tensors.Header | None = None
  found: tuple[Leak, ...] = ()

  def where(self, line: int) -> str:
    """The place of a line, counted from 0."""
    if self.places:
      place = self.places[min(line, len(self.places) - 1)]
    else:
      place = f"line {line + 1}"
    return f"{self.inside}, {place}" if self.inside else place


def pages(folder: Path) -> Iterator[Page]:
  """Pages of every file below a folder, in the order of their names.

  Raises:
    ValueError: there is no such folder.
  """
  if not folder.is_dir():
    raise ValueError(
      f"{folder}: expected a folder to look for leaks in; there is none."
    )
  for root, folders, files in os.walk(folder):
    folders.sort()
    links = [name for name in folders if (Path(root) / name).is_symlink()]
    for name in sorted([*files, *links]):
      path = Path(root) / name
      # Names may hold bytes that are no text.
      file = os.fsencode(path.relative_to(folder)).decode("utf-8", "replace")
      yield Page(file, file, ("name of the file",))
      yield from _file(path, file)


def _file(path: Path, file: str) -> Iterator[Page]:
  try:
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
      yield Page(file, os.readlink(path), ("target of the link",))
      yield _unread(file, "is a link; what it leads to is not in the folder")
    elif not stat.S_ISREG(found.st_mode):
      yield _unread(file, "is no regular file")
    elif path.suffix == ".safetensors":
      yield from _safetensors(path, file)
    elif found.st_size > MOST_TEXT:
      yield _unread(
        file, f"has {found.st_size:,} bytes; {MOST_TEXT:,} are read of a file"
      )
    else:
      yield from of_bytes(file, path.read_bytes())
  except OSError as error:
    yield _unread(file, f"cannot be read: {error.strerror}")


def _unread(file: str, why: str) -> Page:
  return Page(file, found=(Leak("unread", file, "", f"{file!r} {why}"),))


def _safetensors(path: Path, file: str) -> Iterator[Page]:
  header = tensors.read(path)
  if isinstance(header, str):
    what = f"not read as safetensors ({header}), so its letters are"
    yield Page(file, found=(Leak("unread", file, "", f"{file!r}: {what}"),))
    with open(path, "rb") as opened:
      yield from of_bytes(file, opened.read(MOST_TEXT))
    return
  yield from _flattened(file, header.metadata, "header")
  yield Page(
    file,
    "\n".join(f"{x.name} {x.dtype}" for x in header.tensors),
    tuple(f"tensor {x.name}" for x in header.tensors),
    header=header,
  )
  for where, data in header.hidden:
    what = f"{len(data):,} bytes {where} belong to no tensor"
    yield Page(file, found=(Leak("hidden bytes", file, where, what),))
    yield from of_bytes(file, data, where, 1)
  for where, data in header.small:
    text = containers.readable(data.strip(b"\0"))
    if text:
      yield Page(file, text, inside=where)


def of_bytes(
  file: str, data: bytes, inside: str = "", depth: int = 0
) -> Iterator[Page]:
  """Pages of a file, or of a part of one, from its bytes."""
  if depth > _MOST_DEPTH or not data:
    return
  parts = containers.pieces(data)
  if parts is not None:
    for where, part in parts:
      place = f"{inside}, {where}" if inside else where
      if where.startswith("behind"):
        what = f"{len(part):,} bytes are {where}"
        yield Page(file, found=(Leak("hidden bytes", file, place, what),))
      yield from of_bytes(file, part, place, depth + 1)
    return
  text = _text(data)
  if text is None:
    runs = containers.strings(data)
    yield Page(file, runs, ("among bytes",), inside, binary=True)
    return
  found = list(_json_pages(file, text, inside))
  yield from found or [Page(file, text, inside=inside)]


def _text(data: bytes) -> str | None:
  encodings = {
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    b"\xef\xbb\xbf": "utf-8-sig",
  }
  for mark, encoding in encodings.items():
    if data.startswith(mark):
      return data.decode(encoding, "replace")
  try:
    text = data.decode("utf-8")
  except UnicodeDecodeError:
    return None
  return None if "\0" in text else text


def _json_pages(file: str, text: str, inside: str) -> Iterator[Page]:
  if text.lstrip()[:1] not in ("{", "["):
    return
  name = file.rpartition("/")[2]
  value = _parsed(text)
  if value is not None:
    if name in _VOCABULARIES:
      value, vocabulary = _without_vocabulary(value)
      yield from _vocabulary_pages(file, vocabulary)
    yield from _flattened(file, value, inside)
    return
  values = [_parsed(line) for line in text.splitlines() if line.strip()]
  if len(values) > 1 and all(value is not None for value in values):
    yield from _flattened(file, values, inside)


def _parsed(text: str) -> Any:
  try:
    return json.loads(text, object_pairs_hook=Pairs)
  except (ValueError, RecursionError):
    return None


def _flattened(file: str, value: Any, inside: str) -> Iterator[Page]:
  """One page of a JSON value: a line for each number and text in it."""
  lines, places = [], []
  for path, keys, leaf in _leaves(value):
    text = leaf if isinstance(leaf, str) else json.dumps(leaf)
    lines.append(f"{keys}: {text}")
    places += [path] * (lines[-1].count("\n") + 1)
  yield Page(file, "\n".join(lines), tuple(places), inside, value=value)


def _leaves(value: Any) -> Iterator[tuple[str, str, Any]]:
  """(path, keys without numbers of items, value) of all in a JSON value."""
  waiting = [("", "", value)]
  while waiting:
    path, keys, found = waiting.pop()
    if isinstance(found, Pairs | Mapping):
      pairs = found.items() if isinstance(found, Mapping) else found
      children = [
        (f"{path}.{key}" if path else key, f"{keys}.{key}" if keys else key, x)
        for key, x in pairs
      ]
      if not children:
        yield path, keys, ""
    elif isinstance(found, list):
      if 2 <= len(found) <= 4 and all(type(x) is int for x in found):
        yield path, keys, "x".join(map(str, found))  # A shape, perhaps.
      children = [
        (f"{path}[{i}]", keys if keys.endswith("[]") else f"{keys}[]", x)
        for i, x in enumerate(found)
      ]
    else:
      yield path, keys, found
      continue
    waiting += reversed(children)


def _without_vocabulary(value: Any) -> tuple[Any, list[str]]:
  """The rest of a tokenizer, and its words and merges.

  Ids and words of a vocabulary are shared with the frontier model by design.
  """
  words: list[str] = []

  def strip(node: Any) -> Any:
    if not isinstance(node, Pairs):
      return node
    kept = Pairs()
    for key, inner in node:
      if key in ("vocab", "merges"):
        words.extend(_words_of(inner))
      else:
        kept.append((key, strip(inner) if key == "model" else inner))
    return kept

  if isinstance(value, Pairs) and value.get("model") is None:
    return Pairs(), _words_of(value)
  return strip(value), words


def _words_of(node: Any) -> list[str]:
  if isinstance(node, Pairs):
    return [str(key) for key, _ in node]
  if isinstance(node, list):
    parts = [x if isinstance(x, list) else [x] for x in node]
    return [" ".join(x for x in part if isinstance(x, str)) for part in parts]
  return []


def _vocabulary_pages(file: str, words: list[str]) -> Iterator[Page]:
  long = [word for word in words if len(word) > _LONG_ENTRY]
  yield Page(file, "\n".join(long), ("vocabulary",))
  yield Page(file, vocabulary=tuple(words))
