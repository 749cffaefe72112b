"""Quality of records: bias and variance of the gradient, calibration.

The gradient of the loss with respect to the student's logits is q - t_hat, with
t_hat the record's distribution. So the error of the gradient is that of t_hat:
E||t_hat - t||^2 = bias^2 + variance.

Shape letters: R rows, L position, M replicas, K slots of a record, E entries.
"""

from typing import NamedTuple

import numpy as np

from analogjax.cache import sampling

BINS = 15


class Estimate(NamedTuple):
  mean: float
  error: float  # Standard error over positions; 0 where nothing is drawn.

  def __str__(self) -> str:
    return f"{self.mean:.2e} +- {self.error:.0e}"


class Quality(NamedTuple):
  """Quality of one format over one text."""

  ids: float  # Per token.
  own_mass: float  # Of the ids with their own value.
  bias2: Estimate
  variance: Estimate
  ece: float


def estimate(values: np.ndarray) -> Estimate:
  spread = values.std(ddof=1) / np.sqrt(values.size)
  return Estimate(float(values.mean()), float(spread))


def moments(
  ids_MRLK: np.ndarray,
  target_MRLK: np.ndarray,
  p_MRLK: np.ndarray,
  square_RL: np.ndarray,
  is_token_RL: np.ndarray,
  weights_RL: np.ndarray | float = 1.0,
) -> tuple[Estimate, Estimate]:
  """(bias^2, variance of one draw), unbiased, from two or more draws.

  bias^2 is the mean of <t1 - t, t2 - t> over pairs of independent draws; the
  variance is the mean of ||t1 - t||^2 less that. A single draw means a format
  without randomness: all of its error is bias.

  Args:
    ids_MRLK: ids of each draw, different within a record.
    target_MRLK: t_hat at them; 0 in empty slots.
    p_MRLK: the teacher's probability of them.
    square_RL: ||t||^2.
    is_token_RL: the positions that count.
    weights_RL: 1 / probability that the position was captured, 0 if it was not.
  """
  M = len(ids_MRLK)
  target = target_MRLK.astype(np.float64)
  own_MRL = (target * (target - 2 * p_MRLK)).sum(-1) + square_RL
  mixed_MRL = (target * p_MRLK).sum(-1)
  weights = np.broadcast_to(np.square(weights_RL), square_RL.shape)[is_token_RL]
  if M == 1:
    return estimate(own_MRL[0][is_token_RL] * weights), Estimate(0.0, 0.0)
  pairs = []
  for a in range(M):
    for b in range(a):
      both_RL = _inner(ids_MRLK[a], target[a], ids_MRLK[b], target[b])
      pairs.append(both_RL - mixed_MRL[a] - mixed_MRL[b] + square_RL)
  bias_RL = np.mean(pairs, axis=0)
  variance_RL = own_MRL.mean(0) - bias_RL
  return (
    estimate(bias_RL[is_token_RL] * weights),
    estimate(variance_RL[is_token_RL] * weights),
  )


def _inner(ids_a, target_a, ids_b, target_b) -> np.ndarray:
  """<a, b> at each position."""
  R, L, _ = ids_a.shape
  place_RL1 = np.arange(R * L).reshape(R, L, 1)

  def entries(ids_RLK, target_RLK):
    there = target_RLK != 0
    key = (place_RL1 << 32) + ids_RLK
    return key[there], target_RLK[there]

  (key_a, value_a), (key_b, value_b) = (
    entries(ids_a, target_a),
    entries(ids_b, target_b),
  )
  key, i, j = np.intersect1d(key_a, key_b, True, return_indices=True)
  product = value_a[i] * value_b[j]
  return np.bincount(key >> 32, product, R * L).reshape(R, L)


def calibration(
  ids_RLK: np.ndarray,
  target_RLK: np.ndarray,
  labels_RL: np.ndarray,
  weights_RL: np.ndarray,
) -> float:
  """Expected calibration error of the likeliest id against the next token.

  Args:
    ids_RLK: ids of the record.
    target_RLK: their probabilities.
    labels_RL: the next token.
    weights_RL: of the position; 0: not counted.
  """
  best_RL1 = target_RLK.argmax(-1)[..., None]
  there = weights_RL > 0
  confidence = np.take_along_axis(target_RLK, best_RL1, -1)[..., 0][there]
  confidence = np.clip(confidence, 0, 1).astype(np.float64)
  guess = np.take_along_axis(ids_RLK, best_RL1, -1)[..., 0][there]
  correct = guess == labels_RL[there]
  weights = weights_RL[there].astype(np.float64)
  place = np.minimum((confidence * BINS).astype(int), BINS - 1)
  gap = np.bincount(place, weights * (confidence - correct), BINS)
  return float(np.abs(gap).sum() / weights.sum())


def threshold_variance(
  tau: float, p_RLK: np.ndarray, square_RL: np.ndarray, is_token_RL: np.ndarray
) -> float:
  """The exact mean variance of threshold records, head rounding included.

  Args:
    tau: at least 1 / K, so that no head is longer than K.
    p_RLK: the K largest probabilities, float64.
    square_RL: ||t||^2.
    is_token_RL: the positions that count.
  """
  head_RLK = np.where(p_RLK >= tau, p_RLK, 0)
  tail_RL = np.maximum(1 - head_RLK.sum(-1), 0)
  n_RL = np.maximum(np.floor(tail_RL / tau), 1)
  tail_square_RL = square_RL - (head_RLK**2).sum(-1)
  levels = sampling.head_levels(tau)
  levels = levels[levels > 0]
  above = np.clip(np.searchsorted(levels, head_RLK), 1, len(levels) - 1)
  rounding = (levels[above] - head_RLK) * (head_RLK - levels[above - 1])
  # The tail takes up what the head's rounding leaves: that error comes twice,
  # the second time spread over the n tail ids.
  lost_RL = np.where(head_RLK > 0, rounding, 0).sum(-1)
  variance_RL = tail_RL**2 / n_RL - tail_square_RL + lost_RL * (1 + 1 / n_RL)
  return float(variance_RL[is_token_RL].mean())


def matching_tau(
  variance: float,
  p_RLK: np.ndarray,
  square_RL: np.ndarray,
  is_token_RL: np.ndarray,
) -> float:
  """The tau whose variance this is, by bisection, to three digits."""
  low, high = max(1e-3, 1 / p_RLK.shape[-1]), 1.0
  while high / low > 1.0005:
    middle = (low * high) ** 0.5
    if threshold_variance(middle, p_RLK, square_RL, is_token_RL) < variance:
      low = middle
    else:
      high = middle
  return float(f"{low:.3g}")


def matching_rate(
  share: float, entropy_RL: np.ndarray, is_token_RL: np.ndarray
) -> float:
  """The rate of entropy capture that keeps this share of the positions."""
  low, high = 1e-4, 100.0
  while high / low > 1.0005:
    middle = (low * high) ** 0.5
    kept = np.clip(middle * entropy_RL[is_token_RL], 1 / 255, 1).mean()
    low, high = (middle, high) if kept < share else (low, middle)
  return float(f"{low:.3g}")
