"""Tests for analogjax/data/logit_cache.py."""

import dataclasses
import json
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import zarr

from analogjax.data import logit_cache, rows as rows_lib, sampling

L, V, TAU = 8, 100, 0.2
K = 6

MANIFEST = logit_cache.Manifest(
  kind="threshold",
  tau=TAU,
  seed=7,
  num_rows=6,
  sequence_length=L,
  vocabulary_size=V,
  rows_per_object=4,
  teacher_digest="a teacher",
  teacher_dtype="float32",
  tokenizer_digest="a tokenizer",
  pipeline="lab.pipeline:rows",
  pipeline_fingerprint="a pipeline",
  software={"analogjax": "0"},
)


def make_rows(n, seed=0, V=V):
  """Two documents and a padded end in every row, weights and positions 1, 0."""
  rng = np.random.default_rng(seed)
  segments_BL = np.tile(np.int32([1, 1, 1, 2, 2, 2, 0, 0]), (n, 1))
  return rows_lib.Rows(
    tokens_BL=rng.integers(0, V, (n, L)).astype(np.int32),
    segments_BL=segments_BL,
    positions_BL=np.tile(np.int32([0, 1, 2, 0, 1, 2, 0, 0]), (n, 1)),
    weights_BL=(segments_BL > 0).astype(np.float32),
  )


def make_records(n, seed=0, V=V):
  rng = np.random.default_rng(seed)
  return sampling.Records(
    ids_BLK=rng.integers(0, V, (n, L, K)).astype(np.int32),
    codes_BLK=rng.integers(0, 256, (n, L, K)).astype(np.uint8),
    entropy_BL=rng.uniform(0, 9, (n, L)).astype(np.float32),
    label_logprob_BL=-rng.uniform(0, 9, (n, L)).astype(np.float32),
  )


@pytest.fixture
def full(tmp_path):
  """A cache whose six rows are all written: (folder, rows, records)."""
  rows, records = make_rows(6), make_records(6)
  cache = logit_cache.create(tmp_path / "cache", MANIFEST)
  write_all(cache, rows, records)
  return tmp_path / "cache", rows, records


def write_all(cache, rows, records):
  for hole in cache.holes():
    part = slice(hole.start, hole.stop)
    cache.write(hole.start, take(rows, part), take(records, part))


def take(fields, part):
  return type(fields)(*(field[part] for field in fields))


def assert_equal(one, other):
  for name, a, b in zip(one._fields, one, other, strict=True):
    np.testing.assert_array_equal(a, b, err_msg=name)
    assert a.dtype == b.dtype, name


def replace_manifest(folder, **changes):
  """Changes the attributes of the group on disk."""
  group = json.loads((folder / "zarr.json").read_text())
  group["attributes"].update(changes)
  (folder / "zarr.json").write_text(json.dumps(group))


def test_what_is_written_is_read(full):
  folder, rows, records = full
  cache = logit_cache.open_cache(folder)
  assert cache.manifest == MANIFEST
  assert cache.committed().all() and cache.holes() == []
  entries = cache.read(range(6))
  assert_equal(entries.rows, rows)
  np.testing.assert_array_equal(entries.ids_BLK, records.ids_BLK)
  assert entries.ids_BLK.dtype == np.int32
  np.testing.assert_array_equal(
    entries.p_BLK, sampling.decode(records.codes_BLK, TAU)
  )
  np.testing.assert_allclose(entries.p_BLK.sum(-1), 1, atol=1e-6)
  # float16 on disk: 11 bits.
  np.testing.assert_allclose(
    entries.entropy_BL, records.entropy_BL, rtol=2**-11
  )
  np.testing.assert_array_equal(
    cache.digests(range(6)), rows_lib.rows_digests(rows)
  )


def test_rows_are_read_in_any_order_and_more_than_once(full):
  folder, rows, records = full
  entries = logit_cache.open_cache(folder).read([5, 0, 0, 3])
  order = [5, 0, 0, 3]
  assert_equal(entries.rows, take(rows, order))
  np.testing.assert_array_equal(entries.ids_BLK, records.ids_BLK[order])


def test_objects_are_written_in_any_order_by_any_process(tmp_path):
  rows, records = make_rows(6), make_records(6)
  one = logit_cache.create(tmp_path, MANIFEST)
  other = logit_cache.create(tmp_path, MANIFEST)
  assert one.holes() == [range(0, 4), range(4, 6)]
  other.write(4, take(rows, slice(4, 6)), take(records, slice(4, 6)))
  assert one.holes() == [range(0, 4)]
  np.testing.assert_array_equal(one.committed(), [0, 0, 0, 0, 1, 1])
  one.write(0, take(rows, slice(0, 4)), take(records, slice(0, 4)))
  assert_equal(other.read(range(6)).rows, rows)


def test_positions_and_weights_survive(tmp_path):
  rows = make_rows(4)._replace(
    positions_BL=np.tile(np.int32([5, 6, 7, 9, 2, 0, 0, 0]), (4, 1)),
    weights_BL=np.tile(np.float32([0.5, 0, 2, 1, 1, 0.25, 0, 0]), (4, 1)),
  )
  manifest = dataclasses.replace(MANIFEST, num_rows=4)
  cache = logit_cache.create(tmp_path, manifest)
  cache.write(0, rows, make_records(4))
  assert_equal(logit_cache.open_cache(tmp_path).read(range(4)).rows, rows)


def test_default_positions_and_weights_cost_no_byte(full):
  folder, _, _ = full
  for name in ("position_offsets", "weights"):
    assert [p.name for p in (folder / name).rglob("*") if p.is_file()] == [
      "zarr.json"
    ]
  sizes = logit_cache.open_cache(folder).bytes_by_array()
  on_disk = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
  assert sum(sizes.values()) == on_disk - (folder / "zarr.json").stat().st_size
  assert sizes["ids"] > 6 * L * K


def test_the_bytes_of_objects_add_up(full):
  folder, _, _ = full
  cache = logit_cache.open_cache(folder)
  about = sum(p.stat().st_size for p in folder.glob("*/zarr.json"))
  starts = range(0, 6, cache.manifest.rows_per_object)
  objects = [cache.object_bytes(start) for start in starts]
  assert min(objects) > 0
  assert sum(objects) == sum(cache.bytes_by_array().values()) - about


def test_default_positions_by_hand():
  segments_BL = np.int32([[1, 1, 2, 2, 2, 1, 0, 0], [0, 0, 3, 3, 0, 3, 3, 3]])
  np.testing.assert_array_equal(
    logit_cache.default_positions(segments_BL),
    [[0, 1, 0, 1, 2, 0, 0, 0], [0, 0, 0, 1, 0, 0, 1, 2]],
  )


@pytest.mark.parametrize("V, dtype", [(65536, "uint16"), (65537, "uint32")])
def test_ids_take_as_few_bytes_as_the_vocabulary_needs(tmp_path, V, dtype):
  manifest = dataclasses.replace(MANIFEST, vocabulary_size=V, num_rows=4)
  rows, records = make_rows(4, V=V), make_records(4, V=V)
  rows.tokens_BL[0, 0] = records.ids_BLK[0, 0, 0] = V - 1
  cache = logit_cache.create(tmp_path, manifest)
  cache.write(0, rows, records)
  group = zarr.open_group(tmp_path, mode="r")
  assert group["ids"].dtype == group["tokens"].dtype == dtype
  entries = cache.read(range(4))
  assert_equal(entries.rows, rows)
  np.testing.assert_array_equal(entries.ids_BLK, records.ids_BLK)


def test_zarr_python_alone_opens_and_decodes_it(full):
  """The format as a reader without this package sees it."""
  folder, rows, records = full
  group = zarr.open_group(folder, mode="r")
  attributes = dict(group.attrs)
  assert attributes["format"] == "analogjax.logit_cache"
  assert attributes["format_version"] == 1
  assert attributes["predicts_offset"] == 1 and attributes["tau"] == TAU
  np.testing.assert_array_equal(group["tokens"][:], rows.tokens_BL)
  np.testing.assert_array_equal(group["segments"][:], rows.segments_BL)
  np.testing.assert_array_equal(group["ids"][:], records.ids_BLK)
  assert (group["weights"][:] == 1).all()
  assert not group["position_offsets"][:].any()
  np.testing.assert_array_equal(group["digest"][:], rows_lib.rows_digests(rows))

  codes = group["codes"][:]
  weights = np.array(attributes["head_levels"])[codes]
  left = 1 - weights.sum(-1)
  for place in np.ndindex(*codes.shape[:2]):
    tail = codes[place] == 1
    if tail.any():
      weights[place][tail] = left[place] / tail.sum()
    else:
      weights[place] /= weights[place].sum()
  entries = logit_cache.open_cache(folder).read(range(6))
  np.testing.assert_allclose(entries.p_BLK, weights, atol=1e-6)


class Killed(BaseException):
  """Stands for the end of the process."""


def test_a_kill_before_the_commit_leaves_holes(tmp_path, monkeypatch):
  """The digest is written last: without it the rows are not there."""
  rows, records = make_rows(6), make_records(6)
  cache = logit_cache.create(tmp_path, MANIFEST)
  cache.write(0, take(rows, slice(0, 4)), take(records, slice(0, 4)))

  def die(rows):
    raise Killed

  with monkeypatch.context() as patch, pytest.raises(Killed):
    patch.setattr(logit_cache.rows_lib, "rows_digests", die)
    cache.write(4, take(rows, slice(4, 6)), take(records, slice(4, 6)))
  # The data of the object is on the disk already.
  tokens = zarr.open_group(tmp_path, mode="r")["tokens"]
  np.testing.assert_array_equal(tokens[4:], rows.tokens_BL[4:])

  again = logit_cache.create(tmp_path, MANIFEST)
  np.testing.assert_array_equal(again.committed(), [1, 1, 1, 1, 0, 0])
  assert again.holes() == [range(4, 6)]
  with pytest.raises(logit_cache.CacheError, match="row 4 is not committed"):
    again.read([0, 4])
  write_all(again, rows, records)
  assert_equal(again.read(range(6)).rows, rows)


def test_a_kill_during_creation_is_made_good(tmp_path, monkeypatch):
  def die(url, manifest):
    raise Killed

  with monkeypatch.context() as patch, pytest.raises(Killed):
    patch.setattr(logit_cache, "_write_group", die)
    logit_cache.create(tmp_path, MANIFEST)
  with pytest.raises(logit_cache.CacheError, match="there is no logit cache"):
    logit_cache.open_cache(tmp_path)
  cache = logit_cache.create(tmp_path, MANIFEST)
  write_all(cache, make_rows(6), make_records(6))


@pytest.mark.parametrize(
  "field, value",
  [
    ("tau", 0.3),
    ("seed", 8),
    ("sequence_length", 16),
    ("vocabulary_size", 101),
    ("teacher_digest", "another teacher"),
    ("teacher_dtype", "bfloat16"),
    ("tokenizer_digest", "another tokenizer"),
    ("pipeline", "lab.pipeline:others"),
    ("pipeline_fingerprint", "another pipeline"),
    ("rows_per_object", 2),
    ("kind", "topk"),
  ],
)
def test_a_cache_of_something_else_is_refused(full, field, value):
  folder, _, _ = full
  wanted = dataclasses.replace(MANIFEST, **{field: value})
  with pytest.raises(logit_cache.CacheError) as error:
    logit_cache.create(folder, wanted)
  here = getattr(MANIFEST, field)
  assert f"{field}={here!r}, this run has {value!r}" in str(error.value)
  assert str(folder) in str(error.value)
  # What is there was not touched.
  logit_cache.open_cache(folder).read(range(6))


def test_software_versions_are_recorded_and_not_compared(full):
  folder, _, _ = full
  wanted = dataclasses.replace(MANIFEST, software={"analogjax": "9"})
  cache = logit_cache.create(folder, wanted)
  assert cache.manifest.software == {"analogjax": "0"}


def test_no_cache(tmp_path):
  missing = tmp_path / "nothing"
  assert logit_cache.read_manifest(missing) is None
  with pytest.raises(logit_cache.CacheError, match="run 'analogjax cache'"):
    logit_cache.open_cache(missing)
  assert not missing.exists()


def test_another_zarr_group(tmp_path):
  zarr.create_group(tmp_path, attributes={"made by": "someone else"})
  for call in (logit_cache.open_cache, logit_cache.read_manifest):
    with pytest.raises(logit_cache.CacheError, match="not an analogjax"):
      call(tmp_path)
  with pytest.raises(logit_cache.CacheError, match="not an analogjax"):
    logit_cache.create(tmp_path, MANIFEST)


def test_a_damaged_manifest(full):
  folder, _, _ = full
  (folder / "zarr.json").write_text('{"zarr_format": 3, "attri')
  with pytest.raises(logit_cache.CacheError, match=r"zarr\.json: not JSON"):
    logit_cache.open_cache(folder)


def test_a_newer_format(full):
  folder, _, _ = full
  replace_manifest(folder, format_version=2)
  with pytest.raises(
    logit_cache.CacheError, match=r"version 2,.* reads version 1"
  ):
    logit_cache.open_cache(folder)


def test_a_flipped_byte_is_found_and_names_array_and_row(full):
  """Whatever byte of a shard it is: an error, or the same values."""
  folder, rows, records = full
  shard = folder / "ids" / "c" / "0" / "0" / "0"
  good = shard.read_bytes()
  refused = 0
  for at in range(0, len(good), 17):
    shard.write_bytes(good[:at] + bytes([good[at] ^ 0x40]) + good[at + 1 :])
    try:
      entries = logit_cache.open_cache(folder).read(range(4))
    except logit_cache.CacheError as error:
      refused += 1
      assert f"{folder}: array 'ids' cannot be read at row " in str(error)
    else:
      np.testing.assert_array_equal(entries.ids_BLK, records.ids_BLK[:4])
  assert refused > 0.9 * len(range(0, len(good), 17))

  # The index at the end says where row 2 is: 16 bytes a row, then a checksum.
  offset = int(np.frombuffer(good[-68:-4], "<u8")[4]) + 20
  bad = good[:offset] + bytes([good[offset] ^ 1]) + good[offset + 1 :]
  shard.write_bytes(bad)
  cache = logit_cache.open_cache(folder)
  with pytest.raises(logit_cache.CacheError, match="at row 2: .*digest/c/0/0 "):
    cache.read([3, 1, 2, 0])
  cache.read([3, 1, 0, 5])

  # The way out that the message names.
  (folder / "digest/c/0/0").unlink()
  cache = logit_cache.create(folder, MANIFEST)
  assert cache.holes() == [range(0, 4)]
  write_all(cache, rows, records)
  np.testing.assert_array_equal(cache.read(range(6)).ids_BLK, records.ids_BLK)


@pytest.mark.parametrize("array", ["ids", "codes", "entropy", "segments"])
def test_a_truncated_shard(full, array):
  folder, _, _ = full
  shard = next(
    p for p in (folder / array / "c" / "1").rglob("0") if p.is_file()
  )
  shard.write_bytes(shard.read_bytes()[:50])
  cache = logit_cache.open_cache(folder)
  with pytest.raises(
    logit_cache.CacheError, match=f"array '{array}' cannot be read at row 4"
  ):
    cache.read([0, 4])
  cache.read(range(4))


@pytest.mark.parametrize(
  "array", ["tokens", "segments", "ids", "codes", "entropy"]
)
def test_a_lost_object_is_no_teacher_of_zeros(full, array):
  """Zarr reads what is not there as zeros: token 0, and nothing notices."""
  folder, _, _ = full
  shutil.rmtree(folder / array / "c" / "0")
  cache = logit_cache.open_cache(folder)
  with pytest.raises(
    logit_cache.CacheError, match=f"array '{array}' cannot be read at row 3"
  ):
    cache.read([5, 3])


def test_values_of_zero_are_no_lost_object(tmp_path):
  manifest = dataclasses.replace(MANIFEST, num_rows=4)
  rows = rows_lib.Rows(*(np.zeros_like(field) for field in make_rows(4)))
  records = sampling.Records(
    *(np.zeros_like(field) for field in make_records(4))
  )
  cache = logit_cache.create(tmp_path, manifest)
  cache.write(0, rows, records)
  entries = logit_cache.open_cache(tmp_path).read(range(4))
  assert_equal(entries.rows, rows)
  assert not entries.ids_BLK.any() and not entries.p_BLK.any()


def test_rows_that_do_not_match_their_digest(full):
  """A whole object of another cache: every checksum is right."""
  folder, _, _ = full
  other = logit_cache.create(folder.with_name("other"), MANIFEST)
  write_all(other, make_rows(6, seed=1), make_records(6))
  shutil.copytree(
    folder.with_name("other") / "tokens" / "c" / "0",
    folder / "tokens" / "c" / "0",
    dirs_exist_ok=True,
  )
  cache = logit_cache.open_cache(folder)
  with pytest.raises(logit_cache.CacheError, match="row 1 .*not match"):
    cache.read([1, 2])


def test_a_missing_array(full):
  folder, _, _ = full
  shutil.rmtree(folder / "codes")
  with pytest.raises(logit_cache.CacheError, match="array 'codes' .* opened"):
    logit_cache.open_cache(folder)


def test_a_cache_grows(full):
  folder, rows, records = full
  more = make_rows(11, seed=4), make_records(11, seed=4)
  rows, records = (
    type(old)(*(np.concatenate([a, b[6:]]) for a, b in zip(old, new)))  # noqa: B905
    for old, new in zip((rows, records), more, strict=True)
  )
  wanted = dataclasses.replace(MANIFEST, num_rows=11)
  cache = logit_cache.create(folder, wanted)
  assert cache.manifest.num_rows == 11
  # The object that was half full has to be written again.
  assert cache.holes() == [range(4, 8), range(8, 11)]
  assert_equal(cache.read(range(6)).rows, take(rows, slice(0, 6)))
  write_all(cache, rows, records)
  assert_equal(logit_cache.open_cache(folder).read(range(11)).rows, rows)
  # Asking for fewer rows is no reason to throw any away.
  assert logit_cache.create(folder, MANIFEST).manifest.num_rows == 11


def test_a_cache_is_cut(full):
  folder, rows, _ = full
  cache = logit_cache.open_cache(folder).resized(5)
  assert cache.manifest.num_rows == 5
  assert len(cache.committed()) == 5 and cache.holes() == []
  assert_equal(cache.read(range(5)).rows, take(rows, slice(0, 5)))
  assert logit_cache.open_cache(folder).manifest.num_rows == 5


@pytest.mark.parametrize("num_rows", [3, 14])
@pytest.mark.parametrize("steps", [0, 4, 9])
def test_a_kill_while_the_size_changes(full, monkeypatch, num_rows, steps):
  """Some arrays have the new size: it opens, and can be resized again."""
  folder, rows, _ = full
  cache = logit_cache.open_cache(folder)
  done = []

  def or_die(call):
    def step(*args, **kwargs):
      done.append(call)
      if len(done) > steps:
        raise Killed
      return call(*args, **kwargs)

    return step

  with monkeypatch.context() as patch, pytest.raises(Killed):
    write_group = or_die(logit_cache._write_group)
    patch.setattr(logit_cache, "_write_group", write_group)
    for name, array in cache._arrays.items():
      cache._arrays[name] = types.SimpleNamespace(
        ndim=array.ndim, resize=or_die(array.resize)
      )
    cache.resized(num_rows)

  cache = logit_cache.open_cache(folder)
  there = min(6, cache.manifest.num_rows)
  assert cache.committed()[:there].all()
  assert_equal(cache.read(range(there)).rows, take(rows, slice(0, there)))
  cache = cache.resized(num_rows)
  assert cache.manifest.num_rows == len(cache.committed()) == num_rows


@pytest.mark.parametrize("name", ["100%", "a%20b", "a b", "a#b?c", "caf\u00e9"])
def test_any_folder_name(tmp_path, name):
  """TensorStore takes a URL, in which some characters have a meaning."""
  rows, records = make_rows(6), make_records(6)
  cache = logit_cache.create(tmp_path / name, MANIFEST)
  write_all(cache, rows, records)
  assert [path.name for path in tmp_path.iterdir()] == [name]
  assert cache.bytes_by_array()["ids"] > 0
  assert_equal(
    logit_cache.open_cache(tmp_path / name).read([1]).rows, take(rows, [1])
  )


# Fills a cache until the disk is full, makes room and goes on.
FILL_THE_DISK = """
import dataclasses, importlib.util, pathlib, resource, signal, sys

folder, test_file, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])
spec = importlib.util.spec_from_file_location("logit_cache_test", test_file)
t = importlib.util.module_from_spec(spec)
spec.loader.exec_module(t)
R, per = 4096, 512
manifest = dataclasses.replace(t.MANIFEST, num_rows=R, rows_per_object=per)
filler = pathlib.Path(folder, "filler")
filler.write_bytes(bytes(300_000))
cache = t.logit_cache.create(folder, manifest)
# Ignored, so that a write beyond the limit fails instead of ending us.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
for start in range(0, R, per):
  object_ = t.make_rows(per, start), t.make_records(per, start)
  if limit and start == 2 * per:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
  try:
    cache.write(start, *object_)
  except t.logit_cache.CacheError as error:
    message = str(error)
    break
else:
  raise SystemExit("the disk never got full")
assert start > 0, message
assert f"{folder}: writing rows {start} to {start + per - 1} of" in message
assert "run again" in message and len(message) < 1000, message
again = t.logit_cache.open_cache(folder)
assert again.holes()[0].start == start, again.holes()
before = t.make_rows(per, start - per)
t.assert_equal(again.read([start - 1]).rows, t.take(before, [per - 1]))

filler.unlink()
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
again.write(start, *object_)
t.assert_equal(again.read([start]).rows, t.take(object_[0], [0]))
print(message)
"""


def fill_the_disk(prefix, folder, limit):
  script = [sys.executable, "-c", FILL_THE_DISK]
  return subprocess.run(
    [*prefix, *script, folder, __file__, str(limit)],
    capture_output=True,
    text=True,
  )


def test_a_full_disk_is_one_clear_error(tmp_path):
  """On a file system of one megabyte, in a mount namespace of its own."""
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
  """The same where no file system may be mounted: a limit on file sizes."""
  done = fill_the_disk([], str(tmp_path), limit=10_000)
  assert done.returncode == 0, done.stderr
  assert "File too large" in done.stdout
