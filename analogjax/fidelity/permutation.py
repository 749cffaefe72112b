"""Null distributions of similarities: unrelated models, by permutation.

The points of one model are reordered many times, and the statistic is computed
for each order. The permuted units must be independent of each other: rows of
points, not the tokens of a row.

Shape letters: C orders, U units, M points of a unit, N = U x M points, A
representations on one side, E components.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec as P
import numpy as np

from analogjax.evaluation.models import everywhere

# Permuted kernels that a device holds at a time.
_BYTES = 64 << 20
# Statistics closer than this count as equal: with few points they take few
# values, and rounding must not decide.
_TIED = 1e-5


def draw_orders(
  num_units: int, permutations: int, rng: np.random.Generator
) -> np.ndarray:
  """Orders of the units, int32 [1 + permutations, U], the identity first."""
  orders = [rng.permutation(num_units) for _ in range(permutations)]
  return np.asarray([np.arange(num_units), *orders], np.int32)


def inner_products(
  left_ANN: np.ndarray, right_NN: np.ndarray, orders_CU: np.ndarray, mesh: Mesh
) -> np.ndarray:
  """Inner products of kernels with a kernel in each of the orders, [C, A]."""
  return _run(_inner_product, (left_ANN, right_NN), orders_CU, mesh)


def nuclear_norms(
  left_ANE: np.ndarray, right_NE: np.ndarray, orders_CU: np.ndarray, mesh: Mesh
) -> np.ndarray:
  """Nuclear norms of x^T y with the points of y in each order, [C, A].

  The nuclear norm, the sum of singular values, is the greatest trace of x^T y Q
  over all rotations Q: Procrustes' problem.
  """
  return _run(_nuclear_norm, (left_ANE, right_NE), orders_CU, mesh)


def _inner_product(left_ANN, right_NN, order_U):
  N, U = len(right_NN), len(order_U)
  right_UMUM = right_NN.reshape(U, N // U, U, N // U)
  right_NN = right_UMUM[order_U][:, :, order_U].reshape(N, N)
  dot = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
  # By rows first: one float32 sum over all N x N would lose digits.
  return dot("ANM,NM->AN", left_ANN, right_NN).sum(1)


def _nuclear_norm(left_ANE, right_NE, order_U):
  N, U = len(right_NE), len(order_U)
  right_NE = right_NE.reshape(U, N // U, -1)[order_U].reshape(N, -1)
  cross_AEE = jnp.einsum(
    "ANE,NF->AEF", left_ANE, right_NE, precision=jax.lax.Precision.HIGHEST
  )
  return jnp.linalg.svd(cross_AEE, compute_uv=False).sum(1)


def _run(
  statistic: Callable[..., jax.Array],
  sides: tuple[np.ndarray, np.ndarray],
  orders_CU: np.ndarray,
  mesh: Mesh,
) -> np.ndarray:
  """The statistic for each order; the orders are split over the devices."""
  C, U = orders_CU.shape
  assert len(sides[1]) % U == 0, (sides[1].shape, U)
  more = -C % mesh.size
  orders_CU = np.concatenate([orders_CU, np.repeat(orders_CU[:1], more, 0)])
  at_a_time = max(1, _BYTES // sides[1].nbytes)
  run = _make(statistic, mesh, min(at_a_time, len(orders_CU) // mesh.size))
  with jax.set_mesh(mesh):
    found_CA = run(*(_put(x, mesh) for x in (*sides, orders_CU)))
  return np.asarray(found_CA)[:C]


def _put(x: np.ndarray, mesh: Mesh) -> jax.Array:
  return jax.make_array_from_callback(x.shape, everywhere(mesh), lambda i: x[i])


@functools.cache
def _make(statistic, mesh, at_a_time):
  by_order = P(mesh.axis_names)

  def local(left, right, orders_CU):
    return jax.lax.map(
      functools.partial(statistic, left, right),
      orders_CU,
      batch_size=at_a_time,
    )

  run = jax.shard_map(
    local, mesh=mesh, in_specs=(P(), P(), by_order), out_specs=by_order
  )
  return jax.jit(run, out_shardings=everywhere(mesh))


def calibrated(raw: float, null_C: np.ndarray) -> dict[str, Any]:
  """A statistic with its null distribution.

  `null_q95` is the smallest value of the null such that everything greater has
  p <= 0.05. `calibrated` rescales `raw` so that `null_q95` is 0 and a perfect
  score is 1: at 0 or below there is no evidence.

  Args:
    raw: the statistic, at most 1.
    null_C: the statistic for the drawn orders; 19 or more.

  Raises:
    ValueError: the statistic is 1 in every order.

  Source: arXiv:2602.14486.
  """
  C = len(null_C)
  assert C >= 19, C
  q95 = float(np.sort(null_C)[-(-19 * (C + 1) // 20) - 1])
  reached = int(np.sum(null_C >= raw - _TIED))
  if q95 > 1 - _TIED:
    raise ValueError(
      "measure: a similarity is 1 in any order of the points, so that nothing"
      " can be above chance: the held-out rows are all alike; give others."
    )
  return {
    "raw": float(raw),
    "null_q95": q95,
    "calibrated": (float(raw) - q95) / (1 - q95),
    "p": (1 + reached) / (1 + C),
    "null": [round(float(x), 4) for x in null_C],
  }
