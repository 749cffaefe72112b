"""Opens a GGUF file and checks everything that it returns."""

from pathlib import Path
from typing import Any, TypeVar

import numpy as np

_T = TypeVar("_T")


class File:
  """Fields and tensors by name; a ValueError names the file."""

  def __init__(self, path: Path):
    try:
      import gguf
    except ImportError as error:
      raise ValueError(
        f"{path}: reading GGUF files needs the `gguf` package; install it with"
        " `pip install 'analogjax[demo]'`."
      ) from error
    self.path = path
    self.dequantize = gguf.dequantize
    try:
      reader = gguf.GGUFReader(path)
    # The reader's exception for cut or foreign bytes depends on the place.
    except (ValueError, LookupError, TypeError, OverflowError) as error:
      raise self.damaged("a whole GGUF file", f"an error: {error}") from error
    if reader.byte_order != "I":
      raise self.refused("this machine's byte order", "the other one")
    self.fields = reader.fields
    self.tensors = {t.name: t for t in reader.tensors}

  def damaged(self, expected: object, found: object) -> ValueError:
    return ValueError(
      f"{self.path}: expected {expected}, found {found}. The file is truncated"
      " or damaged: fetch it again."
    )

  def refused(self, expected: object, found: object) -> ValueError:
    return ValueError(
      f"{self.path}: expected {expected}, found {found}. Only plain llama files"
      " with the smollm tokenizer can be converted: use a Hugging Face folder"
      " as the teacher instead."
    )

  def get(self, key: str, kind: type[_T], default: _T | None = None) -> _T:
    """The value of a field, which is required unless there is a default."""
    if key not in self.fields:
      if default is None:
        raise self.refused(f"the GGUF field {key}", "none")
      return default
    value = self.fields[key].contents()
    if type(value) is not kind:
      raise self.refused(f"{key} to be {kind.__name__}", type(value).__name__)
    return value

  def require(self, key: str, expected: Any, default: Any = None) -> None:
    """Refuses the file if a field has any value but the expected one."""
    found = self.get(key, type(expected), default)
    if found != expected:
      raise self.refused(f"{key} = {expected!r}", repr(found))

  def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One tensor in float32."""
    tensor = self.tensors[name]
    # GGUF lists the dimensions from the fastest to the slowest.
    found = tuple(int(n) for n in reversed(tensor.shape))
    if found != shape:
      raise self.damaged(f"tensor {name} of shape {shape}", found)
    try:
      x = self.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
      kind = tensor.tensor_type.name
      raise self.refused(f"tensor {name} of a known type", kind) from error
    if not np.isfinite(x).all():
      raise self.damaged(f"finite values in tensor {name}", "NaN or infinity")
    return x.reshape(shape).astype(np.float32, copy=False)
