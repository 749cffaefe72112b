"""Packed rows, the checked form of every pipeline's output, with digests.

Letters: B rows, L tokens of a row, V vocabulary.
"""

from collections.abc import Mapping, Sequence
import hashlib
from typing import Any, NamedTuple

import numpy as np

DIGEST_BYTES = 32
_INT32_MAX = 2**31 - 1


class Rows(NamedTuple):
  """Rows of one length, on the host."""

  tokens_BL: np.ndarray  # int32, 0 <= token < V.
  segments_BL: np.ndarray  # int32, documents from 1 in each row, 0 is padding.
  positions_BL: np.ndarray  # int32, within the document.
  weights_BL: np.ndarray  # float32, loss weight of the token as a label.


def row_digest(
  tokens_L: np.ndarray, segments_L: np.ndarray, positions_L: np.ndarray
) -> bytes:
  """32 bytes that identify a row: BLAKE2b over tokens, segments and positions.

  The hashed bytes are the length as an unsigned 64-bit integer and then the
  three fields as 32-bit integers, all little-endian. Weights are left out: the
  teacher's distribution does not depend on them.
  """
  tokens_L = np.asarray(tokens_L)
  # Without the length, 4 tokens and 2 tokens with 2 segments hash alike.
  h = hashlib.blake2b(len(tokens_L).to_bytes(8, "little"), digest_size=32)
  for field_L in (tokens_L, segments_L, positions_L):
    assert np.shape(field_L) == tokens_L.shape and tokens_L.ndim == 1
    h.update(np.ascontiguousarray(field_L, dtype="<i4").tobytes())
  return h.digest()


def rows_digests(rows: Rows) -> np.ndarray:
  """The digest of every row, uint8 [B, 32]."""
  fields = (rows.tokens_BL, rows.segments_BL, rows.positions_BL)
  digests = [row_digest(*row) for row in zip(*fields, strict=True)]
  flat = np.frombuffer(b"".join(digests), dtype=np.uint8)
  return flat.reshape(len(digests), DIGEST_BYTES)


def to_rows(
  elements: Sequence[Mapping[str, Any]], *, L: int, V: int, first_index: int
) -> Rows:
  """The elements of a user's pipeline as checked rows.

  An element has `tokens` [L] and `segments` [L], and may have `positions` [L]
  (else they count from 0 in each run of one segment) and `weights` [L] (else
  1). Weights of padding are set to 0. Other keys are ignored.

  Args:
    V: the vocabulary size that every token must be below.
    first_index: the row index of elements[0], for messages.

  Raises:
    ValueError: names the row and the field.
  """
  rows = [_to_row(e, L, V, first_index + i) for i, e in enumerate(elements)]
  if not rows:
    ints = np.zeros((0, L), np.int32)
    return Rows(ints, ints, ints, np.zeros((0, L), np.float32))
  return Rows(*(np.stack(field) for field in zip(*rows, strict=True)))


def _to_row(element: Any, L: int, V: int, row: int) -> tuple[np.ndarray, ...]:
  """(tokens, segments, positions, weights) of one element."""
  if not isinstance(element, Mapping):
    raise ValueError(
      f"row {row}: expected a dict with 'tokens' and 'segments', found "
      f"{type(element).__name__}. The pipeline has to give one row at a "
      "time, not batched and not bare arrays."
    )
  tokens_L = _integers(element, "tokens", L, row)
  if (at := _first(tokens_L < 0)) is not None:
    raise ValueError(
      f"row {row}: token id {tokens_L[at]} at position {at} is negative. Pad "
      "with any token of the vocabulary and segment 0 instead."
    )
  if (at := _first(tokens_L >= V)) is not None:
    raise ValueError(
      f"row {row}: token id {tokens_L[at]} at position {at}, but the "
      f"vocabulary has {V} tokens (0 to {V - 1}). Tokenise with the "
      "teacher's tokenizer, or correct config.student.V."
    )
  segments_L = _not_negative(element, "segments", L, row)
  if "positions" in element:
    positions_L = _not_negative(element, "positions", L, row)
  else:
    positions_L = default_positions(segments_L)

  weights_L = (segments_L > 0).astype(np.float32)
  if "weights" in element:
    found_L = _array(element, "weights", L, row)
    if found_L.dtype.kind not in "fiub":
      # bfloat16 from ml_dtypes has kind "V" and is refused too: users can
      # easily cast, and a guess may be wrong.
      raise ValueError(
        f"row {row}: 'weights' must be float32 or another number, found "
        f"dtype {found_L.dtype}."
      )
    found_L = found_L.astype(np.float32)
    if (at := _first(~np.isfinite(found_L) | (found_L < 0))) is not None:
      raise ValueError(
        f"row {row}: weight {found_L[at]} at position {at}; loss weights "
        "must be finite and not negative."
      )
    weights_L *= found_L
  return (
    tokens_L.astype(np.int32),
    segments_L.astype(np.int32),
    positions_L.astype(np.int32),
    weights_L,
  )


def default_positions(segments: np.ndarray) -> np.ndarray:
  """Counts from 0 in each run of one segment, 0 on padding; [..., L], int32."""
  index = np.broadcast_to(np.arange(segments.shape[-1]), segments.shape)
  starts = np.ones(segments.shape, bool)
  starts[..., 1:] = segments[..., 1:] != segments[..., :-1]
  begin = np.maximum.accumulate(np.where(starts, index, 0), axis=-1)
  return np.where(segments > 0, index - begin, 0).astype(np.int32)


def _array(
  element: Mapping[str, Any], key: str, L: int, row: int
) -> np.ndarray:
  if key not in element:
    found = ", ".join(repr(k) for k in element) or "no keys"
    raise ValueError(
      f"row {row}: the pipeline's element has no {key!r}; found {found}. An "
      "element needs 'tokens' and 'segments', and may have 'positions' and "
      "'weights'."
    )
  try:
    array = np.asarray(element[key])
  except ValueError as e:
    raise ValueError(f"row {row}: {key!r} is not an array: {e}") from e
  if array.shape != (L,):
    raise ValueError(
      f"row {row}: {key!r} has shape {array.shape}, expected ({L},): one row "
      "of config.data.L tokens. Pack or pad the rows to that length (and do "
      "not batch them), or change config.data.L."
    )
  return array


def _integers(
  element: Mapping[str, Any], key: str, L: int, row: int
) -> np.ndarray:
  array_L = _array(element, key, L, row)
  if array_L.dtype.kind not in "iu":
    raise ValueError(
      f"row {row}: {key!r} must be integers, found dtype {array_L.dtype}."
    )
  return array_L


def _not_negative(
  element: Mapping[str, Any], key: str, L: int, row: int
) -> np.ndarray:
  array_L = _integers(element, key, L, row)
  if (at := _first((array_L < 0) | (array_L > _INT32_MAX))) is not None:
    raise ValueError(
      f"row {row}: {key!r} has {array_L[at]} at position {at}, expected 0 to "
      f"{_INT32_MAX}."
    )
  return array_L


def _first(bad_L: np.ndarray) -> int | None:
  return int(bad_L.argmax()) if bad_L.any() else None
