"""Grain sources for a cache, and a join with a live pipeline by content.

`grain.MapDataset.source(CacheSource(cache))` reads rows in any order, and
`BatchSource` whole batches at once. A lab that trains on its own pipeline calls
`join` for the teacher's records of its rows. Rows are found by their digest,
never by their place, so a shift, a swap or another packing cannot go unnoticed.

Shape letters: R rows of the cache, B rows of a batch, L position, K slots, M
positions, Z depths, P pairs.
"""

from collections.abc import Sequence

import numpy as np

from analogjax.cache import batches, logit_cache
from analogjax.cache.cache_format import CacheError
from analogjax.data import rows as rows_lib

Element = dict[str, np.ndarray]


class CacheSource:
  """Rows with the teacher's records, for `grain.MapDataset.source`.

  An element has `tokens`, `segments`, `positions`, `weights` [L], `ids` and `p`
  [L, K], `capture_weights`, `entropy` and `label_logprob` [L]; topk also
  `log_tail` [L]; with cosines `gram_positions`, `gram_weights` [M] and `gram`
  [Z, P], as in gram_codes.Sample. `pipeline.RowSource` accepts this source too.
  """

  def __init__(self, cache: logit_cache.LogitCache, *, replica: int = 0):
    """Reads one of the independent draws; each pass may use another."""
    if not 0 <= replica < cache.manifest.num_replicas:
      raise ValueError(
        f"replica={replica}: the cache at {cache.location} has"
        f" {cache.manifest.num_replicas}, counted from 0."
      )
    self._cache, self._replica = cache, replica

  def __len__(self) -> int:
    return len(self._cache)

  def __getitem__(self, index: int) -> Element:
    return self._getitems([index])[0]

  # The name that grain looks for. Its batch() calls it only if the pushdown of
  # batches is switched on; BatchSource always reads together.
  def _getitems(self, indices: Sequence[int]) -> list[Element]:
    whole = _element(self._cache.read(np.asarray(indices), self._replica))
    return [
      {name: array[b] for name, array in whole.items()}
      for b in range(len(indices))
    ]


class BatchSource:
  """Whole batches, read together, in the order in which `train` sees them.

  An element has the fields of CacheSource with a first axis of `batch_rows`.
  Element n is a function of (seed, n). To read ahead:
  `grain.MapDataset.source(source).to_iter_dataset(grain.ReadOptions(...))`.
  """

  def __init__(
    self,
    cache: logit_cache.LogitCache,
    *,
    batch_rows: int,
    num_batches: int,
    seed: int,
  ):
    """Each pass over the rows has its own order and draw."""
    self._cache, self._num_batches = cache, num_batches
    self._batch_rows, self._seed = batch_rows, seed

  def __len__(self) -> int:
    return self._num_batches

  def __getitem__(self, index: int) -> Element:
    rows, passes = batches.row_order(
      index,
      batch_rows=self._batch_rows,
      num_rows=len(self._cache),
      seed=self._seed,
    )
    replicas = passes % self._cache.manifest.num_replicas
    return _element(self._cache.read(rows, replicas))


def _element(entries: logit_cache.Entries) -> Element:
  element = {
    "tokens": entries.rows.tokens_BL,
    "segments": entries.rows.segments_BL,
    "positions": entries.rows.positions_BL,
    "weights": entries.rows.weights_BL,
    "ids": entries.ids_BLK,
    "p": entries.p_BLK,
    "capture_weights": entries.capture_weights_BL,
    "entropy": entries.entropy_BL,
    "label_logprob": entries.label_logprob_BL,
  }
  if entries.log_tail_BL is not None:
    element["log_tail"] = entries.log_tail_BL
  if entries.gram is not None:
    element["gram_positions"] = np.asarray(entries.gram.positions_BM)
    element["gram_weights"] = np.asarray(entries.gram.weights_BM)
    element["gram"] = np.asarray(entries.gram.codes_BZP)
  return element


class DigestIndex:
  """Finds rows by content: 16 bytes of memory for each row of the cache."""

  def __init__(self, cache: logit_cache.LogitCache):
    """Reads the digests of all committed rows."""
    self._cache = cache
    names, places = [], []
    for part in cache.objects():
      digests_B32 = cache.digests(part)
      there_B = digests_B32.any(-1)
      names.append(_names(digests_B32[there_B]))
      places.append(np.array(part)[there_B])
    name_R = np.concatenate(names) if names else np.zeros(0, np.uint64)
    place_R = np.concatenate(places) if places else np.zeros(0, np.int64)
    order_R = np.argsort(name_R, kind="stable")
    self._name_R, self._place_R = name_R[order_R], place_R[order_R]

  def find(self, rows: rows_lib.Rows) -> np.ndarray:
    """Where these rows are in the cache, int64 [B].

    Raises:
      CacheError: the cache lacks a row: it was packed, cut or tokenized
        differently, or comes from other data.
    """
    digests_B32 = rows_lib.rows_digests(rows)
    name_B = _names(digests_B32)
    at_B = np.searchsorted(self._name_R, name_B)
    found_B = np.full(len(name_B), -1)
    inside = at_B < len(self._name_R)
    same = inside.copy()
    same[inside] = self._name_R[at_B[inside]] == name_B[inside]
    found_B[same] = self._place_R[at_B[same]]
    # 64 bits of the digest were compared; now all of it.
    if same.any():
      stored = self._cache.digests(found_B[same])
      same[same] = (stored == digests_B32[same]).all(-1)
    if not same.all():
      b = int(np.argmin(same))
      tokens = rows.tokens_BL[b, :8].tolist()
      raise CacheError(
        f"{self._cache.location}: row {b} of this batch, which begins with the"
        f" tokens {tokens}, is not in the cache: no cached row has the same"
        " tokens, segments and positions. The pipeline packs, shuffles or"
        " tokenizes in another way than the cached one, or reads other data"
        f" ({int((~same).sum())} of {len(same)} rows are missing)."
      )
    return found_B


def join(
  index: DigestIndex, rows: rows_lib.Rows, replica: int = 0
) -> logit_cache.Entries:
  """The teacher's records of these rows, wherever they are in the cache.

  Loss weights are those of `rows`, not the cached ones.

  Raises:
    CacheError: a row is missing from the cache or damaged.
  """
  entries = index._cache.read(index.find(rows), replica)
  return entries._replace(rows=rows)


def _names(digests_B32: np.ndarray) -> np.ndarray:
  return np.ascontiguousarray(digests_B32[:, :8]).view("<u8")[:, 0]
