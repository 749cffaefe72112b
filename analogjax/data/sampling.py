"""Turns a teacher's distribution into a few ids and one byte each, unbiased.

Threshold sampling with one threshold tau for the whole cache. The head, every
token with p >= tau, is kept with its own probability. Of the tail, n =
floor(tail mass / tau) tokens (at least one) are drawn at the common weight
tail mass / n, by systematic sampling: points at equal distance along the
cumulative sum of the tail's probabilities, shifted by one uniform offset. A
tail token is drawn with probability p / weight <= 1, so the expected record is
the teacher's distribution, and its weights sum to one.

Shape letters (docs/glossary.md): B batch, L position, V vocabulary, K slots of
a record. Here also J, blocks of the vocabulary, and I, ids within a block.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from analogjax import sharding

# Codes of a slot: how its probability is stored in one byte.
EMPTY = 0
TAIL = 1
FIRST_HEAD = 2
LAST_HEAD = 255  # Probability 1; FIRST_HEAD is probability tau.

_BLOCK = 64  # Ids per block of the two-level search.


class Records(NamedTuple):
  """What the cache keeps of the teacher, for [B, L] positions."""

  ids_BLK: sharding.Array  # int32; 0 in empty slots.
  codes_BLK: sharding.Array  # uint8: EMPTY, TAIL, or a head probability.
  entropy_BL: sharding.Array  # float32, of the teacher, nats.
  label_logprob_BL: sharding.Array  # float32, log p of the next token.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Threshold:
  """The threshold sampler and its one parameter."""

  tau: float  # Probabilities from here up are kept exactly.

  def __post_init__(self):
    # Below 1e-3 the head codes are too coarse and the records too long.
    if not 1e-3 <= self.tau <= 1:
      raise ValueError(
        f"cache.tau: expected 0.001 to 1, found {self.tau}; 0.04 keeps about"
        " 15 ids a token."
      )

  @property
  def num_slots(self) -> int:
    """K. The head fits tau into its mass h times, the tail n times."""
    return math.floor(1 / self.tau + 1e-9) + 1


def head_levels(tau: float) -> np.ndarray:
  """The probability of each of the 256 codes, float64, equal log steps."""
  levels = np.zeros(256)
  count = LAST_HEAD - FIRST_HEAD
  levels[FIRST_HEAD:] = tau ** (1 - np.arange(count + 1) / count)
  return levels


def row_keys(digests_B32: np.ndarray, seed: int) -> np.ndarray:
  """Counter-based random keys, uint32 [B, 2], one for each row.

  A key depends on the seed and the row's digest alone, so every mesh, batch
  size and restart draws the same targets for the same row.
  """
  words = np.ascontiguousarray(digests_B32[:, :8]).view("<u4")
  mixed = np.array([seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF], "<u4")
  return words ^ mixed[None]


def draw(
  logits_BLV: jax.Array,
  labels_BL: jax.Array,
  keys_B2: jax.Array,
  first_position: jax.Array,
  sampler: Threshold,
) -> Records:
  """Samples one record for each position.

  Args:
    logits_BLV: the teacher's, unnormalized; computed in float32.
    labels_BL: int32 next tokens, whose log-probability is recorded.
    keys_B2: uint32 keys of the rows, from `row_keys`.
    first_position: position in the row of logits_BLV[:, 0]; a chunk of a row
      draws what the whole row would.
    sampler: the threshold.

  Returns:
    Records. E[decoded record] is softmax(logits) exactly, up to the float32
    rounding of the cumulative sums.
  """
  logits_BLV = logits_BLV.astype(jnp.float32)
  L = logits_BLV.shape[1]
  top_BL1 = jnp.max(logits_BLV, axis=-1, keepdims=True)
  shifted_BLV = logits_BLV - top_BL1
  # Held, or else each of the sums below would compute the exponentials anew:
  # they are the larger part of the cost.
  exp_BLV = jax.lax.optimization_barrier(jnp.exp(shifted_BLV))
  sum_BL1 = jnp.sum(exp_BLV, axis=-1, keepdims=True)
  log_sum_BL = jnp.log(sum_BL1)[..., 0]
  p_BLV = exp_BLV / sum_BL1
  # 0 log 0 = 0: a teacher may rule out ids with a logit of -infinity.
  terms_BLV = jnp.where(p_BLV > 0, p_BLV * shifted_BLV, 0.0)
  entropy_BL = log_sum_BL - jnp.sum(terms_BLV, axis=-1)
  label_BL1 = jnp.take_along_axis(shifted_BLV, labels_BL[..., None], axis=-1)
  label_logprob_BL = label_BL1[..., 0] - log_sum_BL

  positions_L = first_position + jnp.arange(L)
  uniform_BLC = jax.vmap(
    lambda key: jax.vmap(lambda i: _uniform(key, i, sampler.num_slots + 1))(
      positions_L
    )
  )(keys_B2)
  ids_BLK, codes_BLK = _pick(p_BLV, uniform_BLC, sampler)
  return Records(
    ids_BLK=ids_BLK,
    codes_BLK=codes_BLK,
    entropy_BL=entropy_BL,
    label_logprob_BL=label_logprob_BL,
  )


def _uniform(key_2, position, count):
  key = jax.random.wrap_key_data(key_2, impl="threefry2x32")
  return jax.random.uniform(jax.random.fold_in(key, position), (count,))


def _pick(p_BLV, uniform_BLC, sampler):
  """The slots: first the head in order of id, then the drawn tail."""
  K = sampler.num_slots
  V = p_BLV.shape[-1]
  padding = -V % _BLOCK
  p_BLJI = jnp.pad(p_BLV, ((0, 0), (0, 0), (0, padding))).reshape(
    *p_BLV.shape[:2], -1, _BLOCK
  )
  is_head_BLJI = p_BLJI >= sampler.tau
  # Two levels: sums by block, then a search inside the K blocks that were hit,
  # is cheaper than one cumulative sum over V (and is what a vocabulary that is
  # split over devices needs).
  heads_BLJ = jnp.cumsum(is_head_BLJI.sum(-1, dtype=jnp.int32), axis=-1)
  tail_BLJ = jnp.where(is_head_BLJI, 0.0, p_BLJI).sum(-1)
  # A parallel cumulative sum rounds at every block, up or down: without this
  # a point could fall into a block that has no tail, even beyond V.
  tails_BLJ = jnp.where(tail_BLJ > 0, jnp.cumsum(tail_BLJ, axis=-1), 0.0)
  tails_BLJ = jax.lax.cummax(tails_BLJ, axis=2)

  num_heads_BL1 = heads_BLJ[..., -1:]
  tail_BL1 = tails_BLJ[..., -1:]
  # Without a head the tail is 1, and 1 / tau often whole. Then rounding, which
  # every mesh does differently, must not decide how many are drawn.
  num_tails_BL1 = jnp.floor(tail_BL1 / sampler.tau * (1 + 1e-5))
  num_tails_BL1 = num_tails_BL1.astype(jnp.int32)
  # Rounding could let h + n exceed the slots by one when p = tau often.
  num_tails_BL1 = jnp.clip(num_tails_BL1, 1, K - num_heads_BL1)
  num_tails_BL1 = jnp.where(tail_BL1 > 0, num_tails_BL1, 0)
  spacing_BL1 = tail_BL1 / jnp.maximum(num_tails_BL1, 1)

  slot_K = jnp.arange(K, dtype=jnp.int32)[None, None]
  is_head_BLK = slot_K < num_heads_BL1
  is_tail_BLK = ~is_head_BLK & (slot_K < num_heads_BL1 + num_tails_BL1)
  offset_BL1 = uniform_BLC[..., :1]
  point_BLK = (slot_K - num_heads_BL1 + offset_BL1) * spacing_BL1
  point_BLK = jnp.minimum(point_BLK, jnp.nextafter(tail_BL1, 0.0))

  find = jax.vmap(jax.vmap(lambda cum, x: jnp.searchsorted(cum, x, "right")))
  head_block_BLK = find(heads_BLJ, jnp.broadcast_to(slot_K, point_BLK.shape))
  tail_block_BLK = find(tails_BLJ, point_BLK)
  block_BLK = jnp.where(is_head_BLK, head_block_BLK, tail_block_BLK)
  block_BLK = jnp.minimum(block_BLK, tails_BLJ.shape[-1] - 1)

  p_BLKI = jnp.take_along_axis(p_BLJI, block_BLK[..., None], axis=2)
  head_BLKI = p_BLKI >= sampler.tau
  before_BLK = _before(heads_BLJ, block_BLK)
  rank_BLKI = jnp.cumsum(head_BLKI, axis=-1, dtype=jnp.int32)
  head_hit_BLKI = head_BLKI & (
    rank_BLKI == (slot_K - before_BLK + 1)[..., None]
  )

  rest_BLKI = jnp.where(head_BLKI, 0.0, p_BLKI)
  below_BLKI = jnp.cumsum(rest_BLKI, axis=-1)
  within_BLK = point_BLK - _before(tails_BLJ, block_BLK)
  tail_hit_BLKI = (rest_BLKI > 0) & (below_BLKI > within_BLK[..., None])
  # The two levels round differently: a point on a block's last sliver may lie
  # beyond its inner sum, and then belongs to the block's last tail token.
  last_BLK = _BLOCK - 1 - jnp.argmax(rest_BLKI[..., ::-1] > 0, axis=-1)
  tail_BLK = jnp.where(
    tail_hit_BLKI.any(-1), jnp.argmax(tail_hit_BLKI, axis=-1), last_BLK
  )
  inner_BLK = jnp.where(is_head_BLK, jnp.argmax(head_hit_BLKI, -1), tail_BLK)
  ids_BLK = block_BLK * _BLOCK + inner_BLK
  value_BLK = jnp.take_along_axis(p_BLKI, inner_BLK[..., None], -1)[..., 0]

  codes_BLK = jnp.where(is_tail_BLK, TAIL, EMPTY)
  head_codes_BLK = _encode_head(value_BLK, uniform_BLC[..., 1:], sampler.tau)
  codes_BLK = jnp.where(is_head_BLK, head_codes_BLK, codes_BLK)
  ids_BLK = jnp.where(codes_BLK == EMPTY, 0, ids_BLK)
  return ids_BLK.astype(jnp.int32), codes_BLK.astype(jnp.uint8)


def _before(cumulative_BLJ, block_BLK):
  """What the blocks before a block hold together."""
  previous = jnp.take_along_axis(
    cumulative_BLJ, jnp.maximum(block_BLK - 1, 0), axis=-1
  )
  return jnp.where(block_BLK > 0, previous, 0)


def _encode_head(p_BLK, uniform_BLK, tau):
  """The code below or above p, at random so that the mean decodes to p."""
  levels = jnp.asarray(head_levels(tau), jnp.float32)
  above = jnp.searchsorted(levels[FIRST_HEAD:], p_BLK, "left") + FIRST_HEAD
  above = jnp.clip(above, FIRST_HEAD + 1, LAST_HEAD)
  low, high = levels[above - 1], levels[above]
  take_high = uniform_BLK * (high - low) < p_BLK - low
  return jnp.where(take_high, above, above - 1)


def decode(codes_BLK: np.ndarray, tau: float) -> np.ndarray:
  """The weight of every slot, float32 [B, L, K]; each position sums to one.

  The drawn tail shares what the rounded head leaves. That can be slightly
  below zero where the head holds nearly all mass, and must be, to be unbiased.
  """
  head_BLK = head_levels(tau)[codes_BLK]
  total_BL1 = head_BLK.sum(-1, keepdims=True)
  is_tail_BLK = codes_BLK == TAIL
  num_tails_BL1 = is_tail_BLK.sum(-1, keepdims=True)
  weight_BL1 = (1 - total_BL1) / np.maximum(num_tails_BL1, 1)
  # No tail at all: the head's rounding has nowhere to go.
  alone_BL1 = (num_tails_BL1 == 0) & (total_BL1 > 0)
  head_BLK = head_BLK / np.where(alone_BL1, total_BL1, 1)
  return np.where(is_tail_BLK, weight_BL1, head_BLK).astype(np.float32)
