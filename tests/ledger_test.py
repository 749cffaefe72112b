"""Tests for analogjax/ledger.py."""

import json

import jax
import pytest

from analogjax import ledger


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
  goodput = ledger.goodput(tmp_path)["train/a"]
  assert goodput == {
    "start": 5.0,
    "eval": 2.0,
    "compile": 3.0,
    "productive": 2.0,
    "lost": 0.5,
    "down": 7.0,
    "other": 0.5,
  }
  assert sum(goodput.values()) - goodput["down"] == 13.0
