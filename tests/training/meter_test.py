"""Tests for analogjax/training/meter.py."""

import math
import time

import pytest

from analogjax.distributed import devices
from analogjax.models import sizes
from analogjax.training import meter as throughput


@pytest.fixture
def now():
  return [100.0]


def make_meter(now, **changes):
  values = dict(
    work=throughput.Work(1000, 6e12, 2e12),
    num_devices=4,
    peak=2e12,
    clock=lambda: now[0],
  )
  return throughput.Meter(**(values | changes))


def spend(now, meter, seconds, activity=None):
  if activity is None:
    now[0] += seconds
  else:
    with meter.during(activity):
      now[0] += seconds


def test_rates_and_utilisation_by_hand(now):
  """Ten steps of 2 s, four devices: 0.5 steps a second."""
  meter = make_meter(now)
  for _ in range(10):
    spend(now, meter, 2)
    meter.step()
  assert meter.read() == pytest.approx(
    {
      "tokens_per_second": 500.0,
      "student_flops_per_second": 0.75e12,  # 6e12 / 4 / 2
      "teacher_flops_per_second": 0.25e12,
      "combined_flops_per_second": 1e12,
      "mfu": 0.5,
      "mfu_student": 0.375,
      "data_fraction": 0.0,
      "goodput": 1.0,
    }
  )


def test_all_time_is_booked_once(now):
  """30 s: compile 10, data 4, steps 6, eval 7, checkpoint 3."""
  meter = make_meter(now)
  spend(now, meter, 10, "compile")
  for wait in (3, 1):
    spend(now, meter, wait, "data")
    spend(now, meter, 3)
    meter.step()
  spend(now, meter, 7, "eval")
  spend(now, meter, 3, "checkpoint")
  values = meter.read()
  # Waiting for data slows training down; an evaluation does not.
  assert values["tokens_per_second"] == pytest.approx(2000 / 10)
  assert values["mfu"] == pytest.approx(2 * 8e12 / 4 / 10 / 2e12)
  assert values["data_fraction"] == pytest.approx(4 / 10)
  assert values["goodput"] == pytest.approx(6 / 30)


def test_what_comes_before_the_first_step_is_not_in_it(now):
  """10 s, of which an evaluation took 7; then a step of 2 s."""
  meter = make_meter(now)
  spend(now, meter, 7, "eval")
  spend(now, meter, 3)
  meter.begin()
  assert meter.spent()["eval"] == 7
  spend(now, meter, 2)
  meter.step()
  assert sum(meter.spent().values()) == 2
  values = meter.read()
  assert values["tokens_per_second"] == pytest.approx(1000 / 2)
  assert values["goodput"] == pytest.approx(2 / 12)


def test_what_interrupts_a_step_is_not_in_it(now):
  meter = make_meter(now)
  spend(now, meter, 1)
  spend(now, meter, 5, "eval")
  spend(now, meter, 1)
  meter.step()
  spend(now, meter, 1)
  meter.step()
  values = meter.read()
  assert values["goodput"] == pytest.approx(3 / 8)
  assert values["tokens_per_second"] == pytest.approx(2000 / 3)


def test_a_read_starts_anew_and_goodput_goes_on(now):
  meter = make_meter(now)
  spend(now, meter, 8, "compile")
  spend(now, meter, 2)
  meter.step()
  assert meter.read()["goodput"] == pytest.approx(0.2)
  for _ in range(4):
    spend(now, meter, 1, "data")
    spend(now, meter, 1.5)
    meter.step()
  values = meter.read()
  assert values["tokens_per_second"] == pytest.approx(4000 / 10)
  assert values["data_fraction"] == pytest.approx(0.4)
  assert values["goodput"] == pytest.approx(8 / 20)


def test_a_step_may_end_after_a_read(now):
  """Its tokens count at its end, its time when it was spent."""
  meter = make_meter(now)
  spend(now, meter, 1)
  meter.step()
  spend(now, meter, 1)
  values = meter.read()
  assert values["tokens_per_second"] == pytest.approx(500)
  assert values["goodput"] == pytest.approx(0.5)  # The last second may hang.
  spend(now, meter, 1)
  meter.step()
  values = meter.read()
  assert values["tokens_per_second"] == pytest.approx(1000)
  assert values["goodput"] == pytest.approx(1.0)


def test_without_a_step_the_rates_are_zero(now):
  meter = make_meter(now)
  for activity in (None, "eval"):
    if activity:
      spend(now, meter, 3, activity)
    values = meter.read()
    assert values["mfu"] == values["tokens_per_second"] == 0.0
    assert values["goodput"] == values["data_fraction"] == 0.0


def test_without_a_peak_there_is_no_utilisation(now):
  meter = make_meter(now, peak=None, work=throughput.Work(1000, 6e12, 0.0))
  spend(now, meter, 2)
  meter.step()
  values = meter.read()
  assert "mfu" not in values and "mfu_student" not in values
  assert values["teacher_flops_per_second"] == 0.0
  rate = values["student_flops_per_second"]
  assert rate == values["combined_flops_per_second"] == pytest.approx(0.75e12)


def test_an_activity_that_fails_is_booked_and_over(now):
  meter = make_meter(now)
  with pytest.raises(StopIteration), meter.during("data"):
    now[0] += 4
    raise StopIteration
  spend(now, meter, 4)
  meter.step()
  values = meter.read()
  assert values["data_fraction"] == values["goodput"] == pytest.approx(0.5)


def test_misuse_is_an_assertion(now):
  meter = make_meter(now)
  with pytest.raises(AssertionError, match="data during eval"):
    with meter.during("eval"), meter.during("data"):
      pass
  with pytest.raises(AssertionError, match="lunch"):
    meter.during("lunch").__enter__()
  with pytest.raises(AssertionError, match="read during eval"):
    with meter.during("eval"):
      meter.read()


def test_it_takes_the_formulas_of_sizes_and_the_clock_of_the_host():
  """One step of a known length; the FLOPs are recovered from the rate."""

  class Shape:
    V, D, Y, N, G, H, F = 100, 8, 2, 4, 2, 4, 16
    tie_embeddings, attention_bias, mlp_bias = True, False, False

  flops = 1000 * sizes.training_flops_per_token(Shape(), 16)
  before = time.perf_counter()
  meter = throughput.Meter(
    work=throughput.Work(1000, flops, 0),
    num_devices=1,
    peak=devices.peak_flops("TPU v4", "bfloat16"),
  )
  meter.step()
  values = meter.read()
  longest = time.perf_counter() - before
  assert values["student_flops_per_second"] >= flops / longest
  assert values["mfu"] == values["student_flops_per_second"] / 275e12
  assert all(isinstance(x, float) for x in values.values())
  assert all(math.isfinite(x) for x in values.values())
