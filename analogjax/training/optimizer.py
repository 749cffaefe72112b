"""The optimizer: its config, its schedule, its chain of updates."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from analogjax.config import train
from analogjax.distributed import sharding

# Root mean square of Muon's update at a learning rate of 1. AdamW's is about as
# large, so one learning rate and one weight decay serve both. Source: Liu et
# al. 2025, arXiv:2502.16982, section 2.2.
MUON_RMS = 0.2

# Coefficients of the iteration x -> a x + b x x' x + c (x x')^2 x. They bring
# singular values from 0.002 of the matrix's norm upwards to between 0.68 and
# 1.21, and no nearer to 1. Source: Jordan et al. 2024,
# kellerjordan.github.io/posts/muon.
_MUON_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_MUON_ITERATIONS = 5


def make_schedule(cfg: train.OptimizerConfig, num_steps: int) -> optax.Schedule:
  """The learning rate at each step, counted from 0.

  Linear warm-up, then constant until a linear decay ("wsd": warm-up, stable,
  decay), a cosine decay over all remaining steps, or no decay. The decay ends
  at final_fraction x peak.

  Source: MiniCPM, arXiv:2404.06395, section 4 (WSD).
  """
  peak, floor = cfg.learning_rate, cfg.learning_rate * cfg.final_fraction
  after = num_steps - cfg.warmup_steps
  if cfg.schedule == "cosine":
    fall = optax.cosine_decay_schedule(peak, max(after, 1), cfg.final_fraction)
  elif cfg.schedule == "wsd":
    fall = optax.linear_schedule(
      peak, floor, max(cfg.decay_steps, 1), max(after - cfg.decay_steps, 0)
    )
  else:
    fall = optax.constant_schedule(peak)
  if not cfg.warmup_steps:
    return fall
  # The first step would be lost at a rate of 0.
  first = peak / (cfg.warmup_steps + 1)
  warmup = optax.linear_schedule(first, peak, cfg.warmup_steps)
  return optax.join_schedules([warmup, fall], [cfg.warmup_steps])


def make_optimizer(
  cfg: train.OptimizerConfig, num_steps: int
) -> optax.GradientTransformation:
  """Clipping by global norm, AdamW or Muon, weight decay, schedule.

  Muon updates the weight matrices of the blocks; embeddings, norm scales and
  biases always use AdamW. Weight decay skips norm scales and biases.

  First moments have the dtype `momentum_dtype`. The second moment of AdamW is
  always float32: its steps are 1 - b2 of a difference, and a bfloat16 number
  does not move by less than 2^-9 of itself. With b2 = 0.999 it would never
  fall, however small the gradients became.
  """
  clip = (
    optax.clip_by_global_norm(cfg.clip_norm)
    if cfg.clip_norm
    else optax.identity()
  )
  schedule = make_schedule(cfg, num_steps)
  adam: dict[str, Any] = dict(
    b1=cfg.b1, b2=cfg.b2, eps=cfg.eps, mu_dtype=cfg.momentum_dtype
  )
  if cfg.name == "adamw":
    adamw = optax.adamw(
      schedule, weight_decay=cfg.weight_decay, mask=_is_matrix, **adam
    )
    return optax.chain(clip, adamw)
  # Not optax.contrib.muon: its AdamW would decay norm scales with the
  # embeddings, would use Nesterov because Muon does, and would share its eps.
  return optax.chain(
    clip,
    optax.partition(
      {"muon": _muon(cfg), "adam": optax.scale_by_adam(**adam)}, _rule_of
    ),
    optax.add_decayed_weights(cfg.weight_decay, mask=_is_matrix),
    optax.scale_by_learning_rate(schedule),
  )


def num_updates(opt_state: Any) -> int:
  """Number of updates applied so far; skipped steps do not count."""
  found = optax.tree.get_all_with_path(opt_state, "count")
  return max(int(count) for _, count in found)


def _muon(cfg: train.OptimizerConfig) -> optax.GradientTransformation:
  """Orthogonalised Nesterov momentum of each layer's matrix, of equal RMS.

  Source: Jordan et al. 2024 (see _MUON_COEFFICIENTS), and MUON_RMS.
  """
  # Any: optax says only that its state is a tree.
  tx: Any = optax.contrib.scale_by_muon(
    ns_coeffs=_MUON_COEFFICIENTS,
    ns_steps=_MUON_ITERATIONS,
    beta=cfg.muon_momentum,
    mu_dtype=cfg.momentum_dtype,
    weight_dimension_numbers=_sides,
  )

  # optax keeps the coefficients in the state. They are constants: in a
  # checkpoint they would outlive a change here, and no letters shard them.
  def init(params):
    return tx.init(params)._replace(ns_coeffs=())

  def update(updates, state, params=None):
    coefficients = jnp.asarray(_MUON_COEFFICIENTS)
    state = state._replace(ns_coeffs=coefficients)
    updates, state = tx.update(updates, state, params)

    def scale(update, sides):
      # An orthogonal matrix of a rows and b columns has RMS max(a, b)^-1/2.
      rows, columns = (math.prod(update.shape[i] for i in s) for s in sides)
      return MUON_RMS * math.sqrt(max(rows, columns)) * update

    updates = jax.tree.map(scale, updates, _sides(updates))
    return updates, state._replace(ns_coeffs=())

  return optax.GradientTransformation(init, update)


def _sides(tree: Any) -> Any:
  """Row and column dimensions of each matrix.

  Every matrix of a block reads from the residual stream or writes to it, so D
  is one side of it and the remaining dimensions are the other: D x NH for YDNH,
  NH x D for YNHD. Each layer (Y) and expert (E) has its own matrix.
  """

  def of(path, _):
    letters = sharding.letters_of(_name(path))
    dims = [i for i, letter in enumerate(letters) if letter not in "YE"]
    reads = letters[dims[0]] == "D"
    assert reads != (letters[dims[-1]] == "D"), f"{_name(path)}: no matrix."
    split = 1 if reads else len(dims) - 1
    return optax.contrib.MuonDimensionNumbers(
      reduction_axis=tuple(dims[:split]), output_axis=tuple(dims[split:])
    )

  return jax.tree_util.tree_map_with_path(of, tree)


def _rule_of(params):
  """Which of the two rules of Muon applies to a parameter."""

  def of(path, _):
    name = _name(path)
    is_weight = name.rpartition("/")[2].startswith("w")
    return "muon" if is_weight and "Y" in sharding.letters_of(name) else "adam"

  return jax.tree_util.tree_map_with_path(of, params)


def _is_matrix(params):
  """True for weights and embeddings, by name: w..., embed and unembed.

  Stacked over layers, norms and biases have two or more dimensions too, so the
  number of dimensions does not distinguish them.
  """

  def of(path, _):
    name = _name(path).rpartition("/")[2]
    return name.startswith(("w", "embed", "unembed"))

  return jax.tree_util.tree_map_with_path(of, params)


def _name(path) -> str:
  """A parameter's path, e.g. blocks_Y/attention/wq_DNH."""
  name = jax.tree_util.keystr(path, simple=True, separator="/")
  return name.removesuffix("/value")  # The leaf of an nnx.Variable.
