"""Converts states of grain iterators to JSON values and back, exactly.

JSON turns tuples into lists. grain's packer compares a slice of its state with
the tuple (-1, -1): after plain JSON it silently loses a document.
"""

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

_TAG = "__type__"


def to_json(value: Any) -> Any:
  """The state as JSON values; from_json restores it, types included."""
  if value is None or isinstance(value, (bool, int, float, str)):
    return value
  if isinstance(value, np.generic):
    return to_json(value.item())
  if isinstance(value, list):
    return [to_json(v) for v in value]
  if isinstance(value, tuple):
    return {_TAG: "tuple", "of": [to_json(v) for v in value]}
  if isinstance(value, bytes):
    return {_TAG: "bytes", "of": base64.b64encode(value).decode("ascii")}
  if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
    of, shape = value.ravel().tolist(), list(value.shape)
    dtype = value.dtype.str
    return {_TAG: "array", "of": of, "dtype": dtype, "shape": shape}
  if isinstance(value, Mapping):
    if all(isinstance(k, str) for k in value) and _TAG not in value:
      return {k: to_json(v) for k, v in value.items()}
    of = [[to_json(k), to_json(v)] for k, v in value.items()]
    return {_TAG: "dict", "of": of}
  raise ValueError(
    "config.data.pipeline: the state of its iterator holds a "
    f"{type(value).__module__}.{type(value).__qualname__}, which cannot be "
    "saved as JSON. Use plain values in get_state()."
  )


def from_json(value: Any) -> Any:
  """The state that was given to to_json."""
  if isinstance(value, list):
    return [from_json(v) for v in value]
  if not isinstance(value, dict):
    return value
  match value.get(_TAG):
    case None:
      return {k: from_json(v) for k, v in value.items()}
    case "tuple":
      return tuple(from_json(v) for v in value["of"])
    case "bytes":
      return base64.b64decode(value["of"])
    case "array":
      flat = np.array(value["of"], dtype=value["dtype"])
      return flat.reshape(value["shape"])
    case "dict":
      return {from_json(k): from_json(v) for k, v in value["of"]}
    case tag:
      raise ValueError(f"a saved iterator state has an unknown type {tag!r}.")
