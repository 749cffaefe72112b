"""The pure functions that the stages compile."""

from typing import Any, NamedTuple

from flax import nnx, struct
import jax
import jax.numpy as jnp
import optax

from analogjax.cache import batches, gram, sampling
from analogjax.distributed import sharding
from analogjax.training import losses


@struct.dataclass
class TrainState:
  """Everything that a checkpoint holds, apart from the data position."""

  step: jax.Array  # int32 scalar: optimizer updates applied so far.
  params: nnx.State  # float32.
  opt_state: optax.OptState


def teacher_step(
  params: nnx.State,
  batch: batches.Batch,
  keys_B2: jax.Array,
  *,
  graphdef: nnx.GraphDef,
  sampler: sampling.Sampler,
  capture: sampling.Capture,
  num_replicas: int,
  temperature: float,
  chunk: int,
  gram_layers: int = 1,
) -> sampling.Records:
  """The teacher's records for one batch of rows.

  Args:
    params: of the teacher.
    batch: rows; inputs, labels, and positions of `gram` if cosines are wanted.
    keys_B2: uint32 keys from `sampling.row_keys`.
    graphdef: of the teacher.
    sampler: which ids are kept.
    capture: which positions have a record.
    num_replicas: M, independent draws of each record.
    temperature: the records are of softmax(logits / temperature).
    chunk: positions of a row whose logits exist at a time, [B, S, V].
    gram_layers: Z, depths at which cosines are taken.
  """
  x_BLD, head_VD, states_ZBMD = _states(params, batch, graphdef, gram_layers)
  L = x_BLD.shape[1]
  chunk = min(chunk, L)
  pad = -L % chunk
  # Chunks run along L, so rows stay on the devices that hold them.
  x_BLD = jnp.pad(x_BLD, ((0, 0), (0, pad), (0, 0)))
  labels_BL = jnp.pad(batch.targets.labels_BL, ((0, 0), (0, pad)))

  def body(_, start):
    x_BSD = jax.lax.dynamic_slice_in_dim(x_BLD, start, chunk, axis=1)
    labels_BS = jax.lax.dynamic_slice_in_dim(labels_BL, start, chunk, axis=1)
    return None, sampling.draw(
      _logits(x_BSD, head_VD, params, graphdef),
      labels_BS,
      keys_B2,
      start,
      sampler,
      capture=capture,
      num_replicas=num_replicas,
      temperature=temperature,
    )

  starts = jnp.arange(0, L + pad, chunk)
  _, pieces = jax.lax.scan(body, None, starts)

  def join(piece):
    # [L / S, B, M, S, K] -> [B, M, L, K], [L / S, B, S] -> [B, L].
    axis = 2 if piece.ndim == 5 else 1
    whole = jnp.moveaxis(piece, 0, axis)
    shape = *whole.shape[:axis], L + pad, *whole.shape[axis + 2 :]
    return jax.lax.slice_in_dim(whole.reshape(shape), 0, L, axis=axis)

  records = jax.tree.map(join, pieces)
  # Where nothing is predicted the label is a filler.
  is_label_BL = batch.targets.weights_BL > 0
  label_logprob_BL = jnp.where(is_label_BL, records.label_logprob_BL, 0.0)
  records = records._replace(label_logprob_BL=label_logprob_BL)
  if batch.gram is not None:
    records = records._replace(gram_BZP=gram.codes(states_ZBMD, batch.gram))
  return records


def expected_ids_step(
  params: nnx.State,
  batch: batches.Batch,
  *,
  graphdef: nnx.GraphDef,
  chunk: int,
) -> jax.Array:
  """How often the teacher expects each id in these rows, float32 [V]."""
  x_BLD, head_VD = _hidden(params, batch, graphdef)
  L = x_BLD.shape[1]
  chunk = min(chunk, L)
  pad = -L % chunk
  x_BLD = jnp.pad(x_BLD, ((0, 0), (0, pad), (0, 0)))
  is_token_BL = jnp.pad(batch.segments_BL > 0, ((0, 0), (0, pad)))

  def body(mass_V, start):
    x_BSD = jax.lax.dynamic_slice_in_dim(x_BLD, start, chunk, axis=1)
    is_token_BS = jax.lax.dynamic_slice_in_dim(is_token_BL, start, chunk, 1)
    p_BSV = jax.nn.softmax(_logits(x_BSD, head_VD, params, graphdef))
    mass_V += jnp.sum(jnp.where(is_token_BS[..., None], p_BSV, 0), (0, 1))
    return mass_V, None

  starts = jnp.arange(0, L + pad, chunk)
  return jax.lax.scan(body, jnp.zeros(head_VD.shape[0]), starts)[0]


def hidden_step(
  params: nnx.State,
  batch: batches.Batch,
  *,
  graphdef: nnx.GraphDef,
  gram_layers: int = 1,
) -> tuple[jax.Array, jax.Array | None]:
  """Final hidden states [B, L, W] of a teacher in the loop, and its Gram.

  What travels to the student's devices, instead of logits: with the teacher's
  unembedding it is all of its distribution. The Gram is int8 [B, Z, P]; None
  where the batch has no positions for it.
  """
  x_BLW, _, states_ZBMW = _states(params, batch, graphdef, gram_layers)
  if batch.gram is None:
    return x_BLW, None
  return x_BLW, gram.codes(states_ZBMW, batch.gram)


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
  out, so XLA reduces the gradients of the layers: there is no collective to
  read here. Metrics are device scalars; the loop fetches them one step late.

  A step whose loss or gradient is not finite updates nothing but the count of
  steps (metric `skipped`): parameters, moments and the optimizer's own count
  stay as they were.

  Args:
    state: before the update.
    batch: rows with labels and, without `teacher`, records; with cosines of
      the teacher, the student's are compared.
    teacher: in the loop, its hidden states of the same rows.
    graphdef: of the student.
    tx: the optimizer.
    objective: the loss.
    alpha: weight of the teacher by step.
    gram_weight: of the mean over rows and depths of `gram.loss`.
    microbatches: equal parts of the batch that go through the model one after
      another; their activations are never there together.
  """
  weight = jnp.maximum(jnp.sum(batch.targets.weights_BL), 1.0)
  alpha_now = jnp.asarray(alpha(state.step), jnp.float32)
  x_BLW = None if teacher is None else teacher.x_BLW
  if teacher is not None and batch.gram is not None:
    sample = batch.gram._replace(codes_BZP=teacher.gram_BZP)
    batch = batch._replace(gram=sample)
  # Of the global batch too: a row counts alike whatever part it falls in.
  rows = 1.0
  if batch.gram is not None:
    rows = jnp.maximum(gram.num_rows(batch.gram), 1.0)

  def loss_fn(params, piece):
    part, x_BLW = piece
    x_BLD, head_VD, states_ZBMD = _states(params, part, graphdef)
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
  """[B, ...] -> [parts, B / parts, ...]; each device keeps the rows it has.

  Part m is the rows m, m + parts, ...: consecutive rows would be one device's.
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

  To find what made a step not finite; all rows may be, and the gradient not.

  Args:
    params: of the student.
    batch: of that step.
    x_BLW: hidden states of a teacher in the loop.
    graphdef: of the student.
  """
  x_BLD, _ = _hidden(params, batch, graphdef)
  targets, tail_BL = batch.targets, batch.targets.log_tail_BL
  if tail_BL is not None:
    # A tail of no mass has the logarithm -inf, and is as it should be.
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
  gram: gram.Sums | None  # Where the batch has cosines of the teacher.


def eval_step(
  params: nnx.State,
  batch: batches.Batch,
  *,
  graphdef: nnx.GraphDef,
  objective: losses.Objective,
) -> EvalSums:
  """How far a student is from the labels and from what the teacher said."""
  x_BLD, head_VD, states_ZBMD = _states(params, batch, graphdef)
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


def _logits(x_BSD, head_VD, params, graphdef):
  """Of a model that is sampled."""
  logits_BSV = losses.unembed(x_BSD, head_VD)
  return nnx.merge(graphdef, params).cap(logits_BSV)


def _hidden(params, batch, graphdef):
  """Final hidden states and the unembedding."""
  return _states(params, batch._replace(gram=None), graphdef)[:2]


def _states(
  params, batch, graphdef, gram_layers=None
) -> tuple[jax.Array, jax.Array, Any]:
  """The same, and the states [Z, B, M, D] that a Gram is made of, or None.

  Args:
    params: of the model.
    batch: with `gram`, if these states are wanted.
    graphdef: of the model.
    gram_layers: Z; None: as many as there are of the teacher's.
  """
  model, sample = nnx.merge(graphdef, params), batch.gram
  x_BLD, states_YBMD = model(
    batch.tokens_BL,
    batch.segments_BL,
    batch.positions_BL,
    probe=None if sample is None else gram.probe(sample),
  )
  if sample is None:
    return x_BLD, model.head_VD, None
  if gram_layers is None:
    gram_layers = sample.codes_BZP.shape[1]
  return x_BLD, model.head_VD, gram.at_depths(states_YBMD, gram_layers)
