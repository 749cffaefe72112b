"""`analogjax train` with two processes, of which one may fail."""

import re
import signal

import pytest

from analogjax.workdir import ledger

pytestmark = pytest.mark.slow

# Code that a process runs once the rows of a step are there.
_AT_STEP = """
from analogjax.training import loop as trainer
take = trainer.Phase._next
def watched(self, ahead, step):
  batch = take(self, ahead, step)
  if step == {step}:
    {call}
  return batch
if me == {who}:
  trainer.Phase._next = watched
"""

# The rows of process 1 come slowly.
_SLOW = """
from analogjax.cache import logit_cache
read = logit_cache.LogitCache.read
def slow(self, indices, *replicas):
  if replicas:
    time.sleep(0.4)
  return read(self, indices, *replicas)
if me == 1:
  logit_cache.LogitCache.read = slow
"""

_FAILS = {
  "raises": (
    """
from analogjax.cache import logit_cache
def damaged():
  raise logit_cache.CacheError("row 6 is damaged")
""",
    2,
    "row 6 is damaged",
  ),
  "never comes": (
    "damaged = lambda: time.sleep(1e6)",
    75,
    "no rows for step 7 in 2 s (watch.give_up_seconds=1.5)",
  ),
}
_FAILING = """
read, count = logit_cache.LogitCache.read, [0]
def failing(self, indices, *replicas):
  count[0] += bool(replicas)
  if replicas and count[0] == 7:
    damaged()
  return read(self, indices, *replicas)
if me == 1:
  logit_cache.LogitCache.read = failing
"""


def losses(training, workdir):
  """Losses of each step and of each evaluation."""
  return {
    (record["step"], name): value
    for record in training.curve(workdir)
    for name, value in record.items()
    if name.endswith("_nats")
  }


def start(training, workdir, patch, *values, **how):
  arguments = training.arguments("train", workdir, *values)
  return training.tiny.start_processes(
    arguments, patch=patch, path=training.folder, **how
  )


def steps_saved(workdir):
  folder = workdir / "train" / "distill" / "checkpoints"
  return sorted(int(path.name) for path in folder.iterdir())


def test_two_train_as_one_does_and_name_the_slow_one(
  training, straight, tmp_path
):
  workdir = training.fresh(tmp_path / "run")
  said = training.tiny.finish(start(training, workdir, _SLOW))
  wanted = losses(training, straight["cache"][0])
  assert losses(training, workdir) == pytest.approx(wanted, rel=1e-5)
  slow = r"warning: process 0: train distill: step 10: all wait for process 1: "
  assert re.search(slow, said[0][1])
  assert "all wait" not in said[1][1]
  # One of them keeps the ledger.
  assert ledger.totals(workdir)["train/distill"]["tokens"] == 12 * 8 * 32


def test_two_go_on_where_one_was_until_one_is_asked_to_stop(
  training, straight, tmp_path
):
  """From eight devices to two processes, in the middle of a pass, and back."""
  workdir = tmp_path / "run"

  def stop():
    signal.raise_signal(signal.SIGTERM)

  assert training.train(workdir, at={5: stop}).code == 75
  call = "os.kill(os.getpid(), signal.SIGTERM)"
  patch = _AT_STEP.format(who=1, step=7, call=call)
  said = training.tiny.finish(start(training, workdir, patch), code=75)
  # Both know of it one step later.
  for _, err in said:
    assert "analogjax train: stopped, train distill: after step 8;" in err
  assert steps_saved(workdir) == [4, 5, 8]
  again = training.train(workdir)
  assert again.code == 0 and min(again.batches) == 9
  wanted = losses(training, straight["cache"][0])
  assert losses(training, workdir) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("what", _FAILS)
def test_one_whose_rows_fail_ends_both(training, tmp_path, what):
  patch, code, says = _FAILS[what]
  workdir = training.fresh(tmp_path / "run")
  values = ("watch.stall_seconds=0.5", "watch.give_up_seconds=1.5")
  patch = "from analogjax.cache import logit_cache\n" + patch + _FAILING
  processes = start(training, workdir, patch, *values)
  said = training.tiny.finish(processes, code)
  assert says in said[1][1]
  assert "process 1 failed: " in said[0][1] and says in said[0][1]
  # Each has one line of it, and nobody a traceback.
  assert "Traceback" not in said[0][1] + said[1][1]
  assert steps_saved(workdir) == [4]


@pytest.mark.parametrize("who", [0, 1])
def test_one_that_is_killed_ends_the_other(training, tmp_path, who):
  workdir = training.fresh(tmp_path / "run")
  call = "os.kill(os.getpid(), signal.SIGKILL)"
  patch = _AT_STEP.format(who=who, step=7, call=call)
  processes = start(training, workdir, patch)
  try:
    processes[who].communicate(timeout=280)
    _, err = processes[1 - who].communicate(timeout=60)
  finally:
    for process in processes:
      process.kill()
  assert processes[who].returncode == -signal.SIGKILL
  assert processes[1 - who].returncode == 75, err
  says = f"analogjax train: process {who} ended without a word; process"
  gone = "analogjax train: another process or its machine is gone"
  assert says in err or (who == 0 and gone in err)
  assert "Run the same command again to continue." in err
