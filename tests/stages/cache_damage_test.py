"""A cache whose files are damaged: reported, kept separate, and recomputed."""

import os
from pathlib import Path
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiny_pair

from analogjax import main
from analogjax.cache import damage, logit_cache, teacher_pass

pytestmark = pytest.mark.medium

ROOT = Path(__file__).parents[2]

# Distinct positions and weights, so that no array is left out, and no two
# objects are the same.
_FIELDS = """dict(
    tokens=rng.integers(0, 384, 32),
    segments=np.repeat([1, 2], [(first := 18 + index % 5), 32 - first]),
    positions=np.append(np.arange(5, 5 + first), np.arange(32 - first)),
    weights=np.repeat(np.float32([2 + index % 3, 1]), [first, 32 - first]),
  )"""
# The last object holds 6 of its 8 rows.
_VALUES = {
  "cache.num_rows": 22,
  "cache.batch_rows": 8,
  "cache.num_replicas": 2,
  "cache.capture": "random",
  "cache.capture_rate": 0.7,
}
ARRAYS = (
  *("tokens", "segments", "position_offsets", "weights", "inclusion"),
  *("entropy", "label_logprob", "num_head", "num_tail", "id_first"),
  *("id_rest", "values", "gram", "record_digest", "digest"),
)


class Bench:
  """Calls `analogjax cache` in this process."""

  def __init__(self, tiny, folder):
    self.folder = folder
    values = [f"--config.{key}={value}" for key, value in _VALUES.items()]
    self.overrides = (*tiny.overrides, *values)

  def arguments(self, workdir, *more):
    paths = [f"--config={self.folder / 'damage.py'}", f"--workdir={workdir}"]
    return ["cache", *paths, *self.overrides, *more]

  def run(self, workdir, *more):
    return main.main(self.arguments(workdir, *more))


@pytest.fixture(scope="session")
def bench(tiny, tmp_path_factory):
  folder = tmp_path_factory.mktemp("damage")
  tiny_pair.write_lab(
    folder, "damage", num_rows=60, rows="indexed", fields=_FIELDS
  )
  sys.path.insert(0, str(folder))
  yield Bench(tiny, folder)
  sys.path.remove(str(folder))


@pytest.fixture(scope="session")
def whole(bench, tmp_path_factory):
  """The workdir of a complete cache, read only."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  assert bench.run(workdir) == 0
  return workdir


@pytest.fixture
def workdir(whole, tmp_path):
  """A copy of it, to be damaged."""
  return shutil.copytree(whole, tmp_path / "run")


@pytest.fixture
def taught(monkeypatch):
  """Number of rows that the teacher saw so far, as a list of one number."""
  count, record = [0], teacher_pass.Recorder.record

  def counting(self, rows, manifest):
    count[0] += len(rows.tokens_BL)
    return record(self, rows, manifest)

  monkeypatch.setattr(teacher_pass.Recorder, "record", counting)
  return count


def content(workdir):
  """Every byte of the caches."""
  return tiny_pair.content(workdir, "cache", "held_out")


def object_path(workdir, array, number):
  (path,) = (
    path
    for path in (workdir / "cache" / array / "c" / str(number)).rglob("*")
    if path.is_file()
  )
  return path


def flip(path, row=2):
  """Flips a byte of one row of an object; of all its replicas, the first."""
  data = bytearray(path.read_bytes())
  per_row = 2 if path.parents[2].name == "c" else 1  # Replicas.
  chunks = 8 * per_row
  index = np.frombuffer(bytes(data[-16 * chunks - 4 : -4]), "<u8")
  offset, length = index.reshape(-1, 2)[row * per_row].tolist()
  data[offset + length // 2] ^= 0x10
  path.write_bytes(data)


def cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose(path):
  path.unlink()


def exchange(path):
  """Replaces it by the object before, whose checksums are right."""
  parts = list(path.parts)
  at = len(parts) - 1 - parts[::-1].index("c")
  parts[at + 1] = str(int(parts[at + 1]) - 1)
  shutil.copyfile(Path(*parts), path)


DAMAGE = {
  "a flipped byte": flip,
  "truncated": cut,
  "lost": lose,
  "exchanged": exchange,
}


@pytest.mark.parametrize("array", ARRAYS)
@pytest.mark.parametrize("how", DAMAGE)
def test_damage_of_every_array_is_found_and_kept_apart(
  whole, workdir, array, how
):
  stored = {path.parts[1] for path in content(whole) if "c" in path.parts}
  assert stored - {"id_order"} == set(ARRAYS)
  DAMAGE[how](object_path(workdir, array, 1))
  cache = logit_cache.open_cache(workdir / "cache")
  original = logit_cache.open_cache(whole / "cache")
  damaged = {10} if how == "a flipped byte" else set(range(8, 16))
  if array == "digest":
    damaged = set(range(8, 16))
    if how == "lost":  # Then they are holes.
      assert cache.holes() == [range(8, 16)]
      damaged = set()
  found = {}
  for part in cache.objects():
    found |= damage.damage(cache, part)
  assert set(found) == damaged
  for row, reason in found.items():
    assert re.search(rf"\brow {row}\b", reason) or array == "digest", reason
    assert str(workdir / "cache") in reason and "--repair" in reason
    if array == "digest" and how == "a flipped byte" and row != 10:
      continue  # Can be read; only the object as a whole is in doubt.
    with pytest.raises(logit_cache.CacheError, match=r"\brow \d+\b"):
      cache.read([row])
  hidden = damaged or set(range(8, 16))
  for row in set(range(22)) - hidden:
    for replica in (0, 1):
      one, other = cache.read([row], replica), original.read([row], replica)
      np.testing.assert_array_equal(one.p_BLK, other.p_BLK)
      np.testing.assert_array_equal(one.ids_BLK, other.ids_BLK)
      np.testing.assert_array_equal(one.rows.tokens_BL, other.rows.tokens_BL)


def test_verify_lists_it_and_repair_computes_just_that(
  bench, whole, workdir, taught, capfd
):
  flip(object_path(workdir, "tokens", 0), row=3)
  flip(object_path(workdir, "values", 0), row=4)
  flip(object_path(workdir, "entropy", 0), row=6)
  flip(
    object_path(workdir, "label_logprob", 2), row=5
  )  # A row of the short object.
  assert bench.run(workdir, "--verify") == 2
  lines = capfd.readouterr().err.splitlines()
  assert lines[0] == "analogjax cache: error: the cache is damaged:"
  rows = [re.match(r"  (?:\S*: )?rows? (\d+(?: to \d+)?): ", s) for s in lines]
  assert [m[1] for m in rows if m] == ["3 to 4", "6", "21"], lines
  assert "cache --repair" in lines[-1]

  # It is in the way of nothing else: all is committed.
  before = content(workdir)
  assert bench.run(workdir) == 0
  assert content(workdir) == before and taught == [0]

  assert bench.run(workdir, "--repair") == 0
  # In steps of batch_rows, of which the rest is copies.
  assert taught == [3 + 1]
  assert content(workdir) == content(whole)
  assert bench.run(workdir, "--verify=4") == 0
  assert "22 rows are as they were written" in capfd.readouterr().out


@pytest.mark.parametrize("how", ["truncated", "lost", "exchanged"])
def test_whole_objects_are_computed_again(bench, whole, workdir, taught, how):
  for array, number in (("id_first", 1), ("digest", 1), ("segments", 2)):
    DAMAGE[how](object_path(workdir, array, number))
  assert bench.run(workdir, "--verify") == 2
  assert bench.run(workdir, "--repair") == 0
  assert taught == [8 + 6]
  assert content(workdir) == content(whole)


def test_repair_of_a_cache_that_grew(bench, workdir, tmp_path, taught):
  more = "--config.cache.num_rows=24"
  assert bench.run(tmp_path / "grown", more) == 0
  cache = logit_cache.open_cache(workdir / "cache")
  cache.resized(24)  # Rows 22 and 23 are holes of the last object.
  flip(object_path(workdir, "values", 2), row=1)
  taught[0] = 0
  assert bench.run(workdir, more, "--repair") == 0
  assert taught == [3]
  grown = content(tmp_path / "grown")
  assert content(workdir) == grown


@pytest.mark.parametrize("file", ["zarr.json", "values/zarr.json", "id_order"])
def test_damage_that_no_row_can_mend_is_said(bench, workdir, capfd, file):
  path = workdir / "cache" / file
  if file == "id_order":
    path = path / "c" / "0"
  data = bytearray(path.read_bytes())
  data[len(data) // 2 :] = b""
  path.write_bytes(data)
  for more in ([], ["--verify"], ["--repair"]):
    capfd.readouterr()
    assert bench.run(workdir, *more) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert str(workdir / "cache") in line
    assert file.removesuffix("/zarr.json") in line


# The disk.


def disk_bench(bench, script, *arguments, prefix=()):
  done = subprocess.run(
    [*prefix, sys.executable, "-c", script, *map(str, arguments)],
    env=os.environ | {"PYTHONPATH": f"{ROOT}:{bench.folder}"},
    capture_output=True,
    text=True,
    timeout=120,
  )
  return done


_SMALL_FILES = """
import resource, signal, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
from analogjax import main
from analogjax.cache import logit_cache
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
write, count = logit_cache.LogitCache.write_stored, [0]
def limited(self, start, stored):
  count[0] += 1
  if count[0] == 3:
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, resource.RLIM_INFINITY))
  write(self, start, stored)
logit_cache.LogitCache.write_stored = limited
sys.exit(main.main(sys.argv[1:]))
"""


def test_a_file_that_cannot_grow(bench, whole, tmp_path):
  workdir = tmp_path / "run"
  done = disk_bench(bench, _SMALL_FILES, *bench.arguments(workdir))
  assert done.returncode == 2, done.stdout + done.stderr
  (line,) = done.stderr.splitlines()
  assert "writing rows 16 to 21 of the logit cache failed" in line
  assert "File too large" in line and "The rows before are safe" in line
  cache = logit_cache.open_cache(workdir / "cache")
  assert cache.holes() == [range(16, 22)]
  cache.read(range(16))
  assert bench.run(workdir) == 0
  assert content(workdir) == content(whole)


_READ_ONLY = """
import os, subprocess, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
from analogjax import main
workdir = sys.argv[1]
subprocess.run(["mount", "--bind", workdir, workdir], check=True)
subprocess.run(["mount", "-o", "remount,ro,bind", workdir], check=True)
sys.exit(main.main(sys.argv[2:]))
"""


@pytest.mark.skipif(
  not tiny_pair.can_mount(), reason="needs unshare -rm, to mount"
)
def test_a_folder_that_cannot_be_written(bench, whole, workdir):
  lose(object_path(workdir, "digest", 1))
  done = disk_bench(
    bench,
    _READ_ONLY,
    workdir / "cache",
    *bench.arguments(workdir),
    prefix=["unshare", "-rm"],
  )
  assert done.returncode == 2, done.stdout + done.stderr
  (line,) = done.stderr.splitlines()
  assert "writing rows 8 to 15 of the logit cache failed" in line
  assert "Read-only file system" in line
  cache = logit_cache.open_cache(workdir / "cache")
  assert cache.holes() == [range(8, 16)]
  cache.read([*range(8), *range(16, 22)])
  assert bench.run(workdir) == 0
  assert content(workdir) == content(whole)
