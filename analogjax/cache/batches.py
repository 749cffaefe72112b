"""Batches: the rows of the batch of step n, read ahead of the step.

The global batch at step n is a function of (seed, n), whatever the number of
hosts: no state of the order has to be saved to resume.

Shape letters (docs/glossary.md): B batch, L position, K entries of a record.
"""

import collections
from collections.abc import Callable, Iterator
import concurrent.futures
import functools
import itertools
import math
from typing import Any, NamedTuple, TypeVar

import grain
import numpy as np

from analogjax.cache import gram_codes, logit_cache
from analogjax.data import pipeline, rows as rows_lib
from analogjax.distributed import processes, sharding

_T = TypeVar("_T")


class Targets(NamedTuple):
  """The targets of the student at each position of [B, L]."""

  labels_BL: sharding.Array  # int32 next token.
  weights_BL: sharding.Array  # float32; 0 where nothing is predicted.
  # float32. The weight of the teacher's record; where only some positions have
  # one, it is divided by the probability that this one was captured; else 0.
  teacher_weights_BL: sharding.Array
  ids_BLK: sharding.Array  # int32, the teacher's record; K = 0: no record.
  p_BLK: sharding.Array  # float32 of those ids; 0 in slots that are empty.
  # float32, the logarithm of the mass of all ids that the record does not name.
  # None: the record is a sample, and sums to one by itself.
  log_tail_BL: sharding.Array | None = None


class Batch(NamedTuple):
  """One global batch; axis 0 is split over the mesh."""

  tokens_BL: sharding.Array  # int32 inputs.
  segments_BL: sharding.Array  # int32 document of each token, 0 is padding.
  positions_BL: sharding.Array  # int32 position within the document.
  targets: Targets
  gram: gram_codes.Sample | None = None  # Set if states are compared too.


def row_order(
  step: int, *, batch_rows: int, num_rows: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Rows in the batch of this step (counted from 0), and the pass of each.

  Each pass over the rows has its own permutation. A batch may hold the end of
  one pass and the beginning of the next.
  """
  first = step * batch_rows
  order, passes = [], []
  for position in range(first, first + batch_rows):
    epoch, i = divmod(position, num_rows)
    shuffled = grain.experimental.index_shuffle(
      i, max_index=num_rows - 1, seed=_epoch_seed(seed, epoch), rounds=4
    )
    order.append(shuffled)
    passes.append(epoch)
  return np.asarray(order), np.asarray(passes)


@functools.lru_cache(maxsize=16)
def _epoch_seed(seed: int, epoch: int) -> int:
  return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def from_rows(rows: rows_lib.Rows) -> Batch:
  """A batch with hard labels only."""
  B, L = rows.tokens_BL.shape
  none = np.zeros((B, L, 0))
  return _batch(
    rows, none.astype(np.int32), none.astype(np.float32), np.zeros((B, L))
  )


def from_entries(entries: logit_cache.Entries) -> Batch:
  """A batch with hard labels and everything that the teacher recorded."""
  batch = _batch(
    entries.rows, entries.ids_BLK, entries.p_BLK, entries.capture_weights_BL
  )
  batch = batch._replace(gram=entries.gram)
  if entries.log_tail_BL is None:
    return batch
  # Where nothing was captured the tail is unknown and has no weight.
  captured_BL = entries.capture_weights_BL > 0
  tail_BL = np.where(captured_BL, entries.log_tail_BL, 0).astype(np.float32)
  targets = batch.targets._replace(log_tail_BL=tail_BL)
  return batch._replace(targets=targets)


def for_live_teacher(rows: rows_lib.Rows) -> Batch:
  """A batch for a live teacher, whose weight is 1 at each label."""
  batch = from_rows(rows)
  weights_BL = batch.targets.weights_BL
  targets = batch.targets._replace(teacher_weights_BL=weights_BL)
  return batch._replace(targets=targets)


def with_positions(
  batch: Batch, rows: rows_lib.Rows, number: int, seed: int
) -> Batch:
  """The same batch, with the positions where a teacher's Gram is wanted."""
  digests_B32 = rows_lib.rows_digests(rows)
  sample = gram_codes.draw(digests_B32, rows.segments_BL, number, seed)
  return batch._replace(gram=sample)


def labels(rows: rows_lib.Rows) -> tuple[np.ndarray, np.ndarray]:
  """The next token at each position, and its loss weight.

  A position has weight 1 if the next token belongs to the same document. The
  last position of a row or a document and padding have weight 0.
  """
  labels_BL = np.zeros_like(rows.tokens_BL)
  labels_BL[:, :-1] = rows.tokens_BL[:, 1:]
  same_BL = rows.segments_BL[:, 1:] == rows.segments_BL[:, :-1]
  same_BL &= rows.segments_BL[:, 1:] > 0
  weights_BL = np.zeros_like(rows.weights_BL)
  weights_BL[:, :-1] = rows.weights_BL[:, 1:] * same_BL
  return labels_BL, weights_BL


def _batch(rows, ids_BLK, p_BLK, capture_weights_BL) -> Batch:
  labels_BL, weights_BL = labels(rows)
  return Batch(
    tokens_BL=rows.tokens_BL,
    segments_BL=rows.segments_BL,
    positions_BL=rows.positions_BL,
    targets=Targets(
      labels_BL=labels_BL,
      weights_BL=weights_BL,
      teacher_weights_BL=weights_BL * capture_weights_BL.astype(np.float32),
      ids_BLK=ids_BLK,
      p_BLK=p_BLK,
    ),
  )


def in_order(
  cache: logit_cache.LogitCache,
  batch_rows: int,
  group: processes.Group | None = None,
) -> Iterator[tuple[Batch, logit_cache.Entries]]:
  """Yields every row of a cache once, in batches of one size.

  The last batch is filled up with copies of the last row at weight 0. Processes
  take their batches at the same time: if one cannot read, all stop. The yielded
  rows and entries are those that `group` feeds, so a sum over them on the host
  is the group's part; None: all.
  """
  num_rows = cache.manifest.num_rows
  mine = np.arange(batch_rows)
  if group is not None:
    mine = group.indices_of(batch_rows)
  for start in range(0, num_rows, batch_rows):
    wanted = start + mine
    rows = np.minimum(wanted, num_rows - 1)
    entries = processes.all_or_none(functools.partial(cache.read, rows))
    batch = from_entries(entries)
    is_row_B1 = (wanted < num_rows)[:, None]
    targets = batch.targets._replace(
      weights_BL=batch.targets.weights_BL * is_row_B1,
      teacher_weights_BL=batch.targets.teacher_weights_BL * is_row_B1,
    )
    if batch.gram is not None:
      weights_BM = batch.gram.weights_BM * is_row_B1
      batch = batch._replace(gram=batch.gram._replace(weights_BM=weights_BM))
    yield batch._replace(targets=targets), entries


class Prefetch(Iterator[_T]):
  """Computes make(step) for each step in order, up to `depth` steps ahead.

  One thread is used, so a source that must be read in order is. An exception in
  `make` is raised at its step.
  """

  def __init__(
    self, make: Callable[[int], _T], steps: range, *, depth: int = 2
  ):
    self._make, self._steps = make, iter(steps)
    self._pool = concurrent.futures.ThreadPoolExecutor(1)
    self._ahead = collections.deque[concurrent.futures.Future[_T]]()
    self._patience = math.inf
    # Set if the thread did not end when it was closed. Python would wait for
    # it.
    self.hangs = False
    for _ in range(depth):
      self._submit()

  def __next__(self) -> _T:
    self._submit()
    if not self._ahead:
      self.close()
      raise StopIteration
    try:
      value = self._ahead[0].result()
    except BaseException:
      self.close()
      raise
    self._ahead.popleft()
    return value

  def wait(self, seconds: float) -> bool:
    """Whether the next batch is ready, now or within `seconds`."""
    if not self._ahead:
      return True
    done, _ = concurrent.futures.wait([self._ahead[0]], seconds)
    return bool(done)

  def close(self, *, seconds: float = 5.0) -> None:
    """Stops; waits up to `seconds` for the step being computed.

    Afterwards the thread has ended, or `hangs` is set and it is not waited for
    again.
    """
    self._pool.shutdown(wait=False, cancel_futures=True)
    self._patience = min(self._patience, seconds)
    running = [future for future in self._ahead if not future.done()]
    running = concurrent.futures.wait(running, self._patience).not_done
    self.hangs = bool(running)
    if self.hangs:
      self._patience = 0.0
    else:
      self._pool.shutdown()

  def _submit(self) -> None:
    for step in itertools.islice(self._steps, 1):
      self._ahead.append(self._pool.submit(self._make, step))


class PipelineOrder:
  """Batches straight from the frontier run's pipeline, without a cache.

  Rows with random access come in the order of `row_order`. A stream comes in
  its own order, pass after pass, and has a position to save. Every process
  reads all rows of a stream, and keeps those that it feeds.
  """

  def __init__(
    self,
    source: pipeline.RowSource,
    *,
    batch_rows: int,
    seed: int,
    mine: np.ndarray | None = None,
  ):
    """Prepares batches of `batch_rows` rows, which counts the global batch.

    `mine` selects the rows of a batch that this process feeds; None: all.
    """
    self._source, self._batch_rows, self._seed = source, batch_rows, seed
    self._mine = np.arange(batch_rows) if mine is None else mine
    self._next_row = 0
    self._positions: dict[int, dict[str, Any]] = {}

  def read(self, step: int) -> rows_lib.Rows:
    """The rows of this step; a stream must be asked for each step in turn."""
    if self._source.random_access:
      order = dict(batch_rows=self._batch_rows, seed=self._seed)
      num_rows = self._source.num_rows
      if num_rows is None:  # Repeats forever, in its own order.
        wanted = step * self._batch_rows + np.arange(self._batch_rows)
      else:
        wanted, _ = row_order(step, num_rows=num_rows, **order)
      return self._source.read(wanted[self._mine].tolist())
    pieces, missing = [], self._batch_rows
    while missing:
      wanted = range(self._next_row, self._next_row + missing)
      try:
        piece = self._source.read(wanted)
      except pipeline.EndOfRows as end:
        piece = self._source.read(range(self._next_row, end.num_rows))
        self._source.restore(0, self._source.state(0))
        self._next_row = 0
      else:
        self._next_row = wanted.stop
      pieces.append(piece)
      missing -= len(piece.tokens_BL)
    self._keep_position(step + 1)
    whole = map(np.concatenate, zip(*pieces, strict=True))
    return rows_lib.Rows(*(field[self._mine] for field in whole))

  def position(self, step: int) -> dict[str, Any] | None:
    """State from which `restore` reads step `step` next; None if not needed."""
    return self._positions.get(step)

  def restore(self, position: dict[str, Any] | None) -> None:
    """Goes to a saved position; with None, to the beginning."""
    if self._source.random_access or position is None:
      return
    self._next_row = position["row"]
    self._source.restore(self._next_row, position["state"])

  def _keep_position(self, step: int) -> None:
    state = self._source.state(self._next_row)
    self._positions[step] = {"row": self._next_row, "state": state}
    # A checkpoint is at most `depth` steps behind what was read.
    self._positions.pop(step - 16, None)
