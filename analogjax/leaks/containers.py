"""What is inside of bytes: chunks of pictures, compressed parts, encodings.

Nothing here trusts its input: what is damaged ends, what unpacks is bounded.
"""

import base64
import binascii
import bz2
from collections.abc import Iterator
import contextlib
import gzip
import io
import lzma
import re
import struct
import zipfile
import zlib

MOST_UNPACKED = 16 << 20  # Bytes out of one compressed part.
_MOST_MEMBERS = 1000
_LEAST_RUN = 8  # Letters in a row, which packed bytes seldom are.
_PNG = b"\x89PNG\r\n\x1a\n"
_DRAWN = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"sRGB"}
_DRAWN |= {b"pHYs", b"bKGD", b"sBIT", b"cHRM"}

Piece = tuple[str, bytes]  # Where it was, and its bytes.

_ENCODED = re.compile(
  r"(?<![A-Za-z0-9+/_=-])[A-Za-z0-9+/_-]{10,}={0,6}(?![A-Za-z0-9+/_=-])"
)
_HEX = re.compile(r"(?:0x)?((?:[0-9A-Fa-f]{2}){4,})")
_BASE_32 = re.compile(r"[A-Z2-7]{13,}={0,6}")


def pieces(data: bytes) -> Iterator[Piece] | None:
  """The parts of a file of a known kind that hold words, or None."""
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
  """(offset, encoding, bytes) of what may be base64, base32 or hexadecimal."""
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
  """The text that bytes are, or None."""
  if len(data) < 3:
    return None
  for encoding in ("utf-8", "utf-16-le"):
    try:
      text = data.decode(encoding)
    except UnicodeDecodeError:
      continue
    # Half of all bytes are letters in UTF-16 of some script or other.
    if encoding != "utf-8" and not text.isascii():
      continue
    if all(c.isprintable() or c in "\n\r\t" for c in text):
      return text
  return None


def strings(data: bytes) -> str:
  """Runs of printable letters in bytes of an unknown kind, a line each."""
  runs = [m.decode("ascii") for m in re.findall(rb"[\x20-\x7e]{4,}", data)]
  for first in (rb"[\x20-\x7e]\x00", rb"\x00[\x20-\x7e]"):
    for match in re.findall(rb"(?:" + first + rb"){4,}", data):
      runs.append(match.replace(b"\0", b"").decode("ascii"))
  return "\n".join(runs)


def _png(data: bytes) -> Iterator[Piece]:
  """Chunks other than those of the picture, and what is behind its end."""
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
    yield "behind the end of the picture", data[place:]


def _jpeg(data: bytes) -> Iterator[Piece]:
  """Comments and application segments, and what is behind the end."""
  place = 2
  while place + 4 <= len(data) and data[place] == 0xFF:
    marker, length = (
      data[place + 1],
      int.from_bytes(data[place + 2 : place + 4]),
    )
    if marker == 0xDA:
      break
    if marker == 0xFE or 0xE0 <= marker <= 0xEF:
      yield f"segment {marker:02X}", data[place + 4 : place + 2 + length]
    place += 2 + length
  end = data.rfind(b"\xff\xd9")
  if end >= 0 and data[end + 2 :]:
    yield "behind the end of the picture", data[end + 2 :]


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
  except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as e:
    yield f"archive ({type(e).__name__})", strings(data).encode()
  except (zlib.error, lzma.LZMAError, EOFError, ValueError) as e:
    yield f"archive ({type(e).__name__})", strings(data).encode()


def _unpacked(file, packed: bytes) -> Iterator[Piece]:
  name = getattr(file, "name", None)
  if isinstance(name, str):
    yield "name of what is packed", name.encode()
  # Names in its header, and what stands behind its end, are not packed.
  if runs := [x for x in strings(packed).split("\n") if len(x) >= _LEAST_RUN]:
    yield "beside what is packed", "\n".join(runs).encode()
  parts = []
  with contextlib.suppress(OSError, EOFError, zlib.error, lzma.LZMAError):
    left = MOST_UNPACKED
    while left and (part := file.read(min(left, 1 << 20))):
      parts.append(part)
      left -= len(part)
  yield "unpacked", b"".join(parts)


def _inflated(packed: bytes) -> bytes:
  with contextlib.suppress(zlib.error):
    return zlib.decompressobj().decompress(packed, MOST_UNPACKED)
  return packed
