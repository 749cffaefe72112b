"""Tests for analogjax/fidelity/transfer.py, by hand."""

import numpy as np
import pytest

from analogjax.evaluation import estimates
from analogjax.fidelity import transfer

DRAWS = dict(resamples=200, rng=np.random.default_rng(0))


def curve(effects, costs):
  return transfer.Curve(np.float64(effects), np.float64(costs))


def test_the_even_part_cancels():
  strengths = transfer.signed(2.0, 2)
  np.testing.assert_array_equal(strengths, [-2, -1, 0, 1, 2])
  scores = 3 + 0.5 * strengths + 7 * strengths**2
  np.testing.assert_allclose(transfer.odd(scores[:, None])[:, 0], [0.5, 1])
  costs = transfer.even(scores[:, None])[:, 0]
  np.testing.assert_allclose(costs, [7, 28])


def test_areas():
  # The mean of a line from 0 to 1 is a half, however many points there are.
  for n in (1, 2, 5):
    line = np.arange(1, n + 1) / n
    assert transfer.norm_weights(n) @ line == pytest.approx(0.5)
  # Costs grow with the square; the effect is 3 at cost 4, 1.5 at cost 1.
  weights = transfer.cost_weights(np.float64([1, 4]), 1.0)
  assert weights @ [1.5, 3] == pytest.approx(0.75)
  weights = transfer.cost_weights(np.float64([1, 4]), 4.0)
  # (1 x 0.75 + 3 x 2.25) / 4.
  assert weights @ [1.5, 3] == pytest.approx(1.875, abs=0.01)
  # A cost that falls again is taken as the highest so far.
  assert np.isfinite(transfer.cost_weights(np.float64([1, 0.5]), 1.0)).all()


def test_pushes_that_break_the_model_choose_nothing():
  effects = np.float64([1, 8])
  # (1 + 8 / 2) / 2, and without the second 1 / 2.
  assert transfer.area_within(effects, np.float64([0.1, 0.6])) == 2.5
  assert transfer.area_within(effects, np.float64([0.1, 0.8])) == 0.5
  assert transfer.area_within(effects, np.float64([0.9, 0.8])) == 0


def test_ratio_at_matched_norm_and_cost():
  native = curve([[2, 2], [4, 4]], [1, 2])
  random = curve([[0, 0], [0, 0]], [1, 2])
  # Half the effect for the same push, at half the cost.
  arm = curve([[1, 1], [2, 2]], [0.5, 1])
  by_norm, cost = transfer.ratio(arm, native, random, "norm", **DRAWS)
  assert by_norm[:3] == (0.5, 0.5, 0.5) and cost is None
  by_cost, cost = transfer.ratio(arm, native, random, "perplexity", **DRAWS)
  assert by_cost.value == pytest.approx(1) and cost == 1
  # The mean of native and random is halfway.
  random = curve([[1, 1], [2, 2]], [1, 2])
  half = curve([[1.5, 1.5], [3, 3]], [1, 2])
  found, _ = transfer.ratio(half, native, random, "norm", **DRAWS)
  assert found.value == pytest.approx(0.5)


def test_a_ratio_at_no_cost_is_undefined():
  native = curve([[2, 2]], [1])
  free = curve([[2, 2]], [-0.1])
  found, cost = transfer.ratio(native, native, free, "perplexity", **DRAWS)
  assert found.value is None and "costs no perplexity" in found.why
  assert cost == pytest.approx(-0.1) and found.n == 2


def test_intervals_are_over_prompts():
  rng = np.random.default_rng(1)
  native = curve(rng.normal(3, 1, (1, 40)), [1])
  arm = curve(rng.normal(1.5, 1, (1, 40)), [1])
  random = curve(np.zeros((1, 40)), [1])
  found, _ = transfer.ratio(arm, native, random, "norm", **DRAWS)
  assert found.low < found.value < found.high
  assert 0.1 < found.high - found.low < 0.5


@pytest.mark.parametrize(
  ("native", "random", "expected"),
  [
    ((1.0, -0.1, 2.0), [0.1], "holds 0 or is below"),
    ((-1.0, -2.0, -0.5), [0.1], "holds 0 or is below"),
    ((1.0, 0.5, 2.0), [0.1, -1.5], "no more for joy than random"),
    ((1.0, 0.5, 2.0), [0.1, -0.9], None),
  ],
)
def test_when_there_is_nothing_to_transfer(native, random, expected):
  estimate = estimates.Estimate(*native, n=9)
  why = transfer.why_undefined(estimate, np.float64(random), "joy")
  assert (expected in why) if expected else why is None
