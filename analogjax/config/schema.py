"""One config describes one analog: its fields, their types and their rules.

Dataclasses are the schema, the one table of all that can be set (as lines:
`schema`): those below, config_models.py and config_plan.py, and where a part
has a config of its own, that part. A section has exactly the fields of its
class, no field has a default, and the note beside a field is its meaning and
unit. Rules between sections are in `Sections`. Two fields are not described
here: `data.arguments` and `data.held_out_arguments` belong to the user's
pipeline and may hold anything that JSON can.

Files, overrides and the saved config are in config_files.py.
"""

from collections.abc import Mapping
import dataclasses
import math
import re
from typing import Annotated, Any

from ml_collections import ConfigDict

from analogjax.cache import gram_codes
from analogjax.config import fields
from analogjax.config.fields import (
  FreeForm,
  check,
  check_choice,
  check_counts,
  check_seed,
  listed,
  suggest,
)
from analogjax.config.measure import MeasureConfig
from analogjax.config.model import MeshConfig, StudentConfig, TeacherConfig
from analogjax.config.plan import PlanConfig
from analogjax.config.release import ReleaseConfig
from analogjax.config.safety import SafetyConfig
from analogjax.training import divergences
from analogjax.training.objective import LossConfig
from analogjax.training.optimizer import OptimizerConfig
from analogjax.training.watch import WatchConfig
from analogjax.workdir import store


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
  """The frontier run's pipeline of packed rows."""

  L: Annotated[int, "row length, tokens"]
  pipeline: Annotated[str, "package.module:function that returns the dataset"]
  arguments: Annotated[FreeForm, "keyword arguments of the function"]
  held_out_arguments: Annotated[FreeForm, "laid over arguments: held-out rows"]

  def __post_init__(self):
    check(self.L >= 2, "L", "at least 2 tokens", self.L)
    ok = re.fullmatch(r"\w+(\.\w+)*:\w+", self.pipeline) is not None
    check(ok, "pipeline", "'package.module:function'", self.pipeline)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheConfig:
  """What the logit cache holds, and how it is written."""

  kind: Annotated[str, "kind of record: threshold, random or topk"]
  tau: Annotated[float, "threshold: a probability of 0.001 to 1"]
  num_draws: Annotated[int, "random: draws a position, 1 to 255"]
  top_k: Annotated[int, "topk: likeliest ids a position, 1 to 1024"]
  temperature: Annotated[float, "teacher's logits are divided by it"]
  num_replicas: Annotated[int, "independent records of each row; one a pass"]
  capture: Annotated[str, "positions with a record: all, random or entropy"]
  capture_rate: Annotated[float, "random: probability; entropy: per nat"]
  gram_positions: Annotated[
    int, "positions of a row whose Gram is kept, at most 128; 0: none"
  ]
  gram_layers: Annotated[int, "evenly spaced depths at which it is kept"]
  seed: Annotated[int, "of all draws"]
  num_rows: Annotated[int, "rows to train on"]
  held_out_rows: Annotated[int, "rows to measure on"]
  batch_rows: Annotated[int, "rows per teacher step"]
  rows_per_object: Annotated[int, "rows in one stored object"]
  chunk: Annotated[int, "tokens of a row whose logits are held at once"]
  location: Annotated[str, "s3://, gs:// or folder; '': in the workdir"]
  s3_endpoint: Annotated[str, "URL of an S3 that is not Amazon's, or ''"]
  write_ahead: Annotated[int, "objects that wait in memory to be written"]
  import_path: Annotated[
    str, "DistillKit's parquet files; '': the teacher runs"
  ]
  import_codec: Annotated[
    FreeForm, "its codec; empty: the one beside the files"
  ]

  def __post_init__(self):
    check_choice(self, "kind", "threshold", "random", "topk")
    # Below 1e-3 a record has more slots and finer codes than its format holds.
    check(1e-3 <= self.tau <= 1, "tau", "0.001 <= tau <= 1", self.tau)
    draws, top_k = self.num_draws, self.top_k
    check(1 <= draws <= 255, "num_draws", "1 <= num_draws <= 255", draws)
    check(1 <= top_k <= 1024, "top_k", "1 <= top_k <= 1024", top_k)
    check_choice(self, "capture", "all", "random", "entropy")
    most = 1 if self.capture == "random" else math.inf
    ok = 0 < self.capture_rate <= most
    expected = "above 0" + (", and at most 1" if most == 1 else "")
    check(ok, "capture_rate", expected, self.capture_rate)
    check(self.temperature > 0, "temperature", "> 0", self.temperature)
    self._check_gram()
    check_seed(self)
    check_counts(self, "num_replicas", "num_rows", "held_out_rows")
    check_counts(self, "batch_rows", "rows_per_object", "chunk", "write_ahead")
    check(
      self.rows_per_object % self.batch_rows == 0,
      "batch_rows",
      f"a divisor of rows_per_object={self.rows_per_object}",
      self.batch_rows,
    )
    try:
      store.place(self.location or "workdir", self.s3_endpoint)
    except store.StoreError as error:  # Which names the field with its section.
      raise ValueError(str(error).removeprefix("cache.")) from None
    expected = "'topk', as cache.import_path is set"
    check(
      not self.import_path or self.kind == "topk", "kind", expected, self.kind
    )

  def _check_gram(self) -> None:
    found, most = self.gram_positions, gram_codes.MOST_POSITIONS
    ok = found == 0 or 2 <= found <= most
    check(ok, "gram_positions", f"0, or 2 to {most}", found)
    expected = "0, as cache.import_path is set and what is imported has none"
    ok = not (self.import_path and found)
    check(ok, "gram_positions", expected, found)
    check_counts(self, "gram_layers")

  @property
  def gram_depths(self) -> tuple[float, ...]:
    """Parts of the teacher's depth; none where there are no positions."""
    return gram_codes.depths(self.gram_layers) if self.gram_positions else ()


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
      store.place(self.location, self.s3_endpoint, section="train")
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sections:
  """A whole config, checked: what the stages work with."""

  teacher: TeacherConfig
  student: StudentConfig
  data: DataConfig
  cache: CacheConfig
  train: TrainConfig
  measure: MeasureConfig
  safety: SafetyConfig
  release: ReleaseConfig
  watch: WatchConfig
  plan: PlanConfig
  mesh: MeshConfig

  def __post_init__(self):
    check(
      self.student.max_positions >= self.data.L,
      "student.max_positions",
      f"at least data.L={self.data.L}",
      self.student.max_positions,
    )
    for name in self.train.phases:
      phase = self.train.phase[name]
      check(
        phase.rows != "cache" or phase.batch_rows <= self.cache.num_rows,
        f"train.{name}.batch_rows",
        f"at most cache.num_rows={self.cache.num_rows}",
        phase.batch_rows,
      )
      if phase.reads_records:
        self._check_records(f"train.{name}.loss", phase.loss)
      if phase.loss.gram_weight:
        self._check_gram(f"train.{name}.loss.gram_weight")
    check(
      self.cache.gram_positions <= self.data.L,
      "cache.gram_positions",
      f"at most data.L={self.data.L}",
      self.cache.gram_positions,
    )
    ran = f"a phase of train.phases ({listed(self.train.phases)})"
    for name in self.measure.phases:
      check(name in self.train.phases, "measure.phases", ran, name)
    # Whether they ran is asked by the stage itself: a run of fewer phases need
    # not be evaluated.
    known = f"a section of train ({listed(self.train.phase)})"
    for name in self.safety.phases:
      check(name in self.train.phase, "safety.phases", known, name)
    phase = self.release.phase
    check(phase in self.train.phases, "release.phase", ran, phase)
    expected = f"another student than release.phase={phase!r}"
    found = self.safety.reference
    check(found != phase, "safety.reference", expected, found)
    folders = self.safety.folders
    ok = phase not in self.safety.named_folders
    check(ok, "safety.folders", f"{expected} by each name", folders)

  @property
  def reads_cache(self) -> bool:
    """Whether any phase has its rows from the cache to train on."""
    phases = (self.train.phase[name] for name in self.train.phases)
    return any(phase.rows == "cache" for phase in phases)

  def _check_records(self, field: str, loss: LossConfig) -> None:
    """Refuses what cannot be learned from the records of this cache."""
    cache = self.cache
    check(
      loss.temperature == cache.temperature,
      f"{field}.temperature",
      f"cache.temperature={cache.temperature}, as the records are of that",
      loss.temperature,
    )
    ok = loss.divergence in divergences.LINEAR or cache.kind == "topk"
    names = " or ".join(map(repr, divergences.LINEAR))
    expected = (
      f"{names}, as no other is unbiased with sampled records (cache.kind"
      f" {cache.kind!r}); with cache.kind 'topk' or {field}.teacher 'live' any"
      " is"
    )
    check(ok, f"{field}.divergence", expected, loss.divergence)

  def _check_gram(self, field: str) -> None:
    """Refuses a Gram that is in no cache, or of more depths than layers."""
    number, Y = self.cache.gram_positions, self.student.Y
    expected = f"2 or more, as {field} is set and compares so many"
    check(number > 0, "cache.gram_positions", expected, number)
    expected = f"at most student.Y={Y}, as {field} is set"
    layers = self.cache.gram_layers
    check(layers <= Y, "cache.gram_layers", expected, layers)


def schema() -> list[fields.Field]:
  """Every field of a config: dotted path, type, meaning and unit."""
  return list(fields.fields(Sections))


def to_sections(cfg: ConfigDict) -> Sections:
  """The typed form of a config.

  Raises:
    ValueError: names the field, what was expected and what was found.
  """
  return check_values(to_values(cfg))


def to_values(cfg: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
  """The plain values of a config, names and types checked, rules not yet.

  Lists become tuples and whole numbers in float fields become floats, so that
  a config is the same before it was saved and after.

  Raises:
    ValueError: names the field, what was expected and what was found.
  """
  values = cfg.to_dict() if isinstance(cfg, ConfigDict) else cfg
  return fields.typed(Sections, values)


def check_values(values: Mapping[str, Any]) -> Sections:
  """The typed form of what `to_values` returned, every rule checked.

  Raises:
    ValueError: names the field, what was expected and what was found.
  """
  return fields.build(Sections, values)
