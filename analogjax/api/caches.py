"""Logit caches, for reading: rows of tokens with the teacher's records."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from analogjax.api.records import Records
from analogjax.cache import batches, cache_format, logit_cache
from analogjax.workdir import store

_ROWS_AT_A_TIME = 64  # Read by an iterator.


class Rows(NamedTuple):
  """One row of a cache, or several; `...` is [L] or [B, L].

  A record at position i is the distribution of token i + 1.
  """

  tokens: np.ndarray  # int32 [...].
  segments: np.ndarray  # int32 [...], document of each token; 0 is padding.
  positions: np.ndarray  # int32 [...], within the document.
  labels: np.ndarray  # int32 [...], the next token.
  weights: np.ndarray  # float32 [...], of the label; 0: none is predicted.
  records: Records  # The teacher's records.


class Cache:
  """An open logit cache: a sequence of rows.

  `len(cache)` is the number of rows, `cache[i]` one of them, `cache[i:j]`
  several as arrays with one dimension more, and `for row in cache` reads all in
  order. Every row is compared with its checksum when it is read.

  Attributes:
    location: folder or URL.
    manifest: parameters of the cache: kind, tau, temperature, sequence_length,
      vocabulary_size, digests of teacher and tokenizer.
  """

  location: str
  manifest: cache_format.Manifest

  def __init__(self, cache: logit_cache.LogitCache):
    self._cache = cache
    self.location = str(cache.location)
    self.manifest = cache.manifest

  def __len__(self) -> int:
    return len(self._cache)

  def __getitem__(self, index: int | slice) -> Rows:
    """The row, or rows, at an index.

    Raises:
      IndexError: there is no such row.
      ValueError: a row is not written yet, or is damaged; names the row.
    """
    if isinstance(index, slice):
      return self._read(range(len(self))[index])
    return _take(self._read([range(len(self))[index]]), 0)

  def __iter__(self) -> Iterator[Rows]:
    for start in range(0, len(self), _ROWS_AT_A_TIME):
      some = self[start : start + _ROWS_AT_A_TIME]
      for i in range(len(some.tokens)):
        yield _take(some, i)

  def __repr__(self) -> str:
    m = self.manifest
    return (
      f"<logit cache {self.location}: {len(self)} rows of"
      f" {m.sequence_length} tokens, kind {m.kind}>"
    )

  def _read(self, index: Any) -> Rows:
    entries = self._cache.read(np.asarray(index, np.int64))
    batch = batches.from_entries(entries)
    tail = entries.log_tail_BL
    records = Records(
      ids=entries.ids_BLK,
      p=entries.p_BLK,
      tail=None if tail is None else np.exp(tail),
      entropy=entries.entropy_BL,
      weight=entries.capture_weights_BL,
    )
    rows, targets = entries.rows, batch.targets
    return Rows(
      rows.tokens_BL,
      rows.segments_BL,
      rows.positions_BL,
      np.asarray(targets.labels_BL),
      np.asarray(targets.weights_BL),
      records,
    )


def _take(rows: Rows, i: int) -> Rows:
  """One row of several."""
  return jax.tree.map(lambda x: x[i], rows)


def open_cache(location: str | Path, *, s3_endpoint: str = "") -> Cache:
  """Opens the logit cache that a run wrote.

  Args:
    location: folder, or a URL that begins with s3:// or gs://; that of a run
      is `cache` (to train on) or `held_out` in its workdir.
    s3_endpoint: of a server that speaks S3; empty: Amazon's.

  Raises:
    ValueError: there is no logit cache, or it is damaged or of another format
      version.

  Example:
    >>> cache = aj.open_cache("runs/demo/cache")
    >>> len(cache), cache.manifest.kind
    (8, 'threshold')
    >>> row = cache[0]
    >>> row.tokens.shape, row.records.ids.shape == row.records.p.shape
    ((16,), True)
    >>> cache[2:6].tokens.shape
    (4, 16)
    >>> sum(int(row.weights.sum()) for row in cache)  # Tokens to learn from.
    104
  """
  where = store.place(location, s3_endpoint)
  return Cache(logit_cache.open_cache(where))
