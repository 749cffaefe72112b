"""Takes files apart: pictures, archives, encoded texts, safetensors headers.

No input is trusted: reading stops where a file is damaged, and what it unpacks
to is bounded. Unlike the safetensors reader that `verify` uses, this one goes
on where a file breaks the format, because that may be what leaks.
"""

import base64
import binascii
import bz2
from collections.abc import Iterator
import contextlib
import gzip
import io
import json
import lzma
import os
from pathlib import Path
import re
import struct
from typing import Any, NamedTuple
import zipfile
import zlib

MOST_UNPACKED = 16 << 20  # Bytes out of one compressed part.
_MOST_MEMBERS = 1000
_LEAST_RUN = 8  # Letters in a row, which are rare in packed bytes.
AFTER_END = "after the end of the picture"
_PNG = b"\x89PNG\r\n\x1a\n"
# Chunks of a PNG that hold no text.
_DRAWN = set(b"IHDR PLTE IDAT IEND tRNS gAMA sRGB pHYs bKGD sBIT cHRM".split())
_MOST_HEADER = 100_000_000  # Bytes; the limit of the safetensors format.
_MOST_HIDDEN = 16 << 20  # Bytes that are read from each hole.
_MOST_SMALL = 1 << 20  # Bytes of a tensor that may be a text.
_FIELDS = ("shape", "data_offsets")

# Exceptions of the libraries for damaged archives.
_DAMAGED = (
  zipfile.BadZipFile,
  zlib.error,
  lzma.LZMAError,
  OSError,
  EOFError,
  RuntimeError,
  ValueError,
)

Piece = tuple[str, bytes]  # Place and bytes.

_ENCODED = re.compile(
  r"(?<![A-Za-z0-9+/_=-])[A-Za-z0-9+/_-]{10,}={0,6}(?![A-Za-z0-9+/_=-])"
)
_HEX = re.compile(r"(?:0x)?((?:[0-9A-Fa-f]{2}){4,})")
_BASE_32 = re.compile(r"[A-Z2-7]{13,}={0,6}")


def pieces(data: bytes) -> Iterator[Piece] | None:
  """Returns the parts of a known file format that may hold text, or None."""
  if data.startswith(_PNG):
    return _png(data)
  if data.startswith(b"\xff\xd8\xff"):
    return _jpeg(data)
  if data.startswith(b"PK\x03\x04"):
    return _zip(data)
  packed = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
  }
  for magic, opened in packed.items():
    if data.startswith(magic):
      return _unpacked(opened(io.BytesIO(data)), data)
  return None


def encoded(text: str) -> Iterator[tuple[int, str, bytes]]:
  """Yields (offset, encoding, bytes) for possible base64, base32 and hex."""
  for match in _ENCODED.finditer(text):
    word = match[0]
    if hexadecimal := _HEX.fullmatch(word):
      yield match.start(), "hexadecimal", bytes.fromhex(hexadecimal[1])
    if _BASE_32.fullmatch(word):
      with contextlib.suppress(binascii.Error):
        whole = word.rstrip("=")
        data = base64.b32decode(whole + "=" * (-len(whole) % 8))
        yield match.start(), "base32", data
    whole = word.rstrip("=").replace("-", "+").replace("_", "/")
    if len(whole) % 4 != 1:
      with contextlib.suppress(binascii.Error):
        data = base64.b64decode(whole + "=" * (-len(whole) % 4))
        yield match.start(), "base64", data


def readable(data: bytes) -> str | None:
  """Decodes bytes that are text, else returns None."""
  if len(data) < 3:
    return None
  for encoding in ("utf-8", "utf-16-le"):
    try:
      text = data.decode(encoding)
    except UnicodeDecodeError:
      continue
    # In UTF-16, half of all byte pairs are letters of some script.
    if encoding != "utf-8" and not text.isascii():
      continue
    if all(c.isprintable() or c in "\n\r\t" for c in text):
      return text
  return None


def strings(data: bytes) -> str:
  """Returns the runs of printable ASCII in bytes, one per line."""
  runs = [m.decode("ascii") for m in re.findall(rb"[\x20-\x7e]{4,}", data)]
  for first in (rb"[\x20-\x7e]\x00", rb"\x00[\x20-\x7e]"):
    for match in re.findall(rb"(?:" + first + rb"){4,}", data):
      runs.append(match.replace(b"\0", b"").decode("ascii"))
  return "\n".join(runs)


def _png(data: bytes) -> Iterator[Piece]:
  """Yields the chunks that may hold text, and what follows the end."""
  place = len(_PNG)
  while place + 8 <= len(data):
    length, kind = struct.unpack_from(">I4s", data, place)
    body = data[place + 8 : place + 8 + length]
    place += 12 + length
    name = kind.decode("latin-1")
    if kind in (b"zTXt", b"iCCP"):
      key, _, packed = body.partition(b"\0")
      yield f"chunk {name}", key + b": " + _inflated(packed[1:])
    elif kind == b"iTXt":
      key, _, rest = body.partition(b"\0")
      packed, rest = rest[:1] == b"\1", rest[2:]
      text = rest.split(b"\0", 2)[-1]
      text = _inflated(text) if packed else text
      yield f"chunk {name}", key + b": " + text
    elif kind == b"tIME" and len(body) == 7:
      parts = struct.unpack(">H5B", body)
      text = "{}-{:02}-{:02} {:02}:{:02}:{:02}".format(*parts)
      yield "chunk tIME", text.encode()
    elif kind == b"tEXt":
      yield f"chunk {name}", body.replace(b"\0", b": ", 1)
    elif kind not in _DRAWN:
      yield f"chunk {name}", body
    if kind == b"IEND":
      break
  if data[place:]:
    yield AFTER_END, data[place:]


def _jpeg(data: bytes) -> Iterator[Piece]:
  """Yields comments, application segments, and what follows the end."""
  place = 2
  while place + 4 <= len(data) and data[place] == 0xFF:
    marker = data[place + 1]
    length = int.from_bytes(data[place + 2 : place + 4])
    if marker == 0xDA:
      break
    if marker == 0xFE or 0xE0 <= marker <= 0xEF:
      yield f"segment {marker:02X}", data[place + 4 : place + 2 + length]
    place += 2 + length
  end = data.rfind(b"\xff\xd9")
  if end >= 0 and data[end + 2 :]:
    yield AFTER_END, data[end + 2 :]


def _zip(data: bytes) -> Iterator[Piece]:
  try:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
      yield "comment of the archive", archive.comment
      left = MOST_UNPACKED
      for member in archive.infolist()[:_MOST_MEMBERS]:
        day = "{}-{:02}-{:02}".format(*member.date_time[:3])
        yield "member", f"{member.filename}\n{day}".encode()
        yield f"comment of {member.filename}", member.comment
        with archive.open(member) as file:
          body = file.read(left)
        left -= len(body)
        yield f"member {member.filename}", body
  except _DAMAGED as e:
    yield f"archive ({type(e).__name__})", strings(data).encode()


def _unpacked(file, packed: bytes) -> Iterator[Piece]:
  name = getattr(file, "name", None)
  if isinstance(name, str):
    yield "name of what is packed", name.encode()
  # Names in the header and bytes after the end are not packed.
  if runs := [x for x in strings(packed).split("\n") if len(x) >= _LEAST_RUN]:
    yield "beside what is packed", "\n".join(runs).encode()
  parts = []
  with contextlib.suppress(*_DAMAGED):
    left = MOST_UNPACKED
    while left and (part := file.read(min(left, 1 << 20))):
      parts.append(part)
      left -= len(part)
  yield "unpacked", b"".join(parts)


def _inflated(packed: bytes) -> bytes:
  with contextlib.suppress(zlib.error):
    return zlib.decompressobj().decompress(packed, MOST_UNPACKED)
  return packed


class Tensor(NamedTuple):
  """One entry of a safetensors header."""

  name: str
  dtype: str
  shape: tuple[int, ...]
  start: int  # In the file, bytes.
  stop: int


class Header(NamedTuple):
  """The contents of a safetensors file other than numbers.

  Attributes:
    metadata: everything in the header that is not a tensor.
    tensors: in the order of the header.
    hidden: (place, bytes) that belong to no tensor.
    small: (place, bytes) of small tensors of bytes, which may be texts.
  """

  metadata: dict[str, Any]
  tensors: tuple[Tensor, ...]
  hidden: tuple[tuple[str, bytes], ...]
  small: tuple[tuple[str, bytes], ...]


def read_safetensors(path: Path) -> Header | str:
  """Returns the header of a file, or why it has none."""
  size = path.stat().st_size
  with open(path, "rb") as file:
    first = file.read(8)
    if len(first) < 8:
      return "it is shorter than a header"
    (length,) = struct.unpack("<Q", first)
    if length > min(size - 8, _MOST_HEADER):
      return "its header is longer than the file"
    try:
      pairs = json.loads(file.read(length), object_pairs_hook=list)
    except (ValueError, RecursionError):
      return "its header is not JSON"
    if not _is_object(pairs):
      return "its header is not an object"
    metadata, tensors = _sorted_out(pairs, 8 + length)
    hidden = tuple(_hidden(file, tensors, 8 + length, size))
    small = tuple(_small(file, tensors, size))
    return Header(metadata, tuple(tensors), hidden, small)


def _is_object(value: Any) -> bool:
  """Whether a value read with pairs as lists is an object."""
  return isinstance(value, list) and all(isinstance(x, tuple) for x in value)


def _sorted_out(pairs, begin: int) -> tuple[dict[str, Any], list[Tensor]]:
  metadata, found, names = {}, [], set()
  for name, value in pairs:
    fields: dict[str, Any] = dict(value) if _is_object(value) else {}
    shape: Any = fields.get("shape")
    offsets: Any = fields.get("data_offsets")
    if name in names:  # A reader would see only one of the two.
      metadata[f"{name} (again)"] = value
    elif _are_sizes(shape, 0) and _are_sizes(offsets, 2):
      dtype = str(fields.pop("dtype", ""))
      places = [begin + offset for offset in offsets]
      found.append(Tensor(name, dtype, tuple(shape), *places))
      if more := {k: v for k, v in fields.items() if k not in _FIELDS}:
        metadata[name] = more
    else:
      metadata[name] = fields or value
    names.add(name)
  return metadata, found


def _are_sizes(value: Any, number: int) -> bool:
  """Whether it is a list of sizes, of any length if `number` is 0."""
  return (
    isinstance(value, list)
    and number in (0, len(value))
    and all(type(x) is int and 0 <= x < 2**62 for x in value)
  )


def _hidden(file, tensors, begin: int, size: int):
  end = begin
  for tensor in sorted(tensors, key=lambda x: (x.start, x.stop)):
    if tensor.start > end:
      yield f"before tensor {tensor.name}", _bytes(file, end, tensor.start)
    end = max(end, tensor.stop)
  if size > end:
    yield "after the last tensor", _bytes(file, end, size)


def _bytes(file, start: int, stop: int) -> bytes:
  file.seek(start, os.SEEK_SET)
  return file.read(min(stop - start, _MOST_HIDDEN))


def _small(file, tensors, size: int):
  for tensor in tensors:
    length = tensor.stop - tensor.start
    if tensor.dtype in ("I8", "U8") and 0 < length <= _MOST_SMALL:
      data = _bytes(file, tensor.start, min(tensor.stop, size))
      yield f"bytes of tensor {tensor.name}", data
