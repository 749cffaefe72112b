"""Reactions of `analogjax train` to failures, in process."""

import errno
import os
import re
import signal
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analogjax.cache import batches, logit_cache
from analogjax.distributed import stopping
from analogjax.training import loop
from analogjax.workdir import checkpoints, metrics

pytestmark = pytest.mark.medium


@pytest.fixture
def faults(training):
  yield training.rows.FAULTS
  training.rows.FAULTS.clear()


def saved(workdir):
  folder = workdir / "train" / "distill" / "checkpoints"
  return sorted(int(path.name) for path in folder.glob("*"))


def assert_ends_like(found, wanted):
  jax.tree.map(np.testing.assert_array_equal, found.states[12], wanted[12])


def test_a_row_that_fails_costs_no_step(
  training, straight, tmp_path, faults, capsys
):
  """Step 6 has the rows 40 to 43, and again 0 to 3."""
  faults[42] = lambda fields: fields["text"]
  stream = training.sources["stream"]
  assert training.train(tmp_path / "run", *stream).code == 2
  says = r"error: .*lab_rows:stream.* failed at row 42: KeyError: 'text'"
  assert re.search(says, capsys.readouterr().err)
  assert saved(tmp_path / "run") == [4, 5]
  faults.clear()
  again = training.train(tmp_path / "run", *stream)
  assert again.code == 0 and min(again.batches) == 6
  assert_ends_like(again, straight["stream"][1].states)


@pytest.mark.parametrize(
  ("at", "says"),
  [
    (5, "stopped while it waited for the rows of step 6"),
    # The reader is ahead.
    (4, "stopped after step 4, while rows of a later one did not come"),
  ],
)
def test_asked_to_stop_while_a_row_never_comes(
  training, tmp_path, faults, monkeypatch, capsys, at, says
):
  """A wait for the reading thread would last forever."""
  hangs, released = threading.Event(), threading.Event()

  def hang(fields):
    hangs.set()
    released.wait(300)
    return fields

  def ask():
    signal.raise_signal(signal.SIGTERM)

  wait, close = batches.Prefetch.wait, batches.Prefetch.close

  def watched_wait(self, seconds):
    is_there = wait(self, seconds)
    if at_5 and not is_there:
      ask()
    return is_there

  at_5 = []
  faults[42] = hang
  monkeypatch.setattr(batches.Prefetch, "wait", watched_wait)
  monkeypatch.setattr(
    batches.Prefetch,
    "close",
    lambda self, seconds=0.1: close(self, seconds=seconds),
  )
  calls = {4: lambda: (hangs.wait(300), ask()), 5: lambda: at_5.append(True)}
  stream = training.sources["stream"]
  try:
    seen = training.train(tmp_path / "run", *stream, at={at: calls[at]})
    assert not released.is_set() and seen.code == 75
  finally:
    released.set()
  assert says in capsys.readouterr().err
  assert saved(tmp_path / "run") == sorted({4, at})


def test_one_of_several_asked_while_a_row_never_comes(monkeypatch):
  """The others may be in a step that waits for this one: nobody can save."""
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(loop, "_PATIENCE_SECONDS", 0.7)
  released = threading.Event()
  ahead = batches.Prefetch(lambda step: released.wait(300), range(1))
  watch = types.SimpleNamespace(stall_seconds=100.0, give_up_seconds=0.0)
  run = types.SimpleNamespace(config=types.SimpleNamespace(watch=watch))
  phase = types.SimpleNamespace(_run=run, _name="distill")
  says = "train distill: stopped while it waited for the rows of step 7"
  try:
    with stopping.listening(), pytest.raises(stopping.Stalled, match=says):
      signal.raise_signal(signal.SIGTERM)
      loop.Phase._next(phase, ahead, 7)
    assert ahead.hangs
  finally:
    released.set()


def test_rows_that_never_come_end_the_run_and_cost_no_step(
  training, tmp_path, faults, capsys
):
  released = threading.Event()
  faults[42] = lambda fields: released.wait(300) and fields
  values = ("watch.stall_seconds=1", "watch.give_up_seconds=3")
  stream = training.sources["stream"]
  try:
    seen = training.train(tmp_path / "run", *stream, *values)
    assert not released.is_set() and seen.code == 75
  finally:
    released.set()
  err = capsys.readouterr().err
  warning = "train distill: waiting 1 s for the rows of step 6"
  says = r"no rows for step 6 in 3 s \(watch.give_up_seconds=3\)"
  assert err.index(warning) < re.search(says, err).start()
  assert saved(tmp_path / "run") == [4, 5]


def test_a_disk_that_fills_while_training_goes_on(
  training, straight, tmp_path, monkeypatch, caplog
):
  save_async = checkpoints.ocp.save_async

  def full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  def save(path, *args, **kwargs):
    if path.endswith("/4"):
      return types.SimpleNamespace(result=full)
    return save_async(path, *args, **kwargs)

  monkeypatch.setattr(checkpoints.ocp, "save_async", save)
  seen = training.train(tmp_path / "run")
  assert seen.code == 0
  assert "THE CHECKPOINT OF STEP 4 IS NOT SAVED: [Errno 28]" in caplog.text
  assert saved(tmp_path / "run") == [8, 12]
  assert_ends_like(seen, straight["cache"][1].states)


# NaN.

# The learning rate of eight updates over its peak.
RISE = [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1]
WATCHED = "watch.skipped_steps=4"


def poison(monkeypatch, *, before=0, after=0):
  """Puts NaN into the parameters, before or after an update, as memory may."""
  compiled = loop.Phase._compile_steps

  def wrapped(self):
    compiled(self)
    step, calls = self._train_step, [0]

    def spoil(state):
      nan = jax.tree.map(lambda a: a * jnp.nan, state.params)
      return state.replace(params=nan)

    def poisoned(state, batch, hidden):
      calls[0] += 1
      state, values = step(
        spoil(state) if calls[0] == before else state, batch, hidden
      )
      return (spoil(state) if calls[0] == after else state), values

    self._train_step = poisoned

  monkeypatch.setattr(loop.Phase, "_compile_steps", wrapped)


def test_parameters_that_turn_nan_are_never_saved(
  training, straight, tmp_path, monkeypatch, capsys
):
  workdir = tmp_path / "run"
  with monkeypatch.context() as patch:
    poison(patch, after=5)
    seen = training.train(workdir, WATCHED)
  assert seen.code == 75
  err = capsys.readouterr().err
  assert "train distill: step 8: parameters hold NaN; not saved." in err
  assert "4 steps in a row were not finite, and parameters hold NaN" in err
  assert saved(workdir) == [4]
  again = training.train(workdir)
  assert again.code == 0 and min(again.batches) == 5
  assert_ends_like(again, straight["cache"][1].states)


def test_parameters_that_were_never_good_are_not_for_the_scheduler(
  training, tmp_path, monkeypatch, capsys
):
  poison(monkeypatch, before=1)
  assert training.train(tmp_path / "run", WATCHED).code == 2
  says = "4 steps in a row were not finite (watch.skipped_steps=4)"
  assert says in capsys.readouterr().err
  assert saved(tmp_path / "run") == []


def spoil_rows(monkeypatch, bad):
  """Cached rows that a step reads with NaN in their records."""
  read = logit_cache.LogitCache.read

  def spoiled(self, indices, *replicas):
    entries = read(self, indices, *replicas)
    if not replicas:  # For an evaluation.
      return entries
    p_BLK = entries.p_BLK.copy()
    p_BLK[np.isin(indices, bad), 3] = np.nan
    return entries._replace(p_BLK=p_BLK)

  monkeypatch.setattr(logit_cache.LogitCache, "read", spoiled)


def digests(training, rows):
  cache = logit_cache.open_cache(training.cached / "cache")
  return [digest.tobytes().hex() for digest in cache.digests(rows)]


def order(step):
  """Rows of a step, counted from 1."""
  rows, _ = batches.row_order(step - 1, batch_rows=8, num_rows=24, seed=1)
  return rows.tolist()


def test_steps_with_a_row_that_is_not_finite_are_skipped_and_name_it(
  training, tmp_path, monkeypatch, capsys
):
  spoil_rows(monkeypatch, [7])
  seen = training.train(tmp_path / "run")
  assert seen.code == 0
  skipped = [step for step in range(1, 13) if 7 in order(step)]
  assert len(skipped) == 4  # Once a pass.
  (name,) = digests(training, [7])
  err = capsys.readouterr().err
  assert re.findall(r"step (\d+): rows: (\w+)\.", err) == [
    (str(step), name) for step in skipped
  ]
  records = metrics.read(tmp_path / "run" / "train" / "distill")
  name = "speed/skipped_steps"
  counts = [record[name] for record in records if name in record]
  assert counts[-1] == 4
  curve = training.curve(tmp_path / "run")
  assert [r["step"] for r in curve if r.get("train/skipped")] == skipped
  # A step without an update counts as a step, and not as an update.
  state = seen.states[12]
  assert state.step == 12
  updates = [
    leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
    if "count" in jax.tree_util.keystr(path)
  ]
  assert updates and all(count == 8 for count in updates)
  # So the learning rate waits too: warm-up in 2 updates, decay in the last 4.
  done = [
    sum(s not in skipped for s in range(1, step)) for step in range(1, 13)
  ]
  rates = [r["train/learning_rate"] for r in curve if "train/loss_nats" in r]
  of_update = [rates[done.index(i)] for i in range(8)]
  assert rates == [of_update[i] for i in np.minimum(done, 7)]
  np.testing.assert_allclose(
    np.asarray(of_update) / max(rates), RISE, rtol=1e-6
  )


def test_too_many_skipped_steps_end_the_run_and_name_the_rows(
  training, tmp_path, monkeypatch, capsys
):
  bad = [row for step in (2, 3, 4) for row in order(step)[-2:]]
  spoil_rows(monkeypatch, bad)
  seen = training.train(tmp_path / "run", "watch.skipped_steps=3")
  assert seen.code == 2
  (line,) = [
    line
    for line in capsys.readouterr().err.splitlines()
    if line.startswith("analogjax train: error: ")
  ]
  assert "3 steps in a row were not finite (watch.skipped_steps=3)" in line
  found = dict(re.findall(r"step (\d): ([0-9a-f, ]+)", line))
  for step in (2, 3, 4):
    among = [row for row in order(step) if row in bad]
    assert found[str(step)].split(", ") == digests(training, among)


# Traces.


def test_steps_are_traced(training, tmp_path, capsys):
  seen = training.train(tmp_path / "run", flags=["--profile=2:3"])
  assert seen.code == 0
  folder = tmp_path / "run" / "train" / "distill" / "profile"
  assert f"profile: {folder}" in capsys.readouterr().out
  (trace,) = folder.rglob("*.xplane.pb")
  assert trace.stat().st_size > 1000
