"""Distributions over a vocabulary, as integers, whole or split over devices.

A probability becomes an integer, its share of 2^30, and a mass is a sum of such
integers. Integers add up to the same bits in any order, so neither the mesh nor
the blocks of a search can change what is drawn.

Nothing of size V is written: each pass over the logits computes the
exponentials anew. That is cheaper than memory, and a search looks into few
blocks.

Shape letters (docs/glossary.md): B batch, L position, V vocabulary, J blocks of
the vocabulary, I ids within a block, X points to find. A device that holds a
part of the vocabulary has its own V, J and I.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Integers below 2^31 have to hold the sum of all shares, which may exceed one
# by half a share for every id.
ONE = 1 << 30
MAX_V = 1 << 20
NEVER = (1 << 31) - 1  # A threshold that no share reaches.

# Entropies and logarithms are below log(2^20) = 14 nats.
_ENTROPY_ONE = 1 << 26
_LN2_31 = 1_488_522_236  # log(2) in units of 2^-31.


class Split(NamedTuple):
  """The split of the vocabulary: over a mesh axis, or none."""

  axis: str | None

  def sum(self, x: jax.Array) -> jax.Array:
    return x if self.axis is None else jax.lax.psum(x, self.axis)

  def max(self, x: jax.Array) -> jax.Array:
    return x if self.axis is None else jax.lax.pmax(x, self.axis)

  def index(self) -> jax.Array | int:
    return 0 if self.axis is None else jax.lax.axis_index(self.axis)

  def size(self) -> int:
    return 1 if self.axis is None else jax.lax.axis_size(self.axis)

  def gather(self, x: jax.Array) -> jax.Array:
    """[..., K] of every device, in order of id: [..., devices K]."""
    if self.axis is None:
      return x
    return jax.lax.all_gather(x, self.axis, axis=x.ndim - 1, tiled=True)

  def before(self, x: jax.Array) -> jax.Array:
    """The sum of x over the devices that hold lower ids."""
    if self.axis is None:
      return jnp.zeros_like(x)
    x_A = jax.lax.all_gather(x, self.axis)
    lower_A = jnp.arange(x_A.shape[0]) < jax.lax.axis_index(self.axis)
    lower_A = jnp.expand_dims(lower_A, tuple(range(1, x_A.ndim)))
    return jnp.sum(jnp.where(lower_A, x_A, 0), axis=0)


class Logits(NamedTuple):
  """Logits by blocks, with the sum of their softmax."""

  z_BLJI: jax.Array  # float32; -inf fills up the last block.
  V: int  # Ids that this device holds.
  top_BL1: jax.Array  # Over the whole vocabulary, as is the next.
  sum_BL1: jax.Array  # Of exp(z - top); NaN if top is not finite.
  log_BL: jax.Array  # Of the sum, int32 in units of 2^-26.

  def logprobs(self, z_BLX: jax.Array) -> jax.Array:
    return (z_BLX - self.top_BL1) - nats(self.log_BL)[..., None]

  def shares(self, z_BLXI: jax.Array) -> jax.Array:
    """The shares, int32, of some blocks of the logits."""
    e_BLXI = jnp.exp(z_BLXI - self.top_BL1[..., None])
    scale_BL11 = (ONE / self.sum_BL1)[..., None]
    return jnp.round(e_BLXI * scale_BL11).astype(jnp.int32)

  def id_of(self, block, inner, split: Split) -> jax.Array:
    """The id in the whole vocabulary."""
    size = self.z_BLJI.shape[-1]
    return split.index() * self.V + block * size + inner

  def take(self, ids_BL: jax.Array, split: Split) -> jax.Array:
    """One logit of each position, whichever device holds it."""
    own_BL = ids_BL - split.index() * self.V
    is_here_BL = (own_BL >= 0) & (own_BL < self.V)
    z_BLV = self.z_BLJI.reshape(*self.z_BLJI.shape[:2], -1)
    own_BL1 = jnp.where(is_here_BL, own_BL, 0)[..., None]
    z_BL = jnp.take_along_axis(z_BLV, own_BL1, axis=-1)[..., 0]
    return split.sum(jnp.where(is_here_BL, z_BL, 0.0))


def normalize(logits_BLV: jax.Array, size: int, split: Split) -> Logits:
  """Logits in blocks of `size` ids, with the sum of their softmax."""
  V = logits_BLV.shape[-1]
  if padding := -V % size:
    logits_BLV = jnp.pad(
      logits_BLV, ((0, 0), (0, 0), (0, padding)), constant_values=-jnp.inf
    )
  # Barrier: otherwise every pass would recompute the logits' producer (a
  # division, a tanh), and perhaps round it differently.
  logits_BLV = jax.lax.optimization_barrier(logits_BLV)
  z_BLJI = logits_BLV.reshape(*logits_BLV.shape[:2], -1, size)
  return Logits(z_BLJI, V, *_top_and_sum(z_BLJI, split))


def log_rest(logits: Logits, k: int, split: Split) -> tuple:
  """The k likeliest ids, and the log of the mass of all others.

  The others are summed separately, by their own maximum: one minus the mass of
  the k would cancel.

  Returns:
    ids [B, L, K], their logits, and the log-mass [B, L], -inf where it is 0.
  """
  V = logits.V * split.size()
  # Barrier: otherwise the search for them would be part of the pass over V
  # below, repeated for each id.
  z_BLK, ids_BLK = jax.lax.optimization_barrier(
    top(logits, min(k + 1, V), split)
  )
  if k == V:
    log_BL = jnp.full(z_BLK.shape[:2], -jnp.inf)
    return ids_BLK, z_BLK, log_BL
  rest_top_BL1, rest_id_BL1 = z_BLK[..., k:], ids_BLK[..., k:]
  # The first of the rest by rank; the rest are the ids not before it.
  z_BLJI = logits.z_BLJI
  J, size = z_BLJI.shape[2:]
  iota_11JI = jax.lax.broadcasted_iota(jnp.int32, (1, 1, J, size), 2) * size
  iota_11JI += jax.lax.broadcasted_iota(jnp.int32, (1, 1, J, size), 3)
  own_id_BL11 = (rest_id_BL1 - split.index() * logits.V)[..., None]
  rest_top_BL11 = rest_top_BL1[..., None]
  is_rest_BLJI = (z_BLJI < rest_top_BL11) | (
    (z_BLJI == rest_top_BL11) & (iota_11JI >= own_id_BL11)
  )
  e_BLJI = jnp.where(is_rest_BLJI, jnp.exp(z_BLJI - rest_top_BL11), 0.0)
  log_BL = _log(*_sum(e_BLJI, split))
  below_BL = (rest_top_BL1 - logits.top_BL1)[..., 0]
  log_BL = below_BL + nats(log_BL - logits.log_BL)
  log_BL = jnp.where(below_BL == -jnp.inf, -jnp.inf, log_BL)
  return ids_BLK[..., :k], z_BLK[..., :k], log_BL


def _top_and_sum(z_BLJI, split):
  """The maximum, the sum of exp(z - maximum), and the sum's logarithm.

  The bits are equal on every mesh.
  """
  top_BL1 = split.max(jnp.max(z_BLJI, axis=(2, 3))[..., None])
  high_BL, low_BL = _sum(jnp.exp(z_BLJI - top_BL1[..., None]), split)
  sum_BL = high_BL.astype(jnp.float32) * 2.0**-3
  sum_BL += low_BL.astype(jnp.float32) * 2.0**-30
  # A float that is NaN or infinite is lost when it becomes an integer.
  sum_BL1 = jnp.where(jnp.isfinite(top_BL1), sum_BL[..., None], jnp.nan)
  # Barrier: otherwise the exponentials of this pass would be written, all V of
  # them, for the next one to read.
  top_BL1 = jax.lax.optimization_barrier(top_BL1)
  return top_BL1, sum_BL1, _log(high_BL, low_BL)


def _sum(e_BLJI, split):
  """The sum of numbers in [0, 1], as 2^-3 high + 2^-30 low.

  It may need 50 bits, so it is added in three words, of 2^-3, 2^-15 and 2^-30.
  """
  e_BLJI = jnp.round(e_BLJI * ONE).astype(jnp.int32)
  high_BLJ, low_BLJ = _block_sums(e_BLJI >> 15, e_BLJI & 0x7FFF)
  high_BLJ += low_BLJ >> 15
  words = jnp.stack([high_BLJ >> 12, high_BLJ & 0xFFF, low_BLJ & 0x7FFF])
  high_BL, middle_BL, low_BL = split.sum(jnp.sum(words, axis=-1))
  middle_BL += low_BL >> 15
  high_BL += middle_BL >> 12
  return high_BL, (middle_BL & 0xFFF) << 15 | (low_BL & 0x7FFF)


def _log(high, low):
  """The natural logarithm of 2^-3 high + 2^-30 low, at least 1, in 2^-26.

  It is computed by repeated squaring, one bit of log2 at a time. Rounding of a
  device's own logarithm is not defined: XLA's on a CPU differs between the
  elements that fill a vector register and the remaining ones.
  """
  zeros = jax.lax.clz(high)
  rest = jnp.where(
    zeros >= 27,
    low << jnp.maximum(zeros - 27, 0),
    low >> jnp.maximum(27 - zeros, 0),
  )
  mantissa = (high << zeros | rest).astype(jnp.uint32)

  def step(_, carry):
    log2, mantissa = carry
    square = product_high(mantissa, mantissa)
    carries = square >> 31
    return log2 << 1 | carries.astype(jnp.int32), square << (1 - carries)

  log2, _ = jax.lax.fori_loop(0, 26, step, (28 - zeros, mantissa))
  return product_high(log2 << 1, jnp.uint32(_LN2_31)).astype(jnp.int32)


def nats(log: jax.Array) -> jax.Array:
  """float32 of a logarithm or entropy in units of 2^-26."""
  return log.astype(jnp.float32) / _ENTROPY_ONE


def product_high(a: jax.Array, b: jax.Array) -> jax.Array:
  """floor(a b / 2^32), uint32, by halves: not every device has 64 bits."""
  a, b = a.astype(jnp.uint32), b.astype(jnp.uint32)
  a_low, a_high, b_low, b_high = a & 0xFFFF, a >> 16, b & 0xFFFF, b >> 16
  middle = a_high * b_low + (a_low * b_low >> 16)
  other = a_low * b_high + (middle & 0xFFFF)
  return a_high * b_high + (middle >> 16) + (other >> 16)


def top(logits: Logits, k: int, split: Split) -> tuple[jax.Array, jax.Array]:
  """The k largest logits, falling, and their ids; of equals, the lowest ids."""
  B, L, J, size = logits.z_BLJI.shape
  z_BLJI, block_BLX = logits.z_BLJI, jnp.arange(J)[None, None]
  if k < J:
    # The k largest are in the k blocks with the largest maxima; of equal
    # maxima, in the first ones.
    _, block_BLX = jax.lax.top_k(jnp.max(z_BLJI, axis=-1), k)
    block_BLX = jnp.sort(block_BLX, axis=-1)
    z_BLJI = take_blocks(z_BLJI, block_BLX)
  # Not more than there are ids: the filling of the last block stays out.
  z_BLK, at_BLK = jax.lax.top_k(z_BLJI.reshape(B, L, -1), min(k, logits.V))
  block_BLX = jnp.broadcast_to(block_BLX, z_BLJI.shape[:3])
  block_BLK = jnp.take_along_axis(block_BLX, at_BLK // size, axis=-1)
  ids_BLK = logits.id_of(block_BLK, at_BLK % size, split)
  if split.axis is None:
    return z_BLK, ids_BLK
  z_BLK, at_BLK = jax.lax.top_k(split.gather(z_BLK), k)
  return z_BLK, jnp.take_along_axis(split.gather(ids_BLK), at_BLK, axis=-1)


class Masses(NamedTuple):
  """Sums over the ids of each block, int32, and the entropy."""

  all_BLJ: jax.Array  # Of shares.
  head_BLJ: jax.Array  # Of the shares that are at least the threshold.
  num_head_BLJ: jax.Array  # How many are.
  entropy_BL: jax.Array  # float32, nats, over the whole vocabulary.


def masses(logits: Logits, threshold: int, split: Split) -> Masses:
  """One pass over the logits."""
  share_BLJI = logits.shares(logits.z_BLJI)
  # -sum p log p, without the term subtracted from each logarithm.
  x_BLJI = logits.z_BLJI - logits.top_BL1[..., None]
  e_BLJI = jnp.exp(x_BLJI)
  scale_BL11 = (-_ENTROPY_ONE / logits.sum_BL1)[..., None]
  # 0 log 0 = 0: a teacher may rule out ids with a logit of -infinity.
  terms_BLJI = jnp.where(e_BLJI > 0, e_BLJI * x_BLJI, 0.0)
  terms_BLJI = jnp.round(terms_BLJI * scale_BL11).astype(jnp.int32)
  is_head_BLJI = share_BLJI >= threshold
  # NaN is counted in the upper half. The maximum does not reveal it: XLA's on a
  # CPU skips NaN, and a correction there would cost as much as all of this.
  is_nan_BLJI = x_BLJI != x_BLJI
  counts_BLJI = is_head_BLJI + (is_nan_BLJI.astype(jnp.int32) << 16)
  all_BLJ, head_BLJ, counts_BLJ, terms_BLJ = _block_sums(
    share_BLJI,
    jnp.where(is_head_BLJI, share_BLJI, 0),
    counts_BLJI,
    terms_BLJI,
  )
  num_head_BLJ = counts_BLJ & 0xFFFF
  num_nan_BL = jnp.sum(counts_BLJ >> 16, axis=-1)
  terms_BL, num_nan_BL = split.sum(
    jnp.stack([jnp.sum(terms_BLJ, axis=-1), num_nan_BL])
  )
  entropy_BL = nats(logits.log_BL + terms_BL)
  is_finite_BL = jnp.isfinite(logits.top_BL1[..., 0]) & (num_nan_BL == 0)
  entropy_BL = jnp.where(is_finite_BL, entropy_BL, jnp.nan)
  return Masses(all_BLJ, head_BLJ, num_head_BLJ, entropy_BL)


def _block_sums(*xs_BLJI):
  """Sums over I in one pass, however many arrays."""
  zeros = tuple(jnp.int32(0) for _ in xs_BLJI)

  def add(a, b):
    return tuple(x + y for x, y in zip(a, b, strict=True))

  return jax.lax.reduce(xs_BLJI, zeros, add, (xs_BLJI[0].ndim - 1,))


def find(sums_BLJ: jax.Array, points_BLX: jax.Array) -> tuple:
  """The block of each point, and the point's place in the block.

  Points below 0 or beyond the last block belong to another device.

  Returns:
    block_BLX, within_BLX and whether the point is on this device.
  """
  ends_BLJ = jnp.cumsum(sums_BLJ, axis=-1)
  J = sums_BLJ.shape[-1]
  search = jax.vmap(jax.vmap(lambda e, x: jnp.searchsorted(e, x, "right")))
  block_BLX = search(ends_BLJ, points_BLX).astype(jnp.int32)
  here_BLX = (points_BLX >= 0) & (block_BLX < J)
  block_BLX = jnp.minimum(block_BLX, J - 1)
  starts_BLJ = ends_BLJ - sums_BLJ
  start_BLX = jnp.take_along_axis(starts_BLJ, block_BLX, axis=-1)
  return block_BLX, points_BLX - start_BLX, here_BLX


def find_within(values_BLXI: jax.Array, within_BLX: jax.Array) -> jax.Array:
  """Index in its block of a point, along the sum of the block's values."""
  ends_BLXI = jnp.cumsum(values_BLXI, axis=-1)
  before_BLXI = ends_BLXI <= within_BLX[..., None]
  return jnp.sum(before_BLXI, axis=-1, dtype=jnp.int32)


def take_blocks(x_BLJI: jax.Array, block_BLX: jax.Array) -> jax.Array:
  return jnp.take_along_axis(x_BLJI, block_BLX[..., None], axis=2)


def take(x_BLXI: jax.Array, inner_BLX: jax.Array) -> jax.Array:
  """One number of each block."""
  iota_BLXI = jax.lax.broadcasted_iota(jnp.int32, x_BLXI.shape, 3)
  at_BLXI = iota_BLXI == inner_BLX[..., None]
  return jnp.sum(jnp.where(at_BLXI, x_BLXI, 0), axis=-1)
