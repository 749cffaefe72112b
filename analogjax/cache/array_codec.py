"""Converts rows and records to the arrays of a cache and back; no store.

docs/cache_format.md specifies each array.

Shape letters (docs/glossary.md): B rows, M replicas, L position, K slots of a
record, V vocabulary; Z depths, P pairs of positions.
"""

from typing import NamedTuple

import numpy as np

from analogjax.cache import cache_format, gram_codes, record_codec, sampling
from analogjax.data import rows as rows_lib

# Arrays about a row, shared by all of its replicas.
_SHARED = ("weights", "inclusion", "entropy", "label_logprob", "gram")

Stored = dict[str, np.ndarray]  # Contents of the arrays, by name, [B, ...].


class Entries(NamedTuple):
  """Rows of the cache with the teacher's records, decoded, on the host."""

  rows: rows_lib.Rows
  ids_BLK: np.ndarray  # int32.
  p_BLK: np.ndarray  # float32; sum to one at each captured position.
  log_tail_BL: np.ndarray | None  # float32, topk only: mass outside, log.
  num_head_BL: np.ndarray  # int32, slots with their own value; they come first.
  num_BL: np.ndarray  # int32, slots in use.
  # float32, 1 / probability that the position was captured; 0: it was not.
  capture_weights_BL: np.ndarray
  entropy_BL: np.ndarray  # float32, of the recorded distribution, nats.
  label_logprob_BL: np.ndarray  # float32, of the next token, temperature 1.
  gram: gram_codes.Sample | None = None  # Where the cache has cosines.


class Codec:
  """Encodes and decodes the arrays of one cache."""

  def __init__(self, manifest: cache_format.Manifest, order_V: np.ndarray):
    """`order_V` has all ids, the likeliest first."""
    self._manifest = manifest
    self._layout = manifest.layout
    self._order_V, self._rank_V = order_V, np.argsort(order_V)
    self._entropy_levels = record_codec.entropy_levels().astype(np.float32)
    self._label_levels = record_codec.label_logprob_levels().astype(np.float32)
    self._dtypes = {
      name: np.dtype(spec["metadata"]["data_type"])
      for name, spec in cache_format.array_specs(manifest).items()
    }

  @property
  def of_replica(self) -> tuple[str, ...]:
    """The arrays that have an axis of replicas."""
    return (*self._layout.arrays(), "record_digest")

  def encode(self, rows: rows_lib.Rows, records: sampling.Records) -> Stored:
    """The stored form of rows and their records."""
    is_token_BL = rows.segments_BL > 0
    stored = {
      "tokens": rows.tokens_BL,
      "segments": rows.segments_BL,
      "position_offsets": rows.positions_BL
      - rows_lib.default_positions(rows.segments_BL),
      "weights": np.where(is_token_BL, rows.weights_BL, 1),
      "inclusion": records.inclusion_BL,
      "entropy": record_codec.encode_entropy(np.asarray(records.entropy_BL)),
      "label_logprob": record_codec.encode_label_logprob(
        np.asarray(records.label_logprob_BL)
      ),
      **record_codec.encode(records, self._layout, self._rank_V),
      "digest": rows_lib.rows_digests(rows),
    }
    if self._manifest.gram_positions:
      codes_BZP = np.asarray(records.gram_BZP)
      stored["gram"] = codes_BZP.reshape(len(codes_BZP), -1)
    for name, value in stored.items():
      stored[name] = np.asarray(value, self._dtypes[name])
    by_replica = [
      self.record_digests(self.at_replica(stored, m))
      for m in range(self._manifest.num_replicas)
    ]
    stored["record_digest"] = np.stack(by_replica, axis=1)
    return stored

  def at_replica(self, stored: Stored, replica: int) -> Stored:
    """The arrays at one replica, without their axis of replicas."""
    one = {
      name: stored[name][:, replica]
      for name in self.of_replica
      if name in stored  # The digest is computed last.
    }
    return {**stored, **one}

  def decode(self, stored: Stored) -> Entries:
    """Decodes the arrays of one replica.

    Raises:
      record_codec.LayoutError: the arrays are not of a form that a writer
        makes.
    """
    of_layout = {name: stored[name] for name in self._layout.arrays()}
    decoded = record_codec.decode(of_layout, self._layout, self._order_V)
    inclusion_BL = stored["inclusion"].astype(np.float32)
    captured_BL = inclusion_BL > 0
    return Entries(
      rows=to_rows(stored),
      ids_BLK=decoded.ids_BLK,
      p_BLK=decoded.p_BLK,
      log_tail_BL=decoded.log_tail_BL,
      num_head_BL=decoded.num_head_BL,
      num_BL=decoded.num_BL,
      capture_weights_BL=np.divide(
        np.float32(255),
        inclusion_BL,
        out=np.zeros_like(inclusion_BL),
        where=captured_BL,
      ),
      entropy_BL=self._entropy_levels[stored["entropy"]],
      label_logprob_BL=self._label_levels[stored["label_logprob"]],
      gram=self._gram(stored),
    )

  def _gram(self, stored: Stored) -> gram_codes.Sample | None:
    m = self._manifest
    if not m.gram_positions:
      return None
    sample = gram_codes.draw(
      stored["digest"], stored["segments"], m.gram_positions, m.seed
    )
    shape = -1, len(m.gram_depths), gram_codes.num_pairs(m.gram_positions)
    return sample._replace(codes_BZP=stored["gram"].reshape(shape))

  def record_digests(self, stored: Stored) -> np.ndarray:
    """Digests of the records of one replica, uint8 [B, 16]."""
    of_layout = {name: stored[name] for name in self._layout.arrays()}
    counts = record_codec.used(of_layout)
    size = cache_format.RECORD_DIGEST_BYTES
    out = np.zeros((len(stored["digest"]), size), np.uint8)
    for b, row_digest in enumerate(stored["digest"]):
      parts = {name: a[b, : counts[name][b]] for name, a in of_layout.items()}
      parts |= {name: stored[name][b] for name in _SHARED if name in stored}
      digest = record_codec.record_digest(row_digest.tobytes(), parts, size)
      out[b] = np.frombuffer(digest, np.uint8)
    return out


def to_rows(stored: Stored) -> rows_lib.Rows:
  """The rows without their records."""
  segments_BL = stored["segments"].astype(np.int32)
  weights_BL = np.where(segments_BL > 0, stored["weights"], 0)
  return rows_lib.Rows(
    tokens_BL=stored["tokens"].astype(np.int32),
    segments_BL=segments_BL,
    positions_BL=stored["position_offsets"]
    + rows_lib.default_positions(segments_BL),
    weights_BL=weights_BL.astype(np.float32),
  )
