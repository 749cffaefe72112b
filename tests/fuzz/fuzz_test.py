"""The targets of fuzz.py on their seeds, and on hypothesis's examples."""

from pathlib import Path
import sys

import hypothesis
from hypothesis import strategies as st
import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "kit")]

import fuzz  # noqa: E402


@pytest.mark.parametrize("name", [n for n in fuzz.TARGETS if n != "verify"])
@hypothesis.given(data=st.data())
@hypothesis.settings(
  max_examples=60,
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_a_reader_refuses_or_reads(name, data, targets):
  seed = fuzz.SEEDS[name][0]
  start = data.draw(st.integers(0, len(seed)))
  stop = data.draw(st.integers(start, len(seed)))
  changed = seed[:start] + data.draw(st.binary(max_size=8)) + seed[stop:]
  for one in (seed, changed):
    targets(name)(one)


@hypothesis.given(data=st.binary(min_size=4, max_size=40))
@hypothesis.settings(
  max_examples=10,
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@pytest.mark.slow
def test_a_spoiled_bundle_is_a_report_that_failed(data, targets):
  targets("verify")(data)


@pytest.fixture(scope="module", name="targets")
def _targets():
  made = {}

  def get(name):
    if name not in made:
      made[name] = fuzz.TARGETS[name]()
    return made[name]

  return get


def test_every_target_has_a_seed_that_is_read():
  from analogjax.bundle import manifest, strict_json

  assert set(fuzz.SEEDS) == set(fuzz.TARGETS)
  assert manifest.from_bytes(fuzz.SEEDS["manifest"][0])
  assert strict_json.parse(fuzz.SEEDS["json"][0])
