"""safetensors files: their headers, shapes, and bytes of no tensor.

Unlike the reader that `verify` uses, this one goes on where a file breaks the
format: what breaks it may be what leaks.
"""

from collections.abc import Iterator
import itertools
import json
import math
import os
from pathlib import Path
import re
import struct
from typing import Any, NamedTuple

from analogjax.leaks.secrets import Leak, Secrets

_MOST_HEADER = 100_000_000  # Bytes; the format's own bound.
_MOST_HIDDEN = 16 << 20  # Bytes that are read of each hole.
_MOST_SMALL = 1 << 20  # Bytes of a tensor that may be a text.
_INTEGERS = re.compile(r"[IU]\d+|BOOL")
_LAYER = re.compile(r"(?:^|[._])(?:layers?|blocks?|h)[._]?(\d+)(?:[._]|$)")


class Tensor(NamedTuple):
  """One entry of a header."""

  name: str
  dtype: str
  shape: tuple[int, ...]
  start: int  # In the file, bytes.
  stop: int


class Header(NamedTuple):
  """Of a file.

  Attributes:
    metadata: everything of the header that is no tensor.
    tensors: in the order of the header.
    hidden: (where, bytes) that belong to no tensor.
    small: (where, bytes) of small tensors of bytes, which may be texts.
  """

  metadata: dict[str, Any]
  tensors: tuple[Tensor, ...]
  hidden: tuple[tuple[str, bytes], ...]
  small: tuple[tuple[str, bytes], ...]


def read(path: Path) -> Header | str:
  """The header of a file, or why it has none."""
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
      return "its header is no JSON"
    if not _is_object(pairs):
      return "its header is no object"
    metadata, tensors = _sorted_out(pairs, 8 + length)
    return Header(
      metadata,
      tuple(tensors),
      tuple(_hidden(file, tensors, 8 + length, size)),
      tuple(_small(file, tensors, size)),
    )


def _is_object(value: Any) -> bool:
  """With pairs as lists an object is a list of pairs."""
  return isinstance(value, list) and all(isinstance(x, tuple) for x in value)


def _sorted_out(pairs, begin: int) -> tuple[dict[str, Any], list[Tensor]]:
  metadata, found, names = {}, [], set()
  for name, value in pairs:
    fields: dict[str, Any] = dict(value) if _is_object(value) else {}
    shape: Any = fields.get("shape")
    offsets: Any = fields.get("data_offsets")
    if name in names:  # One of the two would be read by nobody.
      metadata[f"{name} (again)"] = value
    elif _are_sizes(shape, 0) and _are_sizes(offsets, 2):
      dtype = str(fields.pop("dtype", ""))
      places = [begin + offset for offset in offsets]
      found.append(Tensor(name, dtype, tuple(shape), *places))
      more = {k: v for k, v in fields.items() if k not in _FIELDS}
      if more:
        metadata[name] = more
    else:
      metadata[name] = fields or value
    names.add(name)
  return metadata, found


_FIELDS = ("shape", "data_offsets")


def _are_sizes(value: Any, number: int) -> bool:
  """Whether it is a list of sizes; `number` of them, or 0: any."""
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
    yield "behind the last tensor", _bytes(file, end, size)


def _bytes(file, start: int, stop: int) -> bytes:
  file.seek(start, os.SEEK_SET)
  return file.read(min(stop - start, _MOST_HIDDEN))


def _small(file, tensors, size: int):
  for tensor in tensors:
    length = tensor.stop - tensor.start
    if tensor.dtype in ("I8", "U8") and 0 < length <= _MOST_SMALL:
      yield (
        f"bytes of tensor {tensor.name}",
        _bytes(file, tensor.start, min(tensor.stop, size)),
      )


class ShapeRules:
  """Finds shapes that are not the analog's; made once for all files."""

  def __init__(self, secrets: Secrets):
    self._student = _axes(secrets.student)
    self._frontier = {
      size: name
      for size, name in _axes(secrets.architecture).items()
      if size not in self._student
    }
    self._layers = secrets.student.get("layers", 0)

  def find(self, file: str, header: Header) -> Iterator[Leak]:
    for tensor in header.tensors:
      where = f"tensor {tensor.name}"
      for what in self._judge(tensor):
        shape = list(tensor.shape)
        yield Leak("shape", file, where, f"{tensor.dtype} {shape}: {what}")

  def _judge(self, tensor: Tensor) -> Iterator[str]:
    indices = [int(digits) for digits in _LAYER.findall(tensor.name)]
    if self._layers and any(index >= self._layers for index in indices):
      yield f"the analog has {self._layers} layers, so these are the frontier's"
    # Rows of tokens are as long as rows are.
    if _INTEGERS.fullmatch(tensor.dtype):
      return
    for size in dict.fromkeys(tensor.shape):
      if name := self._frontier.get(size):
        yield f"an axis of {size}, the frontier's {name}, is of no analog"
        return
    size = math.prod(tensor.shape)
    if len(tensor.shape) != 1 or size in self._student:
      return
    ours, theirs = self._student, self._frontier
    for a, b in itertools.product(ours, theirs):
      if a > 1 and b >= 16 and size == a * b:
        yield f"{size} values are {a} x {b}, the frontier's {theirs[b]}: a map"
        return


def _axes(sizes) -> dict[int, str]:
  """Sizes that axes of a model's tensors have -> what they are of."""
  found = {}
  for name in ("vocabulary_size", "width", "feed_forward", "layers"):
    if size := sizes.get(name):
      found[size] = name.replace("_", " ")
  for name in ("heads", "kv_heads"):
    if size := sizes.get(name):
      found.setdefault(size, name.replace("_", " "))
      if width := sizes.get("head_width"):
        found.setdefault(width, "head width")
        found.setdefault(size * width, f"{name.replace('_', ' ')} x head width")
  return found
