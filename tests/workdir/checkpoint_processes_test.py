"""Checkpoints of two processes that see, or do, different things."""

import socket
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

# Gloo writes to standard output too, from its own threads and in pieces.
_SCRIPT = """
import os, pathlib, resource, shutil, sys
sys.stdout = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
me, folder, port = int(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(f"localhost:{port}", 2, me)
from jax.sharding import NamedSharding, PartitionSpec as P
import numpy as np
from analogjax.workdir import checkpoints as checkpoint
from analogjax.distributed import sharding

def opened(folder):
  return checkpoint.Checkpoints(folder, keep=2)

mesh = sharding.make_mesh(dict(fsdp=4))
shardings = {"a": NamedSharding(mesh, P("fsdp")), "b": NamedSharding(mesh, P())}
make = lambda: {"a": jax.random.normal(jax.random.key(0), (400, 400)),
                "b": jax.numpy.ones(3)}
state = jax.jit(make, out_shardings=shardings)()
abstract = jax.eval_shape(make)

def equals(found):
  return all(
    np.array_equal(a.data, b.data)
    for k in state
    for a, b in zip(found[k].addressable_shards, state[k].addressable_shards)
  )
"""

_FAIL = """
checkpoint._SAVE_SECONDS = 6
saved = opened(folder)
saved.save(1, state, {"position": 1})
saved.finish()
if me == int(sys.argv[4]):
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))
saved.save(2, state, {"position": 2})
try:
  saved.finish()
  print("no error")
except checkpoint.SaveError as error:
  print("SaveError", "step 2" in str(error), saved.steps(), saved.failed_saves)
resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
for step in (2, 3):
  saved.save(step, state, {"position": step})
saved.finish()
names = sorted(p.name for p in folder.iterdir())
print(saved.steps(), saved.failed_saves, names)
saved.close()
"""

# Each process reads its own rows; those of process 1 are damaged.
_DAMAGE = """
saved = opened(folder)
for step in (1, 2):
  saved.save(step, state, {"position": step})
saved.finish()
saved.close()
if me == 0:
  for path in (folder / "2/state/ocdbt.process_1/d").iterdir():
    data = bytearray(path.read_bytes())
    for at in range(len(data) // 4, len(data), len(data) // 4):
      data[at] ^= 1
    path.write_bytes(data)
jax.experimental.multihost_utils.sync_global_devices("damaged")
saved = opened(folder)
load = checkpoint.ocp.load
def told(path, target):
  try:
    found = load(path, target)
  except Exception:
    print(path[-1], "is damaged")
    raise
  print(path[-1], "is read")
  return found
checkpoint.ocp.load = told
step, found, about = saved.restore_latest(abstract, shardings)
print(step, equals(found), about, saved.steps())
saved.close()
"""

# Process 1 sees a different folder than process 0: its own.
_VIEW = """
saved = opened(folder)
for step in (1, 2):
  saved.save(step, state, {"position": step})
saved.finish()
saved.close()
jax.experimental.multihost_utils.sync_global_devices("saved")
if me == 1:
  view = pathlib.Path(sys.argv[4])
  shutil.copytree(folder / "1", view / "1")
  folder = view
jax.experimental.multihost_utils.sync_global_devices("copied")
saved = opened(folder)
print(saved.steps())
step, found, about = saved.restore_latest(abstract, shardings)
print(step, equals(found), about, saved.steps())
saved.close()
"""


def run(tmp_path, body, *arguments):
  """The lines that each of two processes prints."""
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  folder = tmp_path / "checkpoints"
  processes = []
  for me in (0, 1):
    with (tmp_path / f"out{me}").open("w") as out:
      with (tmp_path / f"log{me}").open("w") as log:
        given = (str(x) for x in (me, folder, port, *arguments))
        command = [sys.executable, "-c", _SCRIPT + body, *given]
        processes.append(subprocess.Popen(command, stdout=out, stderr=log))
  try:
    for p in processes:
      p.wait(60)
  finally:
    for p in processes:
      p.kill()
      p.wait()
    logs = [(tmp_path / f"log{me}").read_text() for me in (0, 1)]
    said = [(tmp_path / f"out{me}").read_text() for me in (0, 1)]
    print(*logs)  # Shown where a test fails.
  assert [p.returncode for p in processes] == [0, 0], logs
  return [text.splitlines() for text in said], logs


@pytest.mark.parametrize("who", [0, 1])
def test_a_save_that_one_process_cannot_write_has_failed_for_all(tmp_path, who):
  lines, logs = run(tmp_path, _FAIL, who)
  expected = ["SaveError True [1] 1", "[2, 3] 1 ['2', '3']"]
  assert lines == [expected, expected], logs
  assert "File too large" in logs[who]
  assert "THE CHECKPOINT OF STEP 2 IS NOT SAVED" in logs[who]


def test_damage_that_one_process_reads_is_damage_for_all(tmp_path):
  lines, logs = run(tmp_path, _DAMAGE)
  end = ["1 is read", "1 True {'position': 1} [1]"]
  assert lines == [["2 is read", *end], ["2 is damaged", *end]], logs
  assert "process 1 says why" in logs[0]
  assert [p.name for p in (tmp_path / "checkpoints_damaged").iterdir()] == ["2"]


def test_processes_that_see_different_folders_agree(tmp_path):
  """Step 2 is missing for process 1, so both go back to step 1."""
  lines, logs = run(tmp_path, _VIEW, tmp_path / "view")
  expected = ["[1, 2]", "1 True {'position': 1} [1]"]
  assert lines == [expected, expected], logs
