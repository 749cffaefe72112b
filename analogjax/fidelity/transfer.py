"""Effects from scores under pushes, and transfer ratios from effects.

Shape letters: N strengths above 0, R prompts, A vectors of an arm.
"""

from typing import NamedTuple

import numpy as np

from analogjax.evaluation import estimates

# Log-perplexity, nats. Arms that cost less cannot be compared by cost.
LEAST_COST = 1e-3
# A push that costs more (twice the perplexity) breaks the model.
MOST_COST = 0.693
_GRID = 101  # Costs at which effects are compared.


class Curve(NamedTuple):
  """Effect and cost of an arm at rising strengths; means over its vectors."""

  effect_NR: np.ndarray  # Nats.
  cost_N: np.ndarray  # Log-perplexity, nats.


def signed(max_strength: float, number: int) -> np.ndarray:
  """-max ... max, evenly spaced, with 0: [2 N + 1]."""
  return max_strength * np.arange(-number, number + 1) / number


def odd(scores: np.ndarray) -> np.ndarray:
  """(score(a) - score(-a)) / 2 for a > 0; strengths come first.

  An effect that does not depend on the sign of the push cancels.
  """
  N = len(scores) // 2
  return (scores[N + 1 :] - scores[:N][::-1]) / 2


def even(cost: np.ndarray) -> np.ndarray:
  """(cost(a) + cost(-a)) / 2 - cost(0) for a > 0; strengths come first."""
  N = len(cost) // 2
  return (cost[N + 1 :] + cost[:N][::-1]) / 2 - cost[N][None]


def norm_weights(number: int) -> np.ndarray:
  """w_N with w @ effect = the effect's mean over strengths from 0 on.

  The trapezoid rule on even spaces; the effect at 0 is 0.
  """
  w_N = np.full(number, 1 / number)
  w_N[-1] /= 2
  return w_N


def area_within(effect_N: np.ndarray, cost_N: np.ndarray) -> float:
  """The mean effect over strengths; those above MOST_COST count as 0."""
  kept_N = np.where(cost_N <= MOST_COST, effect_N, 0.0)
  return float(norm_weights(len(cost_N)) @ kept_N)


def cost_weights(cost_N: np.ndarray, most: float) -> np.ndarray:
  """w_N with w @ effect = the effect's mean over costs from 0 to `most`.

  The effect at a cost is interpolated. Where the cost falls as the strength
  rises, the highest cost so far is used.
  """
  rising = np.maximum.accumulate(np.concatenate([[0.0], cost_N]))
  # Where it is flat the strongest push counts, as it costs the same.
  rising += np.arange(len(rising)) * 1e-12
  grid = np.linspace(0, most, _GRID)
  points = np.eye(len(rising))
  effects = [np.interp(grid, rising, point).mean() for point in points]
  return np.asarray(effects[1:])


def effect(
  curve: Curve, *, resamples: int, rng: np.random.Generator
) -> estimates.Estimate:
  """The mean effect over strengths, nats, with its interval over prompts."""
  area_R = norm_weights(len(curve.effect_NR)) @ curve.effect_NR
  return estimates.ratio_of_sums(
    area_R, np.ones_like(area_R), resamples=resamples, rng=rng
  )


def why_undefined(
  native: estimates.Estimate, random_A: np.ndarray, behaviour: str
) -> str | None:
  """Why no ratio is defined, or None.

  Args:
    native: mean effect of the model's own vector.
    random_A: mean effect of each random vector of the same norm.
  """
  if native.value is None or native.low is None or native.low <= 0:
    return (
      f"the teacher's own vector does not raise {behaviour}: its effect's"
      " interval holds 0 or is below it"
    )
  if native.value <= np.abs(random_A).max():
    return (
      f"the teacher's own vector does no more for {behaviour} than random ones"
      " of the same norm"
    )
  return None


def ratio(
  arm: Curve,
  native: Curve,
  random: Curve,
  matched: str,
  *,
  resamples: int,
  rng: np.random.Generator,
) -> tuple[estimates.Estimate, float | None]:
  """(AUC_arm - AUC_random) / (AUC_native - AUC_random).

  `matched` names the variable of the areas: the strength ("norm"), or the
  log-perplexity that a push costs, as far as all three arms reach
  ("perplexity").

  Returns:
    The ratio, and the cost up to which effects were compared, nats.
  """
  curves = (arm, native, random)
  most = None
  if matched == "norm":
    weights = [norm_weights(len(curve.effect_NR)) for curve in curves]
  else:
    assert matched == "perplexity", matched
    most = float(min(curve.cost_N.max() for curve in curves))
    if not most > LEAST_COST:
      why = "one of the arms costs no perplexity, so there is no common range"
      return estimates.undefined(why, arm.effect_NR.shape[1]), most
    weights = [cost_weights(curve.cost_N, most) for curve in curves]
  arm_R, native_R, random_R = (
    w_N @ curve.effect_NR for w_N, curve in zip(weights, curves, strict=True)
  )
  found = estimates.ratio_of_sums(
    arm_R - random_R, native_R - random_R, resamples=resamples, rng=rng
  )
  return found, most
