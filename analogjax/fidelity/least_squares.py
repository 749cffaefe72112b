"""Affine maps between the activations of two models, fitted as they stream.

Only the normal equations are kept. Products of one batch are computed in
float32 and added on the host in float64.

Shape letters: P depths of the student, Q depths of the teacher, D width of the
student, W width of the teacher, N points.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
import dataclasses
import functools
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from analogjax.evaluation.models import everywhere
from analogjax.evaluation.study import Study
from analogjax.fidelity.activations import Batch

# With n points per input of a map, its error exceeds that of the best map by
# about one part in n.
POINTS_PER_INPUT = 40

Key = TypeVar("Key", bound=Hashable)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Affine:
  """x_D @ w_DW + b_W, from the student's activations to the teacher's."""

  w_DW: np.ndarray  # float32.
  b_W: np.ndarray  # float32.


@dataclasses.dataclass
class Moments:
  """Sums over points, float64, for every pair of depths."""

  n: int
  x_PD: np.ndarray
  y_QW: np.ndarray
  xx_PDD: np.ndarray
  xy_PQDW: np.ndarray
  yy_Q: np.ndarray  # Sums of squares.


def of_several(
  study: Study,
  of_students: Mapping[str, Iterable[Batch]],
  of_teacher: Iterable[Batch],
  wanted: Mapping[Key, tuple[str, slice, slice]],
) -> dict[Key, Moments]:
  """Moments of several students with the teacher; each stream runs once.

  `wanted`: key -> student, and the depths of its stream and the teacher's.
  """
  totals: dict[Key, Moments] = {}
  batches = zip(of_teacher, *of_students.values(), strict=True)
  for (y_QBMW, here), *students in batches:
    x_of = {
      name: x_PBMD
      for name, (x_PBMD, _) in zip(of_students, students, strict=True)
    }
    for key, (name, p, q) in wanted.items():
      part = of_batch(study, x_of[name][p], y_QBMW[q], here)
      totals[key] = added(totals[key], part) if key in totals else part
  return totals


def of_streams(
  study: Study,
  of_student: Iterable[Batch],
  of_teacher: Iterable[Batch],
  rng: np.random.Generator | None = None,
  *,
  weights: Sequence[np.ndarray] | None = None,
) -> Moments:
  """Moments of two streams, which may have run before.

  Args:
    rng: pairs each point with another one of its batch. A map fitted on such
      pairs knows both models but not how they correspond.
    weights: 1 or 0 for each batch, [B, M]; None: all points count.
  """
  total: Moments | None = None
  pairs = zip(of_student, of_teacher, strict=True)
  for i, ((x_PBMD, here), (y_QBMW, _)) in enumerate(pairs):
    weights_BM = None if weights is None else weights[i]
    part = of_batch(study, x_PBMD, y_QBMW, here, rng, weights_BM=weights_BM)
    total = part if total is None else added(total, part)
  assert total is not None
  return total


def of_batch(
  study: Study,
  x_PBMD: jax.Array,
  y_QBMW: jax.Array,
  here: slice,
  rng: np.random.Generator | None = None,
  *,
  weights_BM: np.ndarray | None = None,
) -> Moments:
  """Moments of one batch; `here` selects its rows, the rest is padding."""
  B, M = x_PBMD.shape[1:3]
  rows_here = here.stop - here.start
  order = np.arange(B * M)
  if rng is not None:
    order[: rows_here * M] = rng.permutation(rows_here * M)
  weights_N = np.repeat(np.arange(B) < rows_here, M).astype(np.float32)
  if weights_BM is not None:
    weights_N *= weights_BM.ravel()
  weights_N *= weights_N[order]
  add = _make_products(study.mesh)
  with jax.set_mesh(study.mesh):
    sums = jax.device_get(add(x_PBMD, y_QBMW, order, weights_N))
  n = int(weights_N.sum())
  return Moments(n, *(np.asarray(a, np.float64) for a in sums))


@functools.cache
def _make_products(mesh):
  def products(x_PBMD, y_QBMW, order, weights):
    P, Q = len(x_PBMD), len(y_QBMW)
    x_PND = x_PBMD.reshape(P, -1, x_PBMD.shape[-1])
    y_QNW = y_QBMW.reshape(Q, -1, y_QBMW.shape[-1])[:, order]
    x_PND = x_PND * weights[None, :, None]
    y_QNW = y_QNW * weights[None, :, None]
    dot = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    return (
      x_PND.sum(1),
      y_QNW.sum(1),
      dot("PND,PNE->PDE", x_PND, x_PND),
      dot("PND,QNW->PQDW", x_PND, y_QNW),
      jnp.square(y_QNW).sum((1, 2)),
    )

  return jax.jit(products, out_shardings=everywhere(mesh))


def added(a: Moments, b: Moments) -> Moments:
  """The moments of both sets of points."""
  fields = [f.name for f in dataclasses.fields(Moments)]
  return Moments(*(getattr(a, f) + getattr(b, f) for f in fields))


def solve(m: Moments, p: int, q: int, *, ridge: float = 1e-6) -> Affine:
  """The least-squares map from student depth p to teacher depth q.

  `ridge` is added to the variances, as a fraction of their mean.
  """
  mean_D, mean_W = m.x_PD[p] / m.n, m.y_QW[q] / m.n
  xx_DD = m.xx_PDD[p] / m.n - np.outer(mean_D, mean_D)
  xy_DW = m.xy_PQDW[p, q] / m.n - np.outer(mean_D, mean_W)
  xx_DD[np.diag_indices_from(xx_DD)] += ridge * np.trace(xx_DD) / len(xx_DD)
  w_DW = np.linalg.lstsq(xx_DD, xy_DW, rcond=None)[0]
  b_W = mean_W - mean_D @ w_DW
  return Affine(w_DW.astype(np.float32), b_W.astype(np.float32))


def unexplained(map_: Affine, m: Moments, p: int, q: int) -> float:
  """Fraction of variance unexplained: squared errors over the variance.

  `m` must come from other rows than the map was fitted on. On the same rows the
  map would look too good (0.5 on noise; reference: n = 2 d).
  """
  w_DW, b_W = map_.w_DW.astype(np.float64), map_.b_W.astype(np.float64)
  mean_W = m.y_QW[q] / m.n
  variance = m.yy_Q[q] / m.n - mean_W @ mean_W
  # E|xw + b - y|^2 from the moments of x and y alone.
  error = (
    np.sum((m.xx_PDD[p] / m.n @ w_DW) * w_DW)
    - 2 * np.sum(m.xy_PQDW[p, q] / m.n * w_DW)
    + m.yy_Q[q] / m.n
    + b_W @ b_W
    + 2 * b_W @ (m.x_PD[p] / m.n @ w_DW - mean_W)
  )
  return float(max(error, 0.0) / variance)
