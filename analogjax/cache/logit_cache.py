"""The logit cache: the teacher's distribution over rows, on disk.

A cache is a Zarr v3 group, written and read through TensorStore, that any Zarr
reader opens; docs/cache_format.md describes it. Rows are addressed by index. A
row is committed once its digest, which is written last, exists. So a writer may
be killed at any moment, and any number of processes can resume.

Shape letters (docs/glossary.md): R rows of the cache, B rows of a batch, M
replicas, L position, K slots of a record, V vocabulary.
"""

from collections.abc import Callable, Sequence
import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from analogjax.cache import array_codec, cache_format, record_codec, sampling
from analogjax.cache.array_codec import Entries, Stored
from analogjax.cache.cache_format import CacheError, Manifest
from analogjax.data import rows as rows_lib
from analogjax.workdir import store


class LogitCache:
  """An open cache; make one with `create` or `open_cache`."""

  def __init__(
    self,
    where: store.Place,
    manifest: Manifest,
    arrays: dict[str, Any],
    order_V: np.ndarray,
  ):
    self.location = where
    self.manifest = manifest
    self.order_V = order_V  # All ids, the likeliest first.
    self._arrays = arrays
    self._codec = array_codec.Codec(manifest, order_V)

  def __len__(self) -> int:
    return self.manifest.num_rows

  def committed(self) -> np.ndarray:
    """Which rows are committed, bool [R]."""
    return np.any(self.digests(range(len(self))), axis=-1)

  def digests(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """Digests of the rows, uint8 [B, 32]; zeros where not committed."""
    index = np.asarray(indices)
    return self._finish("digest", self._start_read("digest", index, 0), index)

  def objects(self) -> list[range]:
    """The rows of each stored object."""
    size, end = self.manifest.rows_per_object, len(self)
    return [range(i, min(i + size, end)) for i in range(0, end, size)]

  def holes(self) -> list[range]:
    """The objects that are still to be written, as ranges of rows."""
    done = self.committed()
    return [o for o in self.objects() if not done[o.start : o.stop].all()]

  def write(
    self, start: int, rows: rows_lib.Rows, records: sampling.Records
  ) -> None:
    """Writes one whole object and commits its rows.

    `start` is the index of the first row, a multiple of rows_per_object.

    Raises:
      CacheError: the disk or object store refused, for example because it is
        full.
    """
    self.write_stored(start, self.encode(rows, records))

  def encode(self, rows: rows_lib.Rows, records: sampling.Records) -> Stored:
    """The stored form of rows and their records."""
    return self._codec.encode(rows, records)

  def write_stored(self, start: int, stored: Stored) -> None:
    """Writes the result of `encode` or `read_stored`; see `write`."""
    assert start % self.manifest.rows_per_object == 0, start
    part = slice(start, start + len(stored["digest"]))
    try:
      writes = [
        self._arrays[name][part].write(value)
        for name, value in stored.items()
        if name != "digest"
      ]
      for write in writes:
        write.result()
      # The commit: readers look at the digest first.
      self._arrays["digest"][part].write(stored["digest"]).result()
    except store.ERRORS as error:
      raise CacheError(
        f"{self.location}: writing rows {part.start} to {part.stop - 1} of"
        f" the logit cache failed: {store.reason(error)}. The rows before are"
        " safe; free some space (or mend the store) and run again, it goes"
        " on where it was."
      ) from error

  def read(
    self,
    indices: Sequence[int] | np.ndarray,
    replica: int | np.ndarray = 0,
  ) -> Entries:
    """Reads rows and the teacher's records of them.

    `replica` selects an independent draw, one for all rows or [B].

    Raises:
      CacheError: a row is not committed, or its bytes do not match their
        checksum or digest; names the row.
    """
    index = np.asarray(indices)
    try:
      return self._codec.decode(self._read(index, replica))
    except record_codec.LayoutError as error:
      raise CacheError(
        f"{self.location}: the records of rows {index.min()} to {index.max()}"
        f" have a wrong layout: {error}.{_REPAIR}"
      ) from error

  def decode(self, stored: Stored, replica: int) -> Entries:
    """The result of `read` for the result of `encode`."""
    return self._codec.decode(self._codec.at_replica(stored, replica))

  def read_stored(self, index: np.ndarray) -> Stored:
    """Contents of the arrays for all replicas, checked; see `read`."""
    M = self.manifest.num_replicas
    pieces = [self._read(index, m) for m in range(M)]
    stored = dict(pieces[0])
    for name in self._codec.of_replica:
      stored[name] = np.stack([piece[name] for piece in pieces], axis=1)
    return stored

  def resized(self, num_rows: int) -> "LogitCache":
    """The same cache, extended or cut to this many rows."""
    manifest = dataclasses.replace(self.manifest, num_rows=num_rows)
    order = _order_digest(self.order_V)
    # If killed in between, the manifest must not name rows that no array has.
    if num_rows < len(self):
      cache_format.write_group(self.location, manifest, order)
    for array in self._arrays.values():
      rest = [None] * (array.ndim - 1)
      array.resize(exclusive_max=[num_rows, *rest]).result()
    cache_format.write_group(self.location, manifest, order)
    return open_cache(self.location)

  def remove(self, part: range) -> None:
    """Removes a stored object, whatever its state.

    Raises:
      CacheError: the store refuses.
    """
    number = part.start // self.manifest.rows_per_object
    try:
      where = self.location.open()
      # The digest first: an object that is being removed must not look
      # committed.
      for name in reversed(self._arrays):
        prefix = f"{name}/c/{number}"
        keys = ts.KvStore.KeyRange(f"{prefix}/", f"{prefix}0")
        where.delete_range(keys).result()
    except store.ERRORS as error:
      raise CacheError(
        f"{self.location}: rows {part.start} to {part.stop - 1} cannot be"
        f" removed: {store.reason(error)}."
      ) from error

  def bytes_by_array(self, objects: Sequence[range]) -> dict[str, int]:
    """Bytes of these objects in the store, indexes included, by array."""
    total = {}
    for name, array in self._arrays.items():
      zeros = "/0" * (array.ndim - 1)
      M = self.manifest.num_replicas if array.ndim == 3 else 1
      rows = self.manifest.rows_per_object
      keys = [f"{name}/c/{o.start // rows}{zeros}" for o in objects]
      total[name] = store.object_bytes(self.location, keys, rows * M)
    return total

  def _read(self, index: np.ndarray, replica: int | np.ndarray) -> Stored:
    """The arrays at one replica of each row, digests compared."""
    with ts.Batch() as batch:
      futures = {
        name: self._start_read(name, index, replica, batch)
        for name in self._arrays
      }
    digests = self._finish("digest", futures["digest"], index)
    for row, there in zip(index, np.any(digests, -1), strict=True):
      if not there:
        raise CacheError(
          f"{self.location}: row {row} is not committed. Run 'analogjax cache'"
          " to fill the holes."
        )
    stored = {
      name: self._finish(name, future, index)
      for name, future in futures.items()
    }
    wrong = (rows_lib.rows_digests(array_codec.to_rows(stored)) != digests).any(
      -1
    )
    if wrong.any():
      raise CacheError(
        f"{self.location}: the tokens, segments or positions of row"
        f" {index[wrong.argmax()]} do not match its digest.{_REPAIR}"
      )
    found = self._codec.record_digests(stored)
    wrong = (found != stored["record_digest"]).any(-1)
    if wrong.any():
      raise CacheError(
        f"{self.location}: what the teacher said about row"
        f" {index[wrong.argmax()]} does not match its digest.{_REPAIR}"
      )
    return stored

  def _start_read(self, name, index, replica, batch=None):
    array = self._arrays[name]
    if array.ndim == 3:
      replica = np.broadcast_to(replica, index.shape)
      return array.vindex[index, replica].read(batch=batch)
    return array[index].read(batch=batch)

  def _finish(self, name, future, index):
    try:
      return np.asarray(future.result())
    except store.ERRORS as error:
      row = self._first_unreadable(name, index)
      raise CacheError(
        f"{self.location}: array {name!r} cannot be read at row {row}:"
        f" {store.reason(error)}.{_REPAIR}"
      ) from error

  def _first_unreadable(self, name, index) -> int:
    for row in index:
      try:
        self._arrays[name][int(row)].read().result()
      except store.ERRORS:
        return int(row)
    return int(index[0])  # The store has recovered since.


_REPAIR = (
  " 'analogjax cache --repair' computes the damaged rows again; 'analogjax"
  " cache --verify' lists them."
)


def create(
  location: store.Place | str | Path,
  manifest: Manifest,
  order_V: Callable[[], np.ndarray] | None = None,
) -> LogitCache:
  """A new cache at this place, or the existing one after a check.

  An existing cache must agree with `manifest` in everything that its rows
  depend on; if it has fewer rows, it grows.

  Args:
    location: folder, URL or place.
    order_V: makes the id order of a new cache, all ids, the likeliest first;
      None: ascending.

  Raises:
    CacheError: the existing cache disagrees (names both values) or is
      unreadable.
    store.StoreError: the store refuses.
  """
  where = _place(location)
  if cache_format.read_group(where) is None:
    store.check(where)
    V = manifest.vocabulary_size
    order = np.arange(V) if order_V is None else np.asarray(order_V())
    assert np.array_equal(np.sort(order), np.arange(V))
    try:
      for name, spec in cache_format.array_specs(manifest).items():
        store.open_array(where, name, spec, create=True)
      spec = cache_format.id_order_spec(V)
      name = cache_format.ID_ORDER
      array = store.open_array(where, name, spec, create=True)
      array.write(order.astype(np.uint32)).result()
      # Last: a group without it is not a cache yet.
      cache_format.write_group(where, manifest, _order_digest(order))
    except store.ERRORS as error:
      raise CacheError(
        f"{where}: the logit cache cannot be created: {store.reason(error)}."
      ) from error
  cache = open_cache(where)
  cache_format.check(where, cache.manifest, manifest)
  if len(cache) < manifest.num_rows:
    cache = cache.resized(manifest.num_rows)
  return cache


def open_cache(location: store.Place | str | Path) -> LogitCache:
  """Opens what `create` made.

  Raises:
    CacheError: there is no logit cache, or it is damaged or of another format.
    store.StoreError: an array is lost, or the store refuses.
  """
  where = _place(location)
  group = cache_format.read_group(where)
  if group is None:
    raise CacheError(
      f"{where}: there is no logit cache here; run 'analogjax cache' first."
    )
  manifest, order_digest = group
  arrays = {}
  for name, spec in cache_format.array_specs(manifest).items():
    arrays[name] = store.open_array(where, name, _as_it_is(spec))
  spec = _as_it_is(cache_format.id_order_spec(manifest.vocabulary_size))
  order = store.open_array(where, cache_format.ID_ORDER, spec)
  what = f"{where}: array 'id_order' of the logit cache cannot be read"
  order_V = np.asarray(store.translated(lambda: order.read().result(), what))
  if _order_digest(order_V) != order_digest:
    raise CacheError(
      f"{where}: array 'id_order' is not the one that the manifest names, so"
      " no id can be told. Restore that file from a copy, or cache again."
    )
  return LogitCache(where, manifest, arrays, order_V.astype(np.int32))


def _as_it_is(spec: dict[str, Any]) -> dict[str, Any]:
  """How to open an array whose metadata is in the store."""
  return {name: value for name, value in spec.items() if name != "metadata"}


def _order_digest(order_V: np.ndarray) -> str:
  return hashlib.sha256(order_V.astype("<u4").tobytes()).hexdigest()


def _place(location: store.Place | str | Path) -> store.Place:
  return (
    location if isinstance(location, store.Place) else store.place(location)
  )
