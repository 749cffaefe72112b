"""Kills caching runs, and looks for what they lost.

Runs `analogjax cache` on a tiny pair, alternating between one process and two,
and ends them by SIGKILL at random moments. After each kill every committed row
must equal that of an undisturbed run, and no row that was committed before may
be gone. A complete cache must equal the undisturbed one byte for byte; then the
next one begins. tests/stages/cache_kill_test.py runs it; soak.py uses its
checks for whole runs.
"""

import hashlib
import os
from pathlib import Path
import random
import shutil
import socket
import subprocess
import sys
import time

import numpy as np

from analogjax.cache import logit_cache

CACHES = ("cache", "held_out")
# One in this many is killed while it starts, for example while it opens the
# caches.
EARLY = 5
STARTING_SECONDS = (2.0, 8.0)  # Imports take about two.
WRITING_SECONDS = 1.5
HANGS_SECONDS = 600.0  # A loaded machine takes its time.


class Damage(Exception):
  """A cache that lost something."""


class Runs:
  """Starts `analogjax` in some processes, with two devices in all."""

  def __init__(self, pair, *, rows, command="cache", overrides=()):
    """Prepares runs on a Tiny of tests/kit/tiny_pair.py.

    Args:
      rows: of the cache to train on.
      command: to run.
      overrides: further overrides of the config.
    """
    self._pair, self._command = pair, command
    self._more = (
      f"--config.cache.num_rows={rows}",
      "--config.cache.batch_rows=8",
      "--config.cache.rows_per_object=8",
      *overrides,
    )

  def arguments(self, workdir):
    """Arguments of the command line."""
    return self._pair.command(self._command, workdir, *self._more)

  def start(self, workdir, num_processes):
    """Starts; what they say is added to log files beside the workdir."""
    workdir.mkdir(parents=True, exist_ok=True)
    environment = self._pair.environment()
    environment["JAX_NUM_CPU_DEVICES"] = str(2 // num_processes)
    # jax keeps what took a second to compile; here nothing does.
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    environment["PYTHONUNBUFFERED"] = "1"
    environment["ANALOGJAX_COORDINATOR"] = f"localhost:{free_port()}"
    environment["ANALOGJAX_NUM_PROCESSES"] = str(num_processes)
    command = [sys.executable, "-m", "analogjax.main"]
    command += self.arguments(workdir)
    processes = []
    for i in range(num_processes):
      with open(log_path(workdir, i), "ab") as log:
        process = subprocess.Popen(
          command,
          env=environment | {"ANALOGJAX_PROCESS_ID": str(i)},
          stdout=log,
          stderr=subprocess.STDOUT,
        )
      processes.append(process)
    return processes


def log_path(workdir, process):
  return workdir.with_name(f"{workdir.name}-{process}.log")


def logs(workdir):
  """The end of the output of a workdir's processes."""
  paths = sorted(workdir.parent.glob(f"{workdir.name}-*.log"))
  return "\n".join(f"{p.name}:\n{p.read_text()[-4000:]}" for p in paths)


def free_port():
  with socket.socket() as s:
    s.bind(("localhost", 0))
    return s.getsockname()[1]


def finish(processes, workdir):
  """Waits; raises Damage if a run that was not killed fails or hangs."""
  end = time.monotonic() + HANGS_SECONDS
  try:
    for process in processes:
      process.wait(max(end - time.monotonic(), 1))
  except subprocess.TimeoutExpired:
    kill(processes)
    raise Damage(f"{workdir}: a run hangs") from None
  if any(process.returncode for process in processes):
    raise Damage(f"{workdir}: a run fails:\n{logs(workdir)}")


def kill(processes):
  for process in processes:
    process.kill()
  for process in processes:
    process.wait()


def digest(path):
  return hashlib.sha256(path.read_bytes()).digest()


def files(workdir):
  """Digest of every file of the caches, by path."""
  return {
    str(path.relative_to(workdir)): digest(path)
    for name in CACHES
    for path in sorted((workdir / name).rglob("*"))
    if path.is_file()
  }


class Undisturbed:
  """The expected content of a cache."""

  def __init__(self, workdir):
    self.files = files(workdir)
    self._stored = {}
    for name in CACHES:
      cache = logit_cache.open_cache(workdir / name)
      self._stored[name] = cache.read_stored(np.arange(len(cache)))

  def check(self, workdir, before):
    """Committed rows by cache, and the number of half-written objects.

    Args:
      workdir: of a run that was killed.
      before: the previous result of this call.

    Raises:
      Damage: a committed row is gone, unreadable or changed.
    """
    committed, half_done = {}, 0
    for name in CACHES:
      folder = workdir / name
      old = before.get(name)
      if old is None and not (folder / "zarr.json").exists():
        continue  # Killed before it was made.
      try:
        cache = logit_cache.open_cache(folder)
        now = cache.committed()
        rows = np.flatnonzero(now)
        stored = cache.read_stored(rows) if len(rows) else {}
      except ValueError as error:
        raise Damage(str(error)) from error
      if old is not None and (old & ~now).any():
        gone = np.flatnonzero(old & ~now)
        raise Damage(f"{folder}: rows {gone.tolist()} were committed before")
      for array, there in stored.items():
        if not np.array_equal(there, self._stored[name][array][rows]):
          raise Damage(f"{folder}: {array!r} differs from the undisturbed one")
      started = {
        p.name for p in folder.glob("*/c/*") if "id_order" not in str(p)
      }
      done = {str(row // cache.manifest.rows_per_object) for row in rows}
      half_done += len(started - done)
      committed[name] = now
    return committed, half_done

  def compare(self, workdir):
    """Raises Damage if a complete cache differs from the undisturbed one."""
    found = files(workdir)
    differs = [p for p in self.files if self.files[p] != found.get(p)]
    differs += sorted(set(found) - set(self.files))
    if differs:
      raise Damage(f"{workdir}: {len(differs)} files differ: {differs[:5]}")


def run(pair, folder, *, kills, rows, seed, say=lambda text: None):
  """Kills until there were enough; returns the report.

  Args:
    pair: Tiny of tests/kit/tiny_pair.py.
    kills: number of kills of live runs.
    rows: of the cache to train on.
    seed: of the moments.
    say: prints a line now and then.
  """
  rng = random.Random(seed)
  runs = Runs(pair, rows=rows)
  since = time.monotonic()
  finish(runs.start(folder / "undisturbed", 1), folder / "undisturbed")
  wanted = Undisturbed(folder / "undisturbed")
  report = {
    "rows": rows,
    "kills": 0,
    "kills_of_1_process": 0,
    "kills_of_2_processes": 0,
    "kills_while_starting": 0,
    "kills_that_left_an_object_half_done": 0,
    "rows_checked": 0,
    "caches_completed": 0,
    "damage": None,
  }
  try:
    while report["kills"] < kills:
      one_cache(runs, wanted, folder / "killed", kills, rng, report, say)
  except Damage as damage:
    report["damage"] = str(damage)
  report["seconds"] = round(time.monotonic() - since, 1)
  return report


def one_cache(runs, wanted, workdir, kills, rng, report, say):
  """Fills one cache, killed again and again."""
  if workdir.exists():
    shutil.rmtree(workdir)
  committed = {}
  while report["kills"] < kills:
    num_processes = 1 + report["kills"] % 2
    processes = runs.start(workdir, num_processes)
    early = rng.randrange(EARLY) == 0
    if early:
      time.sleep(rng.uniform(*STARTING_SECONDS))
    else:
      wait_for_files(processes, workdir)
      time.sleep(rng.uniform(0, WRITING_SECONDS))
    rng.shuffle(processes)
    if any(process.poll() is not None for process in processes):
      finish(processes, workdir)
      break
    kill(processes[:1])
    time.sleep(rng.uniform(0, 0.3))
    kill(processes[1:])
    committed, half_done = wanted.check(workdir, committed)
    count = sum(int(done.sum()) for done in committed.values())
    report["kills"] += 1
    name = "process" if num_processes == 1 else "processes"
    report[f"kills_of_{num_processes}_{name}"] += 1
    report["kills_while_starting"] += early
    report["kills_that_left_an_object_half_done"] += half_done > 0
    report["rows_checked"] += count
    say(
      f"kill {report['kills']}: {num_processes} {name}, {count} rows"
      f" committed, {half_done} objects half done"
    )
  else:
    finish(runs.start(workdir, 1 + kills % 2), workdir)
  wanted.check(workdir, committed)
  wanted.compare(workdir)
  report["caches_completed"] += 1
  say(f"cache {report['caches_completed']} is complete and as undisturbed")


def wait_for_files(processes, workdir):
  """Waits until these processes have written to a cache, or ended."""
  before, end = count_files(workdir), time.monotonic() + HANGS_SECONDS
  while all(process.poll() is None for process in processes):
    if count_files(workdir) > before:
      return
    if time.monotonic() > end:
      kill(processes)
      raise Damage(f"{workdir}: a run hangs before it writes")
    time.sleep(0.02)


def count_files(workdir):
  return sum(1 for name in CACHES for _ in (workdir / name).glob("*/c/*"))


def make_pair(folder):
  """The tiny pair of the tests."""
  sys.path.insert(0, str(Path(__file__).parents[1] / "kit"))
  import tiny_pair  # It imports jax, which the environment must have preceded.

  folder.mkdir(parents=True)
  # The folder of the tests, where they run this: it has most programs.
  compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR", folder / "compiled")
  return tiny_pair.make_tiny(folder, Path(compiled))
