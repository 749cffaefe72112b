"""The objective of a phase: its config, and the teacher's weight by step."""

import jax.numpy as jnp
import optax

from analogjax.config import train
from analogjax.training import divergences, losses, optimizer as optim


def make_objective(
  cfg: train.LossConfig,
  *,
  softcap: float | None = None,
  teacher_softcap: float | None = None,
) -> losses.Objective:
  """The static part; the soft caps are those of the two models."""
  return losses.Objective(
    divergence=divergences.Divergence(name=cfg.divergence, mixture=cfg.mixture),
    temperature=cfg.temperature,
    z_loss=cfg.z_loss,
    softcap=softcap,
    teacher_softcap=teacher_softcap,
    chunk=cfg.chunk,
    exact_gradient=cfg.exact_gradient,
  )


def make_alpha(
  cfg: train.LossConfig, optimizer: train.OptimizerConfig, num_steps: int
) -> optax.Schedule:
  """The weight of the teacher at each step, counted from 0.

  It is constant; or a cosine from alpha to alpha_final; or proportional to the
  learning rate, with alpha at its peak. In that case, with the schedule wsd,
  the teacher's weight warms up and decays with the rate, and hard labels take
  over at the end.

  Source: Peng et al., arXiv:2410.16215, section 3.3 (WSD for both).
  """
  if cfg.alpha_schedule == "constant":
    return optax.constant_schedule(cfg.alpha)
  if cfg.alpha_schedule == "learning_rate":
    rate = optim.make_schedule(optimizer, num_steps)
    return lambda step: cfg.alpha * rate(step) / optimizer.learning_rate
  change = cfg.alpha_final - cfg.alpha

  def cosine(step):
    share = jnp.minimum(step / num_steps, 1.0)
    return cfg.alpha + change * (1 - jnp.cos(jnp.pi * share)) / 2

  return cosine
