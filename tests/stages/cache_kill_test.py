"""A few of the kills of tests/benchmarks/durability.py."""

import importlib.util
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

_PATH = Path(__file__).parents[1] / "benchmarks" / "durability.py"
_spec = importlib.util.spec_from_file_location("durability", _PATH)
durability = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(durability)


def test_kills_at_random_moments_lose_nothing(tiny, tmp_path):
  report = durability.run(tiny, tmp_path, kills=4, rows=512, seed=3)
  assert report["damage"] is None
  assert report["kills_of_1_process"] == report["kills_of_2_processes"] == 2
  assert report["rows_checked"] > 0
  assert report["caches_completed"] >= 1


@pytest.fixture
def undisturbed(tiny, tmp_path):
  """A complete cache of 16 rows, and its expected content."""
  workdir = tmp_path / "run"
  runs = durability.Runs(tiny, rows=16)
  durability.finish(runs.start(workdir, 1), workdir)
  return workdir, durability.Undisturbed(workdir)


def test_the_checks_see_what_they_are_for(undisturbed):
  workdir, wanted = undisturbed
  committed, half_done = wanted.check(workdir, {})
  wanted.compare(workdir)
  assert half_done == 0 and committed["cache"].all()
  (workdir / "cache" / "digest" / "c" / "0" / "0").unlink()
  with pytest.raises(durability.Damage, match="were committed before"):
    wanted.check(workdir, committed)
  _, half_done = wanted.check(workdir, {})
  assert half_done == 1
  with pytest.raises(durability.Damage, match="1 files differ"):
    wanted.compare(workdir)
  (workdir / "cache" / "values" / "c" / "1" / "0" / "0").unlink()
  with pytest.raises(durability.Damage, match="'values' cannot be read"):
    wanted.check(workdir, {})
