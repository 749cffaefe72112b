"""The pure functions that the stages compile."""

from typing import Any, NamedTuple

from flax import nnx, struct
import jax
import jax.numpy as jnp
import optax

from analogjax.cache import batches, gram, teacher_step
from analogjax.distributed import sharding
from analogjax.training import losses


@struct.dataclass
class TrainState:
  """Everything that a checkpoint holds, apart from the data position."""

  step: jax.Array  # int32 scalar: optimizer updates applied so far.
  params: nnx.State  # float32.
  opt_state: optax.OptState


def train_step(
  state: TrainState,
  batch: batches.Batch,
  teacher: losses.Teacher | None = None,
  *,
  graphdef: nnx.GraphDef,
  tx: optax.GradientTransformation,
  objective: losses.Objective,
  alpha: optax.Schedule,
  gram_weight: float = 0.0,
  microbatches: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One optimizer update on one global batch.

  The stage jits this with `state` donated and its sharding pinned on the way
  out, so XLA reduces the gradients of the layers; that is why no collective is
  visible here. Metrics are device scalars; the loop fetches them one step late.

  A step whose loss or gradient is not finite updates only the count of steps
  (metric `skipped`): parameters, moments and the optimizer's own count stay as
  they were.

  Args:
    batch: rows with labels and, without `teacher`, records; if it has cosines
      of the teacher, the student's are compared.
    teacher: hidden states of a live teacher for the same rows.
    alpha: weight of the teacher by step.
    gram_weight: of the mean over rows and depths of `gram.loss`.
    microbatches: equal parts of the batch that go through the model one after
      another, so that only one part's activations are in memory.
  """
  weight = jnp.maximum(jnp.sum(batch.targets.weights_BL), 1.0)
  alpha_now = jnp.asarray(alpha(state.step), jnp.float32)
  x_BLW = None if teacher is None else teacher.x_BLW
  if teacher is not None and batch.gram is not None:
    sample = batch.gram._replace(codes_BZP=teacher.gram_BZP)
    batch = batch._replace(gram=sample)
  # Also a mean over the global batch: a row has the same weight in any part.
  rows = 1.0
  if batch.gram is not None:
    rows = jnp.maximum(gram.num_rows(batch.gram), 1.0)

  def loss_fn(params, piece):
    part, x_BLW = piece
    x_BLD, head_VD, states_ZBMD = teacher_step.states(params, part, graphdef)
    live = None
    if teacher is not None:
      live = teacher._replace(x_BLW=x_BLW, gram_BZP=None)
    total, sums = losses.distillation_loss(
      x_BLD, head_VD, part.targets, alpha_now, objective, live
    )
    # One mean over the global batch. A mean of per-device means would weigh
    # tokens by how much padding their neighbours carry.
    loss, distance = total / weight, None
    if part.gram is not None:
      distance = gram.distance(states_ZBMD, part.gram) / rows
      loss += gram_weight * distance
    return loss, (sums, distance)

  gradient = jax.value_and_grad(loss_fn, has_aux=True)
  if microbatches == 1:
    (loss, (sums, distance)), grads = gradient(state.params, (batch, x_BLW))
  else:

    def add(carry, piece):
      return jax.tree.map(jnp.add, carry, gradient(state.params, piece)), None

    pieces = jax.tree.map(
      lambda a: _split_rows(a, microbatches), (batch, x_BLW)
    )
    first = jax.tree.map(lambda a: a[0], pieces)
    shapes = jax.eval_shape(gradient, state.params, first)
    start = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    total, _ = jax.lax.scan(add, start, pieces)
    (loss, (sums, distance)), grads = total
  grad_norm = optax.tree.norm(grads)
  is_finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params: Any = optax.apply_updates(state.params, updates)
  params, opt_state = jax.tree.map(
    lambda new, old: jnp.where(is_finite, new, old),
    (params, opt_state),
    (state.params, state.opt_state),
  )
  new_state = TrainState(
    step=state.step + 1,
    params=params,
    opt_state=opt_state,
  )
  metrics = {
    "loss_nats": loss,
    "hard_label_nats": sums.hard / weight,
    "grad_norm": grad_norm,
    "label_tokens": sums.weight,
    "skipped": 1.0 - is_finite,
  }
  if teacher is not None or batch.targets.ids_BLK.shape[-1]:
    metrics["teacher_nats"] = sums.teacher / weight
    metrics["alpha"] = alpha_now
  if distance is not None:
    metrics["gram"] = distance
  return new_state, metrics


def _split_rows(a, parts):
  """[B, ...] -> [parts, B / parts, ...]; each device keeps its rows.

  Part m has the rows m, m + parts, ...: consecutive rows would be one device's.
  """
  a = jnp.moveaxis(a.reshape(a.shape[0] // parts, parts, *a.shape[1:]), 1, 0)
  return sharding.pin(a, (None, sharding.ACTIVATION_AXES["B"]))


def finite_rows_step(
  params: nnx.State,
  batch: batches.Batch,
  x_BLW: jax.Array | None = None,
  *,
  graphdef: nnx.GraphDef,
) -> jax.Array:
  """Which rows have finite hidden states and targets, bool [B].

  Finds the cause of a step that is not finite. All rows may be finite while the
  gradient is not.

  `x_BLW` has the hidden states of a live teacher.
  """
  x_BLD, _ = teacher_step.hidden(params, batch, graphdef)
  targets, tail_BL = batch.targets, batch.targets.log_tail_BL
  if tail_BL is not None:
    # The tail's logarithm is -inf where it has no mass, which is correct.
    tail_BL = jnp.where(jnp.isneginf(tail_BL), 0, tail_BL)
    targets = targets._replace(log_tail_BL=tail_BL)
  parts = jax.tree.leaves((x_BLD, x_BLW, targets))
  finite = [jnp.isfinite(a).all(range(1, a.ndim)) for a in parts]
  return jnp.stack(finite).all(axis=0)


def all_finite(tree: Any) -> jax.Array:
  """Whether no array of a tree holds a NaN or an infinity, bool."""
  return jnp.stack([jnp.isfinite(a).all() for a in jax.tree.leaves(tree)]).all()


class EvalSums(NamedTuple):
  """Sums over one batch; the caller adds batches and divides."""

  losses: losses.LossSums
  gram: gram.Sums | None  # Set if the batch has cosines of the teacher.


def eval_step(
  params: nnx.State,
  batch: batches.Batch,
  *,
  graphdef: nnx.GraphDef,
  objective: losses.Objective,
) -> EvalSums:
  """Losses of a student against the labels and the teacher's records."""
  x_BLD, head_VD, states_ZBMD = teacher_step.states(params, batch, graphdef)
  _, sums = losses.distillation_loss(
    x_BLD, head_VD, batch.targets, 0.0, objective
  )
  if batch.gram is None:
    return EvalSums(sums, None)
  distance = gram.distance(states_ZBMD, batch.gram)
  return EvalSums(sums, gram.Sums(distance, gram.num_rows(batch.gram)))


def head(params: nnx.State, graphdef: nnx.GraphDef) -> jax.Array:
  """The unembedding of a model, [V, D]."""
  return nnx.merge(graphdef, params).head_VD
