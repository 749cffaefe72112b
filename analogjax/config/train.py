"""Sections of a config about training: phases, loss, optimizer, watch."""

from collections.abc import Mapping
import dataclasses
import re
from typing import Annotated

from analogjax.config.fields import (
  ABOVE_0,
  COUNT,
  DECAY,
  FRACTION,
  INSIDE_0_1,
  NOT_NEGATIVE,
  PUBLIC,
  SEED,
  UNIQUE,
  Bound,
  Private,
  Section,
  check,
  choice,
  listed,
  suggest,
)
from analogjax.config.places import check_place

SCHEDULES = ("constant", "cosine", "learning_rate")
DIVERGENCES = (
  "forward_kl",
  "reverse_kl",
  "skew_kl",
  "jensen_shannon",
  "total_variation",
)

# Divergences whose gradient is linear in t, so that sampled targets give it
# without bias: E[gradient(sample)] = gradient(E[sample]).
LINEAR = ("forward_kl",)

# Largest decay of a bfloat16 momentum. A step of 1 - decay of a difference is
# lost where it is below 2^-9 of the momentum: with noisy gradients an average
# at 0.98 is off by 2 %, at 0.99 by 14 %.
_MOST_BFLOAT16 = 0.98

_OPTIMIZATION = "part of the optimization, which the regulator has"
_MACHINES = Private("depends on the lab's machines")
_STORE = Private("depends on the lab's store")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig(Section, private=_OPTIMIZATION):
  """alpha x divergence from the teacher + (1 - alpha) x hard labels.

  gram_weight x the distance of the Grams is added outside of this mixture.
  """

  teacher: Annotated[
    str,
    "where the teacher is: its cache, or live beside the student",
    choice("cache", "live"),
    PUBLIC,
  ] = "cache"
  alpha: Annotated[
    float, "weight of the teacher; 0: hard labels alone", FRACTION
  ] = 0.0
  alpha_schedule: Annotated[
    str, "how alpha changes over the steps", choice(*SCHEDULES)
  ] = "constant"
  alpha_final: Annotated[
    float, "cosine: weight after the last step", FRACTION
  ] = 0.0
  divergence: Annotated[
    str, "divergence from the teacher", choice(*DIVERGENCES)
  ] = "forward_kl"
  mixture: Annotated[
    float, "skew_kl, jensen_shannon: the teacher's part", INSIDE_0_1
  ] = 0.5
  temperature: Annotated[
    float,
    "divides the logits of teacher and student in the divergence; that of the"
    " cache",
    ABOVE_0,
  ] = 1.0
  z_loss: Annotated[
    float, "weight of the square of log sum exp of the logits", NOT_NEGATIVE
  ] = 1e-5
  gram_weight: Annotated[
    float, "weight of the distance of Grams; 0: none is read", NOT_NEGATIVE
  ] = 0.0
  exact_gradient: Annotated[
    bool, "bfloat16: whether products of d(logits) are float32"
  ] = False
  chunk: Annotated[
    int, "tokens of a device whose logits are held at once", COUNT
  ] = 2048

  @property
  def has_teacher(self) -> bool:
    return self.has_divergence or self.gram_weight > 0

  @property
  def has_divergence(self) -> bool:
    return self.alpha > 0 or (
      self.alpha_schedule == "cosine" and self.alpha_final > 0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Section, private=_OPTIMIZATION):
  """Update rule, learning rate schedule and clipping."""

  name: Annotated[
    str,
    "update rule; muon: for the matrices of the blocks",
    choice("adamw", "muon"),
  ] = "adamw"
  learning_rate: Annotated[float, "peak of the schedule", ABOVE_0]
  warmup_steps: Annotated[
    int, "steps of linear rise from 0 to the peak", NOT_NEGATIVE
  ] = 2000
  schedule: Annotated[
    str, "course of the learning rate", choice("wsd", "cosine", "constant")
  ] = "wsd"
  decay_steps: Annotated[
    int, "wsd: steps at the end in which the rate falls", NOT_NEGATIVE
  ] = 0
  final_fraction: Annotated[
    float, "rate after the fall, as a part of the peak", FRACTION
  ] = 0.1
  b1: Annotated[float, "AdamW: decay of the first moment", DECAY] = 0.9
  b2: Annotated[float, "AdamW: decay of the second moment", DECAY] = 0.95
  eps: Annotated[
    float, "AdamW: added to the root of the second moment", ABOVE_0
  ] = 1e-8
  muon_momentum: Annotated[float, "muon: decay of its momentum", DECAY] = 0.95
  momentum_dtype: Annotated[
    str, "dtype of the momenta", choice("float32", "bfloat16")
  ] = "float32"
  weight_decay: Annotated[
    float, "decoupled decay, per unit of learning rate", NOT_NEGATIVE
  ] = 0.1
  clip_norm: Annotated[
    float, "most global norm of the gradient; 0: no clipping", NOT_NEGATIVE
  ] = 1.0

  def rules(self) -> None:
    if self.schedule != "wsd":  # A cosine falls from the warm-up to the end.
      expected = f"0, as schedule={self.schedule!r}"
      check(self.decay_steps == 0, "decay_steps", expected, self.decay_steps)
    if self.momentum_dtype == "bfloat16":
      expected = f"at most {_MOST_BFLOAT16}, as momentum_dtype='bfloat16'"
      check(self.b1 <= _MOST_BFLOAT16, "b1", expected, self.b1)
      ok = self.name != "muon" or self.muon_momentum <= _MOST_BFLOAT16
      check(ok, "muon_momentum", expected, self.muon_momentum)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseConfig(Section):
  """One phase of training, a section of `train` named after the phase."""

  init_from: Annotated[
    str, "earlier phase to start from; '': random parameters", PUBLIC
  ] = ""
  rows: Annotated[
    str, "where rows come from", choice("cache", "pipeline"), PUBLIC
  ] = "pipeline"
  num_steps: Annotated[int, "optimizer updates", COUNT, PUBLIC]
  batch_rows: Annotated[
    int, "rows per step, over all devices", COUNT, Private(_OPTIMIZATION)
  ]
  microbatches: Annotated[
    int,
    "parts of a batch that are computed one after another; divides it",
    COUNT,
    _MACHINES,
  ] = 1
  seed: Annotated[int, "seed of the order of the rows", SEED, PUBLIC] = 0
  loss: Annotated[LossConfig, "what is minimized"]
  optimizer: Annotated[OptimizerConfig, "update rule and schedule"]
  checkpoint_every_steps: Annotated[
    int, "steps between checkpoints", COUNT, _MACHINES
  ] = 500
  keep_checkpoints: Annotated[
    int, "newest checkpoints that are kept", COUNT, _STORE
  ] = 3
  keep_best_checkpoints: Annotated[
    int, "beside them, those of least held-out KL", NOT_NEGATIVE, _STORE
  ] = 1
  eval_every_steps: Annotated[
    int, "steps between evaluations", COUNT, _MACHINES
  ] = 500
  log_every_steps: Annotated[
    int, "steps between lines of metrics", COUNT, _MACHINES
  ] = 10

  def rules(self) -> None:
    for reads, field in (
      (self.reads_records, "alpha"),
      (self.reads_gram, "gram_weight"),
    ):
      expected = (
        f"'cache', as loss.{field}={getattr(self.loss, field)} needs a teacher"
        " and loss.teacher is 'cache'"
      )
      check(not reads or self.rows == "cache", "rows", expected, self.rows)
    # Only a checkpoint that was evaluated can be the best.
    expected = f"a multiple of eval_every_steps={self.eval_every_steps}, as"
    expected += " keep_best_checkpoints is set"
    every = self.checkpoint_every_steps
    ok = not self.keep_best_checkpoints or every % self.eval_every_steps == 0
    check(ok, "checkpoint_every_steps", expected, every)
    expected = f"a divisor of batch_rows={self.batch_rows}"
    ok = self.batch_rows % self.microbatches == 0
    check(ok, "microbatches", expected, self.microbatches)

  @property
  def least_steps(self) -> int:
    """Steps of the warm-up and the decay together."""
    return self.optimizer.warmup_steps + self.optimizer.decay_steps

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
    """Whether it learns from a live teacher."""
    return self.loss.has_teacher and self.loss.teacher == "live"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
  """The phases in running order."""

  phases: Annotated[
    tuple[str, ...],
    "phases to run; each has a section",
    Bound(bool, "at least one phase"),
    UNIQUE,
    PUBLIC,
  ]
  location: Annotated[
    str,
    "where checkpoints go: s3://, gs://; '': in the workdir",
    Private("a place"),
  ] = ""
  s3_endpoint: Annotated[
    str, "URL of an S3 server; '': Amazon's", Private("a host")
  ] = ""
  wandb: Annotated[
    str,
    "project of Weights & Biases that metrics go to as well; '': none",
    Private("a name"),
  ] = ""
  phase: Annotated[Mapping[str, PhaseConfig], "the sections, by name"]

  def rules(self) -> None:
    if self.location:
      check_place(self.location, self.s3_endpoint)
    for i, name in enumerate(self.phases):
      # Names of folders, and of sections beside `phases`.
      ok = re.fullmatch("[a-z][a-z0-9_]*", name) is not None
      check(ok, "phases", "names of letters a-z, digits and _", name)
      # Already a row of the closing table.
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
    self._check_steps()

  def _check_steps(self) -> None:
    """Checks that warm-up and decay fit, and names all phases that fail."""
    names = dict.fromkeys([*self.phases, *self.phase])  # As they run.
    phases = {name: self.phase[name] for name in names}
    short = {n: p for n, p in phases.items() if p.num_steps < p.least_steps}
    if not short:
      return
    (name, phase), *rest = short.items()
    also = f"; the same in {listed(f'train.{n}' for n, _ in rest)}"
    # A tenth and a fifth of the steps are usual.
    warmup = min(phase.optimizer.warmup_steps, phase.num_steps // 10)
    decay = min(phase.optimizer.decay_steps, phase.num_steps // 5)
    raise ValueError(
      f"{name}.num_steps: expected at least optimizer.warmup_steps +"
      f" optimizer.decay_steps = {phase.least_steps}, found"
      f" {phase.num_steps}{also if rest else ''}. For {phase.num_steps} steps"
      f" set optimizer.warmup_steps={warmup} and"
      f" optimizer.decay_steps={decay}, or set more num_steps."
    )

  def chain(self, name: str) -> list[str]:
    """Phases that lead to phase `name`, itself last, in running order."""
    before = self.phase[name].init_from
    return [*(self.chain(before) if before else ()), name]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WatchConfig(Section, private="depends on the lab's machines"):
  """Limits at which training warns or stops."""

  skipped_steps: Annotated[
    int, "steps in a row that are not finite before it stops", COUNT
  ] = 10
  spike_sigmas: Annotated[
    float,
    "robust standard deviations of a loss above the median that are reported;"
    " 0: never",
    NOT_NEGATIVE,
  ] = 8.0
  stall_seconds: Annotated[
    float, "wait for a batch that is reported", ABOVE_0
  ] = 60.0
  give_up_seconds: Annotated[
    float,
    "wait for a batch that ends the run with code 75, so that the job starts"
    " again elsewhere; 0: never",
    NOT_NEGATIVE,
  ] = 1800.0
