"""Reads the headers of safetensors files, without their tensors.

The format: a little-endian u64 with the size of the header, a JSON object of
`name: {dtype, shape, data_offsets}` and perhaps `__metadata__` of strings, and
then the tensors, which fill the rest of the file without holes or overlaps.
Source: the description in the README of the safetensors repository.

The library refuses most of what is refused here, but maps the file first. This
reader bounds the memory it takes and says what is wrong.
"""

from collections.abc import Mapping
import math
import struct
from typing import Any, NamedTuple

from analogjax.bundle import strict_json
from analogjax.bundle.folder import Tree
from analogjax.bundle.strict_json import Refused

MOST_HEADER = strict_json.MOST_BYTES
MOST_DIMS = 8
BITS = {
  **{"F64": 64, "F32": 32, "F16": 16, "BF16": 16},
  **{"I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8},
  **{"F8_E4M3": 8, "F8_E5M2": 8},
}
_LENGTH = struct.Struct("<Q")


class Tensor(NamedTuple):
  """A tensor in a file; its range is in bytes from the end of the header."""

  dtype: str
  shape: tuple[int, ...]
  start: int
  stop: int

  @property
  def size(self) -> int:
    return math.prod(self.shape)


class Header(NamedTuple):
  """The tensors of a file by name, and its metadata."""

  tensors: Mapping[str, Tensor]
  metadata: Mapping[str, str]


def read(tree: Tree, path: str) -> Header:
  """The header of a file, checked against the file's size.

  Raises:
    Refused: it is not a whole safetensors file; names file and tensor.
  """
  size = tree.files.get(path, 0)
  if size < _LENGTH.size:
    raise Refused(f"{path}: {size} bytes, shorter than a safetensors header")
  (length,) = _LENGTH.unpack(tree.range(path, 0, _LENGTH.size))
  if length > min(MOST_HEADER, size - _LENGTH.size):
    raise Refused(
      f"{path}: its header claims {length:,} bytes; the file has {size:,} and"
      f" a header may have {MOST_HEADER:,}"
    )
  data = tree.range(path, _LENGTH.size, length)
  if not data.startswith(b"{"):
    raise Refused(f"{path}: its header does not begin with an object")
  try:
    header = strict_json.parse_object(data)
    metadata = _metadata(header.pop("__metadata__", {}))
    tensors = {name: _tensor(name, x) for name, x in header.items()}
    _check_ranges(tensors, size - _LENGTH.size - length)
  except Refused as error:
    raise Refused(f"{path}: {error}") from None
  return Header(tensors, metadata)


def _metadata(value: Any) -> dict[str, str]:
  if not isinstance(value, dict):
    raise Refused("__metadata__ is not an object")
  for key, text in value.items():
    if not isinstance(text, str):
      raise Refused(f"__metadata__.{key[:80]} is not a string")
  return value


def _tensor(name: str, value: Any) -> Tensor:
  where = f"tensor {name[:80]!r}"
  fields = {"dtype", "shape", "data_offsets"}
  if not isinstance(value, dict) or set(value) != fields:
    raise Refused(f"{where}: expected dtype, shape and data_offsets alone")
  dtype, shape, offsets = (
    value[key] for key in ("dtype", "shape", "data_offsets")
  )
  if not isinstance(dtype, str) or dtype not in BITS:
    raise Refused(f"{where}: dtype {str(dtype)[:20]!r} is none of {list(BITS)}")
  if not _is_sizes(shape) or len(shape) > MOST_DIMS:
    raise Refused(
      f"{where}: its shape is not a list of at most {MOST_DIMS} sizes"
    )
  if not _is_sizes(offsets) or len(offsets) != 2:
    raise Refused(f"{where}: data_offsets is not a pair of places in the file")
  tensor = Tensor(dtype, tuple(shape), *offsets)
  expected = tensor.size * BITS[dtype] // 8
  if tensor.stop - tensor.start != expected:
    raise Refused(
      f"{where}: {dtype} of shape {shape} takes {expected:,} bytes; its"
      f" data_offsets span {tensor.stop - tensor.start:,}"
    )
  return tensor


def _is_sizes(value: Any) -> bool:
  # True is an int in Python.
  return isinstance(value, list) and all(
    type(x) is int and 0 <= x < 2**63 for x in value
  )


def _check_ranges(tensors: Mapping[str, Tensor], size: int) -> None:
  """Checks that every byte of the file belongs to exactly one tensor."""
  end = 0
  for name, tensor in sorted(
    tensors.items(), key=lambda item: (item[1].start, item[1].stop)
  ):
    if tensor.start != end:
      what = "overlaps another" if tensor.start < end else "leaves a hole"
      raise Refused(f"tensor {name[:80]!r}: begins at {tensor.start:,}: {what}")
    end = tensor.stop
  if end != size:
    raise Refused(f"its tensors take {end:,} bytes; the file has {size:,}")
