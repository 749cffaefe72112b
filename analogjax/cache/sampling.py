"""Turns a teacher's distribution into a few ids and one byte each.

Threshold sampling uses one threshold tau for the whole cache. The head, every
token with p >= tau, is kept with its own probability. From the tail, n =
floor(tail mass / tau) tokens (at least one) are drawn at the common weight tail
mass / n, by systematic sampling: points at equal distance along the cumulative
sum of the tail's probabilities, shifted by one uniform offset. A tail token is
drawn with probability p / weight <= 1, so the expected record is the teacher's
distribution, and its weights sum to one.

Random sampling keeps how often each token came in N independent draws, which is
unbiased too. Top-k keeps the likeliest tokens with their own probabilities and
the mass that it leaves out; it is biased.

Shape letters (docs/glossary.md): B batch, M replicas, L position, V vocabulary,
K slots of a record. vocabulary.py holds the operations on logits, slots.py
those on slots.
"""

import dataclasses
import functools
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from analogjax.cache import draws
from analogjax.distributed import sharding, vocabulary

# Codes of a slot: its probability in one byte.
EMPTY = 0
TAIL = 1
FIRST_HEAD = 2
LAST_HEAD = 255  # The highest possible code; FIRST_HEAD is probability tau.

ALWAYS = 255  # The inclusion code of probability 1.

BLOCK = 128  # Ids per block of the two-level search.
# The stream of random bits for capture; no replica uses it.
_CAPTURE_STREAM = 0xFFFFFFFF
# Probabilities within this relative distance of tau count as tau. Otherwise
# rounding would decide where p is tau, or the tail a multiple of it.
_TAU_MARGIN = 2e-6


class Records(NamedTuple):
  """The cache's record of the teacher, for [B, L] positions."""

  ids_BMLK: sharding.Array  # int32; 0 in empty slots.
  # uint8. threshold: EMPTY, TAIL or a head probability; random: how often the
  # id was drawn; topk: 1. EMPTY in all slots of positions not captured.
  codes_BMLK: sharding.Array
  logprobs_BMLK: sharding.Array | None  # float32, log p of the id; topk only.
  # float32, log of the mass outside the K ids; -inf: none. topk only.
  log_tail_BL: sharding.Array | None
  entropy_BL: sharding.Array  # float32, of what is recorded, nats.
  label_logprob_BL: sharding.Array  # float32, of the next token, T = 1.
  # uint8; captured with probability code / ALWAYS; 0: not captured.
  inclusion_BL: sharding.Array
  gram_BZP: sharding.Array | None = None  # int8, see gram_codes.Sample.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Threshold:
  """The threshold sampler and its one parameter."""

  kind: ClassVar[str] = "threshold"
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Random:
  """Independent draws from p.

  Source: Sparse Logit Sampling, arXiv:2503.16870, with proposal p (t = 1).
  """

  kind: ClassVar[str] = "random"
  num_draws: int

  def __post_init__(self):
    if not 1 <= self.num_draws <= 255:  # A count is one byte.
      raise ValueError(
        f"cache.num_draws: expected 1 to 255, found {self.num_draws}; 50 keeps"
        " about 23 different ids a token."
      )

  @property
  def num_slots(self) -> int:
    return self.num_draws


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopK:
  """The likeliest ids; of equally likely ones, the lowest."""

  kind: ClassVar[str] = "topk"
  top_k: int

  def __post_init__(self):
    if not 1 <= self.top_k <= 1024:
      raise ValueError(f"cache.top_k: expected 1 to 1024, found {self.top_k}.")

  @property
  def num_slots(self) -> int:
    return self.top_k


Sampler = Threshold | Random | TopK


def make_sampler(
  kind: str, *, tau: float, num_draws: int, top_k: int
) -> Sampler:
  """The sampler of a config; only its own parameter is used."""
  if kind == "threshold":
    return Threshold(tau=tau)
  if kind == "random":
    return Random(num_draws=num_draws)
  if kind == "topk":
    return TopK(top_k=top_k)
  raise ValueError(
    f"cache.kind: expected 'threshold', 'random' or 'topk', found {kind!r}."
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Capture:
  """Which positions get a record.

  "all": every one. "random": each with probability `rate`. "entropy": with
  probability rate x entropy in nats, at least 1/255 and at most 1. A captured
  position is weighted by one over its probability, to make up for the others.
  """

  kind: str = "all"
  rate: float = 1.0

  def __post_init__(self):
    if self.kind not in ("all", "random", "entropy"):
      raise ValueError(
        "cache.capture: expected 'all', 'random' or 'entropy', found"
        f" {self.kind!r}."
      )
    most = 1 if self.kind == "random" else math.inf
    if self.kind != "all" and not 0 < self.rate <= most:
      bound = "0 to 1, without 0" if most == 1 else "a positive number"
      raise ValueError(
        f"cache.capture_rate: expected {bound}, found {self.rate}."
      )


def head_levels(tau: float) -> np.ndarray:
  """The probability of each of the 256 codes, float64; 0 if not of a head.

  Steps s of the logarithm from tau to 1 are equal. Rounding at random between
  two levels adds a variance of p^2 s^2 / 6 on average. At s = sqrt(tau) / 4
  that is p^2 tau / 96, about a hundredth of what drawing the tail adds, so more
  levels would only cost bytes.
  """
  steps = math.ceil(-4 * math.log(tau) / math.sqrt(tau))
  steps = min(max(steps, 1), LAST_HEAD - FIRST_HEAD)
  levels = np.zeros(256)
  levels[FIRST_HEAD : FIRST_HEAD + steps + 1] = tau ** (
    1 - np.arange(steps + 1) / steps
  )
  return levels


def row_keys(digests_B32: np.ndarray, seed: int) -> np.ndarray:
  """Counter-based random keys, uint32 [B, 2], one for each row.

  A key depends only on the seed and the row's digest, so every mesh, batch size
  and restart draws the same targets for the same row.
  """
  words = np.ascontiguousarray(digests_B32[:, :8]).view("<u4")
  mixed = np.array([seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF], "<u4")
  return words ^ mixed[None]


def draw(
  logits_BLV: jax.Array,
  labels_BL: jax.Array,
  keys_B2: jax.Array,
  first_position: jax.Array | int,
  sampler: Sampler,
  *,
  capture: Capture,
  num_replicas: int,
  temperature: float,
) -> Records:
  """Samples the records of each position, the same ones on every mesh.

  On a mesh each device looks at its own rows and ids; the devices exchange only
  a few numbers for each slot.

  Args:
    logits_BLV: the teacher's, unnormalized; computed in float32.
    labels_BL: int32 next tokens, whose log-probability is recorded.
    keys_B2: uint32 keys of the rows, from `row_keys`.
    first_position: position in the row of logits_BLV[:, 0]; a chunk of a row
      draws what the whole row would.
    num_replicas: M, independent draws of each record.
    temperature: the records are of softmax(logits / temperature).

  Returns:
    Records. E[decoded record] of threshold and random is the softmax, up to
    2^-31 for each id. Where a logit is NaN or +inf, or all are -inf, the
    entropy is NaN.

  Raises:
    ValueError: a vocabulary of more than 2^20 ids, or of fewer than top_k.
  """
  V = logits_BLV.shape[-1]
  if V > vocabulary.MAX_V:
    raise ValueError(
      f"a vocabulary of {V} ids; the most is {vocabulary.MAX_V}."
    )
  if isinstance(sampler, TopK) and sampler.top_k > V:
    raise ValueError(
      f"cache.top_k: {sampler.top_k} is more than the vocabulary's {V} ids."
    )
  local = functools.partial(
    _draw,
    sampler=sampler,
    capture=capture,
    num_replicas=num_replicas,
    temperature=temperature,
  )
  mesh = jax.sharding.get_abstract_mesh()
  arguments = (
    logits_BLV.astype(jnp.float32),
    labels_BL,
    keys_B2,
    jnp.asarray(first_position, jnp.int32),
  )
  if mesh.empty:
    return local(*arguments, split=vocabulary.Split(None))
  rows, tensor = sharding.ACTIVATION_AXES["B"], sharding.ACTIVATION_AXES["V"]
  if logits_BLV.shape[0] % math.prod(mesh.shape[axis] for axis in rows):
    rows = None
  if padding := -V % mesh.shape[tensor]:
    fill = ((0, 0), (0, 0), (0, padding))
    padded_BLV = jnp.pad(arguments[0], fill, constant_values=-jnp.inf)
    arguments = padded_BLV, *arguments[1:]
  axis = tensor if mesh.shape[tensor] > 1 else None
  return jax.shard_map(
    functools.partial(local, split=vocabulary.Split(axis)),
    in_specs=(P(rows, None, tensor), P(rows), P(rows), P()),
    out_specs=P(rows),
    # What the devices of `tensor` gather is equal on all of them, which the
    # check cannot see.
    check_vma=False,
  )(*arguments)


def _draw(
  logits_BLV,
  labels_BL,
  keys_B2,
  first_position,
  *,
  sampler,
  capture,
  num_replicas,
  temperature,
  split,
) -> Records:
  """Does the work of `draw`, on one device's rows and ids."""
  plain = logits = vocabulary.normalize(logits_BLV, BLOCK, split)
  if temperature != 1:
    logits = vocabulary.normalize(logits_BLV / temperature, BLOCK, split)
  threshold = vocabulary.NEVER
  if isinstance(sampler, Threshold):
    threshold = int(sampler.tau * vocabulary.ONE * (1 - _TAU_MARGIN))
  masses = vocabulary.masses(logits, threshold, split)

  def bits(stream, count):
    """Uniform uint32 [B, L, count]."""
    positions_L = first_position + jnp.arange(labels_BL.shape[1])
    return draws.bits(keys_B2, stream, positions_L, count)

  logprobs_BLMK = log_tail_BL = None
  if isinstance(sampler, TopK):
    ids_BLK, z_BLK, log_tail_BL = vocabulary.log_rest(
      logits, sampler.top_k, split
    )
    ids, logprobs_BLMK = (
      jnp.repeat(a_BLK[:, :, None], num_replicas, axis=2)
      for a_BLK in (ids_BLK, logits.logprobs(z_BLK))
    )
    codes = jnp.ones_like(ids)
  else:
    count = sampler.num_slots + isinstance(sampler, Threshold)
    bits_BLMC = jnp.stack([bits(m, count) for m in range(num_replicas)], 2)
    if isinstance(sampler, Threshold):
      ids, share, is_head, is_tail = draws.threshold(
        logits, masses, threshold, bits_BLMC[..., :1], sampler.num_slots, split
      )
      p = share.astype(jnp.float32) / vocabulary.ONE
      codes = _encode_head(p, bits_BLMC[..., 1:], sampler.tau)
      codes = jnp.where(is_head, codes, jnp.where(is_tail, TAIL, EMPTY))
    else:
      ids, codes = draws.random(logits, masses, bits_BLMC, split)

  inclusion_BL = _inclusion(
    masses.entropy_BL, bits(_CAPTURE_STREAM, 1)[..., 0], capture
  )

  def finish(a_BLMK, dtype):
    """Empties slots, and moves the replicas to the front."""
    kept_BLMK = (codes > 0) & (inclusion_BL > 0)[..., None, None]
    return jnp.moveaxis(jnp.where(kept_BLMK, a_BLMK, 0), 2, 1).astype(dtype)

  label_BL1 = plain.take(labels_BL, split)[..., None]
  return Records(
    ids_BMLK=finish(ids, jnp.int32),
    codes_BMLK=finish(codes, jnp.uint8),
    logprobs_BMLK=(
      None if logprobs_BLMK is None else finish(logprobs_BLMK, jnp.float32)
    ),
    log_tail_BL=log_tail_BL,
    entropy_BL=masses.entropy_BL,
    label_logprob_BL=plain.logprobs(label_BL1)[..., 0],
    inclusion_BL=inclusion_BL,
  )


def _inclusion(entropy_BL, bits_BL, capture):
  """Code of the probability of capture where it happens, else 0."""
  if capture.kind == "all":
    return jnp.full(entropy_BL.shape, ALWAYS, jnp.uint8)
  # Rounded up before the draw, so the code is the probability itself.
  if capture.kind == "random":
    code = math.ceil(capture.rate * ALWAYS * (1 - 1e-12))
    code_BL = jnp.full(entropy_BL.shape, code, jnp.int32)
  else:
    wanted_BL = jnp.ceil(entropy_BL * (capture.rate * ALWAYS))
    code_BL = jnp.clip(wanted_BL, 1, ALWAYS).astype(jnp.int32)
  is_kept_BL = draws.below(bits_BL, jnp.int32(ALWAYS)) < code_BL
  return jnp.where(is_kept_BL, code_BL, 0).astype(jnp.uint8)


def _encode_head(p, bits, tau):
  """The code below or above p, at random so that the mean decodes to p."""
  levels = jnp.asarray(head_levels(tau), jnp.float32)
  last = FIRST_HEAD + np.count_nonzero(head_levels(tau)) - 1
  above = jnp.searchsorted(levels[FIRST_HEAD : last + 1], p, "left")
  above = jnp.clip(above + FIRST_HEAD, FIRST_HEAD + 1, last)
  low, high = levels[above - 1], levels[above]
  uniform = (bits >> 8).astype(jnp.float32) * 2.0**-24
  take_high = uniform * (high - low) < p - low
  return jnp.where(take_high, above, above - 1)


def decode(
  codes: np.ndarray, sampler: Sampler, logprobs: np.ndarray | None = None
) -> np.ndarray:
  """The weight of every slot, float32 [..., K]; not captured: all zero.

  Weights of a captured position sum to one for threshold and random, and to the
  mass of its ids for topk. The drawn tail of a threshold record shares what the
  rounded head leaves. That share can be slightly below zero where the head
  holds nearly all mass; it must be, to be unbiased.
  """
  if isinstance(sampler, Random):
    return (codes / np.float32(sampler.num_draws)).astype(np.float32)
  if isinstance(sampler, TopK):
    assert logprobs is not None
    return np.where(codes == EMPTY, 0, np.exp(logprobs)).astype(np.float32)
  head = head_levels(sampler.tau)[codes]
  total = head.sum(-1, keepdims=True)
  is_tail = codes == TAIL
  num_tails = is_tail.sum(-1, keepdims=True)
  weight = (1 - total) / np.maximum(num_tails, 1)
  # No tail at all: the head's rounding cannot be compensated.
  head = head / np.where((num_tails == 0) & (total > 0), total, 1)
  return np.where(is_tail, weight, head).astype(np.float32)
