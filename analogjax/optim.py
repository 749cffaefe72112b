"""The optimizer: its config, its schedule, its chain of updates."""

import dataclasses
from typing import Annotated

import jax
import optax


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
  """Update rule, learning rate schedule and clipping."""

  name: Annotated[str, "adamw"]
  learning_rate: Annotated[float, "peak, per step"]
  warmup_steps: Annotated[int, "steps of linear rise from 0 to the peak"]
  schedule: Annotated[str, "wsd, cosine or constant"]
  decay_steps: Annotated[int, "last steps, in which wsd falls; else 0"]
  final_fraction: Annotated[float, "rate after the fall, as a part of the peak"]
  b1: Annotated[float, "decay of the first moment, in [0, 1)"]
  b2: Annotated[float, "decay of the second moment, in [0, 1)"]
  eps: Annotated[float, "added to the root of the second moment"]
  weight_decay: Annotated[float, "decoupled, per unit of learning rate"]
  clip_norm: Annotated[
    float, "most global norm of the gradient; 0: no clipping"
  ]

  def __post_init__(self):
    def check(ok, field, expected):
      if not ok:
        found = getattr(self, field)
        raise ValueError(f"{field}: expected {expected}, found {found!r}.")

    schedules = ("wsd", "cosine", "constant")
    check(self.name == "adamw", "name", "'adamw'")
    check(self.schedule in schedules, "schedule", " or ".join(schedules))
    check(self.learning_rate > 0, "learning_rate", "> 0")
    check(self.warmup_steps >= 0, "warmup_steps", "0 or more")
    check(self.decay_steps >= 0, "decay_steps", "0 or more")
    if self.schedule != "wsd":  # A cosine falls from the warm-up to the end.
      expected = f"0, as schedule={self.schedule!r}"
      check(self.decay_steps == 0, "decay_steps", expected)
    check(0 <= self.final_fraction <= 1, "final_fraction", "0 to 1")
    check(0 <= self.b1 < 1, "b1", "0 <= b1 < 1")
    check(0 <= self.b2 < 1, "b2", "0 <= b2 < 1")
    check(self.eps > 0, "eps", "> 0")
    check(self.weight_decay >= 0, "weight_decay", "0 or more")
    check(self.clip_norm >= 0, "clip_norm", "0 or more")


def make_schedule(cfg: OptimizerConfig, num_steps: int) -> optax.Schedule:
  """The learning rate at each step, counted from 0.

  Linear warm-up, then constant until a linear fall ("wsd": warm-up, stable,
  decay), a cosine fall over all that is left, or no fall at all. The fall ends
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
  # The first step would be lost on a rate of 0.
  first = peak / (cfg.warmup_steps + 1)
  warmup = optax.linear_schedule(first, peak, cfg.warmup_steps)
  return optax.join_schedules([warmup, fall], [cfg.warmup_steps])


def make_optimizer(
  cfg: OptimizerConfig, num_steps: int
) -> optax.GradientTransformation:
  """Clipping by global norm, AdamW, schedule; its moments are float32.

  Weight decay leaves norm scales and biases alone.
  """
  return optax.chain(
    optax.clip_by_global_norm(cfg.clip_norm)
    if cfg.clip_norm
    else optax.identity(),
    optax.adamw(
      make_schedule(cfg, num_steps),
      b1=cfg.b1,
      b2=cfg.b2,
      eps=cfg.eps,
      weight_decay=cfg.weight_decay,
      mask=_is_matrix,
    ),
  )


def _is_matrix(params):
  """True for weights and embeddings, by name: w..., embed and unembed.

  Stacked over layers, norms and biases have two dimensions and more, so the
  number of dimensions does not tell.
  """

  def of(path, _):
    names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
    name = next(n for n in reversed(names) if n != "value")
    return name.startswith(("w", "embed", "unembed"))

  return jax.tree_util.tree_map_with_path(of, params)
