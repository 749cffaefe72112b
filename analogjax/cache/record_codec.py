"""Records as bytes: the layout of the cache's arrays, both ways, on the host.

Ids are stored by frequency: `order_V` lists all ids, those first that the
teacher finds likely overall, and the stored number is the rank of an id in that
list. Ranks of a position are sorted and stored as gaps, mostly one byte. All
entries of a row follow each other without holes; counts per position say where
a record ends. Compared with padded slots of plain ids this saves a third
(docs/experiments.md), and any Zarr reader can still open it.

Shape letters (docs/glossary.md): B rows, M replicas, L position, K slots of a
record, V vocabulary, E entries of all records together.
"""

import dataclasses
import hashlib
from typing import Any, NamedTuple

import numpy as np

from analogjax.cache import sampling

# A gap below ONE is one byte. First bytes from ONE to 254 mean that one more
# byte follows; 255 means that three do.
_ONE, _THREE = 128, 255
_LARGE = _ONE + (_THREE - _ONE) * 256  # The smallest gap of four bytes.

_ENTROPY_SCALE = 64.0  # Codes per square root of a nat.
_LOGPROB_SCALE = 32.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """Sizes of the arrays that hold the records of one row and replica."""

  sampler: sampling.Sampler
  L: int
  V: int

  @property
  def is_topk(self) -> bool:
    return isinstance(self.sampler, sampling.TopK)

  def arrays(self) -> dict[str, tuple[int, str]]:
    """(size, dtype) of each array of a row and replica, by name."""
    L, K = self.L, self.sampler.num_slots
    count = "uint8" if K <= 255 else "uint16"
    # Gaps of head and tail each sum to less than V, so few are large.
    rest = min(3 * K, K + 2 * 2 * (self.V // _LARGE))
    arrays = {
      "num_head": (L, count),
      "num_tail": (L, count),
      "id_first": (L * K, "uint8"),
      "id_rest": (L * rest, "uint8"),
    }
    if self.is_topk:
      return arrays | {
        "logprobs": (L * K, "float16"),
        "log_tail": (L, "float32"),
      }
    return arrays | {"values": (L * K, "uint8")}


class LayoutError(ValueError):
  """Bytes that no writer makes."""


class Decoded(NamedTuple):
  """Records of rows, one replica each, on the host."""

  ids_BLK: np.ndarray  # int32; 0 in empty slots.
  p_BLK: np.ndarray  # float32; 0 in empty slots.
  log_tail_BL: np.ndarray | None  # float32, topk only: mass outside, log.
  num_head_BL: np.ndarray  # int32, entries with their own value.
  num_BL: np.ndarray  # int32, entries; first, the head before the tail.


def value_levels(sampler: sampling.Sampler) -> np.ndarray:
  """The probability that each of the 256 value codes stands for, float64."""
  if isinstance(sampler, sampling.Threshold):
    return sampling.head_levels(sampler.tau)
  if isinstance(sampler, sampling.Random):
    return np.minimum(np.arange(256) / sampler.num_draws, 1.0)
  return np.zeros(256)  # Log-probabilities are stored as numbers.


def entropy_levels() -> np.ndarray:
  """Nats of each entropy code; finer near 0, up to 15.9 (ln 2^20 is 13.9)."""
  return (np.arange(256) / _ENTROPY_SCALE) ** 2


def label_logprob_levels() -> np.ndarray:
  """Nats of each label code; 255 also stands for less, and for unknown."""
  return -((np.arange(256) / _LOGPROB_SCALE) ** 2)


def encode_entropy(entropy_BL: np.ndarray) -> np.ndarray:
  codes = np.sqrt(np.maximum(entropy_BL, 0)) * _ENTROPY_SCALE
  return np.rint(np.minimum(codes, 255)).astype(np.uint8)


def encode_label_logprob(logprob_BL: np.ndarray) -> np.ndarray:
  nats_BL = np.nan_to_num(-logprob_BL, nan=np.inf, posinf=np.inf)
  codes = np.sqrt(np.maximum(nats_BL, 0)) * _LOGPROB_SCALE
  return np.rint(np.minimum(codes, 255)).astype(np.uint8)


def encode(
  records: sampling.Records, layout: Layout, rank_V: np.ndarray
) -> dict[str, np.ndarray]:
  """The arrays of `layout` [B, M, size] for records on the host.

  `rank_V` is the place of every id in the id order.
  """
  ids_BMLK, codes_BMLK = records.ids_BMLK, records.codes_BMLK
  B, M, L, K = ids_BMLK.shape
  assert (L, K) == (layout.L, layout.sampler.num_slots), ids_BMLK.shape
  has_tail = isinstance(layout.sampler, sampling.Threshold)
  is_tail = (codes_BMLK == sampling.TAIL) if has_tail else False
  if layout.is_topk:
    assert records.logprobs_BMLK is not None
    # Below this p is 0 anyway, and the cast would overflow.
    half = np.maximum(records.logprobs_BMLK, np.finfo(np.float16).min)
    half = half.astype(np.float16)
    values = half.view(np.uint16).astype(np.uint64)
  else:
    values = codes_BMLK.astype(np.uint64)
  # One sort key for each slot: empty last, head before tail, then by rank. The
  # value is packed below the key.
  key = values | (rank_V[ids_BMLK].astype(np.uint64) << np.uint64(16))
  key |= np.asarray(is_tail, np.uint64) << np.uint64(48)
  key |= (codes_BMLK == sampling.EMPTY).astype(np.uint64) << np.uint64(49)
  key = np.sort(key, axis=-1)
  rank = ((key >> np.uint64(16)) & np.uint64(0xFFFFFFFF)).astype(np.int64)
  kind = (key >> np.uint64(48)).astype(np.uint8)  # 0 head, 1 tail, 2 empty.
  gap = rank.copy()
  same = kind[..., 1:] == kind[..., :-1]
  gap[..., 1:] -= np.where(same, rank[..., :-1], 0)

  there = kind < 2
  gap_E = gap[there]
  first_E, rest, rest_E = _gap_bytes(gap_E)
  num_head = (kind == 0).sum(-1)
  num_tail = (kind == 1).sum(-1)
  per_row = there.reshape(B, M, -1).sum(-1)
  rest_sums = np.concatenate([[0], np.cumsum(rest_E, dtype=np.int64)])
  ends = np.cumsum(per_row.ravel())
  rest_per_row = np.diff(rest_sums[ends], prepend=0).reshape(B, M)
  sizes = layout.arrays()
  out: dict[str, np.ndarray] = {
    "num_head": num_head.astype(sizes["num_head"][1]),
    "num_tail": num_tail.astype(sizes["num_tail"][1]),
    "id_first": _pack(first_E, per_row, sizes["id_first"]),
    "id_rest": _pack(rest, rest_per_row, sizes["id_rest"]),
  }
  stored = (key & np.uint64(0xFFFF)).astype(np.uint16)[kind == 0]
  heads_per_row = num_head.sum(-1)
  if layout.is_topk:
    stored = stored.view(np.float16)
    out["logprobs"] = _pack(stored, heads_per_row, sizes["logprobs"])
    log_tail_BL = np.asarray(records.log_tail_BL, np.float32)
    out["log_tail"] = np.broadcast_to(log_tail_BL[:, None], (B, M, L))
  else:
    out["values"] = _pack(stored, heads_per_row, sizes["values"])
  return out


def _gap_bytes(gap_E):
  """(first bytes, all further bytes, number of further bytes of each entry)."""
  high_E = np.where(gap_E < _ONE, gap_E, _ONE + ((gap_E - _ONE) >> 8))
  first_E = np.minimum(high_E, _THREE).astype(np.uint8)
  rest_E = _rest_lengths(first_E)
  begin_E = np.cumsum(rest_E, dtype=np.int64) - rest_E
  rest = np.zeros(int(rest_E.sum()), np.uint8)
  one = rest_E == 1
  rest[begin_E[one]] = (gap_E[one] - _ONE) & 0xFF
  three = rest_E == 3
  for i in range(3):
    rest[begin_E[three] + i] = (gap_E[three] >> (8 * i)) & 0xFF
  return first_E, rest, rest_E


def _rest_lengths(first_E):
  one, three = first_E >= _ONE, first_E == _THREE
  return one.astype(np.uint8) + 2 * three.astype(np.uint8)


def _pack(values, per_row, size_and_dtype):
  """Concatenates the values of all rows -> [B, M, size], zeros at the end."""
  size, dtype = size_and_dtype
  out = np.zeros((per_row.size, size), dtype)
  out[np.arange(size) < per_row.reshape(-1, 1)] = values
  return out.reshape(*per_row.shape, size)


def used(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Number of elements of each array [B, size] in use, int [B]."""
  num_head = stored["num_head"]
  B, L = num_head.shape
  heads_B = num_head.sum(-1, dtype=np.int64)
  entries_B = heads_B + stored["num_tail"].sum(-1, dtype=np.int64)
  first = stored["id_first"]
  # Bytes beyond the end are 0, and no bytes follow a 0.
  rest_B = np.count_nonzero(first >= _ONE, axis=-1)
  rest_B = rest_B + 2 * np.count_nonzero(first == _THREE, axis=-1)
  counts = {
    "num_head": np.full(B, L),
    "num_tail": np.full(B, L),
    "id_first": entries_B,
    "id_rest": rest_B,
    "values": heads_B,
    "logprobs": heads_B,
    "log_tail": np.full(B, L),
  }
  return {name: counts[name] for name in stored}


def record_digest(
  row_digest: bytes, stored: dict[str, np.ndarray], size: int
) -> bytes:
  """BLAKE2b of a row's digest and of everything recorded for the row.

  Args:
    stored: arrays of one row and replica, little-endian, those of `Layout` cut
      to the part in use; hashed in order of name.
  """
  h = hashlib.blake2b(row_digest, digest_size=size)
  for name in sorted(stored):
    h.update(np.ascontiguousarray(stored[name]).data)
  return h.digest()


def decode(
  stored: dict[str, Any], layout: Layout, order_V: np.ndarray
) -> Decoded:
  """The records of B rows, from their arrays [B, size].

  Weights of threshold and random records sum to one at each position that has a
  record. The drawn tail shares what the rounded head leaves. That share can be
  slightly below zero where the head holds nearly all mass; it must be, to be
  unbiased.

  Raises:
    LayoutError: the arrays are not of a form that a writer makes.
  """
  num_head_BL = stored["num_head"].astype(np.int32)
  num_tail_BL = stored["num_tail"].astype(np.int32)
  B, L = num_head_BL.shape
  K = layout.sampler.num_slots
  num_BL = num_head_BL + num_tail_BL
  counts = used(stored)
  for name, in_use in counts.items():
    if (in_use > stored[name].shape[-1]).any() or num_BL.max(initial=0) > K:
      raise LayoutError(f"{name!r} holds fewer entries than its counts say")
  is_threshold = isinstance(layout.sampler, sampling.Threshold)
  if num_tail_BL.any() and not is_threshold:
    raise LayoutError("a tail, which only threshold records have")

  def line(name):
    rows = zip(stored[name], counts[name], strict=True)
    return np.concatenate([row[:count] for row, count in rows])

  gap_E = _gaps(line("id_first"), line("id_rest"))
  # Segments of entries with rising ranks: head, tail, head, tail, ... Ranks are
  # sums of gaps that restart at each segment: the sum up to a segment's start
  # is subtracted. Empty segments have no start.
  segments = np.stack([num_head_BL, num_tail_BL], axis=-1).reshape(-1)
  begin = (np.cumsum(segments) - segments)[segments > 0]
  if len(begin):
    last = np.add.reduceat(gap_E, begin)
    gap_E[begin[1:]] -= last[:-1]
  rank_E = np.cumsum(gap_E, dtype=np.int32)
  if rank_E.max(initial=0) >= layout.V:
    raise LayoutError(f"an id of rank {rank_E.max()} of {layout.V}")

  # Masks over all slots, in order, give the places of the entries.
  slot_K = np.arange(K, dtype=np.int32)
  is_head_BLK = slot_K < num_head_BL[..., None]
  in_use_BLK = slot_K < num_BL[..., None]
  ids = np.zeros((B, L, K), np.int32)
  ids[in_use_BLK] = order_V[rank_E]
  p = np.zeros((B, L, K), np.float32)
  if layout.is_topk:
    logprobs_E, log_tail_BL = line("logprobs"), stored["log_tail"]
    # Imported ones may be above 0. NaN is not below anything.
    if not ((logprobs_E < 80).all() and (log_tail_BL < 80).all()):
      raise LayoutError("a log-probability that is none")
    p[in_use_BLK] = np.exp(logprobs_E.astype(np.float32))
    return Decoded(ids, p, log_tail_BL, num_head_BL, num_BL)

  levels = value_levels(layout.sampler).astype(np.float32)
  head_E = levels[line("values")]
  if not head_E.all():
    raise LayoutError("a value code that stands for no probability")
  p[is_head_BLK] = head_E
  head_BL = p.sum(-1, dtype=np.float64)
  weight_BL = (1 - head_BL) / np.maximum(num_tail_BL, 1)
  p[in_use_BLK ^ is_head_BLK] = np.repeat(
    weight_BL.reshape(-1), num_tail_BL.reshape(-1)
  )
  # No tail at all: the head's rounding cannot be compensated.
  alone_BL = (num_tail_BL == 0) & (num_BL > 0)
  if not is_threshold and (np.abs(head_BL[alone_BL] - 1) > 1e-5).any():
    raise LayoutError("counts of another number of draws")
  p[alone_BL] /= head_BL[alone_BL, None]
  return Decoded(ids, p, None, num_head_BL, num_BL)


def _gaps(first_E, rest):
  """Undoes `_gap_bytes`."""
  gap_E = first_E.astype(np.int32)
  more = np.flatnonzero(first_E >= _ONE)
  three = gap_E[more] == _THREE
  if len(rest) != len(more) + 2 * np.count_nonzero(three):
    raise LayoutError("'id_rest' is not what 'id_first' asks for")
  if not three.any():
    gap_E[more] = _ONE + ((gap_E[more] - _ONE) << 8) + rest
    return gap_E
  lengths = np.where(three, 3, 1)
  begin = np.cumsum(lengths) - lengths
  one, begin_one = more[~three], begin[~three]
  gap_E[one] = _ONE + ((gap_E[one] - _ONE) << 8) + rest[begin_one]
  parts = [rest[begin[three] + i].astype(np.int32) << (8 * i) for i in range(3)]
  gap_E[more[three]] = sum(parts)
  return gap_E
