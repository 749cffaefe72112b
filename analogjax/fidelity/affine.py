"""Affine maps between the activations of two models, fitted as they stream.

Normal equations are all that is kept: products are of one batch, in float32,
and add up on the host in float64.

Shape letters: P depths of the student, Q depths of the teacher, D width of the
student, W width of the teacher, N points.
"""

from collections.abc import Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from analogjax.data import rows as rows_lib
from analogjax.fidelity import streams
from analogjax.fidelity.study import Model, Study, everywhere


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


def moments(
  study: Study,
  student: Model,
  student_depths: Sequence[float],
  teacher_depths: Sequence[float],
  rows: rows_lib.Rows,
  positions_RM: np.ndarray,
  *,
  shuffled: bool = False,
) -> Moments:
  """Of both models' activations at the same points.

  Args:
    study: with the teacher.
    student: the other model.
    student_depths: P.
    teacher_depths: Q.
    rows: that both see.
    positions_RM: points of each row, from `streams.draw_points`.
    shuffled: pairs each point with another one of its batch: a map fitted on
      that knows both models and nothing of how they correspond.
  """
  of_student = streams.stream(
    study, student, rows, positions_RM, student_depths
  )
  of_teacher = streams.stream(
    study, study.teacher, rows, positions_RM, teacher_depths
  )
  rng = study.rng("shuffled", student.name)
  add = make_products(study.mesh)
  total: Moments | None = None
  for (x_PBMD, here), (y_QBMW, _) in zip(of_student, of_teacher, strict=True):
    B, M = x_PBMD.shape[1:3]
    rows_here = here.stop - here.start
    order = np.arange(B * M)
    if shuffled:
      order[: rows_here * M] = rng.permutation(rows_here * M)
    weights = np.repeat(np.arange(B) < rows_here, M).astype(np.float32)
    with jax.set_mesh(study.mesh):
      sums = jax.device_get(add(x_PBMD, y_QBMW, order, weights))
    part = Moments(rows_here * M, *(np.asarray(a, np.float64) for a in sums))
    total = part if total is None else added(total, part)
  assert total is not None
  return total


@functools.cache
def make_products(mesh):
  """(x_PBMD, y_QBMW, order, weights) -> the sums of `Moments`, of one batch."""

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
  fields = [f.name for f in dataclasses.fields(Moments)]
  return Moments(*(getattr(a, f) + getattr(b, f) for f in fields))


def solve(m: Moments, p: int, q: int, *, ridge: float = 1e-6) -> Affine:
  """The least-squares map from student depth p to teacher depth q.

  Args:
    m: of the rows that it is fitted on.
    p: index of the student's depth.
    q: index of the teacher's.
    ridge: added to the variances, in parts of their mean.
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

  Args:
    map_: from `solve`, of other rows than these: fitted on the same ones it
      would flatter itself (0.5 on noise; reference: n = 2 d).
    m: of the rows that it is tested on.
    p: index of the student's depth.
    q: index of the teacher's.
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
