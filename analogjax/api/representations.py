"""Similarity of two models' activations, compared with chance."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from analogjax.distributed import sharding
from analogjax.fidelity import kernels, permutation, similarity as measures

_MOST_POINTS = 20_000  # A kernel of [N, N] in float32 is then 1.6 GB.


class Similarity(NamedTuple):
  """One measure, compared with chance."""

  value: float  # At most 1, for representations that are alike.
  null_q95: float  # Chance exceeds this in 5 % of the orders of the points.
  # (value - null_q95) / (1 - null_q95); 0 or less: no evidence.
  calibrated: float
  p_value: float  # Of the permutation test, at least 1 / (1 + permutations).


def similarity(
  a: Any, b: Any, *, permutations: int = 199, seed: int = 0
) -> dict[str, Similarity]:
  """Compares two sets of activations at the same points.

  The widths may differ. A permutation test computes the same measure with the
  points of `b` in other orders. Points that are exchanged must be independent:
  tokens of one row are not, so pass such activations as [R, M, D], and whole
  rows are permuted.

  Args:
    a: [N, D], N independent points; or [R, M, D], M points of each of R rows.
    b: [N, W] or [R, M, W], of the other model.
    permutations: orders that are drawn, 19 or more.
    seed: of the orders.

  Returns:
    By measure: `mutual_knn`, the mean share of common neighbours among the 10
    nearest; `unbiased_cka`; `procrustes`, of 64 principal components.

  Raises:
    ValueError: shapes do not match, there are fewer than 8 rows or 12 points or
      more than 20,000, numbers are not finite, or all points are alike; names
      it.

  Source: docs/fidelity.md, "Alignment".

  Example:
    >>> x = np.random.default_rng(0).normal(size=(64, 8))
    >>> found = aj.similarity(x, x @ np.diag(np.arange(1, 9)))
    >>> found["unbiased_cka"].value > 0.5, found["unbiased_cka"].p_value
    (True, 0.005)
  """
  left, right = _checked(a, "a"), _checked(b, "b")
  if left.shape[:-1] != right.shape[:-1]:
    raise ValueError(
      "a, b: expected activations at the same points, found shapes"
      f" {list(left.shape)} and {list(right.shape)}."
    )
  if permutations < 19:
    raise ValueError(
      f"permutations: expected 19 or more, found {permutations}."
    )
  rng = np.random.default_rng(seed)
  orders_CU = permutation.draw_orders(len(left), permutations, rng)
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  kernels_a, kernels_b = (
    _reduce(x.reshape(-1, x.shape[-1]), name)
    for x, name in ((left, "a"), (right, "b"))
  )
  found = {}
  for name, statistic in measures.METRICS.items():
    sides = kernels_a[name][None], kernels_b[name]
    values_C1 = statistic(*sides, orders_CU, mesh)
    one = permutation.calibrated(values_C1[0, 0], values_C1[1:, 0])
    fields = (one[key] for key in ("raw", "null_q95", "calibrated", "p"))
    found[name] = Similarity(*map(float, fields))
  return found


def _checked(x: Any, name: str) -> np.ndarray:
  x = np.asarray(x, np.float32)
  rows = x.shape[0] if x.ndim in (2, 3) else 0
  points = int(np.prod(x.shape[:-1])) if rows else 0
  if rows < measures.LEAST_ROWS or not 12 <= points <= _MOST_POINTS:
    raise ValueError(
      f"{name}: expected [N, D] or [R, M, D] with {measures.LEAST_ROWS} rows or"
      f" more and 12 to {_MOST_POINTS:,} points, found shape {list(x.shape)}."
    )
  if not np.isfinite(x).all():
    raise ValueError(f"{name}: expected finite numbers, found NaN or infinity.")
  return x


def _reduce(x_ND: np.ndarray, name: str) -> dict[str, np.ndarray]:
  reduced, constant = jax.device_get(_make_reduce()(x_ND))
  if constant:
    raise ValueError(f"{name}: expected different points, found all alike.")
  return reduced


@functools.cache
def _make_reduce():
  """x_ND -> the input of each measure, and whether all points are alike."""
  return jax.jit(
    lambda x_ND: (measures.reduce(x_ND)[0], kernels.is_constant(x_ND))
  )
