"""Distillation losses, from hidden states and the unembedding.

A student's logits enter each loss only through a few numbers per token: their
log-sum-exp, the logits that the target names and, if the target knows the mass
of all other ids, the log-sum-exp of those. So [B, L, V] is never in memory: the
tokens of a device are processed in chunks, and the chunk that computes the loss
computes its gradient too, while it has its logits. For a sum over tokens

  d(loss) / d(x_v) = g_lse q_v + g_rest r_v + (terms of ids named by the target)

with q the student's softmax, r the softmax over the ids that are not named, and
g the derivatives with respect to those few numbers. For forward KL that is (q -
p).

On a mesh, each device of `tensor` holds a part of the vocabulary and exchanges
only those few numbers. The gradient of the unembedding is summed over the mesh
once, after the last chunk.

Every loss is a sum over tokens, in nats; the caller divides by one count.

Shape letters (docs/glossary.md): B batch, L position, T tokens of a device, S
tokens of a chunk, D model width, W width of the teacher, V vocabulary, K
entries of the teacher's record.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from analogjax.cache import batches
from analogjax.config.train import LINEAR
from analogjax.distributed import sharding
from analogjax.distributed.vocabulary import Split
from analogjax.training.divergences import Divergence

Scalar = jax.Array | float  # On devices, or fetched.


class Teacher(NamedTuple):
  """The output of a live teacher."""

  x_BLW: jax.Array  # Its final hidden states, in its compute dtype.
  head_VW: jax.Array  # Its unembedding.
  # int8, for a gram_codes.Sample without codes; not used by the losses here.
  gram_BZP: jax.Array | None = None


class LossSums(NamedTuple):
  """Sums over all weighted positions, float32 scalars."""

  hard: Scalar  # Cross-entropy to the next token, nats.
  # To the teacher, nats: the cross-entropy to a sampled record, otherwise the
  # divergence from a top-k record or a live teacher.
  teacher: Scalar
  correct: Scalar  # Positions whose next token is the likeliest.
  weight: Scalar  # Sum of the weights: the divisor.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """The minimized loss; static, so each objective is its own program.

  The sum over tokens with weight w of

    alpha T^2 w' divergence(teacher, softmax(x / T))
    + (1 - alpha) w cross-entropy(next token, softmax(x)) + z_loss w lse(x)^2

  where w' is the weight of the teacher's record and T the temperature, which
  the teacher's side already includes.

  Source: Hinton et al., arXiv:1503.02531, section 2 (T^2); z-loss: PaLM,
  arXiv:2204.02311, section 5.
  """

  divergence: Divergence = dataclasses.field(default_factory=Divergence)
  temperature: float = 1.0
  z_loss: float = 0.0
  softcap: float | None = None  # Logits are cap tanh(logits / cap).
  teacher_softcap: float | None = None  # The same for a live teacher.
  # Number of ids; further rows of the unembedding are padding. None: all.
  V: int | None = None
  chunk: int = 1024  # Tokens of a device with logits in memory, [S, V].
  # Computes the products with d(loss) / d(logits) in float32, whatever the
  # dtype of the hidden states. It costs time and memory; the rounding to
  # bfloat16 is 2^-9 of each element, without a preferred sign.
  exact_gradient: bool = False


def distillation_loss(
  x_BLD: jax.Array,
  head_VD: jax.Array,
  targets: batches.Targets,
  alpha: jax.Array | float,
  objective: Objective,
  teacher: Teacher | None = None,
) -> tuple[jax.Array, LossSums]:
  """alpha x divergence from the teacher + (1 - alpha) x hard labels.

  The gradient flows only through the first result, to x_BLD and head_VD.

  Args:
    x_BLD: final hidden states, in the compute dtype.
    head_VD: the unembedding; cast to the dtype of x_BLD for the product.
    alpha: float32 scalar in [0, 1].
    teacher: a live teacher, used instead of the records.

  Returns:
    The weighted sum over the batch, float32, and the sums for the metrics.

  Raises:
    ValueError: sampled records cannot estimate the divergence.

  Source: Sparse Logit Sampling, arXiv:2503.16870, eq. 1 (gradient q - p).
  """
  sampled = teacher is None and targets.log_tail_BL is None
  _check_divergence(sampled, objective)
  alpha = jnp.asarray(alpha, jnp.float32)
  return _loss(x_BLD, head_VD, targets, alpha, teacher, objective)


def _check_divergence(sampled: bool, objective: Objective) -> None:
  if sampled and objective.divergence.name not in LINEAR:
    raise ValueError(
      f"divergence {objective.divergence.name!r}: sampled records estimate"
      f" {' and '.join(LINEAR)} alone without bias. Use records of kind 'topk'"
      " or a live teacher."
    )


def distillation_loss_of_logits(
  logits_BLV: jax.Array,
  targets: batches.Targets,
  alpha: jax.Array | float,
  objective: Objective,
) -> tuple[jax.Array, LossSums]:
  """`distillation_loss` of a student whose logits exist, on one device.

  Args:
    logits_BLV: float32, already soft-capped.
    alpha: float32 scalar in [0, 1].
    objective: the loss; V, chunk and softcap are ignored.

  Raises:
    ValueError: sampled records cannot estimate the divergence.
  """
  _check_divergence(targets.log_tail_BL is None, objective)
  objective = dataclasses.replace(objective, softcap=None)
  alpha = jnp.asarray(alpha, jnp.float32)
  z_TV, targets = jax.tree.map(
    lambda a: a.reshape(math.prod(a.shape[:2]), *a.shape[2:]),
    (logits_BLV, targets),
  )
  return _loss_of_logits(z_TV, targets, alpha, objective)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _loss_of_logits(z_TV, targets, alpha, objective):
  split = Split(None)
  return _record_terms(z_TV, targets, alpha, objective, split, False)[0]


def _loss_of_logits_forward(z_TV, targets, alpha, objective):
  split = Split(None)
  return _record_terms(z_TV, targets, alpha, objective, split, True)


def _loss_of_logits_backward(objective, d_TV, cotangents):
  del objective
  return d_TV * cotangents[0], None, None


_loss_of_logits.defvjp(_loss_of_logits_forward, _loss_of_logits_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _loss(x_BLD, head_VD, targets, alpha, teacher, objective):
  return _walk(x_BLD, head_VD, targets, alpha, teacher, objective, False)[0]


def _loss_forward(x_BLD, head_VD, targets, alpha, teacher, objective):
  value, (dx_BLD, dhead_VD) = _walk(
    x_BLD, head_VD, targets, alpha, teacher, objective, True
  )
  return value, (dx_BLD, dhead_VD.astype(head_VD.dtype))


def _loss_backward(objective, residuals, cotangents):
  del objective
  scale, _ = cotangents
  dx_BLD, dhead_VD = residuals
  # Not a product in bfloat16: `scale` is one over a count of tokens, and its
  # rounding would stretch every gradient below the head by the same factor.
  scaled_BLD = dx_BLD.astype(jnp.float32) * scale
  dhead_VD = dhead_VD.astype(jnp.float32) * scale
  return scaled_BLD.astype(dx_BLD.dtype), dhead_VD, None, None, None


_loss.defvjp(_loss_forward, _loss_backward)


def _walk(
  x_BLD, head_VD, targets, alpha, teacher, objective, with_gradient
) -> tuple[Any, Any]:
  """The value and, if wanted, the gradients by x and head; on any mesh."""
  num_rows = head_VD.shape[0]
  mesh = jax.sharding.get_abstract_mesh()
  tensor = sharding.ACTIVATION_AXES["V"]
  ways = 1 if mesh.empty else mesh.shape[tensor]
  size = num_rows if teacher is None else max(num_rows, len(teacher.head_VW))
  size += -size % ways
  head_VD = _fill_up(head_VD.astype(x_BLD.dtype), size)
  if teacher is not None:
    head_VW = _fill_up(teacher.head_VW.astype(teacher.x_BLW.dtype), size)
    teacher = teacher._replace(head_VW=head_VW)
  local = functools.partial(
    _walk_local,
    objective=objective,
    V=objective.V or num_rows,
    with_gradient=with_gradient,
  )
  arguments = x_BLD, head_VD, targets, alpha, teacher
  if mesh.empty:
    value, gradients = local(*arguments, split=Split(None), rows=())
  else:
    rows = sharding.ACTIVATION_AXES["B"]
    if x_BLD.shape[0] % math.prod(mesh.shape[axis] for axis in rows):
      rows = ()  # Every device takes all of them.
    of_teacher = None
    if teacher is not None:
      of_teacher = teacher._replace(x_BLW=P(rows), head_VW=P(tensor))
    width = sharding.WEIGHT_AXES["D"]
    if not rows or head_VD.shape[1] % mesh.shape[width]:
      width = None
    value, gradients = jax.shard_map(
      functools.partial(
        local, split=Split(tensor if ways > 1 else None), rows=rows, width=width
      ),
      in_specs=(P(rows), P(tensor), P(rows), P(), of_teacher),
      out_specs=(P(), (P(rows), P(tensor, width)) if with_gradient else P()),
      # The check cannot see that sums over the mesh are equal on all devices.
      check_vma=False,
    )(*arguments)
  if with_gradient:
    gradients = gradients[0], gradients[1][:num_rows]
  return value, gradients


def _fill_up(head_VD, size):
  missing = size - head_VD.shape[0]
  return jnp.pad(head_VD, ((0, missing), (0, 0))) if missing else head_VD


def _walk_local(
  x_BLD,
  head_VD,
  targets,
  alpha,
  teacher,
  *,
  objective,
  V,
  with_gradient,
  split,
  rows,
  width=None,
) -> tuple[Any, Any]:
  """Does the work of `_walk`, on one device's rows and ids."""
  B, L, D = x_BLD.shape
  S = min(objective.chunk, B * L)
  x_TD, targets, x_TW = jax.tree.map(
    functools.partial(_to_chunks, size=S),
    (x_BLD, targets, None if teacher is None else teacher.x_BLW),
  )

  def body(carry, piece):
    sums, dhead_VD = carry
    x_SD, targets_S, x_SW = piece
    z_SV = _logits(x_SD, head_VD, objective.softcap, V, split)
    if teacher is None:
      value, more = _record_terms(
        z_SV, targets_S, alpha, objective, split, with_gradient
      )
    else:
      softcap = objective.teacher_softcap
      t_SV = _logits(x_SW, teacher.head_VW, softcap, V, split)
      value, more = _dense_terms(
        z_SV, t_SV, targets_S, alpha, objective, split, with_gradient
      )
    sums = jax.tree.map(jnp.add, sums, value)
    if not with_gradient:
      return (sums, dhead_VD), None
    d_SV = more.astype(jnp.float32 if objective.exact_gradient else x_SD.dtype)
    dx_SD = split.sum(_product("SV,VD->SD", d_SV, head_VD))
    dhead_VD += _product("SV,SD->VD", d_SV, x_SD)
    return (sums, dhead_VD), dx_SD.astype(x_SD.dtype)

  zero = jnp.zeros(())
  start = (zero, LossSums(*(zero,) * 4)), ()
  if with_gradient:
    start = start[0], jnp.zeros(head_VD.shape)
  (value, dhead_VD), dx = jax.lax.scan(body, start, (x_TD, targets, x_TW))
  if rows:
    value = jax.lax.psum(value, rows)
  if not with_gradient:
    return value, ()
  assert dx is not None
  dx_BLD = jnp.reshape(dx, (-1, D))[: B * L].reshape(B, L, D)
  if rows:
    if width is not None:
      dhead_VD = jax.lax.psum_scatter(
        dhead_VD, width, scatter_dimension=1, tiled=True
      )
    others = tuple(axis for axis in rows if axis != width)
    dhead_VD = jax.lax.psum(dhead_VD, others)
  return value, (dx_BLD, dhead_VD)


def _to_chunks(a, size):
  """[B, L, ...] -> [chunks, S, ...], filled up with zeros: weight 0."""
  a = a.reshape(math.prod(a.shape[:2]), *a.shape[2:])
  if pad := -len(a) % size:
    a = jnp.pad(a, ((0, pad),) + ((0, 0),) * (a.ndim - 1))
  return a.reshape(len(a) // size, size, *a.shape[1:])


def _product(equation, a, b):
  """Gradient product in the dtype of a, accumulated in float32."""
  return jnp.einsum(
    equation, a, b.astype(a.dtype), preferred_element_type=jnp.float32
  )


def _logits(x_SD, head_VD, softcap, V, split):
  """float32, on this device's ids; -inf where the id does not exist."""
  z_SV = _product("SD,VD->SV", x_SD, head_VD)
  if softcap is not None:
    z_SV = softcap * jnp.tanh(z_SV / softcap)
  size = head_VD.shape[0]
  if V < size * split.size():
    is_id_V = split.index() * size + jnp.arange(size) < V
    z_SV = jnp.where(is_id_V, z_SV, -jnp.inf)
  return z_SV


class _Numbers(NamedTuple):
  """The numbers that a loss needs of a student's logits z."""

  label_S: jax.Array  # The logit of the next token.
  named_SK: jax.Array  # Those that the record names.
  lse_S: jax.Array  # log sum exp z.
  tempered_S: jax.Array  # log sum exp (z / T).
  rest_S: jax.Array  # The same over the ids that the record does not name.


def _record_terms(
  z_SV, targets, alpha, objective, split, with_gradient
) -> tuple[Any, Any]:
  """The loss against a record: (value, sums), and d(value) / d(logits)."""
  T, K = objective.temperature, targets.ids_BLK.shape[-1]
  has_tail = targets.log_tail_BL is not None
  used_SK = targets.p_BLK > 0 if has_tail else jnp.ones((1, K), bool)
  ids_SX = jnp.concatenate(
    [targets.ids_BLK, targets.labels_BL[..., None]], axis=-1
  )
  used_SX = jnp.pad(used_SK, ((0, 0), (0, 1)), constant_values=True)
  size = z_SV.shape[-1]
  own_SX = ids_SX - split.index() * size
  # Ids of other devices are out of bounds, so a scatter leaves them out.
  here_SX = used_SX & (own_SX >= 0) & (own_SX < size)
  own_SX = jnp.where(here_SX, own_SX, size)
  token_S1 = jnp.arange(len(z_SV))[:, None]
  picked_SX = z_SV.at[token_S1, own_SX].get(mode="fill", fill_value=0.0)
  picked_SX = split.sum(picked_SX)
  label_S, named_SK = picked_SX[:, K], picked_SX[:, :K]

  top_S = split.max(jnp.max(z_SV, axis=-1))
  lse_S = _lse(z_SV, top_S, 1.0, split)
  tempered_S = lse_S if T == 1 else _lse(z_SV, top_S, T, split)
  rest_S = jnp.zeros_like(lse_S)
  if has_tail:
    # Summed separately: one minus the mass of the others would cancel.
    z_SV = z_SV.at[token_S1, own_SX[:, :K]].set(-jnp.inf, mode="drop")
    rest_top_S = split.max(jnp.max(z_SV, axis=-1))
    rest_S = _lse(z_SV, rest_top_S, T, split)
  numbers = _Numbers(label_S, named_SK, lse_S, tempered_S, rest_S)

  def of_numbers(n):
    hard_S = n.lse_S - n.label_S
    if not K:
      teacher_S = jnp.zeros_like(hard_S)
    elif not has_tail:
      mean_S = jnp.sum(targets.p_BLK * n.named_SK, axis=-1) / T
      teacher_S = n.tempered_S - mean_S
    else:
      logt_SX, logq_SX = _bins(n, targets, used_SK, T)
      terms_SX = objective.divergence.terms(logt_SX, logq_SX)
      teacher_S = jnp.sum(terms_SX, axis=-1)
    return _totals(hard_S, teacher_S, n.lse_S, targets, alpha, objective)

  (value, sums), g = jax.value_and_grad(of_numbers, has_aux=True)(numbers)
  sums = sums._replace(correct=jnp.sum((label_S >= top_S) * targets.weights_BL))
  if not with_gradient:
    return (value, sums), None

  def through(z, add_rest):
    """Gradients that the log-sum-exps pass to these logits [S, ...]."""
    of_lse_S = g.lse_S + g.tempered_S if T == 1 else g.lse_S
    d = of_lse_S[:, None] * jnp.exp(z - lse_S[:, None])
    if T != 1:
      d += (g.tempered_S / T)[:, None] * jnp.exp(z / T - tempered_S[:, None])
    if add_rest:
      # Where nothing is left all are -inf, and so is the sum.
      safe_S = jnp.where(rest_S == -jnp.inf, 0.0, rest_S)
      d += (g.rest_S / T)[:, None] * jnp.exp(z / T - safe_S[:, None])
    return d * _uncapped(z, objective.softcap)

  d_SV = through(z_SV, add_rest=has_tail)
  direct_SX = jnp.concatenate([g.named_SK, g.label_S[:, None]], axis=-1)
  direct_SX *= _uncapped(picked_SX, objective.softcap)
  if has_tail:
    named_SK = jnp.where(used_SK, named_SK, -jnp.inf)
    direct_SX = direct_SX.at[:, :K].add(through(named_SK, add_rest=False))
  return (value, sums), d_SV.at[token_S1, own_SX].add(direct_SX, mode="drop")


def _bins(n: _Numbers, targets, used_SK, T):
  """Logarithms of teacher and student over the record's ids and the rest."""
  logt_SK = jnp.log(jnp.where(used_SK, targets.p_BLK, 1.0))
  logt_SX = jnp.concatenate([logt_SK, targets.log_tail_BL[:, None]], axis=-1)
  logq_SX = jnp.concatenate([n.named_SK / T, n.rest_S[:, None]], axis=-1)
  logq_SX -= n.tempered_S[:, None]
  # The student has no mass outside if the record names all ids.
  is_bin_SX = jnp.concatenate([used_SK, n.rest_S[:, None] > -jnp.inf], axis=-1)
  absent = -jnp.inf
  return (jnp.where(is_bin_SX, log, absent) for log in (logt_SX, logq_SX))


def _dense_terms(
  z_SV, t_SV, targets, alpha, objective, split, with_gradient
) -> tuple[Any, Any]:
  """The loss against all of a teacher's logits t; see `_record_terms`."""
  T = objective.temperature
  top_S = split.max(jnp.max(z_SV, axis=-1))
  lse_S = _lse(z_SV, top_S, 1.0, split)
  tempered_S = lse_S if T == 1 else _lse(z_SV, top_S, T, split)
  t_top_S = split.max(jnp.max(t_SV, axis=-1))
  logt_SV = t_SV / T - _lse(t_SV, t_top_S, T, split)[:, None]
  logq_SV = z_SV / T - tempered_S[:, None]
  terms_SV, slopes_SV = objective.divergence.slopes(logt_SV, logq_SV)
  teacher_S, slope_S = split.sum(
    jnp.stack([jnp.sum(terms_SV, axis=-1), jnp.sum(slopes_SV, axis=-1)])
  )
  own_S = targets.labels_BL - split.index() * z_SV.shape[-1]
  here_S = (own_S >= 0) & (own_S < z_SV.shape[-1])
  own_S = jnp.where(here_S, own_S, z_SV.shape[-1])
  token_S = jnp.arange(len(z_SV))
  label_S = z_SV.at[token_S, own_S].get(mode="fill", fill_value=0.0)
  label_S = split.sum(label_S)

  def of_numbers(label_S, lse_S, teacher_S):
    hard_S = lse_S - label_S
    return _totals(hard_S, teacher_S, lse_S, targets, alpha, objective)

  (value, sums), g = jax.value_and_grad(
    of_numbers, argnums=(0, 1, 2), has_aux=True
  )(label_S, lse_S, teacher_S)
  sums = sums._replace(correct=jnp.sum((label_S >= top_S) * targets.weights_BL))
  if not with_gradient:
    return (value, sums), None
  d_SV = slopes_SV - jnp.exp(logq_SV) * slope_S[:, None]
  d_SV *= (g[2] / T)[:, None]
  d_SV += g[1][:, None] * jnp.exp(z_SV - lse_S[:, None])
  d_SV = d_SV.at[token_S, own_S].add(g[0], mode="drop")
  return (value, sums), d_SV * _uncapped(z_SV, objective.softcap)


def _totals(hard_S, teacher_S, lse_S, targets, alpha, objective):
  """The value, and the sums that have no gradient."""
  w_S, teacher_w_S = targets.weights_BL, targets.teacher_weights_BL
  sums = LossSums(
    hard=jnp.sum(hard_S * w_S),
    teacher=jnp.sum(teacher_S * teacher_w_S),
    correct=jnp.zeros(()),
    weight=jnp.sum(w_S),
  )
  value = alpha * objective.temperature**2 * sums.teacher
  value += (1 - alpha) * sums.hard
  if objective.z_loss:
    value += objective.z_loss * jnp.sum(jnp.square(lse_S) * w_S)
  return value, sums


def _lse(z_SV, top_S, T, split):
  """log sum exp (z / T) over all ids; -inf where all logits are."""
  safe_S = jnp.where(top_S == -jnp.inf, 0.0, top_S)
  sum_S = split.sum(jnp.sum(jnp.exp((z_SV - safe_S[:, None]) / T), axis=-1))
  return safe_S / T + jnp.log(sum_S)


def _uncapped(z, softcap):
  """d(z) / d(logit before the cap); any number where z is -inf."""
  if softcap is None:
    return 1.0
  return 1 - jnp.square(jnp.maximum(z, -softcap) / softcap)
