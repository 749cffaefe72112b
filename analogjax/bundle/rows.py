"""rows/held_out.safetensors: the rows for repeating the measurements.

Letters: R rows, L tokens of a row, V vocabulary.
"""

import hashlib

import numpy as np
import safetensors.numpy

from analogjax.bundle import folder, layout, safetensors_headers
from analogjax.bundle.strict_json import Refused
from analogjax.data import rows as rows_lib

# Name in the file -> dtype in the file, dtype of the field of Rows.
_FIELDS = {
  "tokens": ("I32", np.dtype("<i4")),
  "segments": ("I32", np.dtype("<i4")),
  "positions": ("I32", np.dtype("<i4")),
  "weights": ("F32", np.dtype("<f4")),
}
MOST_TOKENS = folder.MOST_TEXT // 4  # R x L.


def to_bytes(rows: rows_lib.Rows) -> bytes:
  """The bytes of the file.

  Raises:
    ValueError: there are more rows than a bundle allows.
  """
  if rows.tokens_BL.size > MOST_TOKENS:
    raise ValueError(
      f"{layout.ROWS}: {rows.tokens_BL.size:,} tokens, expected at most"
      f" {MOST_TOKENS:,}; hold out fewer rows (data.held_out_rows), or set"
      " release.shares_rows to false."
    )
  # safetensors silently writes an array that is not C-contiguous wrong.
  arrays = {
    name: np.ascontiguousarray(field, dtype)
    for (name, (_, dtype)), field in zip(_FIELDS.items(), rows, strict=True)
  }
  return safetensors.numpy.save(arrays)


def read(
  tree: folder.Tree, header: safetensors_headers.Header, *, V: int
) -> rows_lib.Rows:
  """The rows of a bundle, checked.

  Raises:
    Refused: not rows of tokens below V.
  """
  layout.expect(
    set(header.tensors) == set(_FIELDS),
    f"{layout.ROWS}: expected the tensors {', '.join(_FIELDS)} alone",
  )
  shape = header.tensors["tokens"].shape
  layout.expect(
    len(shape) == 2 and 0 < shape[0] * shape[1] <= MOST_TOKENS,
    f"{layout.ROWS}: tokens of shape {list(shape)}, expected rows x positions",
  )
  fields = []
  for name, (kind, dtype) in _FIELDS.items():
    tensor = header.tensors[name]
    layout.expect(
      (tensor.dtype, tensor.shape) == (kind, shape),
      f"{layout.ROWS}: {name} is not {kind} of shape {list(shape)}",
    )
    # Tensors end where the file ends.
    end = max(t.stop for t in header.tensors.values())
    start = tree.files[layout.ROWS] - end + tensor.start
    data = tree.range(layout.ROWS, start, tensor.stop - tensor.start)
    fields.append(np.frombuffer(data, dtype).reshape(shape))
  names = list(_FIELDS)
  try:
    return rows_lib.to_rows(
      [dict(zip(names, row, strict=True)) for row in zip(*fields, strict=True)],
      L=shape[1],
      V=V,
      first_index=0,
    )
  except ValueError as error:
    raise Refused(f"{layout.ROWS}: {error}") from None


def digest(rows: rows_lib.Rows) -> str:
  """The digest of rows in order, by which fidelity.json names them."""
  digests = rows_lib.rows_digests(rows)
  return hashlib.blake2b(digests.tobytes(), digest_size=32).hexdigest()
