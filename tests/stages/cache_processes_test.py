"""`analogjax cache` with several processes: the same bytes as with one."""

import json
import random
import shutil
import signal
import time

import pytest
import tiny_pair

from analogjax.cache import logit_cache

pytestmark = pytest.mark.slow

# Devices in all, and the mesh over them. With tensor=2 both processes hold the
# same rows, and one of them writes. (The tiny teacher has two groups of heads.)
MESHES = {
  "data": (4, "mesh.data=2", "mesh.fsdp=2"),
  "fsdp": (8, "mesh.fsdp=8"),
  "tensor": (2, "mesh.fsdp=1", "mesh.tensor=2"),
}


class Lab:
  """Runs `analogjax cache` in some processes with `devices` in all."""

  def __init__(self, tiny, folder):
    self.tiny, self.folder = tiny, folder
    tiny_pair.write_lab(folder, "processes", num_rows=64, rows="indexed")

  def start(self, workdir, *values, **how):
    workdir.mkdir(parents=True, exist_ok=True)
    arguments = ["cache", f"--workdir={workdir}"]
    arguments += [f"--config={self.folder / 'processes.py'}"]
    arguments += [*self.tiny.overrides, "--config.cache.batch_rows=8"]
    arguments += [f"--config.{value}" for value in values]
    return self.tiny.start_processes(arguments, path=self.folder, **how)

  def run(self, workdir, *values, code=0, **how):
    """Waits; [(stdout, stderr)] of the processes."""
    return self.tiny.finish(self.start(workdir, *values, **how), code)


@pytest.fixture(scope="session")
def lab(tiny, tmp_path_factory):
  return Lab(tiny, tmp_path_factory.mktemp("processes"))


@pytest.fixture(scope="session")
def one(lab, tmp_path_factory):
  """The output of one process with one device."""
  workdir = tmp_path_factory.mktemp("one") / "run"
  lab.run(workdir, count=1, devices=1)
  return workdir


def content(workdir):
  """Every byte of the caches."""
  found = {
    str(path): data
    for path, data in tiny_pair.content(workdir, "cache", "held_out").items()
  }
  for name in ("cache/zarr.json", "held_out/zarr.json"):
    group = json.loads(found[name])
    del group["attributes"]["software"]
    found[name] = group
  return found


def differs(one, other):
  """Names of the files that differ."""
  one, other = content(one), content(other)
  return sorted(p for p in one | other if one.get(p) != other.get(p))


def tokens_spent(workdir):
  """Tokens in the ledger: each row counts once, whoever wrote it."""
  entries = (workdir / "ledger.jsonl").read_text().splitlines()
  return sum(json.loads(entry)["tokens"] for entry in entries)


def test_two_processes_write_what_one_writes(lab, one, tmp_path):
  said = lab.run(tmp_path / "run")
  assert differs(tmp_path / "run", one) == []
  # One of them speaks.
  assert "cache: complete." in said[0][0]
  assert "cache" not in said[1][0]
  assert tokens_spent(tmp_path / "run") == (46 + 8) * 32


@pytest.mark.parametrize("mesh", MESHES)
def test_on_every_mesh(lab, one, tmp_path, mesh):
  devices, *values = MESHES[mesh]
  for name, count in (("two", 2), ("single", 1)):
    lab.run(tmp_path / name, *values, count=count, devices=devices)
    assert tokens_spent(tmp_path / name) == (46 + 8) * 32
  assert differs(tmp_path / "two", tmp_path / "single") == []
  records = [
    logit_cache.open_cache(folder / "cache").read(range(46))
    for folder in (tmp_path / "two", one)
  ]
  same = (records[0].ids_BLK == records[1].ids_BLK).all(-1)
  assert same.mean() > 0.98  # Another order of sums may move an edge.


def test_a_stream_that_ends_early(lab, tmp_path):
  values = ("data.pipeline=processes_rows:stream", "data.arguments.num_rows=29")
  said = lab.run(tmp_path / "two", *values)
  assert "ends after 29 rows" in said[0][0]
  lab.run(tmp_path / "single", *values, count=1)
  assert differs(tmp_path / "two", tmp_path / "single") == []
  cache = logit_cache.open_cache(tmp_path / "two" / "cache")
  assert len(cache) == 29 and cache.committed().all()


@pytest.mark.parametrize("counts", [(2, 1), (1, 2)])
def test_killed_and_gone_on_with_another_number(lab, one, tmp_path, counts):
  rng = random.Random(counts[0])
  workdir = tmp_path / "run"
  processes = lab.start(workdir, count=counts[0])
  end = time.monotonic() + 280
  while not list((workdir / "cache").glob("digest/c/*")):
    assert time.monotonic() < end
    time.sleep(0.005)
  time.sleep(rng.uniform(0, 0.1))
  victim = processes.pop(rng.randrange(len(processes)))
  victim.kill()
  time.sleep(0.5)
  for process in processes:
    process.kill()
  for process in (victim, *processes):
    process.communicate()
  assert victim.returncode == -signal.SIGKILL
  done = logit_cache.open_cache(workdir / "cache").committed()
  assert done.any()
  lab.run(workdir, count=counts[1])
  assert differs(workdir, one) == []


def test_one_that_dies_does_not_leave_the_other_waiting(lab, tmp_path):
  patch = """
from analogjax.cache import writer as cache_writer
def dying(*args):
  os.kill(os.getpid(), signal.SIGKILL)
if me == 1:
  cache_writer.CacheWriter.submit = dying
"""
  processes = lab.start(tmp_path / "run", patch=patch)
  codes = []
  try:
    for process in processes:
      process.communicate(timeout=280)
      codes.append(process.returncode)
  finally:
    for process in processes:
      process.kill()
  assert codes[1] == -signal.SIGKILL and codes[0] != 0


_FAILS = {
  "writing an object": """
from analogjax.cache import writer as cache_writer, logit_cache
submit, count = cache_writer.CacheWriter.submit, [0]
def failing(self, *args):
  count[0] += 1
  if count[0] == 2:
    raise logit_cache.CacheError("no room")
  submit(self, *args)
if me == {who}:
  cache_writer.CacheWriter.submit = failing
""",
  "making the cache": """
from analogjax.cache import logit_cache
def failing(*args):
  raise logit_cache.CacheError("no room")
if me == {who}:
  logit_cache.create = failing
""",
  "opening the teacher": """
from analogjax.models import hf_import as hf_folder
def failing(*args):
  raise ValueError("no room")
if me == {who}:
  hf_folder.check_weights = failing
""",
}


@pytest.mark.parametrize(
  ("what", "who"),
  [
    ("writing an object", 0),
    ("writing an object", 1),
    ("making the cache", 0),
    ("opening the teacher", 1),
  ],
)
def test_one_that_fails_stops_both(lab, one, tmp_path, what, who):
  patch = _FAILS[what].format(who=who)
  said = lab.run(tmp_path / "run", patch=patch, code=2)
  (line,) = said[who][1].splitlines()
  assert "no room" in line
  (line,) = said[1 - who][1].splitlines()
  assert f"process {who} failed and says why; this one stops too" in line
  if what == "writing an object" and who == 1:
    lab.run(tmp_path / "run")
    assert differs(tmp_path / "run", one) == []


def test_one_that_leaves_late_does_not_keep_the_first_waiting(
  lab, one, tmp_path
):
  # It has heard that process 0 leaves, and has to say that it does, too. While
  # process 0 waits for that, jax's own barrier waits for process 0.
  patch = """
from analogjax.distributed import liveness as peers
leave = peers.Peers.leave
def late(self, **how):
  if me == 1:
    time.sleep(2)
  leave(self, **how)
  if me == 0:
    print("still waits:", self._waits_for_others(float("inf")))
peers.Peers.leave = late
"""
  shutil.copytree(one, tmp_path / "run")
  said = lab.run(tmp_path / "run", patch=patch)
  assert "still waits: False" in said[0][0]
