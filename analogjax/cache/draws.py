"""The draws of `sampling.py`: which ids of a distribution get a slot.

Shape letters (docs/glossary.md): B batch, M replicas, L position, K slots of a
record, J blocks of the vocabulary, I ids within a block; N draws of a record; X
slots of all replicas.
"""

import functools

import jax
import jax.numpy as jnp

from analogjax.distributed import vocabulary
from analogjax.distributed.vocabulary import Logits, Masses, Split


def bits(
  keys_B2: jax.Array, stream: int, positions_L: jax.Array, count: int
) -> jax.Array:
  """Uniform uint32 [B, L, count] of one stream, e.g. of one replica."""

  def one(key_2, position):
    key = jax.random.wrap_key_data(key_2, impl="threefry2x32")
    key = jax.random.fold_in(jax.random.fold_in(key, stream), position)
    return jax.random.bits(key, (count,))

  return jax.vmap(lambda k: jax.vmap(lambda i: one(k, i))(positions_L))(keys_B2)


def below(uniform: jax.Array, bound: jax.Array) -> jax.Array:
  """Integers in [0, bound) from uniform uint32: floor(uniform bound / 2^32)."""
  return vocabulary.product_high(uniform, bound).astype(jnp.int32)


def threshold(
  logits: Logits,
  masses: Masses,
  least: int,
  bits_BLM1: jax.Array,
  num_slots: int,
  split: Split,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """The head in order of id, then the drawn tail.

  Point k of n is floor((u + k T) / n), with T the tail's mass and u uniform in
  [0, T). Over u and k each of the T unit cells is hit n times, so an id of
  share q is drawn q n / T times on average.

  Args:
    masses: of this device, by the same `least`.
    least: share from which an id belongs to the head.

  Returns:
    [B, L, M, K] for every slot: id, share, is it head, is it tail. Slots that
    are neither are empty, with id and share 0.
  """
  (B, L, M, _), K = bits_BLM1.shape, num_slots
  tail_BLJ = masses.all_BLJ - masses.head_BLJ
  own_2BL = jnp.stack([jnp.sum(tail_BLJ, -1), jnp.sum(masses.num_head_BLJ, -1)])
  tail_BL11, heads_BL11 = split.sum(own_2BL)[..., None, None]
  tail_before_BL11, heads_before_BL11 = split.before(own_2BL)[..., None, None]

  # floor(T / tau) fits into the slots that the head leaves. A tail below tau
  # still has one draw, unless rounding produced both tail and heads.
  n_BL11 = jnp.clip(tail_BL11 // least, 1, K - heads_BL11)
  n_BL11 = jnp.where(tail_BL11 > 0, n_BL11, 0)
  slot_K = jnp.arange(K, dtype=jnp.int32)[None, None, None]
  is_head_BLMK = jnp.broadcast_to(slot_K < heads_BL11, (B, L, M, K))
  is_tail_BLMK = ~is_head_BLMK & (slot_K < heads_BL11 + n_BL11)

  offset_BLM1 = below(bits_BLM1, tail_BL11)
  k_BLMK = slot_K - heads_BL11
  # k T / n by quotient and remainder; the product would not fit.
  n_BL11 = jnp.maximum(n_BL11, 1)
  step_BL11, rest_BL11 = tail_BL11 // n_BL11, tail_BL11 % n_BL11
  point_BLMK = k_BLMK * step_BL11
  point_BLMK += (offset_BLM1 + k_BLMK * rest_BL11) // n_BL11
  point_BLMK = jnp.where(is_tail_BLMK, point_BLMK - tail_before_BL11, -1)
  rank_BLMK = jnp.where(is_head_BLMK, slot_K - heads_before_BL11, -1)

  point_BLX, rank_BLX, is_head_BLX = (
    a.reshape(B, L, M * K) for a in (point_BLMK, rank_BLMK, is_head_BLMK)
  )
  head_found = vocabulary.find(masses.num_head_BLJ, rank_BLX)
  tail_found = vocabulary.find(tail_BLJ, point_BLX)
  block_BLX, within_BLX, is_here_BLX = (
    jnp.where(is_head_BLX, a, b)
    for a, b in zip(head_found, tail_found, strict=True)
  )
  share_BLXI = logits.shares(vocabulary.take_blocks(logits.z_BLJI, block_BLX))
  head_BLXI = share_BLXI >= least
  tail_BLXI = jnp.where(head_BLXI, 0, share_BLXI)
  value_BLXI = jnp.where(is_head_BLX[..., None], head_BLXI, tail_BLXI)
  inner_BLX = vocabulary.find_within(value_BLXI, within_BLX)
  found = jnp.stack(
    [
      logits.id_of(block_BLX, inner_BLX, split),
      vocabulary.take(share_BLXI, inner_BLX),
    ]
  )
  found = split.sum(jnp.where(is_here_BLX, found, 0))
  ids_BLMK, share_BLMK = found.reshape(2, B, L, M, K)
  return ids_BLMK, share_BLMK, is_head_BLMK, is_tail_BLMK


def random(
  logits: Logits, masses: Masses, bits_BLMN: jax.Array, split: Split
) -> tuple[jax.Array, jax.Array]:
  """The distinct ids among N draws, in order, and the count of each."""
  B, L, M, N = bits_BLMN.shape
  own_BL1 = jnp.sum(masses.all_BLJ, -1, keepdims=True)
  point_BLMN = below(bits_BLMN, split.sum(own_BL1)[..., None])
  point_BLX = jnp.sort(point_BLMN, axis=-1).reshape(B, L, M * N)
  point_BLX = point_BLX - split.before(own_BL1)
  block_BLX, within_BLX, is_here_BLX = vocabulary.find(
    masses.all_BLJ, point_BLX
  )
  share_BLXI = logits.shares(vocabulary.take_blocks(logits.z_BLJI, block_BLX))
  inner_BLX = vocabulary.find_within(share_BLXI, within_BLX)
  ids_BLX = logits.id_of(block_BLX, inner_BLX, split)
  ids_BLX = split.sum(jnp.where(is_here_BLX, ids_BLX, 0))

  ids_BLMN = ids_BLX.reshape(B, L, M, N)
  is_new_BLMN = jnp.diff(ids_BLMN, axis=-1, prepend=-1) != 0
  # Runs of equal ids: each ends where the next one starts.
  run_BLMN = jnp.cumsum(is_new_BLMN, axis=-1, dtype=jnp.int32)
  search = functools.partial(jnp.searchsorted, side="right")
  for _ in range(3):
    search = jax.vmap(search, in_axes=(0, None))
  start_BLMN = search(run_BLMN, jnp.arange(N))
  end_BLMN = search(run_BLMN, jnp.arange(1, N + 1))
  first_BLMN = jnp.minimum(start_BLMN, N - 1)
  ids_BLMN = jnp.take_along_axis(ids_BLMN, first_BLMN, axis=-1)
  return ids_BLMN, (end_BLMN - start_BLMN).astype(jnp.int32)
