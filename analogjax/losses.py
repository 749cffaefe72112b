"""Distillation losses, from hidden states and the unembedding.

Sparse distillation needs the log-sum-exp of the student's logits and the few
logits that its target names: L = lse(x) - sum_k p_k x_k. So nothing here holds
[B, L, V]: the positions are walked in chunks, and the chunk that computes the
loss computes its gradient too (q - p), while its logits are there.

Every loss is a sum over tokens, in nats; the caller divides by one count.

Shape letters (docs/glossary.md): B batch, L position, S positions of a chunk,
D model width, V vocabulary, K entries of the teacher's record.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from analogjax import sharding

Scalar = jax.Array | float  # On devices, or fetched.


class Targets(NamedTuple):
  """What the student is compared with at each of [B, L] positions."""

  labels_BL: sharding.Array  # int32 next token.
  weights_BL: sharding.Array  # float32; 0 where nothing is predicted.
  # float32, of the teacher's record: the weights, and where only a part of the
  # positions has one, over the probability that this one was captured; else 0.
  teacher_weights_BL: sharding.Array
  ids_BLK: sharding.Array  # int32, the teacher's record; K = 0: no teacher.
  p_BLK: sharding.Array  # float32 of those ids; each position sums to one.


class LossSums(NamedTuple):
  """Sums over all weighted positions, float32 scalars."""

  hard: Scalar  # Cross-entropy to the next token, nats.
  teacher: Scalar  # Cross-entropy to the teacher's record, nats.
  correct: Scalar  # Positions whose next token is the likeliest.
  weight: Scalar  # Sum of the weights: divide by it.


def mixed_cross_entropy(
  x_BLD: jax.Array,
  head_VD: jax.Array,
  targets: Targets,
  alpha: jax.Array,
  *,
  chunk: int,
) -> tuple[jax.Array, LossSums]:
  """alpha x cross-entropy to the teacher + (1 - alpha) x to the next token.

  The gradient flows through the first result alone, to x_BLD and head_VD. The
  cross-entropy to the teacher differs from the forward KL(teacher || student)
  by the teacher's entropy, which has no gradient.

  Args:
    x_BLD: final hidden states, in the compute dtype.
    head_VD: the unembedding; cast to the dtype of x_BLD for the product.
    targets: labels, weights and the teacher's records.
    alpha: float32 scalar in [0, 1].
    chunk: positions of a row whose logits exist at a time, [B, S, V].

  Returns:
    The weighted sum over the batch, float32, and the sums for the metrics.

  Source: Sparse Logit Sampling, arXiv:2503.16870, eq. 1 (gradient q - p), with
  the hard label as one more entry of the target.
  """
  chunk = min(chunk, x_BLD.shape[1])
  pad = -x_BLD.shape[1] % chunk
  if pad:  # Padded positions carry weight 0.
    x_BLD, targets = jax.tree.map(
      lambda a: jnp.pad(a, ((0, 0), (0, pad)) + ((0, 0),) * (a.ndim - 2)),
      (x_BLD, targets),
    )
  return _mixed(x_BLD, head_VD, targets, jnp.asarray(alpha), chunk)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _mixed(x_BLD, head_VD, targets, alpha, chunk):
  def body(sums, piece):
    x_BSD, piece = piece
    logits_BSV = unembed(x_BSD, head_VD)
    new, _ = _sums(logits_BSV, piece)
    return jax.tree.map(jnp.add, sums, new), None

  pieces = _split((x_BLD, targets), chunk)
  sums, _ = jax.lax.scan(body, LossSums(*(jnp.zeros(()),) * 4), pieces)
  return _mix(sums.teacher, sums.hard, alpha), sums


def _mixed_forward(x_BLD, head_VD, targets, alpha, chunk):
  def body(carry, piece):
    sums, dhead_VD = carry
    x_BSD, piece = piece
    logits_BSV = unembed(x_BSD, head_VD)
    new, lse_BS = _sums(logits_BSV, piece)
    # The gradient q - p, with the hard label as an entry beside the teacher's.
    d_BSV = jnp.exp(logits_BSV - lse_BS[..., None])
    d_BSV = (
      d_BSV * _mix(piece.teacher_weights_BL, piece.weights_BL, alpha)[..., None]
    )
    d_BSV = _subtract_at(d_BSV, *_entries(piece, alpha))
    d_BSV = sharding.constrain(d_BSV.astype(x_BSD.dtype), "BLV")
    head = head_VD.astype(x_BSD.dtype)
    dx_BSD = jnp.einsum("BSV,VD->BSD", d_BSV, head)
    dhead_VD += jnp.einsum(
      "BSV,BSD->VD", d_BSV, x_BSD, preferred_element_type=jnp.float32
    )
    return (jax.tree.map(jnp.add, sums, new), dhead_VD), dx_BSD

  pieces = _split((x_BLD, targets), chunk)
  start = LossSums(*(jnp.zeros(()),) * 4), jnp.zeros(head_VD.shape)
  (sums, dhead_VD), dx = jax.lax.scan(body, start, pieces)
  dx_BLD = jnp.moveaxis(dx, 0, 1).reshape(x_BLD.shape)
  return (_mix(sums.teacher, sums.hard, alpha), sums), (
    dx_BLD,
    dhead_VD.astype(head_VD.dtype),
  )


def _mixed_backward(chunk, residuals, cotangents):
  scale, _ = cotangents
  dx_BLD, dhead_VD = residuals
  # Not a product in bfloat16: `scale` is one over a count of tokens, and its
  # rounding would stretch every gradient below the head by the same factor.
  scaled_BLD = dx_BLD.astype(jnp.float32) * scale
  dhead_VD = dhead_VD.astype(jnp.float32) * scale
  return scaled_BLD.astype(dx_BLD.dtype), dhead_VD, None, None


_mixed.defvjp(_mixed_forward, _mixed_backward)


def _split(tree, chunk):
  """[B, L, ...] -> [L / S, B, S, ...]: rows stay where they are."""

  def split(a):
    B, L, *rest = a.shape
    return jnp.moveaxis(a.reshape(B, L // chunk, chunk, *rest), 1, 0)

  return jax.tree.map(split, tree)


def unembed(x_BSD: jax.Array, head_VD: jax.Array) -> jax.Array:
  """Logits [B, S, V] in float32, the product in the dtype of x_BSD."""
  logits_BSV = jnp.einsum(
    "BSD,VD->BSV",
    x_BSD,
    head_VD.astype(x_BSD.dtype),
    preferred_element_type=jnp.float32,
  )
  return sharding.constrain(logits_BSV, "BLV")


def _sums(logits_BSV, piece):
  w_BS = piece.weights_BL
  lse_BS = jax.nn.logsumexp(logits_BSV, axis=-1)
  label_BS = _take(logits_BSV, piece.labels_BL[..., None])[..., 0]
  teacher_BS = jnp.sum(_take(logits_BSV, piece.ids_BLK) * piece.p_BLK, axis=-1)
  correct_BS = label_BS >= jnp.max(logits_BSV, axis=-1)
  sums = LossSums(
    hard=jnp.sum((lse_BS - label_BS) * w_BS),
    teacher=jnp.sum((lse_BS - teacher_BS) * piece.teacher_weights_BL),
    correct=jnp.sum(correct_BS * w_BS),
    weight=jnp.sum(w_BS),
  )
  return sums, lse_BS


def _entries(piece, alpha):
  """The record and the hard label as one sparse target: ids and weights."""
  ids = jnp.concatenate([piece.ids_BLK, piece.labels_BL[..., None]], axis=-1)
  shares = [
    piece.p_BLK * (alpha * piece.teacher_weights_BL)[..., None],
    ((1 - alpha) * piece.weights_BL)[..., None],
  ]
  return ids, jnp.concatenate(shares, axis=-1)


def _take(logits_BSV, ids_BSK):
  return jnp.take_along_axis(logits_BSV, ids_BSK, axis=-1)


def _subtract_at(d_BSV, ids_BSK, p_BSK):
  subtract = jax.vmap(jax.vmap(lambda d_V, ids_K, p_K: d_V.at[ids_K].add(-p_K)))
  return subtract(d_BSV, ids_BSK, p_BSK)


def _mix(teacher, hard, alpha):
  return alpha * teacher + (1 - alpha) * hard
