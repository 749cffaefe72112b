"""Tests for analogjax/workdir/ledger.py."""

import json

import jax
import pytest

from analogjax.workdir import ledger


def test_totals_add_up_by_stage_and_over_restarts(tmp_path, monkeypatch):
  now = [100.0]
  monkeypatch.setattr(ledger.time, "monotonic", lambda: now[0])
  cache = ledger.Ledger(tmp_path, "cache")
  now[0] += 2
  cache.append(tokens=10, flops=1e9, teacher_flops=6e8, bytes=5)
  now[0] += 3
  cache.append(tokens=20)
  now[0] += 50  # Between two runs: nobody's time.
  again = ledger.Ledger(tmp_path, "cache")
  now[0] += 1
  again.append(tokens=1)
  totals = ledger.totals(tmp_path)
  assert totals == {
    "cache": {
      "seconds": 6.0,
      "device_seconds": 6.0 * jax.device_count(),
      "tokens": 31,
      "flops": 1e9,
      "teacher_flops": 6e8,
      "bytes": 5,
    }
  }


def test_entries_say_where_and_when(tmp_path):
  ledger.Ledger(tmp_path, "measure").append(tokens=3)
  (line,) = (tmp_path / ledger.FILE).read_text().splitlines()
  entry = json.loads(line)
  assert entry["stage"] == "measure" and entry["tokens"] == 3
  assert entry["devices"] == jax.device_count()
  assert entry["unix_time"] == pytest.approx(ledger.time.time(), abs=60)


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path):
  ledger.Ledger(tmp_path, "cache").append(tokens=3)
  with open(tmp_path / ledger.FILE, "a") as file:
    file.write('{"stage": "cache", "sec')
  assert ledger.totals(tmp_path)["cache"]["tokens"] == 3
  assert ledger.totals(tmp_path / "nowhere") == {}


def test_goodput_adds_up_where_steps_are_booked_late(tmp_path, monkeypatch):
  now = [100.0]
  monkeypatch.setattr(ledger.time, "monotonic", lambda: now[0])
  monkeypatch.setattr(ledger.time, "time", lambda: now[0])

  def append(seconds, **entry):
    now[0] += seconds
    spent.append(**entry)

  spent = ledger.Ledger(tmp_path, "train/a")
  append(5.0, step=0, begins=True, activities={"eval": 2.0})
  # The entry of a step is made before the step is over.
  append(4.0, step=1, activities={"compile": 3.0, "productive": 0.0})
  append(0.5, step=2, activities={"productive": 1.25})
  append(0.5, step=3, activities={"productive": 0.5})
  now[0] += 7.0
  spent = ledger.Ledger(tmp_path, "train/a")
  append(2.0, step=2, begins=True, activities={})
  append(1.0, step=3, activities={"productive": 0.75})
  found = ledger.goodput(tmp_path)["train/a"]
  assert {what: s for what, s in found.items() if s} == {
    "start": 5.0,
    "eval": 2.0,
    "compile": 3.0,
    "productive": 2.0,
    "lost": 0.5,
    "down": 7.0,
    "other": 0.5,
  }
  assert sum(found.values()) - found["down"] == 13.0


# Where the time of training went.


def goodput(tmp_path, monkeypatch, *entries):
  """A ledger of entries at (unix time, seconds since the one before, ...)."""
  clock = {"unix": 0.0, "monotonic": 0.0}
  monkeypatch.setattr(ledger.time, "time", lambda: clock["unix"])
  monkeypatch.setattr(ledger.time, "monotonic", lambda: clock["monotonic"])
  spent = None
  for unix, seconds, step, begins, activities in entries:
    if begins or spent is None:
      spent = ledger.Ledger(tmp_path, "train/distill")
    clock["unix"] = unix
    clock["monotonic"] += seconds
    spent.append(step=step, begins=begins, activities=activities)
  ledger.Ledger(tmp_path, "cache").append(tokens=3)  # No part of it.
  found = ledger.goodput(tmp_path)
  assert set(found) == {"train/distill"}
  return {what: s for what, s in found["train/distill"].items() if s}


FIRST_RUN = (
  # Five seconds before the first step, one of them an evaluation.
  (1005, 5, 0, True, {"eval": 1, "productive": 0}),
  (1015, 10, 10, False, {"compile": 4, "data": 1, "productive": 5}),
  (1025, 10, 20, False, {"data": 1, "checkpoint": 2, "productive": 6}),
)


def test_the_time_of_one_run_by_what_went_on(tmp_path, monkeypatch):
  found = goodput(tmp_path, monkeypatch, *FIRST_RUN)
  wanted = {"start": 4, "eval": 1, "compile": 4, "data": 2, "checkpoint": 2}
  assert found == wanted | {"productive": 11, "other": 1}
  # All of it, once.
  assert sum(found.values()) == 25


@pytest.mark.parametrize(
  ("step", "lost"),
  [
    (20, 0),
    (15, 3),  # Half of the last six seconds.
    (10, 6),
    (5, 6 + 2.5),
    (0, 11),
  ],
)
def test_steps_that_are_done_again_are_lost(tmp_path, monkeypatch, step, lost):
  found = goodput(
    tmp_path,
    monkeypatch,
    *FIRST_RUN,
    # Twenty seconds after the last entry a run begins, for two seconds.
    (1047, 2, step, True, {"productive": 0}),
    (1057, 10, step + 10, False, {"productive": 10}),
  )
  assert found.get("lost", 0) == pytest.approx(lost)
  assert found["productive"] == pytest.approx(21 - lost)
  assert found["down"] == pytest.approx(20)
  assert found["start"] == pytest.approx(4 + 2)
  del found["down"]  # Time of no run.
  assert sum(found.values()) == pytest.approx(37)


def test_what_was_lost_is_not_lost_again(tmp_path, monkeypatch):
  found = goodput(
    tmp_path,
    monkeypatch,
    *FIRST_RUN,
    (1027, 2, 10, True, {}),
    (1037, 10, 20, False, {"productive": 10}),
    (1039, 2, 10, True, {}),
    (1049, 10, 20, False, {"productive": 10}),
  )
  assert found["lost"] == 6 + 10 and found["productive"] == 5 + 10


def test_the_last_step_before_a_checkpoint_is_not_lost_by_going_on_there(
  tmp_path, monkeypatch
):
  """Its entry comes after that of the metrics, which have the same step."""
  found = goodput(
    tmp_path,
    monkeypatch,
    *FIRST_RUN,
    (1027, 2, 20, False, {"productive": 1, "checkpoint": 1}),
    (1030, 3, 20, True, {}),
  )
  assert "lost" not in found and found["productive"] == 12


def test_a_clock_that_was_set_back_takes_no_time_away(tmp_path, monkeypatch):
  found = goodput(
    tmp_path,
    monkeypatch,
    *FIRST_RUN,
    (907, 2, 20, True, {}),
    (900, 10, 30, False, {"productive": 9}),
  )
  assert "down" not in found and found["productive"] == 20
  assert min(found.values()) >= 0
  assert sum(found.values()) == pytest.approx(37)
