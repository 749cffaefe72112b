"""Stitching: a student's first blocks, an affine map, the teacher's last ones.

If the teacher can continue from the student's activations, these hold the same
information, up to a linear map. A map fitted by least squares has only seen
activations. A map trained on the cross-entropy of the stitched model can learn
the task itself and hide that the models differ. So both are reported, also for
an untrained student.

Source: Bansal et al., Revisiting model stitching, arXiv:2106.07682.

Shape letters: B rows of a step, L positions, D width of a student, W width of
the teacher, R rows.
"""

from collections.abc import Sequence
import functools
import itertools
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from analogjax.cache import batches
from analogjax.data import rows as rows_lib
from analogjax.distributed import sharding
from analogjax.evaluation import estimates, models as models_lib
from analogjax.evaluation.models import Model, everywhere
from analogjax.evaluation.study import Study
from analogjax.fidelity import activations, least_squares, token_sums
from analogjax.models import decoder

# Tokens of each row that maps are fitted on; more if a map has many inputs.
POINTS = 64
# Stitches are at the depths nearest to these: one with much of the teacher
# still to run, one with little. Each costs a pass over the held-out rows.
DEPTHS = (0.45, 0.75)
CHUNK = 64  # Positions of a row whose logits are in memory at a time.
# Adam's first step size, in standard deviations of the map's output; it decays
# to 0.
LEARNING_RATE = 0.03


class Stitch(NamedTuple):
  """The depths at which the two models are joined."""

  student_depth: float
  teacher_depth: float


def measure(study: Study) -> dict[str, Any]:
  """The section "stitching" of fidelity.json.

  `recovered` is 1 where the stitched model is as good as the teacher, and 0
  where it is as good as the teacher with its mean activation at that depth.
  """
  depths = study.depths(study.teacher)
  stitches = {
    name: choose(study.depths(model), depths)
    for name, model in study.students.items()
  }
  used = tuple(
    sorted({s.teacher_depth for some in stitches.values() for s in some})
  )
  points_RM = _points(study, study.fit)

  def stream(model, depths):
    return activations.stream(study, model, study.fit, points_RM, depths)

  fitted = least_squares.of_several(
    study,
    {
      name: stream(study.students[name], [s.student_depth for s in some])
      for name, some in stitches.items()
    },
    stream(study.teacher, used),
    {name: (name, slice(None), slice(None)) for name in stitches},
  )
  teacher_R = cross_entropy(study, study.teacher, None, used[0], used[0])
  first = fitted[study.analog.name]
  ablated = {
    depth: cross_entropy(study, study.analog, _mean(first, q), depth, depth)
    for q, depth in enumerate(used)
  }
  models: dict[str, list[dict[str, Any]]] = {}
  for name, some in stitches.items():
    model, m = study.students[name], fitted[name]
    models[name] = []
    for p, stitch in enumerate(some):
      found = least_squares.solve(m, p, used.index(stitch.teacher_depth))
      maps = {"least_squares": found}
      if study.options.stitch_steps and stitch == some[0]:
        maps["trained"] = train(study, model, stitch, found, m)
      for fit, map_ in maps.items():
        stitched_R = cross_entropy(study, model, map_, *stitch)
        recovered = _recovered(
          study, stitched_R, teacher_R, ablated[stitch.teacher_depth]
        )
        models[name].append(
          {**stitch._asdict(), "fit": fit, "recovered": recovered.to_json()}
        )
  weight = _weights(study.test).sum()
  return {
    "cross_entropy_nats": {
      "teacher": teacher_R.sum() / weight,
      "mean_ablated": {
        f"{depth:.2f}": x_R.sum() / weight for depth, x_R in ablated.items()
      },
    },
    "models": models,
  }


def choose(
  student_depths: Sequence[float], teacher_depths: Sequence[float]
) -> list[Stitch]:
  """Stitches near DEPTHS of the teacher, at depths that are nearly equal.

  After the last block only the teacher's unembedding would be left. That depth
  is used only if there is no other.
  """
  nearest = {
    d: min(teacher_depths, key=lambda t, d=d: abs(t - d))
    for d in student_depths
  }
  pairs = [Stitch(d, t) for d, t in nearest.items() if t < teacher_depths[-1]]
  if not pairs:
    return [Stitch(student_depths[-1], teacher_depths[-1])]
  near = (min(pairs, key=lambda s: abs(s.teacher_depth - d)) for d in DEPTHS)
  return sorted(set(near))


def cross_entropy(
  study: Study,
  model: Model,
  map_: least_squares.Affine | None,
  student_depth: float,
  teacher_depth: float,
) -> np.ndarray:
  """Weighted sums over the held-out rows, in nats, float64 [R].

  Args:
    map_: to the teacher's stream; None if the model is the teacher.
    student_depth: where the first blocks end.
    teacher_depth: where the teacher continues.

  Raises:
    ValueError: a loss is not finite.
  """
  begin = activations.make_beginning(model.cfg, study.mesh)
  apply = make_apply(study.teacher.cfg, study.mesh)
  end = make_end(study.teacher.cfg, study.mesh)
  p, q = model.block(student_depth), study.teacher.block(teacher_depth)
  found = []
  for batch, here in study.batches(study.test, model, study.teacher):
    with jax.set_mesh(study.mesh):
      x_BLD = begin(model.params, batch, p)
      if map_ is not None:
        x_BLD = apply(map_, x_BLD)
      losses_B = end(study.teacher.params, x_BLD, batch, q)
    whole_B = np.asarray(losses_B, np.float64)
    found.append(whole_B[: here.stop - here.start])
  loss_R = np.concatenate(found)
  if not np.isfinite(loss_R).all():
    raise ValueError(
      f"measure: {model.name} stitched to the teacher at depth"
      f" {teacher_depth:.2f} has a loss that is not finite; the checkpoint is"
      " damaged, or the compute dtype overflows."
    )
  return loss_R


def train(
  study: Study,
  model: Model,
  stitch: Stitch,
  start: least_squares.Affine,
  moments: least_squares.Moments,
) -> least_squares.Affine:
  """The map that minimizes the stitched model's cross-entropy on `study.fit`.

  Only the map is trained, for `stitch_steps` steps. Each step has the next
  rows, pass after pass. Adam sees the map of whitened activations: some
  directions of a residual stream are hundreds of times larger than others, and
  steps of one size would be too large for those. The first depth of `moments`
  is the student's; `start` is the least-squares map.
  """
  begin = activations.make_beginning(model.cfg, study.mesh)
  step, init = make_training(
    study.teacher.cfg, study.mesh, study.options.stitch_steps
  )
  p = model.block(stitch.student_depth)
  q = study.teacher.block(stitch.teacher_depth)
  whitening = _whitening(moments)
  free = _whitened(start, whitening)
  scale = _scales(free)
  state: Any = free, init(free)
  for batch in itertools.islice(
    _again_and_again(study, model), study.options.stitch_steps
  ):
    with jax.set_mesh(study.mesh):
      x_BLD = begin(model.params, batch, p)
      state = step(
        state, scale, whitening, study.teacher.params, x_BLD, batch, q
      )
  return jax.device_get(_of_whitened(state[0], whitening))


def _again_and_again(study: Study, model: Model):
  while True:
    for batch, _ in study.batches(study.fit, model, study.teacher):
      yield batch


@functools.cache
def make_apply(cfg: decoder.DecoderConfig, mesh: jax.sharding.Mesh):
  """(map, stream) -> the stream in the teacher, [B, L, W].

  This is a separate program, so that the teacher's end is compiled once, for
  mapped streams and for the teacher's own.
  """
  rows = jax.sharding.NamedSharding(mesh, sharding.ROWS)
  return jax.jit(functools.partial(_apply, cfg=cfg), out_shardings=rows)


@functools.cache
def make_end(cfg: decoder.DecoderConfig, mesh: jax.sharding.Mesh):
  """(params, stream, batch, block) -> cross-entropies [B]."""
  return jax.jit(
    functools.partial(_end, cfg=cfg), out_shardings=everywhere(mesh)
  )


@functools.cache
def make_training(
  cfg: decoder.DecoderConfig, mesh: jax.sharding.Mesh, steps: int
):
  """A step of `train`, and the initial state of its optimizer."""
  tx = optax.adam(optax.linear_schedule(LEARNING_RATE, 0.0, steps))

  def init(map_: Any) -> optax.OptState:
    return tx.init(map_)

  def step(state, scale, whitening, params, x_BLD, batch, block):
    free, moments = state

    def loss(free):
      map_ = _of_whitened(free, whitening)
      x_BLW = _apply(map_, x_BLD, cfg=cfg)
      losses_B = _end(params, x_BLW, batch, block, cfg=cfg)
      return losses_B.sum() / jnp.maximum(batch.targets.weights_BL.sum(), 1)

    updates, moments = tx.update(jax.grad(loss)(free), moments)
    updates = jax.tree.map(jnp.multiply, updates, scale)
    return optax.apply_updates(free, updates), moments

  return jax.jit(step, out_shardings=everywhere(mesh)), init


def _apply(
  map_: least_squares.Affine, x_BLD: jax.Array, *, cfg: decoder.DecoderConfig
) -> jax.Array:
  """The mapped stream, [B, L, W] in the teacher's compute dtype."""
  x_BLW = jnp.einsum(
    "BLD,DW->BLW",
    x_BLD.astype(jnp.float32),
    map_.w_DW,
    precision=jax.lax.Precision.HIGHEST,
  )
  return (x_BLW + map_.b_W[None, None]).astype(cfg.dtype)


def _end(
  params: nnx.State,
  x_BLW: jax.Array,
  batch: batches.Batch,
  block: jax.Array,
  *,
  cfg: decoder.DecoderConfig,
) -> jax.Array:
  """The teacher's blocks after `block`, and its cross-entropies by row [B]."""
  model = nnx.merge(decoder.graphdef(cfg), params)
  x_BLW = sharding.constrain(x_BLW, "BLD")
  x_BLW = model.run_blocks(x_BLW, *batch[1:3], first=block + 1, last=cfg.Y)
  x_BLW = model.final_norm(x_BLW)
  starts, cut = models_lib.in_chunks(x_BLW.shape[1], CHUNK)

  @functools.partial(jax.checkpoint, prevent_cse=False)
  def loss(start):
    z_BSV = token_sums.logits(model, cut(x_BLW, start))
    loss_BS = optax.softmax_cross_entropy_with_integer_labels(
      z_BSV, cut(batch.targets.labels_BL, start)
    )
    return jnp.sum(loss_BS * cut(batch.targets.weights_BL, start), axis=1)

  def body(sum_B, start):
    return sum_B + loss(start), None

  zero_B = jnp.zeros(len(x_BLW))
  return jax.lax.scan(body, zero_B, starts)[0]


class _Whitening(NamedTuple):
  """(x_D - mean_D) @ w_DE has no correlations, and variances of 1 or less."""

  mean_D: np.ndarray
  w_DE: np.ndarray
  inverse_ED: np.ndarray


def _whitening(m: least_squares.Moments) -> _Whitening:
  """The whitening of the student's activations at its first depth."""
  mean_D = m.x_PD[0] / m.n
  covariance_DD = m.xx_PDD[0] / m.n - np.outer(mean_D, mean_D)
  variance_E, direction_DE = np.linalg.eigh(covariance_DD)
  # Directions that hardly vary are not amplified.
  size_E = np.sqrt(np.maximum(variance_E, 1e-6 * variance_E.max()))
  return _Whitening(
    *(
      a.astype(np.float32)
      for a in (
        mean_D,
        direction_DE / size_E,
        (direction_DE * size_E).T,
      )
    )
  )


def _whitened(
  map_: least_squares.Affine, whitening: _Whitening
) -> least_squares.Affine:
  """The same map, from whitened activations."""
  b_W = map_.b_W + whitening.mean_D @ map_.w_DW
  return least_squares.Affine(whitening.inverse_ED @ map_.w_DW, b_W)


def _of_whitened(free: Any, whitening: _Whitening) -> Any:
  """The map from activations that were not whitened; traceable."""
  dot = functools.partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)
  w_DW: Any = dot(whitening.w_DE, free.w_DW)
  b_W: Any = free.b_W - dot(whitening.mean_D, w_DW)
  return least_squares.Affine(w_DW, b_W)


def _scales(free: least_squares.Affine) -> least_squares.Affine:
  """The step size of each parameter.

  The norm of a column of a map from whitened activations is the standard
  deviation of its output.
  """
  std_W = np.linalg.norm(free.w_DW, axis=0)
  std_W = np.maximum(std_W, 1e-3 * std_W.max()).astype(np.float32)
  each_W = std_W / np.sqrt(np.float32(len(free.w_DW)))
  return least_squares.Affine(np.broadcast_to(each_W, free.w_DW.shape), std_W)


def _mean(m: least_squares.Moments, q: int) -> least_squares.Affine:
  """The constant map to the teacher's mean activation."""
  mean_W = np.asarray(m.y_QW[q] / m.n, np.float32)
  return least_squares.Affine(np.zeros(m.xy_PQDW.shape[2:], np.float32), mean_W)


def _recovered(
  study: Study,
  stitched_R: np.ndarray,
  teacher_R: np.ndarray,
  ablated_R: np.ndarray,
) -> estimates.Estimate:
  """1 - (stitched - teacher) / (mean-ablated - teacher)."""
  found = estimates.ratio_of_sums(
    ablated_R - stitched_R,
    ablated_R - teacher_R,
    resamples=study.options.resamples,
    rng=study.rng("stitching"),
  )
  if ablated_R.sum() <= teacher_R.sum():
    why = "the teacher is no worse with its mean activation there"
    return estimates.undefined(why, len(teacher_R))
  return found


def _points(study: Study, rows: rows_lib.Rows) -> np.ndarray:
  fewest = int((rows.segments_BL > 0).sum(1).min())
  D = max(student.cfg.D for student in study.students.values())
  wanted = max(
    POINTS, -(-least_squares.POINTS_PER_INPUT * D // len(rows.tokens_BL))
  )
  return activations.draw_points(
    rows, max(1, min(wanted, fewest)), study.rng("stitching", "points")
  )


def _weights(rows: rows_lib.Rows) -> np.ndarray:
  return batches.labels(rows)[1].astype(np.float64)
