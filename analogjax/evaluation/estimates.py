"""Estimates with confidence intervals.

Shape letters: R items that are resampled together, S bootstrap resamples.
"""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import numpy as np

LEVEL = 0.95  # Coverage of every interval.
Z = 1.959963984540054  # Normal quantile of (1 + LEVEL) / 2.


class Estimate(NamedTuple):
  """A number, and the interval that holds it at LEVEL."""

  value: float | None  # None: undefined, and `why` gives the reason.
  low: float | None
  high: float | None
  n: int  # Number of items.
  why: str = ""

  def to_json(self) -> dict[str, Any]:
    out = self._asdict()
    if not self.why:
      del out["why"]
    return out


def undefined(why: str, n: int = 0) -> Estimate:
  return Estimate(None, None, None, n, why)


def bootstrap(
  statistic: Callable[[np.ndarray], np.ndarray],
  num_items: int,
  *,
  resamples: int,
  rng: np.random.Generator,
) -> Estimate:
  """A statistic of items with its percentile interval.

  Args:
    statistic: takes indices of items [..., R] and returns a number for each
      [...]; all the resamples at once.
    num_items: R. Items must be independent: rows or prompts, not tokens.

  Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), ch. 13.
  """
  assert num_items > 0
  whole = float(statistic(np.arange(num_items)[None])[0])
  draws_SR = rng.integers(0, num_items, (resamples, num_items))
  found_S = statistic(draws_SR)
  found_S = found_S[np.isfinite(found_S)]
  if not np.isfinite(whole) or len(found_S) < resamples // 2:
    return undefined("it is not finite", num_items)
  tail = (1 - LEVEL) / 2
  low, high = np.quantile(found_S, [tail, 1 - tail])
  return Estimate(whole, float(low), float(high), num_items)


def ratio_of_sums(
  top_R: np.ndarray,
  bottom_R: np.ndarray,
  *,
  resamples: int,
  rng: np.random.Generator,
) -> Estimate:
  """sum(top) / sum(bottom), both by item: for example a mean per token."""

  def statistic(draws_SR):
    with np.errstate(divide="ignore", invalid="ignore"):
      return top_R[draws_SR].sum(-1) / bottom_R[draws_SR].sum(-1)

  return bootstrap(statistic, len(top_R), resamples=resamples, rng=rng)


def mean(
  values_R: np.ndarray, *, resamples: int, rng: np.random.Generator
) -> Estimate:
  """Mean of one value of each item."""
  ones_R = np.ones(len(values_R))
  return ratio_of_sums(
    np.asarray(values_R, np.float64), ones_R, resamples=resamples, rng=rng
  )


def share(hits: int, n: int) -> Estimate:
  """hits of n, with Wilson's interval, which is valid at 0 and at n too.

  Source: Wilson, Probable inference, the law of succession, and statistical
  inference (1927).
  """
  if not n:
    return undefined("there is nothing to count")
  p, spread = hits / n, Z**2 / n
  middle = (p + spread / 2) / (1 + spread)
  half = math.sqrt(p * (1 - p) * spread + spread**2 / 4) / (1 + spread)
  # Rounding would leave 1e-17 at the ends.
  low = max(middle - half, 0.0) if hits else 0.0
  high = min(middle + half, 1.0) if hits < n else 1.0
  return Estimate(p, low, high, n)


def difference(a: Estimate, b: Estimate) -> Estimate:
  """a - b of two shares of different items; valid even if both are 0.

  Source: Newcombe, Interval estimation for the difference between independent
  proportions (1998), method 10.
  """
  p, low_p, high_p = a[:3]
  q, low_q, high_q = b[:3]
  n = min(a.n, b.n)
  if p is None or low_p is None or high_p is None:
    return undefined(a.why, n)
  if q is None or low_q is None or high_q is None:
    return undefined(b.why, n)
  return Estimate(
    p - q,
    p - q - math.hypot(p - low_p, high_q - q),
    p - q + math.hypot(high_p - p, q - low_q),
    n,
  )
