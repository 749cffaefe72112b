"""Tests for analogjax/evaluation/estimates.py: shares and their differences."""

import pytest
from scipy import stats

from analogjax.evaluation import estimates


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (3, 7), (7, 7), (95, 100)])
def test_a_share_has_wilsons_interval(hits, n):
  found = estimates.share(hits, n)
  exact = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
  assert found.value == hits / n and found.n == n
  assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
  assert found.low <= found.value <= found.high


def test_of_nothing_there_is_no_share():
  assert estimates.share(0, 0).value is None


def test_a_difference_by_hand():
  # Newcombe (1998), table II, method 10: 56/70 - 48/80, 0.0524 to 0.3339.
  found = estimates.difference(estimates.share(56, 70), estimates.share(48, 80))
  assert found[:3] == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
  assert found.n == 70
  # And 9/10 - 3/10, 0.1705 to 0.8090.
  found = estimates.difference(estimates.share(9, 10), estimates.share(3, 10))
  assert found[:3] == pytest.approx((0.6, 0.1705, 0.8090), abs=1e-4)
  none = estimates.difference(estimates.share(0, 10), estimates.share(0, 5))
  assert none.value == 0 and none.low < 0 < none.high
  undefined = estimates.undefined("why", 3)
  for pair in ((undefined, none), (none, undefined)):
    found = estimates.difference(*pair)
    assert found.value is None and found.why == "why"
