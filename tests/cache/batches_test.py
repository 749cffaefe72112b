"""Tests for analogjax/cache/batches.py."""

import collections
import json
import sys
import threading

import caches
import grain
import jax
import numpy as np
import pytest

from analogjax.cache import batches, logit_cache
from analogjax.data import pipeline
from analogjax.distributed import processes

L, V = 6, 50


@pytest.mark.parametrize(
  "segments, weights, wanted",
  [
    # One document: all but the last position predict the next token.
    ([1, 1, 1, 1, 1, 1], None, [1, 1, 1, 1, 1, 0]),
    # The last of a document does not predict the first of the next.
    ([1, 1, 2, 2, 3, 3], None, [1, 0, 1, 0, 1, 0]),
    ([1, 1, 1, 2, 0, 0], None, [1, 1, 0, 0, 0, 0]),
    # Padding predicts nothing, wherever it is.
    ([0, 0, 1, 1, 0, 1], None, [0, 0, 1, 0, 0, 0]),
    ([0, 0, 0, 0, 0, 0], None, [0, 0, 0, 0, 0, 0]),
    # A weight belongs to the token as a label: position i takes that of i + 1.
    ([1, 1, 1, 1, 1, 1], [9, 0, 0.5, 2, 1, 3], [0, 0.5, 2, 1, 3, 0]),
    ([1, 1, 1, 2, 2, 2], [9, 0, 0.5, 9, 1, 3], [0, 0.5, 0, 1, 3, 0]),
  ],
)
def test_labels_by_hand(segments, weights, wanted):
  rows = caches.rows_of([[10, 11, 12, 13, 14, 15]], [segments])
  if weights is not None:
    rows = rows._replace(weights_BL=np.float32([weights]))
  labels_BL, weights_BL = batches.labels(rows)
  np.testing.assert_array_equal(weights_BL, [wanted])
  assert weights_BL.dtype == np.float32 and labels_BL.dtype == np.int32
  predicts = weights_BL > 0
  np.testing.assert_array_equal(
    labels_BL[predicts], rows.tokens_BL[predicts] + 1
  )
  batch = batches.from_rows(rows)
  np.testing.assert_array_equal(batch.targets.labels_BL, labels_BL)
  np.testing.assert_array_equal(batch.targets.weights_BL, weights_BL)
  assert not batch.targets.teacher_weights_BL.any()  # There is no teacher.
  assert batch.targets.ids_BLK.shape == batch.targets.p_BLK.shape == (1, L, 0)
  for field in ("tokens_BL", "segments_BL", "positions_BL"):
    np.testing.assert_array_equal(getattr(batch, field), getattr(rows, field))


def order(step, **changes):
  given = dict(batch_rows=4, num_rows=10, seed=3) | changes
  return batches.row_order(step, **given)[0].tolist()


@pytest.mark.parametrize(
  "batch_rows, num_rows", [(4, 10), (1, 7), (5, 5), (16, 3), (3, 1)]
)
def test_each_pass_is_a_permutation(batch_rows, num_rows):
  steps = 4 * num_rows
  seen = [
    row
    for step in range(steps)
    for row in order(step, batch_rows=batch_rows, num_rows=num_rows)
  ]
  passes = [
    tuple(seen[i : i + num_rows]) for i in range(0, len(seen), num_rows)
  ]
  assert all(sorted(p) == list(range(num_rows)) for p in passes)
  if num_rows > 6:
    assert len(set(passes)) > 0.9 * len(passes), "the passes repeat"


def test_the_order_is_pinned():
  """A restart has to draw the rows that the run before it drew.

  If this fails after an update of grain, its index_shuffle gives another
  permutation: pin grain, or write the shuffle here. Do not renew the numbers.
  """
  assert [order(step) for step in range(5)] == PINNED_ORDER
  large = order(10**9, batch_rows=3, num_rows=2**31, seed=2**40)
  assert large == PINNED_LARGE


PINNED_ORDER = [
  [0, 3, 1, 2],
  [4, 5, 6, 7],
  [9, 8, 4, 6],
  [9, 7, 5, 3],
  [1, 8, 2, 0],
]
PINNED_LARGE = [1361656280, 1081302205, 1906651866]


def test_the_order_is_a_function_of_seed_and_step_alone():
  whole = [row for step in range(9) for row in order(step)]
  # Later steps do not depend on those before, nor on the size of a batch.
  assert order(7) == whole[28:32]
  halves = [r for step in range(18) for r in order(step, batch_rows=2)]
  assert halves == whole
  assert [r for s in range(9) for r in order(s, seed=4)] != whole


@pytest.mark.parametrize("batch_rows", [1, 4, 16])
def test_each_row_knows_its_pass(batch_rows):
  """The pass selects a record's replica; a batch may hold several passes."""
  passes = [
    epoch
    for step in range(48 // batch_rows)
    for epoch in batches.row_order(
      step, batch_rows=batch_rows, num_rows=10, seed=3
    )[1].tolist()
  ]
  assert passes == [i // 10 for i in range(48)]


@pytest.fixture
def cache(kit, tmp_path):
  """Seven rows whose tokens are their index."""
  m = kit.manifest(
    num_rows=7,
    rows_per_object=7,
    sequence_length=L,
    vocabulary_size=V,
    capture="random",
    capture_rate=0.5,
  )
  rows = kit.rows_of([[i] * L for i in range(7)], np.ones((7, L)))
  rows = rows._replace(weights_BL=rows.weights_BL / 2)
  cache = logit_cache.create(tmp_path, m)
  cache.write(0, rows, kit.records(m))
  return cache


def test_the_teachers_weight_is_that_of_the_label_over_the_probability(cache):
  entries = cache.read(range(7))
  targets = batches.from_entries(entries).targets
  q_BL = cache.read_stored(np.arange(7))["inclusion"] / np.float64(255)
  wanted_BL = np.divide(
    targets.weights_BL, q_BL, out=np.zeros_like(q_BL), where=q_BL > 0
  )
  np.testing.assert_allclose(targets.teacher_weights_BL, wanted_BL, rtol=1e-6)
  assert targets.teacher_weights_BL.dtype == np.float32
  # The hard label counts where there is no record, too.
  np.testing.assert_array_equal(
    targets.weights_BL, np.tile(np.float32([0.5] * (L - 1) + [0]), (7, 1))
  )
  assert (targets.teacher_weights_BL == 0).sum() > (
    targets.weights_BL == 0
  ).sum()


@pytest.mark.parametrize("batch_rows", [1, 3, 7, 16])
def test_in_order_covers_every_row_once(cache, batch_rows):
  everything = cache.read(range(7))
  weight_of, teacher_of = collections.Counter(), collections.Counter()
  whole = batches.from_entries(everything).targets
  for batch, entries in batches.in_order(cache, batch_rows):
    assert batch.tokens_BL.shape == (batch_rows, L)
    np.testing.assert_array_equal(batch.tokens_BL, entries.rows.tokens_BL)
    for b, row in enumerate(batch.tokens_BL[:, 0].tolist()):
      weight_of[row] += batch.targets.weights_BL[b].sum()
      teacher_of[row] += float(batch.targets.teacher_weights_BL[b].sum())
      np.testing.assert_array_equal(
        batch.targets.ids_BLK[b], everything.ids_BLK[row]
      )
      np.testing.assert_array_equal(
        batch.targets.p_BLK[b], everything.p_BLK[row]
      )
      np.testing.assert_array_equal(
        entries.entropy_BL[b], everything.entropy_BL[row]
      )
  # L - 1 labels a row; the copies that fill up the last batch add none.
  assert weight_of == dict.fromkeys(range(7), (L - 1) / 2)
  for row in range(7):
    assert teacher_of[row] == whole.teacher_weights_BL[row].sum()


@pytest.mark.parametrize("batch_rows", [4, 8])
def test_groups_share_out_what_is_read_in_order(cache, batch_rows):
  """Each row of a batch is in one group, as the mesh requires."""
  groups = [
    processes.Group(i, 2, True, w, 4) for i, w in enumerate([(0, 3), (1, 2)])
  ]
  parts = [list(batches.in_order(cache, batch_rows, g)) for g in groups]
  whole = list(batches.in_order(cache, batch_rows))
  for (batch, entries), *of_groups in zip(whole, *parts, strict=True):
    for group, part in zip(groups, of_groups, strict=True):
      rows = group.indices_of(batch_rows)
      assert len(rows) == batch_rows // 2
      jax.tree.map(
        lambda all, own, rows=rows: np.testing.assert_array_equal(
          all[rows], own
        ),
        (batch, entries.rows, entries.entropy_BL),
        (part[0], part[1].rows, part[1].entropy_BL),
      )


def threads():
  return {t for t in threading.enumerate() if t.is_alive()}


@pytest.mark.parametrize("depth", [1, 2, 9])
@pytest.mark.parametrize("steps", [range(0), range(5, 6), range(3, 20)])
def test_prefetch_keeps_the_order(depth, steps):
  made, before = [], threads()

  def make(step):
    made.append(step)
    return step * step

  got = list(batches.Prefetch(make, steps, depth=depth))
  assert got == [step * step for step in steps]
  assert made == list(steps)
  assert threads() == before


def test_prefetch_works_ahead_and_no_further():
  ready = threading.Semaphore(0)
  made = []

  def make(step):
    made.append(step)
    ready.release()
    return step

  ahead = batches.Prefetch(make, range(100), depth=3)
  assert next(ahead) == 0
  # Step 0 and the three ahead of it are made without anybody asking.
  assert all(ready.acquire(timeout=30) for _ in range(4))
  assert made == [0, 1, 2, 3]
  ahead.close()


def test_prefetch_stops_its_thread_when_the_loop_does():
  before, made = threads(), []
  ahead = batches.Prefetch(lambda step: made.append(step) or step, range(1000))
  assert [next(ahead), next(ahead)] == [0, 1]
  assert threads() != before
  ahead.close()
  assert threads() == before
  assert len(made) <= 4


def test_prefetch_says_whether_the_next_one_is_there():
  before, ready = threads(), threading.Event()

  def make(step):
    if step == 1:
      ready.wait(60)
    if step == 2:
      raise ValueError("row 2 is broken")
    return step

  ahead = batches.Prefetch(make, range(3))
  assert ahead.wait(60) and next(ahead) == 0
  assert not ahead.wait(0.01)
  ready.set()
  assert ahead.wait(60) and next(ahead) == 1
  # An error is there, and raised where it is taken.
  assert ahead.wait(60)
  with pytest.raises(ValueError, match="row 2 is broken"):
    next(ahead)
  assert not ahead.hangs and threads() == before


def test_prefetch_at_its_end_waits_for_nothing():
  ahead = batches.Prefetch(lambda step: step, range(1))
  assert next(ahead) == 0
  assert ahead.wait(0)
  with pytest.raises(StopIteration):
    next(ahead)


def test_prefetch_does_not_wait_for_ever_for_a_thread_that_hangs():
  before, released, made = threads(), threading.Event(), []

  def make(step):
    made.append(step)
    released.wait(60)

  ahead = batches.Prefetch(make, range(9), depth=3)
  try:
    assert not ahead.wait(0.01)
    ahead.close(seconds=0.01)
    assert ahead.hangs and threads() != before
    ahead.close(seconds=60)  # Once is enough.
    assert ahead.hangs
  finally:
    released.set()
  for thread in threads() - before:
    thread.join(60)
  assert made == [0]  # Later steps are not begun.


# Pipelines for config.data.pipeline: 11 rows that differ in their first token.


def to_row(i):
  return {"tokens": np.arange(i, i + L), "segments": np.ones(L, np.int32)}


def indexed(n=11):
  return grain.MapDataset.range(n).map(to_row)


def endless():
  return indexed().seed(5).shuffle().repeat()


def stream(n=11):
  return indexed(n).to_iter_dataset()


def long_stream():
  return (
    grain.MapDataset.range(120).map(lambda i: to_row(i % 40)).to_iter_dataset()
  )


MADE = []  # Elements of `counted` that were made.


def counted():
  def make(i):
    MADE.append(i)
    return to_row(i)

  return grain.MapDataset.range(40).map(make).to_iter_dataset()


def packed():
  """Documents of several lengths, in rows: an iterator with a real state."""
  lengths = [3, 9, 1, 14, 2, 6, 19, 5, 4, 8]
  documents = grain.MapDataset.source(list(enumerate(lengths)))
  rows = grain.experimental.ConcatThenSplitIterDataset(
    documents.map(lambda d: {"tokens": np.full(d[1], d[0])}).to_iter_dataset(),
    length_struct={"tokens": L},
  )
  return rows.map(
    lambda r: {"tokens": r["tokens"], "segments": r["tokens_segment_ids"]}
  )


@pytest.fixture
def open_order(monkeypatch):
  """Opens PipelineOrder over a function of this file."""
  monkeypatch.setitem(sys.modules, "labbatches", sys.modules[__name__])

  def open_(function, batch_rows=4, seed=3):
    source = pipeline.open_pipeline(f"labbatches:{function}", {}, L=L, V=V)
    return batches.PipelineOrder(source, batch_rows=batch_rows, seed=seed)

  return open_


def first_tokens(rows):
  return rows.tokens_BL[:, 0].tolist()


def test_a_map_dataset_comes_in_the_shuffled_order(open_order):
  one = open_order("indexed")
  wanted = [order(step, num_rows=11) for step in range(6)]
  assert [first_tokens(one.read(step)) for step in range(6)] == wanted
  # Random access: any step, at any time, and nothing to save.
  assert first_tokens(one.read(2)) == wanted[2]
  assert one.position(3) is None
  one.restore(None)
  assert first_tokens(one.read(0)) == wanted[0]


def test_a_dataset_that_repeats_for_ever_keeps_its_own_order(open_order):
  own = [int(endless()[i]["tokens"][0]) for i in range(24)]
  one = open_order("endless")
  got = [first_tokens(one.read(step)) for step in range(6)]
  assert sum(got, []) == own


@pytest.mark.parametrize("batch_rows", [1, 4, 11, 25])
def test_a_stream_starts_again_at_its_end(open_order, batch_rows):
  """25 rows of one batch are more than two passes."""
  one = open_order("stream", batch_rows=batch_rows)
  steps = 100 // batch_rows
  got = [first_tokens(one.read(step)) for step in range(steps)]
  assert sum(got, []) == [i % 11 for i in range(steps * batch_rows)]


def test_a_long_stream_still_knows_its_beginning(open_order):
  """Over a hundred reads per pass: more states than are kept."""
  one = open_order("long_stream", batch_rows=1)
  got = [first_tokens(one.read(step))[0] for step in range(300)]
  assert got == [i % 40 for i in range(120)] * 2 + [i % 40 for i in range(60)]


@pytest.mark.parametrize("function", ["stream", "packed"])
@pytest.mark.parametrize("step", [1, 2, 3, 5, 8, 13])
def test_a_restart_goes_on_exactly(open_order, function, step):
  """From the position of a step that the prefetch has already passed."""
  whole = open_order(function)
  wanted = [whole.read(i).tokens_BL for i in range(17)]

  before = open_order(function)
  ahead = batches.Prefetch(before.read, range(20))
  for _ in range(step):
    next(ahead)
  position = before.position(step)
  ahead.close()
  # As a checkpoint keeps it.
  position = json.loads(json.dumps(position))

  after = open_order(function)
  after.restore(position)
  got = [
    rows.tokens_BL for rows in batches.Prefetch(after.read, range(step, 17))
  ]
  np.testing.assert_array_equal(got, wanted[step:])
  # And a restart of the restart.
  position = json.loads(json.dumps(after.position(15)))
  last = open_order(function)
  last.restore(position)
  np.testing.assert_array_equal(last.read(15).tokens_BL, wanted[15])


def test_a_restart_does_not_read_what_was_read(open_order):
  before = open_order("counted")
  for step in range(6):
    before.read(step)
  after = open_order("counted")
  MADE.clear()
  after.restore(before.position(6))
  assert first_tokens(after.read(6)) == [24, 25, 26, 27]
  assert min(MADE) == 24


def test_nothing_saved_starts_at_the_beginning(open_order):
  one = open_order("stream")
  assert one.position(0) is None
  one.restore(None)
  assert first_tokens(one.read(0)) == [0, 1, 2, 3]


def test_positions_of_old_steps_are_let_go(open_order):
  one = open_order("stream")
  for step in range(100):
    one.read(step)
  assert one.position(100) is not None and one.position(90) is not None
  assert len(one._positions) <= 16
