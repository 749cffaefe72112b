"""Mutations of bundles that know the structure of a bundle.

Bytes decide the mutations, so that both hypothesis and atheris can search: the
same bytes spoil the same bundle in the same way.
"""

import hashlib
import json
import os
import struct

from analogjax.bundle import folder as walk, manifest

STRANGE = (
  *(None, True, 0, -1, 1, 2**31, 2**63, 10**300, 1e308, -0.0, 0.1, "", "a"),
  *("\u202e", "\ud7ff", "x" * 5000, "0" * 64, "NaN", "../a.json", "2026-02-30"),
  *([], {}, [[]], [None], {"": None}, [1, "a"], {"value": None}),
)
NAMES = ("a.json", "model/a.md", ".git", "b.py", "model/MODEL.safetensors")
PARTS = (b"\0", b"\xff", b"{", b"[", b'"', b"-", b"1e999", b"\\ud800", b"//")


class Choices:
  """Numbers from bytes; 0 when they are used up."""

  def __init__(self, data: bytes):
    self._data, self._at = data, 0

  def below(self, n: int) -> int:
    size = 1 if n <= 256 else 4
    part = self._data[self._at : self._at + size].ljust(size, b"\0")
    self._at += size
    return int.from_bytes(part, "big") % n

  def of(self, items):
    return items[self.below(len(items))]

  @property
  def is_left(self) -> bool:
    return self._at < len(self._data)


def spoil(folder, choices: Choices) -> None:
  """Spoils one or a few things, and may then make the digests agree again."""
  files = sorted(walk.open_tree(folder).files)
  for _ in range(1 + choices.below(3)):
    path = folder / choices.of(files)
    if not _is_file(path):
      continue
    kind = choices.below(10)
    if kind < 5 and path.suffix == ".json":
      _spoil_json(path, choices)
    elif kind < 7 and path.suffix == ".safetensors":
      _spoil_header(path, choices)
    elif kind < 9:
      _spoil_bytes(path, choices)
    else:
      _spoil_kind(folder, path, choices)
  if choices.below(2):
    agree(folder)


def agree(folder) -> None:
  """Rewrites the digests, so that more than a digest is checked."""
  try:
    path = folder / "record.json"
    value = json.loads(path.read_bytes() if _is_file(path) else b"")
    for section in ("fidelity", "safety"):
      value[section]["sha256"] = _sha256(folder / f"{section}.json")
    for name in value["model"]["files"]:
      value["model"]["files"][name] = _sha256(folder / "model" / name)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    pass
  entries = {}
  for path, size in walk.open_tree(folder).files.items():
    if path not in (manifest.FILE, manifest.SIGNATURE):
      entries[path] = manifest.Entry(size, _sha256(folder / path))
  target = folder / manifest.FILE
  if _is_file(target):
    target.write_bytes(manifest.to_bytes(entries))


def _is_file(path) -> bool:
  return path.is_file() and not path.is_symlink()


def _sha256(path) -> str:
  if not _is_file(path):
    raise ValueError(f"{path}: not a file any more")  # /dev/zero has no end.
  return hashlib.sha256(path.read_bytes()).hexdigest()


def _spoil_json(path, choices: Choices) -> None:
  try:
    value = json.loads(path.read_bytes())
  except ValueError:
    return
  for _ in range(1 + choices.below(2)):
    value = spoil_value(value, choices)
  text = json.dumps(value, indent=choices.of((1, 2, None)), ensure_ascii=False)
  path.write_bytes((text + "\n").encode("utf-8", "surrogatepass"))


def spoil_value(value, choices: Choices):
  """Changes, removes or duplicates a value somewhere below."""
  root = {"": value}
  folder, key = root, ""
  while isinstance(folder[key], dict | list) and folder[key]:
    inner = folder[key]
    keys = list(inner) if isinstance(inner, dict) else range(len(inner))
    folder, key = inner, keys[choices.below(len(keys))]
    if not choices.below(4):
      break
  what = choices.below(4)
  if what == 0 and isinstance(folder, dict) and folder is not root:
    del folder[key]
  elif what == 1 and isinstance(folder, list):
    folder.append(folder[key])
  elif what == 2 and isinstance(folder, dict) and folder is not root:
    folder[choices.of(("__metadata__", "auto_map", "x", ""))] = folder[key]
  else:
    folder[key] = choices.of(STRANGE)
  return root[""]


def _spoil_header(path, choices: Choices) -> None:
  data = path.read_bytes()
  (length,) = struct.unpack("<Q", data[:8])
  try:
    header = json.loads(data[8 : 8 + length])
  except ValueError:
    return
  text = json.dumps(spoil_value(header, choices)).encode()
  if not choices.below(3):
    length = choices.of((0, 1, 2**32, 2**63 - 1, 2**64 - 1))
  else:
    length = len(text)
  path.write_bytes(struct.pack("<Q", length) + text + data[8 + length :])


def _spoil_bytes(path, choices: Choices) -> None:
  data = bytearray(path.read_bytes())
  at = choices.below(len(data) + 1)
  what = choices.below(5)
  if what == 0:
    del data[at:]
  elif what == 1:
    data[at:at] = choices.of(PARTS) * (1 + choices.below(70))
  elif what == 2:
    data[at : at + 8] = b""
  elif what == 3:
    data += choices.of(PARTS)
  elif at < len(data):
    data[at] ^= 1 + choices.below(255)
  path.write_bytes(data)


def _spoil_kind(folder, path, choices: Choices) -> None:
  data = path.read_bytes()
  path.unlink()
  what = choices.below(6)
  if what == 0:
    path.symlink_to("/dev/zero")
  elif what == 1:
    path.symlink_to(folder)
  elif what == 2:
    os.mkfifo(path)
  elif what == 3:
    path.mkdir()
  elif what == 4:
    other = folder / choices.of(NAMES)
    other.parent.mkdir(exist_ok=True)
    other.write_bytes(data)
