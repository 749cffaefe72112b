"""manifest.json of a bundle: every other file, its bytes and its SHA-256."""

from collections.abc import Mapping
import json
import re
from typing import Any, NamedTuple

from analogjax.bundle import folder, strict_json
from analogjax.bundle.strict_json import Refused

FILE = "manifest.json"
SIGNATURE = "signature.json"
FORMAT = "analogjax.bundle"
FORMAT_VERSION = 1
_HEX = re.compile("[0-9a-f]{64}")


class Entry(NamedTuple):
  """The manifest's entry for a file."""

  bytes: int
  sha256: str  # Hexadecimal, in lower case.


def to_bytes(entries: Mapping[str, Entry]) -> bytes:
  """The canonical bytes of a manifest."""
  value = {
    "format": FORMAT,
    "format_version": FORMAT_VERSION,
    "files": {path: entries[path]._asdict() for path in sorted(entries)},
  }
  return (json.dumps(value, indent=1) + "\n").encode("ascii")


def from_bytes(data: bytes) -> dict[str, Entry]:
  """Path -> entry.

  Raises:
    Refused: it is not a manifest in the form that `to_bytes` gives.
  """
  value = strict_json.parse_object(data)
  found = value.get("format"), value.get("format_version")
  if found != (FORMAT, FORMAT_VERSION):
    raise Refused(
      f"expected format {FORMAT!r} of version {FORMAT_VERSION}, found"
      f" {str(found[0])[:40]!r} of version {str(found[1])[:40]!r}"
    )
  files = value.get("files")
  if set(value) != {"format", "format_version", "files"} or not isinstance(
    files, dict
  ):
    raise Refused("expected format, format_version and files alone")
  entries = {path: _entry(path, entry) for path, entry in files.items()}
  if to_bytes(entries) != data:
    raise Refused("not in the form in which analogjax writes a manifest")
  return entries


def _entry(path: str, value: Any) -> Entry:
  if path in (FILE, SIGNATURE):
    raise Refused(f"it lists {path}, which cannot be listed there")
  if wrong := folder.file_problem(path):
    raise Refused(f"{folder.shown(path)}: {wrong}")
  if not isinstance(value, dict) or set(value) != set(Entry._fields):
    raise Refused(f"{path}: expected bytes and sha256 alone")
  size, digest = value["bytes"], value["sha256"]
  if type(size) is not int or not 0 <= size < 2**63:
    raise Refused(f"{path}: bytes is not a number of bytes")
  if not isinstance(digest, str) or not _HEX.fullmatch(digest):
    raise Refused(f"{path}: sha256 is not 64 hexadecimal digits")
  return Entry(size, digest)
