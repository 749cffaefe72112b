"""Tests for analogjax/cache/logit_cache.py, cache_format.py and store.py."""

import dataclasses
import json
from pathlib import Path
import shutil
import subprocess
import sys
import types

import caches
import numpy as np
import pytest
import zarr

from analogjax.cache import (
  cache_format,
  gram_codes,
  logit_cache,
  record_codec,
  sampling,
)
from analogjax.data import rows as rows_lib
from analogjax.workdir import store

KINDS = ("threshold", "random", "topk")
ORDER = np.random.default_rng(5).permutation(100)  # An id order.
GRAM = dict(gram_positions=4, gram_depths=(0.5, 1.0))
# Arrays that may be absent, as they stand for their fill value then.
LEFT_OUT = ("position_offsets", "weights", "inclusion")


def create(folder, m):
  return logit_cache.create(folder, m, lambda: ORDER)


@pytest.fixture(params=KINDS)
def kind(request):
  return request.param


def make_full(kit, folder, m):
  """(folder, rows, records, manifest) of a complete cache."""
  rows, records = kit.rows(m), kit.records(m)
  kit.write_all(create(folder, m), rows, records)
  return types.SimpleNamespace(folder=folder, rows=rows, records=records, m=m)


@pytest.fixture
def full(kit, tmp_path):
  """Six rows of threshold records, two replicas, half captured; a Gram."""
  m = kit.manifest(num_replicas=2, capture="random", capture_rate=0.5, **GRAM)
  return make_full(kit, tmp_path / "cache", m)


def assert_records(entries, records, m, replica=0):
  """Asserts that these are the records, each with its ids in order of rank."""
  rank_V = np.argsort(ORDER)
  ids, codes = (
    field[:, replica] for field in (records.ids_BMLK, records.codes_BMLK)
  )
  logprobs = records.logprobs_BMLK
  if logprobs is not None:
    logprobs = logprobs[:, replica].astype(np.float16).astype(np.float32)
  is_tail = codes == sampling.TAIL if m.kind == "threshold" else codes < 0
  order = np.argsort(
    rank_V[ids] + 1000 * is_tail + 10_000 * (codes == 0), axis=-1
  )
  p = sampling.decode(codes, m.sampler, logprobs)
  ids, p = (np.take_along_axis(a, order, -1) for a in (ids, p))
  np.testing.assert_array_equal(entries.ids_BLK, ids)
  np.testing.assert_allclose(entries.p_BLK, p, rtol=1e-5, atol=1e-7)
  np.testing.assert_array_equal(entries.num_BL, (codes > 0).sum(-1))
  head = ((codes > 0) & ~is_tail).sum(-1)
  np.testing.assert_array_equal(entries.num_head_BL, head)


def replace_manifest(folder, **changes):
  """Changes the attributes of the group on disk."""
  group = json.loads((folder / "zarr.json").read_text())
  group["attributes"].update(changes)
  (folder / "zarr.json").write_text(json.dumps(group))


def objects_of(folder, array):
  return sorted(p for p in (folder / array / "c").rglob("*") if p.is_file())


# Reading what was written.


@pytest.mark.parametrize("capture", ["all", "entropy"])
def test_what_is_written_is_read(kit, tmp_path, kind, capture):
  m = kit.manifest(kind, num_replicas=3, capture=capture)
  one = make_full(kit, tmp_path / "cache", m)
  cache = logit_cache.open_cache(one.folder)
  assert cache.manifest == m and len(cache) == 6
  np.testing.assert_array_equal(cache.order_V, ORDER)
  assert cache.committed().all() and cache.holes() == []
  digests = rows_lib.rows_digests(one.rows)
  np.testing.assert_array_equal(cache.digests(range(6)), digests)
  for replica in range(3):
    entries = cache.read(range(6), replica)
    kit.assert_equal(entries.rows, one.rows)
    assert_records(entries, one.records, m, replica)
    if kind == "topk":
      np.testing.assert_array_equal(
        entries.log_tail_BL, one.records.log_tail_BL
      )
    else:
      captured_BL = one.records.inclusion_BL > 0
      totals_BL = entries.p_BLK.astype(np.float64).sum(-1)
      np.testing.assert_allclose(totals_BL, captured_BL, atol=1e-6)
      assert entries.log_tail_BL is None
    assert entries.ids_BLK.dtype == np.int32
    for name in ("p_BLK", "capture_weights_BL", "entropy_BL"):
      assert getattr(entries, name).dtype == np.float32, name
  np.testing.assert_allclose(
    entries.entropy_BL, one.records.entropy_BL, atol=3 / 64 + 1e-4
  )
  np.testing.assert_allclose(
    entries.label_logprob_BL, one.records.label_logprob_BL, atol=3 / 32 + 3e-4
  )


def test_the_gram_is_read_with_its_positions(kit, full):
  """Six tokens per row, of which four are drawn. Stored in one line per row."""
  cache = logit_cache.open_cache(full.folder)
  codes_BZP = full.records.gram_BZP
  assert codes_BZP.shape == (6, 2, 6) and len(np.unique(codes_BZP)) > 40
  for replica in range(2):
    entries = cache.read([5, 0, 3], replica)
    np.testing.assert_array_equal(entries.gram.codes_BZP, codes_BZP[[5, 0, 3]])
    wanted = gram_codes.draw(
      rows_lib.rows_digests(full.rows), full.rows.segments_BL, 4, full.m.seed
    )
    for name in ("positions_BM", "weights_BM"):
      found, all_rows = getattr(entries.gram, name), getattr(wanted, name)
      np.testing.assert_array_equal(found, all_rows[[5, 0, 3]])
  stored = cache.read_stored(np.arange(6))["gram"]
  np.testing.assert_array_equal(stored, codes_BZP.reshape(6, 12))
  none = kit.manifest()
  kit.write_all(
    create(full.folder.with_name("none"), none), full.rows, kit.records(none)
  )
  cache = logit_cache.open_cache(full.folder.with_name("none"))
  assert cache.read([1]).gram is None


def test_capture_weights_are_one_over_the_probability(full):
  entries = logit_cache.open_cache(full.folder).read(range(6))
  code_BL = full.records.inclusion_BL.astype(np.float64)
  captured_BL = code_BL > 0
  assert captured_BL.any() and not captured_BL.all()
  weights_BL = entries.capture_weights_BL
  np.testing.assert_allclose(
    weights_BL[captured_BL] * code_BL[captured_BL], 255
  )
  assert not weights_BL[~captured_BL].any()
  assert not entries.p_BLK[~captured_BL].any()


def test_without_capture_every_position_weighs_one(kit, tmp_path):
  one = make_full(kit, tmp_path, kit.manifest())
  assert (
    logit_cache.open_cache(tmp_path).read([1]).capture_weights_BL == 1
  ).all()
  assert objects_of(one.folder, "inclusion") == []


def test_rows_are_read_in_any_order_and_more_than_once(kit, full):
  cache = logit_cache.open_cache(full.folder)
  order = [5, 0, 0, 3]
  kit.assert_equal(cache.read(order), kit.take(cache.read(range(6)), order))


def test_each_row_has_the_replica_that_is_asked_for(kit, full):
  cache = logit_cache.open_cache(full.folder)
  first, second = cache.read(range(6), 0), cache.read(range(6), 1)
  assert not np.array_equal(first.ids_BLK, second.ids_BLK)
  mixed = cache.read(np.array([4, 2, 4, 0]), np.array([1, 0, 0, 1]))
  for b, (row, whole) in enumerate(
    [(4, second), (2, first), (4, first), (0, second)]
  ):
    np.testing.assert_array_equal(mixed.ids_BLK[b], whole.ids_BLK[row])
    np.testing.assert_array_equal(mixed.p_BLK[b], whole.p_BLK[row])
  with pytest.raises((ValueError, IndexError)):
    cache.read([0], 2)


def test_what_would_be_read_is_known_before_it_is_written(kit, tmp_path, kind):
  m = kit.manifest(kind, num_replicas=2, num_rows=4, capture="random")
  cache = create(tmp_path, m)
  rows, records = kit.rows(m), kit.records(m)
  stored = cache.encode(rows, records)
  cache.write_stored(0, stored)
  for replica in range(2):
    kit.assert_equal(
      cache.decode(stored, replica), cache.read(range(4), replica)
    )
  again = cache.read_stored(np.arange(4))
  assert again.keys() == stored.keys()
  for name, array in stored.items():
    np.testing.assert_array_equal(again[name], array, err_msg=name)


def test_objects_are_written_in_any_order_by_any_process(kit, tmp_path):
  m = kit.manifest()
  rows, records = kit.rows(m), kit.records(m)
  # The second finds the id order that is there and keeps it.
  one, other = create(tmp_path, m), logit_cache.create(tmp_path, m)
  assert one.objects() == one.holes() == [range(0, 4), range(4, 6)]
  last = slice(4, 6)
  other.write(4, kit.take(rows, last), kit.take(records, last))
  assert one.holes() == [range(0, 4)]
  np.testing.assert_array_equal(one.committed(), [0, 0, 0, 0, 1, 1])
  first = slice(0, 4)
  one.write(0, kit.take(rows, first), kit.take(records, first))
  entries = other.read(range(6))
  kit.assert_equal(entries.rows, rows)
  assert_records(entries, records, m)


def test_a_start_in_the_middle_of_an_object_is_a_mistake_of_ours(kit, full):
  cache = logit_cache.open_cache(full.folder)
  part = slice(1, 5)
  with pytest.raises(AssertionError):
    cache.write(1, kit.take(full.rows, part), kit.take(full.records, part))


def test_positions_and_weights_survive(kit, tmp_path):
  m = kit.manifest(num_rows=4)
  rows = kit.rows(m)._replace(
    positions_BL=np.tile(np.int32([5, 6, 7, 9, 2, 0, 0, 0]), (4, 1)),
    weights_BL=np.tile(np.float32([0.5, 0, 2, 1, 1, 0.25, 0, 0]), (4, 1)),
  )
  create(tmp_path, m).write(0, rows, kit.records(m))
  found = logit_cache.open_cache(tmp_path).read(range(4)).rows
  kit.assert_equal(found, rows)


def test_default_positions_and_weights_cost_no_byte(kit, tmp_path, kind):
  m = kit.manifest(kind, num_replicas=2)
  one = make_full(kit, tmp_path, m)
  for name in LEFT_OUT:
    assert objects_of(one.folder, name) == []
  cache = logit_cache.open_cache(one.folder)
  sizes = cache.bytes_by_array(cache.objects())
  on_disk = {
    name: sum(p.stat().st_size for p in objects_of(one.folder, name))
    for name in sizes
  }
  assert sizes == on_disk
  assert on_disk.keys() | {"id_order"} == {
    path.parent.name for path in one.folder.glob("*/zarr.json")
  }
  by_object = [cache.bytes_by_array([o]) for o in cache.objects()]
  assert all(sum(b.values()) > 0 for b in by_object)
  for name, size in sizes.items():
    assert sum(b[name] for b in by_object) == size


@pytest.mark.parametrize("V, dtype", [(65536, "uint16"), (65537, "uint32")])
def test_tokens_take_as_few_bytes_as_the_vocabulary_needs(
  kit, tmp_path, V, dtype
):
  m = kit.manifest(vocabulary_size=V, num_rows=4)
  rows, records = kit.rows(m), kit.records(m)
  rows.tokens_BL[0, 0] = records.ids_BMLK[0, 0, 0, 0] = V - 1
  records.codes_BMLK[0, 0, 0, 0] = sampling.TAIL
  cache = logit_cache.create(tmp_path, m)
  cache.write(0, rows, records)
  assert zarr.open_group(tmp_path, mode="r")["tokens"].dtype == dtype
  entries = cache.read(range(4))
  kit.assert_equal(entries.rows, rows)
  assert V - 1 in entries.ids_BLK[0, 0]


@pytest.mark.parametrize("name", ["100%", "a%20b", "a b", "a#b?c", "caf\u00e9"])
def test_any_folder_name(kit, tmp_path, name):
  """A URL in which some characters would have a meaning."""
  one = make_full(kit, tmp_path / name, kit.manifest())
  assert [path.name for path in tmp_path.iterdir()] == [name]
  cache = logit_cache.open_cache(tmp_path / name)
  assert cache.bytes_by_array(cache.objects())["id_first"] > 0
  kit.assert_equal(cache.read([1]).rows, kit.take(one.rows, [1]))


# Kills.


class Killed(BaseException):
  """Stands for the end of the process."""


def dies_after(steps):
  """Wraps calls: together they are made so often before the process ends."""
  done = []

  def or_die(call):
    def step(*args, **kwargs):
      done.append(call)
      if len(done) > steps:
        raise Killed
      return call(*args, **kwargs)

    return step

  return or_die


class Wrapped:
  """An array of a cache with some calls replaced."""

  def __init__(self, array, **replaced):
    self._array = array
    for name, call in replaced.items():
      setattr(self, name, call)

  def __getattr__(self, name):
    return getattr(self._array, name)

  def __getitem__(self, index):
    return self._array[index]


def test_a_kill_before_the_commit_leaves_holes(kit, tmp_path):
  """The digest is written last: without it the rows are not committed."""
  m = kit.manifest()
  rows, records = kit.rows(m), kit.records(m)
  cache = create(tmp_path, m)
  parts = slice(0, 4), slice(4, 6)
  cache.write(0, kit.take(rows, parts[0]), kit.take(records, parts[0]))

  class Dies(Wrapped):
    def __getitem__(self, index):
      raise Killed

  cache._arrays["digest"] = Dies(cache._arrays["digest"])
  with pytest.raises(Killed):
    cache.write_stored(
      4, cache.encode(kit.take(rows, parts[1]), kit.take(records, parts[1]))
    )
  # All else of the object is on the disk already.
  group = zarr.open_group(tmp_path, mode="r")
  np.testing.assert_array_equal(group["tokens"][4:], rows.tokens_BL[4:])
  assert group["record_digest"][4:].any(-1).all()

  again = create(tmp_path, m)
  np.testing.assert_array_equal(again.committed(), [1, 1, 1, 1, 0, 0])
  assert again.holes() == [range(4, 6)]
  with pytest.raises(logit_cache.CacheError, match="row 4 is not committed"):
    again.read([0, 4])
  kit.write_all(again, rows, records)
  kit.assert_equal(again.read(range(6)).rows, rows)


@pytest.mark.parametrize("steps", [0, 3, 13, 14])
def test_a_kill_during_creation_is_made_good(kit, tmp_path, monkeypatch, steps):
  m, or_die = kit.manifest(), dies_after(steps)
  with monkeypatch.context() as patch, pytest.raises(Killed):
    for module, name in ((store, "open_array"), (cache_format, "write_group")):
      patch.setattr(module, name, or_die(getattr(module, name)))
    create(tmp_path, m)
  with pytest.raises(logit_cache.CacheError, match="there is no logit cache"):
    logit_cache.open_cache(tmp_path)
  # Another id order may come of it; nothing was written with the first.
  cache = logit_cache.create(tmp_path, m, lambda: ORDER[::-1])
  np.testing.assert_array_equal(cache.order_V, ORDER[::-1])
  kit.write_all(cache, kit.rows(m), kit.records(m))
  assert logit_cache.open_cache(tmp_path).holes() == []


# What is refused.

OTHERS = dict(
  **dict(kind="random", tau=0.3, num_draws=9, top_k=9, temperature=2.0),
  **dict(num_replicas=2, capture="random", capture_rate=0.5, seed=8),
  **dict(gram_positions=5, gram_depths=(1.0,)),
  **dict(sequence_length=16, vocabulary_size=101, rows_per_object=2),
  **dict(teacher_digest="another teacher", teacher_dtype="bfloat16"),
  **dict(tokenizer_digest="another tokenizer", pipeline="lab.pipeline:others"),
  **dict(pipeline_fingerprint="another pipeline"),
)


def test_every_field_is_compared_but_two():
  fields = {f.name for f in dataclasses.fields(cache_format.Manifest)}
  assert fields - OTHERS.keys() == {"num_rows", "software"}


@pytest.mark.parametrize("field", OTHERS)
def test_a_cache_of_something_else_is_refused(kit, tmp_path, field):
  m, value = kit.manifest(), OTHERS[field]
  make_full(kit, tmp_path, m)
  with pytest.raises(logit_cache.CacheError) as error:
    logit_cache.create(tmp_path, dataclasses.replace(m, **{field: value}))
  here = getattr(m, field)
  assert f"{field}={here!r}, this run has {value!r}" in str(error.value)
  assert str(tmp_path) in str(error.value)
  # The existing cache was not touched.
  cache = logit_cache.open_cache(tmp_path)
  assert cache.manifest == m
  cache.read(range(6))


def test_software_versions_are_recorded_and_not_compared(kit, tmp_path):
  make_full(kit, tmp_path, kit.manifest())
  wanted = kit.manifest(software={"analogjax": "9"})
  cache = logit_cache.create(tmp_path, wanted)
  assert cache.manifest.software == {"analogjax": "0"}


def test_no_cache(tmp_path):
  missing = tmp_path / "nothing"
  assert cache_format.read_group(store.place(missing)) is None
  with pytest.raises(logit_cache.CacheError, match="run 'analogjax cache'"):
    logit_cache.open_cache(missing)
  assert not missing.exists()


def test_another_zarr_group(kit, tmp_path):
  zarr.create_group(tmp_path, attributes={"made by": "someone else"})
  with pytest.raises(logit_cache.CacheError, match="not an analogjax"):
    logit_cache.open_cache(tmp_path)
  with pytest.raises(logit_cache.CacheError, match="not an analogjax"):
    logit_cache.create(tmp_path, kit.manifest())


@pytest.mark.parametrize("version", [1, 4, None])
def test_another_version(kit, full, version):
  """A cache of version 1 has other arrays; only its version is read."""
  replace_manifest(full.folder, format_version=version, tau=None)
  shutil.rmtree(full.folder / "num_head")
  message = rf"version {version}, .* reads versions 2 and 3. .*cache again"
  for call in (
    logit_cache.open_cache,
    lambda folder: logit_cache.create(folder, full.m),
  ):
    with pytest.raises(logit_cache.CacheError, match=message):
      call(full.folder)


def test_version_2_is_one_without_a_gram(kit, tmp_path):
  """It is read, compared and grown; written again, it has version 3."""
  one = make_full(kit, tmp_path, kit.manifest())
  file = tmp_path / "zarr.json"
  group = json.loads(file.read_text())
  assert group["attributes"]["format_version"] == 3
  group["attributes"]["format_version"] = 2
  for added in ("gram_positions", "gram_depths"):
    del group["attributes"][added]
  file.write_text(json.dumps(group))
  cache = logit_cache.create(tmp_path, one.m)
  assert cache.manifest == one.m
  assert_records(cache.read(range(6)), one.records, one.m)
  with pytest.raises(
    logit_cache.CacheError, match="gram_positions=0, this run has 4"
  ):
    logit_cache.create(tmp_path, dataclasses.replace(one.m, **GRAM))
  grown = logit_cache.create(tmp_path, dataclasses.replace(one.m, num_rows=9))
  assert grown.holes() == [range(4, 8), range(8, 9)]
  group = json.loads(file.read_text())
  assert group["attributes"]["format_version"] == 3


def test_a_damaged_manifest(full):
  file = full.folder / "zarr.json"
  good = file.read_text()
  file.write_text('{"zarr_format": 3, "attri')
  with pytest.raises(store.StoreError, match=r"zarr\.json: not JSON"):
    logit_cache.open_cache(full.folder)
  group = json.loads(good)
  for name in ("seed", "id_order_digest"):
    less = {k: v for k, v in group["attributes"].items() if k != name}
    file.write_text(json.dumps(group | {"attributes": less}))
    with pytest.raises(logit_cache.CacheError, match=f"has no {name}; it is"):
      logit_cache.open_cache(full.folder)


@pytest.mark.parametrize("array", ["num_tail", "digest", "id_order", "weights"])
def test_a_missing_array(full, array):
  shutil.rmtree(full.folder / array)
  message = f"array '{array}' .* cannot be opened"
  with pytest.raises(store.StoreError, match=message):
    logit_cache.open_cache(full.folder)


def test_another_id_order(kit, full):
  """From another cache, or damaged: every id would be wrong."""
  other = full.folder.with_name("other")
  logit_cache.create(other, full.m)
  shutil.rmtree(full.folder / "id_order")
  shutil.copytree(other / "id_order", full.folder / "id_order")
  for call in (
    logit_cache.open_cache,
    lambda folder: logit_cache.create(folder, full.m),
  ):
    with pytest.raises(logit_cache.CacheError, match="'id_order' is not the"):
      call(full.folder)
  [file] = objects_of(full.folder, "id_order")
  data = bytearray(file.read_bytes())
  data[9] ^= 1
  file.write_bytes(data)
  with pytest.raises(store.StoreError, match="'id_order' .* cannot be read"):
    logit_cache.open_cache(full.folder)
  file.unlink()
  with pytest.raises(store.StoreError, match="'id_order' .* cannot be read"):
    logit_cache.open_cache(full.folder)


# Damage.


def arrays_of(kind):
  m = dict(threshold=sampling.Threshold(tau=0.2))
  m |= dict(random=sampling.Random(num_draws=6), topk=sampling.TopK(top_k=6))
  layout = record_codec.Layout(sampler=m[kind], L=8, V=100)
  shared = "tokens segments position_offsets weights inclusion entropy"
  shared += " label_logprob gram"
  return [*shared.split(), *layout.arrays(), "record_digest"]


def refused(cache, message, replica=0):
  with pytest.raises(logit_cache.CacheError, match=message) as error:
    cache.read(np.arange(4), replica)
  assert "--repair" in str(error.value)


@pytest.mark.parametrize(
  ("kind", "array"), [(k, a) for k in KINDS for a in arrays_of(k)]
)
def test_a_changed_array_is_found(kit, tmp_path, kind, array):
  """Wrong values with valid checksums, in the first and last place."""
  m = kit.manifest(kind, num_rows=4, num_replicas=2, capture="random", **GRAM)
  m = dataclasses.replace(m, vocabulary_size=2**17)
  cache = logit_cache.create(tmp_path, m)
  rows, records = kit.rows(m), kit.records(m)
  good = cache.encode(rows, records)
  counts = record_codec.used({n: good[n][:, 1] for n in m.layout.arrays()})
  row_alone = array in ("tokens", "segments", "position_offsets")
  message = "match its digest" if row_alone else "teacher said about row 2 does"
  for end in (0, -1):
    stored = {name: value.copy() for name, value in good.items()}
    part = stored[array][2] if stored[array].ndim == 2 else stored[array][2, 1]
    at = counts[array][2] - 1 if end and array in counts else end
    part[at : at + 1 or None].view(np.uint8)[0] ^= 1
    cache.write_stored(0, stored)
    if stored[array].ndim == 3:
      cache.read(range(4), 0)  # The other replica is what it was.
    refused(cache, message, replica=1)
  cache.write_stored(0, good)
  kit.assert_equal(cache.read(range(4), 1), cache.decode(good, 1))


def test_swapped_rows_and_replicas_are_found(kit, tmp_path, kind):
  m = kit.manifest(kind, num_rows=4, num_replicas=2)
  cache = create(tmp_path, m)
  good = cache.encode(kit.rows(m), kit.records(m))
  of_record = m.layout.arrays()

  def with_order(names, order, axis=0):
    return good | {n: np.take(good[n], order, axis) for n in names}

  swap = [0, 2, 1, 3]
  cache.write_stored(0, with_order(of_record, swap))
  refused(cache, "teacher said about row 1 does")
  # The records' own digests go along: they are of other rows.
  cache.write_stored(0, with_order([*of_record, "record_digest"], swap))
  refused(cache, "teacher said about row 1 does")
  cache.write_stored(0, with_order(["tokens"], swap))
  refused(cache, "row 1 do not match")
  cache.write_stored(0, with_order(["digest"], swap))
  refused(cache, "row 1 do not match")
  cache.write_stored(0, with_order(of_record, [1, 0], axis=1))
  refused(cache, "teacher said about row 0 does")
  # Whole rows may be anywhere.
  cache.write_stored(0, with_order(good, swap))
  entries = cache.read(range(4))
  np.testing.assert_array_equal(
    entries.rows.tokens_BL, good["tokens"][swap].astype(np.int32)
  )


def test_records_of_another_teacher_of_the_same_rows_are_found(kit, full):
  """Whole objects, with valid checksums."""
  other = full.folder.with_name("other")
  kit.write_all(create(other, full.m), full.rows, kit.records(full.m, seed=1))
  for array in ("id_first", "id_rest", "values", "num_head", "num_tail"):
    shutil.rmtree(full.folder / array / "c")
    shutil.copytree(other / array / "c", full.folder / array / "c")
  refused(logit_cache.open_cache(full.folder), "teacher said about row 0 does")


@pytest.mark.parametrize("array", ["id_first", "tokens", "gram", "digest"])
def test_a_flipped_byte_is_found_and_names_array_and_row(kit, full, array):
  """Any flipped byte of an object gives an error, or the same values."""
  path = objects_of(full.folder, array)[0]
  good = path.read_bytes()
  wanted = logit_cache.open_cache(full.folder).read(range(4))
  refusals = 0
  for at in range(0, len(good), 17):
    path.write_bytes(good[:at] + bytes([good[at] ^ 0x40]) + good[at + 1 :])
    try:
      entries = logit_cache.open_cache(full.folder).read(range(4))
    except logit_cache.CacheError as error:
      refusals += 1
      what = f"file://{full.folder}: array '{array}' cannot be read at row "
      assert what in str(error)
    else:
      kit.assert_equal(entries, wanted)
  # Half the bytes of the records are those of the other replica.
  least = 0.4 if array == "id_first" else 0.9
  assert refusals > least * len(range(0, len(good), 17))


def test_a_damaged_row_leaves_the_others(kit, full):
  """The index locates row 2: 16 bytes per chunk, then a checksum."""
  path = objects_of(full.folder, "id_first")[0]
  good = path.read_bytes()
  index = np.frombuffer(good[-(16 * 8 + 4) : -4], "<u8").reshape(4, 2, 2)
  offset = int(index[2, 1, 0]) + 5  # Row 2, replica 1.
  path.write_bytes(
    good[:offset] + bytes([good[offset] ^ 1]) + good[offset + 1 :]
  )
  cache = logit_cache.open_cache(full.folder)
  with pytest.raises(logit_cache.CacheError, match="at row 2: .*--repair"):
    cache.read(np.array([3, 1, 2, 0]), 1)
  cache.read(np.array([3, 1, 0, 5]), 1)
  cache.read(range(4), 0)
  # The way out: the object is written again, whole.
  part = slice(0, 4)
  cache.write(0, kit.take(full.rows, part), kit.take(full.records, part))
  assert_records(cache.read(range(6), 1), full.records, full.m, 1)


@pytest.mark.parametrize(
  "array", ["id_first", "values", "entropy", "segments", "gram"]
)
def test_a_truncated_object(full, array):
  path = objects_of(full.folder, array)[1]
  path.write_bytes(path.read_bytes()[:50])
  cache = logit_cache.open_cache(full.folder)
  with pytest.raises(
    logit_cache.CacheError, match=f"array '{array}' cannot be read at row 4"
  ):
    cache.read([0, 4])
  cache.read(range(4))


@pytest.mark.parametrize(
  "array",
  ["tokens", "segments", "entropy", "label_logprob", "num_head", "num_tail"]
  + ["id_first", "id_rest", "values", "gram", "record_digest"],
)
def test_a_lost_object_is_no_teacher_of_zeros(full, array):
  """Zarr silently reads missing objects as zeros: token 0."""
  shutil.rmtree(objects_of(full.folder, array)[0].parents[0])
  shutil.rmtree(full.folder / array / "c" / "0", ignore_errors=True)
  cache = logit_cache.open_cache(full.folder)
  with pytest.raises(
    logit_cache.CacheError, match=f"array '{array}' cannot be read at row 3"
  ):
    cache.read([5, 3])


def test_a_lost_object_of_an_array_that_may_be_absent(kit, tmp_path):
  """Its fill values differ from the written ones, as the digest shows."""
  m = kit.manifest(num_rows=4, capture="random")
  rows = kit.rows(m)
  rows.positions_BL[:, :3] += 5
  rows.weights_BL[:, 1] = 0.5
  cache = create(tmp_path, m)
  cache.write(0, rows, kit.records(m))
  cache.read(range(4))
  for array in LEFT_OUT:
    [path] = objects_of(tmp_path, array)
    moved = path.rename(tmp_path / "moved")
    refused(logit_cache.open_cache(tmp_path), "match its digest")
    moved.rename(path)
  (tmp_path / "digest/c/0/0").unlink()  # This one makes a hole.
  assert logit_cache.open_cache(tmp_path).holes() == [range(4)]


def test_zeros_are_no_lost_object(kit, tmp_path, kind):
  """Rows and records of only zeros are stored, and read back."""
  m = kit.manifest(kind, num_rows=4, capture="random")
  rows = rows_lib.Rows(*(np.zeros_like(field) for field in kit.rows(m)))
  records = sampling.Records(
    *(f if f is None else np.zeros_like(f) for f in kit.records(m))
  )
  create(tmp_path, m).write(0, rows, records)
  entries = logit_cache.open_cache(tmp_path).read(range(4))
  kit.assert_equal(entries.rows, rows)
  assert not entries.ids_BLK.any() and not entries.p_BLK.any()
  assert not entries.capture_weights_BL.any()


# Sizes that change.


def test_a_cache_grows(kit, full):
  """Only the half-full object has to be written again."""
  m = dataclasses.replace(full.m, num_rows=11)
  more = kit.rows(m, seed=4), kit.records(m, seed=4)
  rows, records = (
    type(old)(
      *(
        a if a is None else np.concatenate([a, b[6:]])
        for a, b in zip(old, new, strict=True)
      )
    )
    for old, new in zip((full.rows, full.records), more, strict=True)
  )
  cache = create(full.folder, m)
  assert cache.manifest == m
  assert cache.holes() == [range(4, 8), range(8, 11)]
  np.testing.assert_array_equal(cache.order_V, ORDER)
  np.testing.assert_array_equal(cache.committed(), [1] * 6 + [0] * 5)
  for replica in range(2):
    old = cache.read(range(6), replica)
    assert_records(old, full.records, full.m, replica)
  kit.write_all(cache, rows, records)
  assert cache.holes() == []
  cache = logit_cache.open_cache(full.folder)
  for replica in range(2):
    entries = cache.read(range(11), replica)
    kit.assert_equal(entries.rows, rows)
    assert_records(entries, records, m, replica)
  # Asking for fewer rows is no reason to throw any away.
  assert logit_cache.create(full.folder, full.m).manifest.num_rows == 11


def test_a_partial_object_that_grew_is_damaged_like_any_other(kit, full):
  cache = logit_cache.open_cache(full.folder).resized(8)
  path = objects_of(full.folder, "values")[1]
  path.write_bytes(b"")
  with pytest.raises(logit_cache.CacheError, match="cannot be read at row 4"):
    cache.read([4])
  m = dataclasses.replace(full.m, num_rows=8)
  rows, records = kit.rows(m), kit.records(m)
  part = slice(4, 8)
  cache.write(4, kit.take(rows, part), kit.take(records, part))
  assert cache.holes() == []
  kit.assert_equal(cache.read(range(4, 8)).rows, kit.take(rows, part))


@pytest.mark.parametrize("num_rows", [5, 4, 1])
def test_a_cache_is_cut(kit, full, num_rows):
  cache = logit_cache.open_cache(full.folder).resized(num_rows)
  assert len(cache) == num_rows
  assert len(cache.committed()) == num_rows and cache.holes() == []
  there = slice(0, num_rows)
  found = cache.read(range(num_rows)).rows
  kit.assert_equal(found, kit.take(full.rows, there))
  assert logit_cache.open_cache(full.folder).manifest.num_rows == num_rows
  # And grows again, with the same rows as before or with others.
  cache = cache.resized(6)
  kit.write_all(cache, full.rows, full.records)
  assert cache.holes() == []
  kit.assert_equal(cache.read(range(6)).rows, full.rows)


@pytest.mark.parametrize("num_rows", [3, 14])
@pytest.mark.parametrize("steps", [0, 4, 9])
def test_a_kill_while_the_size_changes(kit, full, monkeypatch, num_rows, steps):
  """Some arrays have the new size: it opens, and can be resized again."""
  cache = logit_cache.open_cache(full.folder)
  or_die = dies_after(steps)
  with monkeypatch.context() as patch, pytest.raises(Killed):
    write_group = or_die(cache_format.write_group)
    patch.setattr(cache_format, "write_group", write_group)
    for name, array in cache._arrays.items():
      cache._arrays[name] = Wrapped(array, resize=or_die(array.resize))
    cache.resized(num_rows)

  cache = logit_cache.open_cache(full.folder)
  there = min(6, cache.manifest.num_rows)
  assert cache.committed()[:there].all()
  found = cache.read(range(there)).rows
  kit.assert_equal(found, kit.take(full.rows, slice(0, there)))
  cache = cache.resized(num_rows)
  assert len(cache) == len(cache.committed()) == num_rows


# The writer.


# A full disk.

# Fills a cache until the disk is full, makes room and continues.
FILL_THE_DISK = """
import pathlib, resource, signal, sys

folder, limit = sys.argv[1], int(sys.argv[3])
sys.path.insert(0, sys.argv[2])
import caches as t
from analogjax.cache import logit_cache
R, per = 2048, 256
m = t.manifest("random", num_rows=R, rows_per_object=per)
filler = pathlib.Path(folder, "filler")
filler.write_bytes(bytes(500_000))
cache = logit_cache.create(folder, m)
# Ignored, so that a write beyond the limit fails instead of ending us.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
for start in range(0, R, per):
  object_ = t.rows(m, per, start), t.records(m, per, start)
  if limit and start == 2 * per:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
  try:
    cache.write(start, *object_)
  except logit_cache.CacheError as error:
    message = str(error)
    break
else:
  raise SystemExit("the disk never got full")
assert start > 0, message
assert f"{folder}: writing rows {start} to {start + per - 1} of" in message
assert "run again" in message and len(message) < 1000, message
again = logit_cache.open_cache(folder)
assert again.holes()[0].start == start, again.holes()
before = t.rows(m, per, start - per)
t.assert_equal(again.read([start - 1]).rows, t.take(before, [per - 1]))

filler.unlink()
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
again.write(start, *object_)
t.assert_equal(again.read([start]).rows, t.take(object_[0], [0]))
print(message)
"""


def fill_the_disk(prefix, folder, limit):
  kit = Path(caches.__file__).parent
  script = [sys.executable, "-c", FILL_THE_DISK]
  return subprocess.run(
    [*prefix, *script, folder, str(kit), str(limit)],
    capture_output=True,
    text=True,
  )


def test_a_full_disk_is_one_clear_error(tmp_path):
  """On a file system of one megabyte, in a separate mount namespace."""
  mount = 'mount -t tmpfs -o size=1m tmpfs "$1" && shift && exec "$@"'
  prefix = ["unshare", "-rm", "sh", "-c", mount, "sh", str(tmp_path)]
  if (
    not shutil.which("unshare") or subprocess.run([*prefix, "true"]).returncode
  ):
    pytest.skip("may not mount a small file system (unshare -rm) to fill it")
  done = fill_the_disk(prefix, str(tmp_path), limit=0)
  assert done.returncode == 0, done.stderr
  assert "No space left on device" in done.stdout


def test_a_file_that_may_not_grow_is_one_clear_error(tmp_path):
  """The same where no file system can be mounted: a limit on file sizes."""
  done = fill_the_disk([], str(tmp_path), limit=10_000)
  assert done.returncode == 0, done.stderr
  assert "File too large" in done.stdout
