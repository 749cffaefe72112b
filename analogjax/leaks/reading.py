"""Reads every file of a folder as pages of plain text.

Weights are not text: of a safetensors file the header is read, and the bytes
between and after the tensors. All other files are read whole. A link, a device
or a file that is too large is a finding by itself.

`plain` turns look-alike letters, invisible characters and digits of other
scripts into the ASCII that they look like; `decoded` removes markup and the
escapes of HTML, URLs and JSON.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import html
import json
import os
from pathlib import Path
import re
import stat
from typing import Any
import unicodedata
import urllib.parse

from analogjax.leaks import containers
from analogjax.leaks.secrets import Leak

MOST_TEXT = 256 << 20  # Bytes of a file that is read whole.
_MOST_DEPTH = 3  # Archives within archives.
_LONG_ENTRY = 32  # Characters; a longer entry of a vocabulary is a text.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt")

# Cyrillic and Greek letters that look like Latin ones: the common part of the
# confusables of Unicode UTS #39.
_CONFUSABLE = (
  "\u0430\u0432\u0435\u043a\u043c\u043d\u043e\u0440\u0441\u0442\u0443\u0445"
  "\u0456\u0458\u0455\u0501\u051b\u0410\u0412\u0415\u041a\u041c\u041d\u041e"
  "\u0420\u0421\u0422\u0423\u0425\u0406\u0408\u0405\u03b1\u03b5\u03b9\u03ba"
  "\u03bd\u03bf\u03c1\u03c4\u03c5\u03c7\u0391\u0392\u0395\u0396\u0397\u0399"
  "\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7\u0131\u0261"
)
_LATIN = "abekmhopctyxijsdqABEKMHOPCTYXIJSaeikvoptuxABEZHIKMNOPTYXig"
_LOOK_ALIKE = dict(zip(_CONFUSABLE, _LATIN, strict=True)) | {"\u03b2": "beta"}
_SUPERSCRIPTS = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"
_SUPERSCRIPT = re.compile(f"[{_SUPERSCRIPTS}]+")
_INLINE_TAG = re.compile(
  r"</?(?:a|abbr|b|code|em|font|i|mark|s|small|span|strong|sub|sup|u|wbr)"
  r"(?:\s[^<>]{0,400})?/?>",
  re.I,
)
_BLOCK_TAG = re.compile(
  r"</(?:p|tr|li|h\d|div|table|text|title)\s*>|<br\s*/?>", re.I
)
_OTHER_TAG = re.compile(r"</?[A-Za-z][^<>]{0,2000}>")
_CODE_POINT = re.compile(
  r"\\(?:u\{?|U0000|x)([0-9A-Fa-f]{4}|[0-9A-Fa-f]{2})\}?"
)
_QUOTED_PRINTABLE = re.compile(r"(?:=[0-9A-F]{2}){3,}")
_MARKS = re.compile(r"\*\*|``?|\\(?=[^\w\s])")
# Attributes of drawings, whose numbers are positions.
_GEOMETRY = re.compile(
  r"\s(?:[xy][12]?|c[xy]|r[xy]?|d[xy]?|points|width|height|viewBox|transform"
  r"|style|stroke-\w+|font-size|offset)\s*=\s*(?:\"[^\"]*\"|'[^']*')"
)


class Pairs(list):
  """A JSON object as (key, value) pairs, which keeps repeated keys."""

  def get(self, key: str) -> Any:
    return next((value for name, value in self if name == key), None)


@dataclasses.dataclass(frozen=True)
class Page:
  """One text of a file.

  Attributes:
    file: path in the folder.
    text: as written; for JSON, one line for each value, after its keys.
    places: the place of each line; the last one also holds for all further
      lines. Empty: places are line numbers.
    inside: the part of the file that the text is from, or "".
    binary: whether the text is what is printable in bytes of unknown kind.
    value: the value of a JSON text.
    vocabulary: the entries of a tokenizer.
    header: the header of a safetensors file.
    found: findings from reading alone.
  """

  file: str
  text: str = ""
  places: tuple[str, ...] = ()
  inside: str = ""
  binary: bool = False
  value: Any = None
  vocabulary: tuple[str, ...] = ()
  header: containers.Header | None = None
  found: tuple[Leak, ...] = ()

  def where(self, line: int) -> str:
    """Returns the place of a line, counted from 0."""
    if self.places:
      place = self.places[min(line, len(self.places) - 1)]
    else:
      place = f"line {line + 1}"
    return f"{self.inside}, {place}" if self.inside else place


def pages(folder: Path) -> Iterator[Page]:
  """Yields the pages of every file below a folder, in the order of names.

  Raises:
    ValueError: the folder does not exist.
  """
  if not folder.is_dir():
    raise ValueError(
      f"{folder}: expected a folder to look for leaks in; it does not exist."
    )
  for root, folders, files in os.walk(folder):
    folders.sort()
    links = [name for name in folders if (Path(root) / name).is_symlink()]
    for name in sorted([*files, *links]):
      path = Path(root) / name
      # Names may hold bytes that are not text.
      file = os.fsencode(path.relative_to(folder)).decode("utf-8", "replace")
      yield Page(file, file, ("name of the file",))
      yield from _file(path, file)


def _file(path: Path, file: str) -> Iterator[Page]:
  try:
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
      yield Page(file, os.readlink(path), ("target of the link",))
      yield _unread(file, "is a link, whose target is not in the folder")
    elif not stat.S_ISREG(found.st_mode):
      yield _unread(file, "is not a regular file")
    elif path.suffix == ".safetensors":
      yield from _safetensors(path, file)
    elif found.st_size > MOST_TEXT:
      yield _unread(
        file, f"has {found.st_size:,} bytes; at most {MOST_TEXT:,} are read"
      )
    else:
      yield from of_bytes(file, path.read_bytes())
  except OSError as error:
    yield _unread(file, f"cannot be read: {error.strerror}")


def _unread(file: str, why: str) -> Page:
  return Page(file, found=(Leak("unread", file, "", f"{file!r} {why}"),))


def _safetensors(path: Path, file: str) -> Iterator[Page]:
  header = containers.read_safetensors(path)
  if isinstance(header, str):
    yield _unread(file, f"is not safetensors ({header}); its text is read")
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
  """Yields the pages of a file, or of a part of one, from its bytes."""
  if depth > _MOST_DEPTH or not data:
    return
  parts = containers.pieces(data)
  if parts is not None:
    for where, part in parts:
      place = f"{inside}, {where}" if inside else where
      if where == containers.AFTER_END:
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
  """Yields a page with one line for each number and text of a JSON value."""
  lines, places = [], []
  for path, keys, leaf in _leaves(value):
    text = leaf if isinstance(leaf, str) else json.dumps(leaf)
    lines.append(f"{keys}: {text}")
    places += [path] * (lines[-1].count("\n") + 1)
  yield Page(file, "\n".join(lines), tuple(places), inside, value=value)


def _leaves(value: Any) -> Iterator[tuple[str, str, Any]]:
  """Yields (path, keys without indices, value) for all in a JSON value."""
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
  """Returns a tokenizer without its vocabulary, and the vocabulary's words.

  Both models share ids and words by design.
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


def plain(text: str) -> str:
  """Replaces each character by the ASCII that it looks like; keeps lines."""
  if text.isascii():
    return text
  text = _SUPERSCRIPT.sub(
    lambda m: "^" + "".join(str(_SUPERSCRIPTS.index(c)) for c in m[0]), text
  )
  # Each character is looked up once: texts are long, alphabets short.
  table = {ord(c): _letter(c) for c in set(text) if not c.isascii()}
  return text.translate(table)


def _letter(character: str) -> str:
  if character in _LOOK_ALIKE:
    return _LOOK_ALIKE[character]
  parts = []
  for c in unicodedata.normalize("NFKD", character):
    category = unicodedata.category(c)
    if category in ("Cf", "Mn", "Me"):
      continue
    if category == "Nd":
      c = str(unicodedata.digit(c))
    elif category == "Zs":
      c = " "
    elif category == "Pd" or c == "\u2212":
      c = "-"
    elif c in "\u2018\u2019\u02bc":
      c = "'"
    parts.append(_LOOK_ALIKE.get(c, c))
  return "".join(parts)


def decoded(text: str) -> str:
  """Removes markup and escapes: HTML, Markdown, URLs, code points."""
  text = text.replace("<!--", "\f").replace("-->", "\f")
  # A form feed separates passages without adding a line, so places stay.
  text = _BLOCK_TAG.sub("\f", _INLINE_TAG.sub("", text))
  text = _OTHER_TAG.sub(lambda m: " " + "\n" * m[0].count("\n"), text)
  text = html.unescape(text)
  text = _CODE_POINT.sub(lambda m: chr(int(m[1], 16)), text)
  text = _QUOTED_PRINTABLE.sub(
    lambda m: bytes.fromhex(m[0].replace("=", "")).decode("latin-1"), text
  )
  if "%" in text:
    text = urllib.parse.unquote(text, errors="replace")
  return plain(_MARKS.sub("", text))


def without_geometry(text: str) -> str:
  """Removes the attributes of drawings that hold positions; keeps lines."""
  return _GEOMETRY.sub(lambda m: " " + "\n" * m[0].count("\n"), text)
