"""Tests for analogjax/cache/grain_source.py."""

import grain
import numpy as np
import pytest

from analogjax.cache import batches, grain_source, logit_cache
from analogjax.cache.cache_format import CacheError
from analogjax.data import rows as rows_lib

L, V, R = 16, 500, 11


@pytest.fixture
def cache(tmp_path, kit):
  m = kit.manifest(
    sequence_length=L, vocabulary_size=V, num_rows=R, num_replicas=2
  )
  made = logit_cache.create(tmp_path / "cache", m)
  kit.write_all(made, kit.rows(m), kit.records(m))
  return made


def test_rows_come_through_grain_as_they_are_read(cache):
  dataset = grain.MapDataset.source(grain_source.CacheSource(cache, replica=1))
  assert len(dataset) == R
  shuffled = dataset.shuffle(seed=3).batch(4)
  seen = []
  for element in shuffled:
    assert element["ids"].shape == element["p"].shape
    rows = _to_rows(element)
    seen += grain_source.DigestIndex(cache).find(rows).tolist()
  assert sorted(seen) == list(range(R))
  entries = cache.read([5], 1)
  np.testing.assert_array_equal(dataset[5]["ids"], entries.ids_BLK[0])
  np.testing.assert_array_equal(dataset[5]["p"], entries.p_BLK[0])


def test_a_batch_is_one_read_and_what_train_sees(cache, monkeypatch):
  source = grain_source.BatchSource(cache, batch_rows=4, num_batches=9, seed=5)
  assert len(source) == 9
  calls = []
  read = cache.read
  monkeypatch.setattr(
    cache, "read", lambda *args: calls.append(args) or read(*args)
  )
  ahead = grain.MapDataset.source(source).to_iter_dataset(
    grain.ReadOptions(num_threads=2, prefetch_buffer_size=3)
  )
  elements = list(ahead)
  assert len(calls) == 9
  for step, element in enumerate(elements):
    rows, passes = batches.row_order(step, batch_rows=4, num_rows=R, seed=5)
    wanted = read(rows, passes % 2)
    np.testing.assert_array_equal(element["tokens"], wanted.rows.tokens_BL)
    np.testing.assert_array_equal(element["ids"], wanted.ids_BLK)
  # The second pass over the rows has other draws.
  assert {int(m) for _, m in _pairs(calls)} == {0, 1}


def _pairs(calls):
  for rows, replicas in calls:
    yield from zip(rows, replicas, strict=True)


def test_a_replica_that_is_not_there_is_refused(cache):
  with pytest.raises(ValueError, match="replica=2: .* has 2, counted from 0"):
    grain_source.CacheSource(cache, replica=2)


def _to_rows(element):
  names = ("tokens", "segments", "positions", "weights")
  return rows_lib.Rows(*(element[name] for name in names))


def test_live_rows_find_their_records_in_any_order(cache):
  index = grain_source.DigestIndex(cache)
  order = np.array([7, 2, 2, 10, 0])
  live = cache.read(order).rows
  heavier = live._replace(weights_BL=live.weights_BL * 2)
  np.testing.assert_array_equal(index.find(live), order)
  joined = grain_source.join(index, heavier, 1)
  np.testing.assert_array_equal(joined.ids_BLK, cache.read(order, 1).ids_BLK)
  # Loss weights belong to the live pipeline.
  np.testing.assert_array_equal(joined.rows.weights_BL, heavier.weights_BL)


def _shifted(rows):
  return rows._replace(tokens_BL=np.roll(rows.tokens_BL, 1, axis=1))


def _other_packing(rows):
  segments_BL = rows.segments_BL.copy()
  segments_BL[:, L // 2 :] += 1
  positions_BL = rows_lib.default_positions(segments_BL)
  return rows._replace(segments_BL=segments_BL, positions_BL=positions_BL)


def _other_positions(rows):
  return rows._replace(positions_BL=rows.positions_BL + 1)


def _other_tokenizer(rows):
  return rows._replace(tokens_BL=(rows.tokens_BL * 7 + 3) % V)


def _one_token(rows):
  tokens_BL = rows.tokens_BL.copy()
  tokens_BL[0, -1] = (tokens_BL[0, -1] + 1) % V
  return rows._replace(tokens_BL=tokens_BL)


@pytest.mark.parametrize(
  "change",
  [_shifted, _other_packing, _other_positions, _other_tokenizer, _one_token],
)
def test_every_misalignment_is_noticed(cache, change):
  index = grain_source.DigestIndex(cache)
  for row in range(R):
    live = change(cache.read([row]).rows)
    with pytest.raises(CacheError, match="row 0 of this batch, .* not in the"):
      index.find(live)


def test_swapped_rows_get_their_own_records_not_those_of_their_place(cache):
  index = grain_source.DigestIndex(cache)
  swapped = cache.read([4, 3]).rows
  joined = grain_source.join(index, swapped)
  np.testing.assert_array_equal(joined.ids_BLK, cache.read([4, 3]).ids_BLK)


def test_rows_of_which_some_are_missing_are_counted(cache):
  index = grain_source.DigestIndex(cache)
  rows = cache.read([0, 1, 2]).rows
  broken = rows._replace(tokens_BL=rows.tokens_BL.copy())
  broken.tokens_BL[1:, 0] += 1
  with pytest.raises(CacheError, match=r"row 1 of .*\(2 of 3 rows"):
    index.find(broken)
