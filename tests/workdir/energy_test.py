"""Tests for analogjax/workdir/energy.py."""

import json
import sys
import time

import jax
import numpy as np
import pytest

from analogjax.workdir import energy, ledger


@pytest.fixture(autouse=True)
def afresh():
  energy.open_meter.cache_clear()
  yield
  energy.open_meter.cache_clear()


def test_without_codecarbon_there_is_no_meter_and_no_field(
  tmp_path, monkeypatch
):
  monkeypatch.setitem(sys.modules, "codecarbon", None)  # Not installed.
  assert energy.open_meter() is None
  ledger.Ledger(tmp_path, "measure").append(tokens=1)
  (entry,) = ledger.entries(tmp_path)
  assert "kwh" not in entry


def test_one_of_several_processes_does_not_meter(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  assert energy.open_meter() is None


def test_codecarbon_meters_what_the_ledger_books(tmp_path, capfd):
  """Runs if the extra `energy` is installed."""
  pytest.importorskip("codecarbon")
  spent = ledger.Ledger(tmp_path, "measure")
  began = time.monotonic()
  while time.monotonic() - began < 1.5:
    np.linalg.eigh(np.eye(64))
  spent.append(tokens=1)
  spent.append(tokens=2)
  seconds = time.monotonic() - began
  first, second = ledger.entries(tmp_path)
  # No machine takes less than a watt, or more than 20 kW.
  assert 1 < first["kwh"] * 3.6e6 / seconds < 20_000
  assert 0 <= second["kwh"] < first["kwh"]
  assert json.loads((tmp_path / ledger.FILE).read_text().splitlines()[0])
  assert "codecarbon" not in capfd.readouterr().err
