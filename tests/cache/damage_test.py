"""Tests for analogjax/cache/damage.py."""

import shutil

import numpy as np
import pytest

from analogjax.cache import damage as cache_check, logit_cache, sampling

KINDS = ("threshold", "random", "topk")


@pytest.fixture
def full(kit, tmp_path):
  """Ten rows in objects of four, two replicas; a cache and its folder."""
  m = kit.manifest(num_rows=10, num_replicas=2, capture="random")
  return fill(kit, tmp_path / "cache", m), tmp_path / "cache"


def fill(kit, folder, m, seed=0):
  cache = logit_cache.create(folder, m)
  kit.write_all(cache, kit.rows(m), kit.records(m, seed=seed))
  return cache


def all_damage(folder):
  cache = logit_cache.open_cache(folder)
  found = {}
  for part in cache.objects():
    damage = cache_check.damage(cache, part)
    assert set(damage) <= set(part)
    found |= damage
  return found


def flip(path, offset, bits=1):
  data = bytearray(path.read_bytes())
  data[offset] ^= bits
  path.write_bytes(data)


def test_a_whole_cache_has_no_damage(full):
  assert all_damage(full[1]) == {}


def test_holes_are_no_damage(full):
  cache, folder = full
  (folder / "digest/c/1/0").unlink()
  assert all_damage(folder) == {}
  assert cache.holes() == [range(4, 8)]
  # Nor is a half-full object that has grown.
  cache.resized(12)
  assert all_damage(folder) == {}


@pytest.mark.parametrize("replica", [0, 1])
def test_a_flipped_byte_is_the_damage_of_its_row(full, replica):
  """The index at the end has 16 bytes for each row and replica."""
  cache, folder = full
  path = folder / "values/c/1/0/0"
  index = np.frombuffer(path.read_bytes()[-(16 * 8 + 4) : -4], "<u8")
  offset = int(index.reshape(4, 2, 2)[2, replica, 0])
  flip(path, offset + 3)
  found = all_damage(folder)
  assert set(found) == {6}
  assert "array 'values' cannot be read at row 6" in found[6]


def test_rows_that_are_others_than_they_were_written_as(full):
  """Changed bytes with valid checksums, in all of a row's arrays."""
  cache, folder = full
  stored = cache.read_stored(np.arange(4, 8))
  stored["entropy"][1, 0] ^= 1
  stored["record_digest"][3, 1, 0] ^= 1
  stored["tokens"][2, 5] ^= 1
  cache.write_stored(4, stored)
  found = all_damage(folder)
  assert set(found) == {5, 6, 7}
  for row in (5, 7):
    assert f"what the teacher said about row {row} does not" in found[row]
  assert "the tokens, segments or positions of row 6" in found[6]


@pytest.mark.parametrize("array", ["digest", "segments", "id_rest", "num_head"])
@pytest.mark.parametrize("how", ["cut", "emptied"])
def test_an_object_that_was_cut_is_damaged_in_all_its_rows(full, array, how):
  _, folder = full
  [path] = [p for p in (folder / array / "c" / "2").rglob("0") if p.is_file()]
  path.write_bytes(path.read_bytes()[:40] if how == "cut" else b"")
  found = all_damage(folder)
  assert set(found) == {8, 9}
  assert f"array '{array}' cannot be read at row 8" in found[8]


@pytest.mark.parametrize("array", ["tokens", "id_first", "record_digest"])
def test_a_lost_object_is_damage(full, array):
  _, folder = full
  shutil.rmtree(folder / array / "c" / "0")
  assert set(all_damage(folder)) == {0, 1, 2, 3}


def test_what_is_damaged_can_be_written_again_beside_what_is_not(kit, full):
  """As --repair does it: healthy rows are kept, all replicas."""
  cache, folder = full
  before = [cache.read(range(10), m) for m in range(2)]
  whole = cache.encode(kit.rows(cache.manifest), kit.records(cache.manifest))
  path = folder / "id_first/c/1/0/0"
  index = np.frombuffer(path.read_bytes()[-(16 * 8 + 4) : -4], "<u8")
  flip(path, int(index.reshape(4, 2, 2)[1, 1, 0]))
  cache = logit_cache.open_cache(folder)
  assert set(all_damage(folder)) == {5}
  kept = cache.read_stored(np.array([4, 6, 7]))
  mended = {name: array[4:8].copy() for name, array in whole.items()}
  for name, array in kept.items():
    np.testing.assert_array_equal(mended[name][[0, 2, 3]], array)
    mended[name][[0, 2, 3]] = array
  cache.write_stored(4, mended)
  assert all_damage(folder) == {}
  for m in range(2):
    kit.assert_equal(cache.read(range(10), m), before[m])


# Summaries.


def dense(entries, V):
  """The records as vectors, float64 [B, L, V]."""
  out = np.zeros((*entries.num_BL.shape, V))
  for place in np.ndindex(*entries.ids_BLK.shape):
    out[(*place[:2], entries.ids_BLK[place])] += entries.p_BLK[place]
  return out


@pytest.mark.parametrize("kind", KINDS)
def test_a_summary_by_hand(kit, tmp_path, kind):
  m = kit.manifest(
    kind, num_rows=10, num_replicas=2, capture="random", capture_rate=0.5
  )
  cache, records = fill(kit, tmp_path, m), kit.records(m)
  found = cache_check.summarize(cache, cache.objects(), batch_rows=3)
  assert (found.num_rows, found.num_committed, found.holes) == (10, 10, [])
  assert found.sampled_rows == 10

  captured_BL = records.inclusion_BL > 0
  codes_BLK = records.codes_BMLK[:, 0]
  near = dict(rtol=1e-5)
  np.testing.assert_allclose(found.captured, captured_BL.mean(), **near)
  num_BL = (codes_BLK > 0).sum(-1)
  np.testing.assert_array_equal(found.ids, num_BL[captured_BL])
  np.testing.assert_allclose(
    found.ids_per_record, num_BL[captured_BL].mean(), **near
  )
  heads_BLK = codes_BLK > (sampling.TAIL if kind == "threshold" else 0)
  np.testing.assert_allclose(
    found.head_ids_per_record, heads_BLK.sum(-1)[captured_BL].mean(), **near
  )
  logprobs = records.logprobs_BMLK
  p_BLK = sampling.decode(
    codes_BLK, m.sampler, None if logprobs is None else logprobs[:, 0]
  )
  mass_BL = (p_BLK * heads_BLK).sum(-1)
  np.testing.assert_allclose(
    found.head_mass, mass_BL[captured_BL].mean(), rtol=1e-3
  )
  # Every position has an entropy, captured or not.
  assert found.entropy_nats.shape == (80,)
  np.testing.assert_allclose(
    found.mean_entropy_nats, records.entropy_BL.mean(), atol=0.02
  )
  # The rows of the kit are [1 1 1 2 2 2 0 0]: labels at 0, 1, 3 and 4.
  label_BL = records.label_logprob_BL[:, [0, 1, 3, 4]]
  np.testing.assert_allclose(found.label_nats, -label_BL.mean(), atol=0.05)

  first, second = (cache.read(range(10), r) for r in range(2))
  difference_BLV = dense(first, 100) - dense(second, 100)
  between_BL = (difference_BLV**2).sum(-1) / 2
  if kind == "threshold":
    tail_BL = np.maximum(1 - mass_BL, 0)
    draws_BL = np.maximum((codes_BLK == sampling.TAIL).sum(-1), 1)
    wanted = (tail_BL**2 / draws_BL)[captured_BL].mean()
  else:
    wanted = dict(random=1 / 6, topk=None)[kind]
  if kind == "topk":
    assert found.noise is found.noise_between_replicas is None
  else:
    np.testing.assert_allclose(found.noise, wanted, rtol=1e-4)
    np.testing.assert_allclose(
      found.noise_between_replicas, between_BL[captured_BL].mean(), rtol=1e-4
    )

  tokens = 10 * 8
  total = sum(
    p.stat().st_size
    for p in tmp_path.rglob("*")
    if p.is_file() and p.name != "zarr.json" and "id_order" not in str(p)
  )
  np.testing.assert_allclose(
    sum(found.bytes_per_token.values()) * tokens, total
  )


def test_labels_without_weight_are_not_counted(kit, tmp_path):
  """Their log-probability is 0, which means nothing."""
  m = kit.manifest(num_rows=4)
  rows, records = kit.rows(m), kit.records(m)
  rows.weights_BL[:, 1] = 0
  records.label_logprob_BL[:, 0] = 0
  cache = logit_cache.create(tmp_path, m)
  cache.write(0, rows, records)
  found = cache_check.summarize(cache, cache.objects())
  wanted = -records.label_logprob_BL[:, [1, 3, 4]].mean()
  np.testing.assert_allclose(found.label_nats, wanted, atol=0.1)


def test_a_summary_of_some_objects(kit, full):
  cache, folder = full
  (folder / "digest/c/1/0").unlink()
  cache = logit_cache.open_cache(folder)
  found = cache_check.summarize(cache, [range(8, 10)])
  assert (found.num_rows, found.num_committed) == (10, 6)
  assert found.holes == [range(4, 8)] and found.sampled_rows == 2
  sizes = cache.bytes_by_array([range(8, 10)])
  for name, size in sizes.items():
    assert found.bytes_per_token[name] == size / 16


def test_a_summary_of_an_empty_cache(kit, tmp_path):
  cache = logit_cache.create(tmp_path, kit.manifest())
  found = cache_check.summarize(cache, [])
  assert found.num_committed == found.sampled_rows == found.captured == 0
  assert np.isnan(found.ids_per_record) and np.isnan(found.label_nats)
  assert found.holes == [range(0, 4), range(4, 6)]
  assert not any(found.bytes_per_token.values())


def test_the_noise_bound_holds_for_real_draws(kit, tmp_path):
  """The variance between draws of one distribution is below the bound."""
  rng = np.random.default_rng(0)
  m = kit.manifest("random", num_draws=6, num_rows=64, num_replicas=2)
  p_V = rng.dirichlet(np.full(100, 0.3))
  records = kit.records(m)
  for place in np.ndindex(*records.ids_BMLK.shape[:3]):
    ids, counts = np.unique(rng.choice(100, 6, p=p_V), return_counts=True)
    records.ids_BMLK[place] = records.codes_BMLK[place] = 0
    records.ids_BMLK[place][: len(ids)] = ids
    records.codes_BMLK[place][: len(ids)] = counts
  cache = logit_cache.create(tmp_path, m)
  kit.write_all(cache, kit.rows(m), records)
  found = cache_check.summarize(cache, cache.objects())
  wanted = (1 - (p_V**2).sum()) / 6
  np.testing.assert_allclose(found.noise_between_replicas, wanted, rtol=0.1)
  assert found.noise_between_replicas < found.noise == 1 / 6
