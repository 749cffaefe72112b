"""What a phase minimizes: its config, and the teacher's weight by step."""

import dataclasses
from typing import Annotated

import jax.numpy as jnp
import optax

from analogjax.training import divergences, losses, optimizer as optim

_SCHEDULES = ("constant", "cosine", "learning_rate")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
  """alpha x divergence from the teacher + (1 - alpha) x hard labels.

  And gram_weight x the distance of the Grams, which is no part of the mixture.
  """

  teacher: Annotated[str, "cache, or live: the teacher runs beside the student"]
  alpha: Annotated[float, "weight of the teacher, 0 to 1; 0: hard labels alone"]
  alpha_schedule: Annotated[str, "constant, cosine or learning_rate"]
  alpha_final: Annotated[float, "cosine: weight after the last step"]
  divergence: Annotated[
    str,
    "forward_kl, reverse_kl, skew_kl, jensen_shannon or total_variation",
  ]
  mixture: Annotated[float, "skew_kl, jensen_shannon: the teacher's part"]
  temperature: Annotated[float, "of teacher and student, in the first term"]
  z_loss: Annotated[float, "times the square of log sum exp of the logits"]
  gram_weight: Annotated[float, "of the distance of Grams; 0: none is read"]
  exact_gradient: Annotated[bool, "float32 products of d(logits), if bfloat16"]
  chunk: Annotated[int, "tokens of a device whose logits are held at once"]

  def __post_init__(self):
    def check(ok, field, expected):
      if not ok:
        found = getattr(self, field)
        raise ValueError(f"{field}: expected {expected}, found {found!r}.")

    check(self.teacher in ("cache", "live"), "teacher", "'cache' or 'live'")
    check(0 <= self.alpha <= 1, "alpha", "0 <= alpha <= 1")
    expected = " or ".join(map(repr, _SCHEDULES))
    check(self.alpha_schedule in _SCHEDULES, "alpha_schedule", expected)
    check(0 <= self.alpha_final <= 1, "alpha_final", "0 <= alpha_final <= 1")
    names = " or ".join(map(repr, divergences.NAMES))
    check(self.divergence in divergences.NAMES, "divergence", names)
    check(0 < self.mixture < 1, "mixture", "0 < mixture < 1")
    check(self.temperature > 0, "temperature", "> 0")
    check(self.z_loss >= 0, "z_loss", "0 or more")
    check(self.gram_weight >= 0, "gram_weight", "0 or more")
    check(self.chunk >= 1, "chunk", "a positive number")

  @property
  def has_teacher(self) -> bool:
    return self.has_divergence or self.gram_weight > 0

  @property
  def has_divergence(self) -> bool:
    return self.alpha > 0 or (
      self.alpha_schedule == "cosine" and self.alpha_final > 0
    )


def make_objective(
  cfg: LossConfig,
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
  cfg: LossConfig, optimizer: optim.OptimizerConfig, num_steps: int
) -> optax.Schedule:
  """The weight of the teacher at each step, counted from 0.

  Constant; a cosine from alpha to alpha_final; or in proportion to the learning
  rate, whose peak it has alpha at: with the schedule wsd the teacher warms up
  and decays with it, and hard labels take over at the end.

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
