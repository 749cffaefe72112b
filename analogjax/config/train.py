"""Sections of a config about training: phases, loss, optimizer, watch."""

from collections.abc import Mapping
import dataclasses
import re
from typing import Annotated

from analogjax.config.fields import (
  check,
  check_choice,
  check_counts,
  check_place,
  check_seed,
  listed,
  suggest,
)

SCHEDULES = ("constant", "cosine", "learning_rate")


DIVERGENCES = (
  "forward_kl",
  "reverse_kl",
  "skew_kl",
  "jensen_shannon",
  "total_variation",
)


# Whose gradient is linear in t, so that sampled targets give it without bias:
# E[gradient(sample)] = gradient(E[sample]).
LINEAR = ("forward_kl",)


# Most decay of a bfloat16 momentum. A step of 1 - decay of a difference is lost
# where it is below 2^-9 of the momentum: with noisy gradients an average at
# 0.98 is off by 2 %, at 0.99 by 14 %.
_MOST_BFLOAT16 = 0.98


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
    expected = " or ".join(map(repr, SCHEDULES))
    check(self.alpha_schedule in SCHEDULES, "alpha_schedule", expected)
    check(0 <= self.alpha_final <= 1, "alpha_final", "0 <= alpha_final <= 1")
    names = " or ".join(map(repr, DIVERGENCES))
    check(self.divergence in DIVERGENCES, "divergence", names)
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
  """Update rule, learning rate schedule and clipping."""

  name: Annotated[str, "adamw, or muon: for the matrices of the blocks"]
  learning_rate: Annotated[float, "peak, per step"]
  warmup_steps: Annotated[int, "steps of linear rise from 0 to the peak"]
  schedule: Annotated[str, "wsd, cosine or constant"]
  decay_steps: Annotated[int, "last steps, in which wsd falls; else 0"]
  final_fraction: Annotated[float, "rate after the fall, as a part of the peak"]
  b1: Annotated[float, "AdamW's decay of the first moment, in [0, 1)"]
  b2: Annotated[float, "AdamW's decay of the second moment, in [0, 1)"]
  eps: Annotated[float, "added to the root of AdamW's second moment"]
  muon_momentum: Annotated[float, "muon: decay of its momentum, in [0, 1)"]
  momentum_dtype: Annotated[str, "of momenta: float32 or bfloat16"]
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
    check(self.name in ("adamw", "muon"), "name", "adamw or muon")
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
    check(
      0 <= self.muon_momentum < 1, "muon_momentum", "0 <= muon_momentum < 1"
    )
    dtypes = ("float32", "bfloat16")
    check(self.momentum_dtype in dtypes, "momentum_dtype", " or ".join(dtypes))
    if self.momentum_dtype == "bfloat16":
      expected = f"at most {_MOST_BFLOAT16}, as momentum_dtype='bfloat16'"
      check(self.b1 <= _MOST_BFLOAT16, "b1", expected)
      ok = self.name != "muon" or self.muon_momentum <= _MOST_BFLOAT16
      check(ok, "muon_momentum", expected)
    check(self.weight_decay >= 0, "weight_decay", "0 or more")
    check(self.clip_norm >= 0, "clip_norm", "0 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseConfig:
  """One phase of training, a section of `train` named after the phase."""

  init_from: Annotated[str, "earlier phase to start from; '': random"]
  rows: Annotated[str, "where rows come from: cache or pipeline"]
  num_steps: Annotated[int, "optimizer updates"]
  batch_rows: Annotated[int, "rows per step, over all devices"]
  microbatches: Annotated[
    int, "parts of a batch, one after another; divides it"
  ]
  seed: Annotated[int, "of the order of the rows"]
  loss: Annotated[LossConfig, "what is minimized"]
  optimizer: Annotated[OptimizerConfig, "update rule and schedule"]
  checkpoint_every_steps: Annotated[int, "steps"]
  keep_checkpoints: Annotated[int, "newest checkpoints that are kept"]
  keep_best_checkpoints: Annotated[
    int, "beside them, those of least held-out KL; 0: none"
  ]
  eval_every_steps: Annotated[int, "steps between evaluations"]
  log_every_steps: Annotated[int, "steps between lines of metrics"]

  def __post_init__(self):
    check_choice(self, "rows", "cache", "pipeline")
    for reads, field in (
      (self.reads_records, "alpha"),
      (self.reads_gram, "gram_weight"),
    ):
      expected = (
        f"'cache', as loss.{field}={getattr(self.loss, field)} needs a teacher"
        " and loss.teacher is 'cache'"
      )
      check(not reads or self.rows == "cache", "rows", expected, self.rows)
    check_counts(self, "num_steps", "batch_rows", "checkpoint_every_steps")
    check_counts(self, "keep_checkpoints", "eval_every_steps")
    check_counts(self, "log_every_steps", "microbatches")
    best = self.keep_best_checkpoints
    check(best >= 0, "keep_best_checkpoints", ">= 0", best)
    # Only a checkpoint that was evaluated can be the best.
    expected = f"a multiple of eval_every_steps={self.eval_every_steps}, as"
    expected += " keep_best_checkpoints is set"
    every = self.checkpoint_every_steps
    ok = not best or every % self.eval_every_steps == 0
    check(ok, "checkpoint_every_steps", expected, every)
    expected = f"a divisor of batch_rows={self.batch_rows}"
    ok = self.batch_rows % self.microbatches == 0
    check(ok, "microbatches", expected, self.microbatches)
    check_seed(self)
    least = self.optimizer.warmup_steps + self.optimizer.decay_steps
    check(
      self.num_steps >= least,
      "num_steps",
      f"at least optimizer.warmup_steps + optimizer.decay_steps = {least}",
      self.num_steps,
    )

  @property
  def reads_records(self) -> bool:
    """Whether it learns from a cached teacher's distribution."""
    return self.loss.has_divergence and self.loss.teacher == "cache"

  @property
  def reads_gram(self) -> bool:
    """Whether it learns from a cached teacher's Gram."""
    return self.loss.gram_weight > 0 and self.loss.teacher == "cache"

  @property
  def runs_teacher(self) -> bool:
    """Whether it learns from a teacher in the loop."""
    return self.loss.has_teacher and self.loss.teacher == "live"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
  """The phases in the order in which they run."""

  phases: Annotated[tuple[str, ...], "phases to run; each has a section"]
  location: Annotated[str, "of checkpoints: s3://, gs://; '': in the workdir"]
  s3_endpoint: Annotated[str, "URL of an S3 that is not Amazon's, or ''"]
  phase: Annotated[Mapping[str, PhaseConfig], "the sections, by name"]

  def __post_init__(self):
    if self.location:
      check_place(self.location, self.s3_endpoint)
    check(len(self.phases) > 0, "phases", "at least one phase", self.phases)
    unique = len(set(self.phases)) == len(self.phases)
    check(unique, "phases", "each phase once", self.phases)
    for i, name in enumerate(self.phases):
      # Names of folders, and of sections beside `phases`.
      ok = re.fullmatch("[a-z][a-z0-9_]*", name) is not None
      check(ok, "phases", "names of letters a-z, digits and _", name)
      # A row of the closing table already.
      check(name != "teacher", "phases", "another name than that", name)
      if name not in self.phase:
        raise ValueError(
          f"phases: {name!r} has no section train.{name}."
          f" {suggest(name, list(self.phase))}"
        )
      source = self.phase[name].init_from
      check(
        source in ("", *self.phases[:i]),
        f"{name}.init_from",
        f"'' or a phase that runs before ({listed(self.phases[:i])})",
        source,
      )

  def chain(self, name: str) -> list[str]:
    """Phases that lead to phase `name`, itself last, in running order."""
    before = self.phase[name].init_from
    return [*(self.chain(before) if before else ()), name]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WatchConfig:
  """When training says that something is wrong, and when it stops."""

  skipped_steps: Annotated[
    int, "steps in a row that are not finite, and then it stops"
  ]
  spike_sigmas: Annotated[float, "a loss so far above the median; 0: never"]
  stall_seconds: Annotated[float, "wait for a batch that is reported"]
  give_up_seconds: Annotated[float, "wait that ends the run (75); 0: none"]

  def __post_init__(self):
    for field in ("spike_sigmas", "give_up_seconds"):
      value = getattr(self, field)
      if value < 0:
        raise ValueError(f"{field}: expected >= 0, found {value!r}.")
    for field in ("skipped_steps", "stall_seconds"):
      value = getattr(self, field)
      if value <= 0:
        raise ValueError(f"{field}: expected > 0, found {value!r}.")
