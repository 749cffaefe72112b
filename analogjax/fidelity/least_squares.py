"""Affine maps between the activations of two models, fitted as they stream.

Normal equations are all that is kept: products are of one batch, in float32,
and add up on the host in float64.

Shape letters: P depths of the student, Q depths of the teacher, D width of the
student, W width of the teacher, N points.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from analogjax.data import rows as rows_lib
from analogjax.evaluation.models import Model, everywhere
from analogjax.evaluation.study import Study
from analogjax.fidelity import activations

# Of a fit, for each input of the map: the error is greater than that of the
# best map by about one part in as many.
POINTS_PER_INPUT = 40


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
  return moments_of_all(
    study,
    [(student, student_depths)],
    teacher_depths,
    rows,
    positions_RM,
    shuffled=shuffled,
  )[student.name]


def moments_of_all(
  study: Study,
  students: Sequence[tuple[Model, Sequence[float]]],
  teacher_depths: Sequence[float],
  rows: rows_lib.Rows,
  positions_RM: np.ndarray,
  *,
  shuffled: bool = False,
) -> dict[str, Moments]:
  """Of several students and their depths, by name; the teacher runs once."""

  def stream(model, depths):
    return activations.stream(study, model, rows, positions_RM, depths)

  of_students = zip(*(stream(*pair) for pair in students), strict=True)
  of_teacher = stream(study.teacher, teacher_depths)
  names = [model.name for model, _ in students]
  rngs = {name: study.rng("shuffled", name) for name in names}
  totals: dict[str, Moments] = {}
  for xs, (y_QBMW, here) in zip(of_students, of_teacher, strict=True):
    for name, (x_PBMD, _) in zip(names, xs, strict=True):
      rng = rngs[name] if shuffled else None
      part = of_batch(study, x_PBMD, y_QBMW, here, rng)
      totals[name] = added(totals[name], part) if name in totals else part
  return totals


def of_streams(
  study: Study,
  of_student: Iterable[tuple[jax.Array, slice]],
  of_teacher: Iterable[tuple[jax.Array, slice]],
  rng: np.random.Generator | None = None,
  *,
  weights: Sequence[np.ndarray] | None = None,
) -> Moments:
  """Of activations that `streams.stream` yields, or has yielded.

  Args:
    study: whose mesh they are on.
    of_student: [P, B, M, D].
    of_teacher: [Q, B, M, W] at the same points.
    rng: shuffles the pairs; None: they stay.
    weights: of each batch, [B, M], 1 or 0; None: all points count.
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
  """Of one batch of points; arguments as in `of_streams`.

  Args:
    study: whose mesh they are on.
    x_PBMD: of the student.
    y_QBMW: of the teacher.
    here: rows that there are; the batch may hold more, which do not count.
    rng: shuffles the pairs; None: they stay.
    weights_BM: 1 or 0; None: all points count.
  """
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
