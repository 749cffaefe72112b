"""Tests for analogjax/training/watch.py."""

import dataclasses

import pytest

from analogjax.config import train
from analogjax.training import watch

CFG = train.WatchConfig(
  skipped_steps=3, spike_sigmas=8.0, stall_seconds=60.0, give_up_seconds=0.0
)


def watching(losses, cfg=CFG):
  """A watch that has seen these losses, without skipped steps."""
  found = watch.LossWatch(cfg)
  for loss in losses:
    assert found.see(loss, False) is None
  return found


# Their distances to the median, 4.1, are 0 and 0.1; the median of these, 0.05.
STEADY = [4.0, 4.1, 4.2, 4.1] * 8
LIMIT = 4.1 + 8 * 1.4826 * 0.05


def test_a_spike_is_warned_of_once():
  found = watching(STEADY)
  assert found.see(LIMIT - 0.001, False) is None
  found = watching(STEADY)
  warning = found.see(LIMIT + 0.001, False)
  says = "the loss is 4.694 nats, 8 sigmas above its median of 4.100"
  assert warning == says
  assert [found.see(9.0, False) for _ in range(3)] == [None] * 3
  assert found.spikes == 1
  assert found.see(4.1, False) is None
  assert "the loss is 9.000 nats" in str(found.see(9.0, False))
  assert found.spikes == 2


def test_too_few_losses_say_nothing():
  found = watching(STEADY[:31])
  assert found.see(100.0, False) is None
  assert found.see(1000.0, False) is not None  # The 32nd has been seen.


def test_only_the_last_128_count():
  found = watching([50.0] * 100 + STEADY * 4)
  assert found.see(10.0, False) is not None


def test_a_loss_that_hardly_moves_has_some_slack():
  """A thousandth of the median replaces its sigma."""
  found = watching([4.0] * 40)
  assert found.see(4.0 + 8 * 0.004 - 1e-6, False) is None
  assert found.see(4.0 + 8 * 0.004 + 1e-6, False) is not None


def test_losses_that_fall_are_no_spikes():
  watching([10.0 * 0.9**i for i in range(100)])


def test_spikes_can_be_left_alone():
  found = watching(STEADY, dataclasses.replace(CFG, spike_sigmas=0.0))
  assert found.see(1e9, False) is None


def test_skipped_steps_are_counted_and_are_no_losses():
  found = watching(STEADY)
  says = "the loss (nan) or its gradient is not finite; skipped"
  assert found.see(float("nan"), True) == says
  assert found.see(1e30, True) is not None and not found.gives_up
  assert found.see(4.1, False) is None
  assert (found.skipped, found.skipped_in_a_row) == (2, 0)
  for _ in range(3):
    assert not found.gives_up
    found.see(float("inf"), True)
  assert found.gives_up and found.skipped == 5
  # Skipped steps moved no median.
  assert found.see(LIMIT + 0.01, False) is not None
  assert not found.gives_up and found.spikes == 1


@pytest.mark.parametrize(
  ("busy_P", "expected"),
  [
    ([0.1], []),  # No other process waits for the only one.
    ([0.1, 0.1], []),
    ([0.1, 0.34], []),  # Not a quarter of the step.
    ([0.1, 0.36], [1]),
    ([0.5, 0.1, 0.1, 0.1], [0]),
    # Where most are slow, the store is: nobody in particular.
    ([0.5, 0.5, 0.5, 0.1], []),
    ([0.5, 0.5, 0.1, 0.1, 0.1], [0, 1]),
    ([0.0, 0.0, 0.0, 0.9], [3]),
  ],
)
def test_slow_hosts_are_those_that_others_wait_for(busy_P, expected):
  assert watch.slow_hosts(busy_P, 1.0) == expected


@pytest.mark.parametrize(
  ("field", "value", "expected"),
  [
    ("skipped_steps", 0, "skipped_steps: expected a positive number, found 0."),
    ("stall_seconds", 0.0, "stall_seconds: expected > 0, found 0.0."),
    ("spike_sigmas", -1.0, "spike_sigmas: expected 0 or more, found -1.0."),
    (
      "give_up_seconds",
      -1.0,
      "give_up_seconds: expected 0 or more, found -1.0.",
    ),
  ],
)
def test_limits_that_mean_nothing_are_refused(field, value, expected):
  with pytest.raises(ValueError) as info:
    dataclasses.replace(CFG, **{field: value})
  assert str(info.value) == expected
