"""Maps of directions from a student's residual stream to the teacher's.

MAPPERS names the three kinds. Each is tested on points that it was not fitted
on. A map's shape reveals the teacher's width: maps stay in memory.

Shape letters: D width of the student, W of the teacher, F hidden width of the
autoencoder, V vocabulary, B rows, M points of a row, N points.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from analogjax.data import rows as rows_lib
from analogjax.evaluation.models import Model, everywhere
from analogjax.evaluation.study import Study
from analogjax.fidelity import activations, least_squares
from analogjax.models import decoder

MAPPERS = ("embedding", "affine", "autoencoder")

Kept = list[activations.Batch]  # One depth of a stream that has already run.

_HELD_OUT = 10  # One in this many ids of the vocabulary tests a map.
_POINTS_PER_WIDTH = 20  # Points that a map is fitted on, per width D.
_LEARNING_RATE = 3e-3
# Points beyond this many times the median norm are left out. A few tokens,
# mostly the first of a document, have norms hundreds of times as large and
# would dominate least squares. Source: massive activations, arXiv:2402.17762
# (abstract); 160 times the median in SmolLM2-135M at half depth.
_MASSIVE = 4.0
_DOT = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


class Pairs(NamedTuple):
  """Both models' activations at the same points, each at one depth."""

  student: Kept
  teacher: Kept
  weights: list[np.ndarray]  # By batch, float32 [B, M]: 1 or 0.


@dataclasses.dataclass(frozen=True)
class Map:
  """A fitted map, applied to a difference of two means."""

  # (mean_D with the behaviour, mean_D without) -> vector_W.
  direction: Callable[[np.ndarray, np.ndarray], np.ndarray]
  # On held-out points: squared error over variance, and the mean cosine of
  # prediction and truth, both after subtracting the mean.
  unexplained: float
  cosine: float


def draw_points(study: Study, rows: rows_lib.Rows, name: str) -> np.ndarray:
  """Points of each row that maps are fitted or tested on, int32 [R, M]."""
  width = max(model.cfg.D for model in study.students.values())
  wanted = max(study.options.points, _POINTS_PER_WIDTH * width)
  each = -(-wanted // len(study.fit.tokens_BL))
  # Not the first of a document: see _MASSIVE.
  later_RL = (rows.segments_BL > 0) & (rows.positions_BL > 0)
  each = max(1, min(each, int(later_RL.sum(1).min())))
  rows = rows._replace(segments_BL=rows.segments_BL * later_RL)
  return activations.draw_points(rows, each, study.rng("steering", name))


def keep(
  study: Study,
  model: Model,
  rows: rows_lib.Rows,
  positions_RM: np.ndarray,
  depths: Sequence[float],
) -> dict[float, Kept]:
  """Activations at the points by depth, split over the mesh by rows.

  Memory grows with the points of the config and the chosen depths, not with
  tokens or layers.
  """
  kept: dict[float, Kept] = {depth: [] for depth in depths}
  for x_PBMD, here in activations.stream(
    study, model, rows, positions_RM, depths
  ):
    for p, depth in enumerate(depths):
      kept[depth].append((x_PBMD[p : p + 1], here))
  return kept


def pair(study: Study, of_student: Kept, of_teacher: Kept) -> Pairs:
  """Pairs of points; points that are massive in either model have weight 0."""
  weights = []
  for kept in (of_student, of_teacher):
    step = _make_norms(study.mesh)
    with jax.set_mesh(study.mesh):
      # One by one, as in steering_response.
      norms = [jax.device_get(step(x_PBMD)) for x_PBMD, _ in kept]
    rows = [here.stop - here.start for _, here in kept]
    used = np.concatenate(
      [n[:r].ravel() for n, r in zip(norms, rows, strict=True)]
    )
    most = _MASSIVE * np.median(used)
    weights.append([np.float32(n_BM <= most) for n_BM in norms])
  both = [a_BM * b_BM for a_BM, b_BM in zip(*weights, strict=True)]
  for i, (x_PBMD, here) in enumerate(of_student):
    both[i] *= (np.arange(x_PBMD.shape[1]) < here.stop - here.start)[:, None]
  return Pairs(of_student, of_teacher, both)


@functools.cache
def _make_norms(mesh):
  """Norms of the first depth, [B, M]."""
  return jax.jit(
    lambda x_PBMD: jnp.linalg.norm(x_PBMD[0], axis=-1),
    out_shardings=everywhere(mesh),
  )


def fit_embedding(study: Study, student: Model) -> Map:
  """Least squares on the unembedding rows that both models share.

  min_A |U_s A - U_t|^2 over the vocabulary. Rows are multiplied by the scale of
  the final norm, as they act on the stream. No forward pass is needed.

  Source: Lee et al., arXiv:2503.21073 (abstract).
  """
  products, errors = _make_embedding_steps(
    student.cfg, study.teacher.cfg, study.mesh
  )
  params = student.params, study.teacher.params
  with jax.set_mesh(study.mesh):
    xx_DD, xy_DW, mean_W = (
      np.asarray(a, np.float64) for a in jax.device_get(products(*params))
    )
    w_DW = np.linalg.lstsq(xx_DD, xy_DW, rcond=None)[0]
    sums = errors(*params, np.float32(w_DW), np.float32(mean_W))
  return Map(
    lambda with_D, without_D: (with_D - without_D) @ w_DW,
    *_quality([jax.device_get(sums)]),
  )


def fit_affine(
  study: Study,
  fit: Pairs,
  test: Pairs,
  rng: np.random.Generator | None = None,
) -> Map:
  """Least squares on activations at the same points; a direction has no bias.

  With `rng` the pairs of `fit` are shuffled, as a control that does not know
  how the models correspond.

  Source: Chen et al., arXiv:2506.06609 (abstract).
  """
  moments = least_squares.of_streams(study, *fit[:2], rng, weights=fit.weights)
  found = least_squares.solve(moments, 0, 0)
  w_DW = found.w_DW.astype(np.float64)
  return Map(
    lambda with_D, without_D: (with_D - without_D) @ w_DW,
    *_test(study, _affine, (found.w_DW, found.b_W), moments, test),
  )


def fit_autoencoder(study: Study, name: str, fit: Pairs, test: Pairs) -> Map:
  """Linear, ReLU, Linear, trained by mean squared error, one batch per step.

  The hidden width is floor(sqrt(D W)). Activations are standardised with one
  number for each model, so that one learning rate works for all. The direction
  is the difference of the two mapped means. `name` is the student's, for the
  seed.

  Source: Oozeer et al., arXiv:2503.04429 (abstract).
  """
  moments = least_squares.of_streams(study, *fit[:2], weights=fit.weights)
  n, steps = moments.n, study.options.mapper_steps
  x = _standard(moments.x_PD[0] / n, np.trace(moments.xx_PDD[0]) / n)
  y = _standard(moments.y_QW[0] / n, moments.yy_Q[0] / n)
  D, W = len(x.mean), len(y.mean)
  F = math.isqrt(D * W)
  rng = study.rng("autoencoder", name)
  params = jax.tree.map(
    np.float32,
    {
      "w1_DF": rng.normal(size=(D, F)) * np.sqrt(2 / D),
      "b1_F": np.zeros(F),
      "w2_FW": rng.normal(size=(F, W)) * np.sqrt(1 / F),
      "b2_W": np.zeros(W),
    },
  )
  optimizer, step = _make_training(study.mesh, steps)
  state = optimizer.init(params)
  pairs = list(zip(*fit, strict=True))
  order: list[int] = []
  for _ in range(steps):
    order = order or rng.permutation(len(pairs)).tolist()
    (x_PBMD, _), (y_PBMW, _), weights_BM = pairs[order.pop()]
    batch = x_PBMD, y_PBMW, weights_BM
    with jax.set_mesh(study.mesh):
      params, state = step(params, state, *batch, x, y)
  params = jax.device_get(params)

  def direction(with_D, without_D):
    points_2D = np.stack([with_D, without_D]).astype(np.float32)
    mapped_2W = np.asarray(_autoencoder((params, x, y), points_2D), np.float64)
    return mapped_2W[0] - mapped_2W[1]

  return Map(
    direction, *_test(study, _autoencoder, (params, x, y), moments, test)
  )


class _Standard(NamedTuple):
  """Mean of one model, and the root mean square deviation of an element."""

  mean: np.ndarray
  scale: np.floating


def _standard(mean_D, square) -> _Standard:
  variance = max(square - mean_D @ mean_D, 1e-12) / len(mean_D)
  return _Standard(mean_D.astype(np.float32), np.float32(np.sqrt(variance)))


def _affine(found, x_ND):
  w_DW, b_W = found
  return _DOT("ND,DW->NW", x_ND, w_DW) + b_W[None]


def _autoencoder(found, x_ND):
  params, x, y = found
  x_ND = (x_ND - x.mean[None]) / x.scale
  x_NF = _DOT("ND,DF->NF", x_ND, params["w1_DF"]) + params["b1_F"][None]
  y_NW = _DOT("NF,FW->NW", jax.nn.relu(x_NF), params["w2_FW"])
  return (y_NW + params["b2_W"][None]) * y.scale + y.mean[None]


def _points(x_PBMD):
  """x_ND of the first depth."""
  return x_PBMD[0].reshape(-1, x_PBMD.shape[-1])


@functools.cache
def _make_training(mesh, steps: int):
  """The optimizer, and its step on one batch of pairs."""
  schedule = optax.cosine_decay_schedule(_LEARNING_RATE, max(steps, 1))
  optimizer = optax.adam(schedule)

  def loss(params, x_PBMD, y_PBMW, weights_BM, x, y):
    x_ND, y_NW = _points(x_PBMD), _points(y_PBMW)
    weights_N = weights_BM.ravel()
    error_NW = (_autoencoder((params, x, y), x_ND) - y_NW) / y.scale
    squares_N = jnp.square(error_NW).mean(-1)
    return jnp.sum(squares_N * weights_N) / jnp.maximum(weights_N.sum(), 1)

  def step(params, state, *batch):
    gradients = jax.grad(loss)(params, *batch)
    updates, state = optimizer.update(gradients, state)
    return optax.apply_updates(params, updates), state

  return optimizer, jax.jit(step, out_shardings=everywhere(mesh))


class _Sums(NamedTuple):
  """Weighted sums over held-out points; the mean of the fit is taken off y."""

  error: Any
  square: Any
  cosine: Any
  y_W: Any
  weight: Any


def _compare(predicted_NW, y_NW, weights_N) -> _Sums:
  """Sums for predictions and truths, after subtracting the mean from both."""
  product_N = jnp.sum(predicted_NW * y_NW, -1)
  norms_N = jnp.linalg.norm(predicted_NW, axis=-1)
  norms_N = norms_N * jnp.linalg.norm(y_NW, axis=-1)
  error_N = jnp.square(predicted_NW - y_NW).sum(-1)
  return _Sums(
    error=jnp.sum(error_N * weights_N),
    square=jnp.sum(jnp.square(y_NW).sum(-1) * weights_N),
    cosine=jnp.sum(product_N / jnp.maximum(norms_N, 1e-20) * weights_N),
    y_W=_DOT("NW,N->W", y_NW, weights_N),
    weight=weights_N.sum(),
  )


def _quality(parts: Sequence[_Sums]) -> tuple[float, float]:
  """Fraction unexplained, and mean cosine."""
  total = [
    sum(np.asarray(a, np.float64) for a in p) for p in zip(*parts, strict=True)
  ]
  sums = _Sums(*total)
  mean_W = sums.y_W / sums.weight
  variance = sums.square / sums.weight - mean_W @ mean_W
  return (
    float(sums.error / sums.weight / variance),
    float(sums.cosine / sums.weight),
  )


def _test(study, predict, found, moments, test: Pairs) -> tuple[float, float]:
  """`_quality` of a map, (found, x_ND) -> y_NW, on held-out pairs."""
  mean_W = np.float32(moments.y_QW[0] / moments.n)
  step = _make_test(predict, study.mesh)
  parts = []
  for (x_PBMD, _), (y_PBMW, _), weights_BM in zip(*test, strict=True):
    batch = x_PBMD, y_PBMW, weights_BM
    with jax.set_mesh(study.mesh):
      parts.append(jax.device_get(step(found, *batch, mean_W)))
  return _quality(parts)


@functools.cache
def _make_test(predict, mesh):
  def step(found, x_PBMD, y_PBMW, weights_BM, mean_W):
    x_ND, y_NW = _points(x_PBMD), _points(y_PBMW)
    weights_N = weights_BM.ravel()
    predicted_NW = predict(found, x_ND) - mean_W[None]
    return _compare(predicted_NW, y_NW - mean_W[None], weights_N)

  return jax.jit(step, out_shardings=everywhere(mesh))


@functools.cache
def _make_embedding_steps(
  student: decoder.DecoderConfig, teacher: decoder.DecoderConfig, mesh
):
  """Two programs: products of both unembeddings, and the errors of a map.

  The vocabulary stays split: each product is a sum over the devices that hold
  its parts.
  """

  def unembedding(cfg, params):
    model = nnx.merge(decoder.graphdef(cfg), params)
    return model.head_VD * model.final_norm.scale_D[...][None]

  def rows(params, teacher_params):
    x_VD = unembedding(student, params)
    y_VW = unembedding(teacher, teacher_params)
    tested_V = jnp.arange(len(x_VD)) % _HELD_OUT == 0
    return x_VD, y_VW, tested_V.astype(jnp.float32)

  def products(params, teacher_params):
    x_VD, y_VW, tested_V = rows(params, teacher_params)
    fit_V = 1 - tested_V
    x_VD = x_VD * fit_V[:, None]
    mean_W = _DOT("VW,V->W", y_VW, fit_V) / fit_V.sum()
    return _DOT("VD,VE->DE", x_VD, x_VD), _DOT("VD,VW->DW", x_VD, y_VW), mean_W

  def errors(params, teacher_params, w_DW, mean_W):
    x_VD, y_VW, tested_V = rows(params, teacher_params)
    predicted_VW = _DOT("VD,DW->VW", x_VD, w_DW) - mean_W[None]
    return _compare(predicted_VW, y_VW - mean_W[None], tested_V)

  return tuple(
    jax.jit(step, out_shardings=everywhere(mesh)) for step in (products, errors)
  )
