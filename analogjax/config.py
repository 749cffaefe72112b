"""One config describes one analog: its fields, their types and their rules.

The dataclasses below are the schema, the one table of all that can be set (as
lines: `schema`). A section has exactly the fields of its
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

from analogjax import config_types, divergences
from analogjax.config_types import FreeForm, listed, suggest
from analogjax.data import store
from analogjax.models import layers
from analogjax.objectives import LossConfig
from analogjax.optim import OptimizerConfig
from analogjax.watch import WatchConfig

_ATTENTION = ("auto", "xla", "cudnn", "splash")


def _check(ok: bool, field: str, expected: str, found: Any) -> None:
  # config_types.build puts the section in front and says how to set the field.
  if not ok:
    raise ValueError(f"{field}: expected {expected}, found {found!r}.")


def _check_counts(section: Any, *fields: str) -> None:
  for field in fields:
    value = getattr(section, field)
    _check(value >= 1, field, "a positive number", value)


def _check_choice(section: Any, field: str, *choices: str) -> None:
  value = getattr(section, field)
  expected = " or ".join(repr(choice) for choice in choices)
  _check(value in choices, field, expected, value)


def _check_seed(section: Any) -> None:
  # Seeds become words of counter-based random numbers.
  ok = 0 <= section.seed < 2**32
  _check(ok, "seed", "0 <= seed < 2**32", section.seed)


def _check_sha256(section: Any) -> None:
  ok = re.fullmatch("([0-9a-f]{64})?", section.sha256) is not None
  _check(ok, "sha256", "64 lower-case hex digits or ''", section.sha256)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
  """Devices along each axis; -1 takes what is left."""

  data: Annotated[int, "copies of the parameters, between slices"]
  fsdp: Annotated[int, "parameters and rows are split"]
  expert: Annotated[int, "experts are split; 1 for a dense model"]
  tensor: Annotated[int, "heads, feed-forward and vocabulary are split"]

  def __post_init__(self):
    sizes = dataclasses.asdict(self)
    for axis, size in sizes.items():
      _check(size >= 1 or size == -1, axis, "a positive number or -1", size)
    rest = [axis for axis, size in sizes.items() if size == -1]
    _check(len(rest) <= 1, rest[-1] if rest else "", "-1 on one axis only", -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GgufConfig:
  """A teacher inside an installed package, for the demo only."""

  package: Annotated[str, "name of the installed distribution"]
  file: Annotated[str, "name of the GGUF file in it"]
  sha256: Annotated[str, "of the GGUF file, 64 hex digits"]

  def __post_init__(self):
    for field in ("package", "file", "sha256"):
      _check(bool(getattr(self, field)), field, "a text that is not empty", "")
    _check_sha256(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig:
  """The frontier model, frozen."""

  path: Annotated[str, "Hugging Face folder; '': converted from gguf"]
  sha256: Annotated[str, "digest of the folder; '': not checked"]
  gguf: Annotated[GgufConfig | None, "used where path is ''; may be None"]
  dtype: Annotated[str, "compute dtype: float32 or bfloat16"]
  attention: Annotated[str, "kernel: auto, xla, cudnn or splash"]
  mesh: Annotated[
    MeshConfig | None, "of a live teacher's own devices; None: the student's"
  ]

  def __post_init__(self):
    _check_sha256(self)
    _check_choice(self, "dtype", "float32", "bfloat16")
    _check_choice(self, "attention", *_ATTENTION)
    if self.mesh is not None:
      for axis, size in dataclasses.asdict(self.mesh).items():
        _check(size >= 1, f"mesh.{axis}", "a positive number", size)
    ok = bool(self.path) or self.gguf is not None
    _check(ok, "path", "a folder, as teacher.gguf is None", self.path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScalingConfig:
  """How rotary frequencies are stretched beyond `original_max_positions`."""

  kind: Annotated[str, "llama3 or linear"]
  factor: Annotated[float, "long wavelengths become this much longer"]
  low_freq_factor: Annotated[float, "llama3: original / wavelength, stretched"]
  high_freq_factor: Annotated[float, "llama3: original / wavelength, kept"]
  original_max_positions: Annotated[int, "context before stretching, tokens"]

  def __post_init__(self):
    layers.RopeScaling(**dataclasses.asdict(self))  # Has the rules.


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentConfig:
  """The small decoder; letters as in docs/glossary.md."""

  seed: Annotated[int, "of the initial parameters"]
  V: Annotated[int, "vocabulary, entries; that of the teacher"]
  D: Annotated[int, "model width"]
  Y: Annotated[int, "layers"]
  N: Annotated[int, "query heads"]
  G: Annotated[int, "key/value heads; divides N"]
  H: Annotated[int, "head width; even"]
  F: Annotated[int, "feed-forward width"]
  max_positions: Annotated[int, "longest context, tokens"]
  rope_theta: Annotated[float, "base of the rotary embedding"]
  rope_scaling: Annotated[
    RopeScalingConfig | None, "stretched context, or None"
  ]
  rms_norm_eps: Annotated[float, "added to the mean square"]
  tie_embeddings: Annotated[bool, "the head is the embedding"]
  attention_bias: Annotated[bool, "biases on q, k, v and output"]
  mlp_bias: Annotated[bool, "biases in the MLP"]
  dtype: Annotated[str, "compute dtype: float32 or bfloat16"]
  remat: Annotated[str, "kept for the backward pass: none, dots or full"]
  attention: Annotated[str, "kernel: auto, xla, cudnn or splash"]
  size_window: Annotated[str, "outside 0.5-5 % of the teacher: refuse or warn"]

  def __post_init__(self):
    _check_seed(self)
    _check_counts(self, "V", "D", "Y", "N", "G", "H", "F", "max_positions")
    _check(self.N % self.G == 0, "G", f"a divisor of N={self.N}", self.G)
    _check(self.H % 2 == 0, "H", "an even width (rotary embedding)", self.H)
    _check(self.rope_theta > 0, "rope_theta", "> 0", self.rope_theta)
    _check(self.rms_norm_eps > 0, "rms_norm_eps", "> 0", self.rms_norm_eps)
    _check_choice(self, "dtype", "float32", "bfloat16")
    # "none" means that nothing is recomputed, see models/decoder.py.
    _check_choice(self, "remat", "none", "dots", "full")
    _check_choice(self, "attention", *_ATTENTION)
    _check_choice(self, "size_window", "refuse", "warn")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
  """The frontier run's pipeline of packed rows."""

  L: Annotated[int, "row length, tokens"]
  pipeline: Annotated[str, "package.module:function that returns the dataset"]
  arguments: Annotated[FreeForm, "keyword arguments of the function"]
  held_out_arguments: Annotated[FreeForm, "laid over arguments: held-out rows"]

  def __post_init__(self):
    _check(self.L >= 2, "L", "at least 2 tokens", self.L)
    ok = re.fullmatch(r"\w+(\.\w+)*:\w+", self.pipeline) is not None
    _check(ok, "pipeline", "'package.module:function'", self.pipeline)


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
    _check_choice(self, "kind", "threshold", "random", "topk")
    # Below 1e-3 a record has more slots and finer codes than its format holds.
    _check(1e-3 <= self.tau <= 1, "tau", "0.001 <= tau <= 1", self.tau)
    draws, top_k = self.num_draws, self.top_k
    _check(1 <= draws <= 255, "num_draws", "1 <= num_draws <= 255", draws)
    _check(1 <= top_k <= 1024, "top_k", "1 <= top_k <= 1024", top_k)
    _check_choice(self, "capture", "all", "random", "entropy")
    most = 1 if self.capture == "random" else math.inf
    ok = 0 < self.capture_rate <= most
    expected = "above 0" + (", and at most 1" if most == 1 else "")
    _check(ok, "capture_rate", expected, self.capture_rate)
    _check(self.temperature > 0, "temperature", "> 0", self.temperature)
    _check_seed(self)
    _check_counts(self, "num_replicas", "num_rows", "held_out_rows")
    _check_counts(self, "batch_rows", "rows_per_object", "chunk", "write_ahead")
    _check(
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
    _check(
      not self.import_path or self.kind == "topk", "kind", expected, self.kind
    )


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
    _check_choice(self, "rows", "cache", "pipeline")
    if self.reads_records:
      expected = (
        f"'cache', as loss.alpha={self.loss.alpha} needs a teacher and"
        " loss.teacher is 'cache'"
      )
      _check(self.rows == "cache", "rows", expected, self.rows)
    _check_counts(self, "num_steps", "batch_rows", "checkpoint_every_steps")
    _check_counts(self, "keep_checkpoints", "eval_every_steps")
    _check_counts(self, "log_every_steps", "microbatches")
    best = self.keep_best_checkpoints
    _check(best >= 0, "keep_best_checkpoints", ">= 0", best)
    # Only a checkpoint that was evaluated can be the best.
    expected = f"a multiple of eval_every_steps={self.eval_every_steps}, as"
    expected += " keep_best_checkpoints is set"
    every = self.checkpoint_every_steps
    ok = not best or every % self.eval_every_steps == 0
    _check(ok, "checkpoint_every_steps", expected, every)
    expected = f"a divisor of batch_rows={self.batch_rows}"
    ok = self.batch_rows % self.microbatches == 0
    _check(ok, "microbatches", expected, self.microbatches)
    _check_seed(self)
    least = self.optimizer.warmup_steps + self.optimizer.decay_steps
    _check(
      self.num_steps >= least,
      "num_steps",
      f"at least optimizer.warmup_steps + optimizer.decay_steps = {least}",
      self.num_steps,
    )

  @property
  def reads_records(self) -> bool:
    """Whether it learns from a cached teacher."""
    return self.loss.has_teacher and self.loss.teacher == "cache"

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
    _check(len(self.phases) > 0, "phases", "at least one phase", self.phases)
    unique = len(set(self.phases)) == len(self.phases)
    _check(unique, "phases", "each phase once", self.phases)
    for i, name in enumerate(self.phases):
      # Names of folders, and of sections beside `phases`.
      ok = re.fullmatch("[a-z][a-z0-9_]*", name) is not None
      _check(ok, "phases", "names of letters a-z, digits and _", name)
      # A row of the closing table already.
      _check(name != "teacher", "phases", "another name than that", name)
      if name not in self.phase:
        raise ValueError(
          f"phases: {name!r} has no section train.{name}."
          f" {suggest(name, list(self.phase))}"
        )
      source = self.phase[name].init_from
      _check(
        source in ("", *self.phases[:i]),
        f"{name}.init_from",
        f"'' or a phase that runs before ({listed(self.phases[:i])})",
        source,
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasureConfig:
  """What is compared with the teacher on held-out rows."""

  phases: Annotated[tuple[str, ...], "phases whose last checkpoint is measured"]
  batch_rows: Annotated[int, "rows per step, over all devices"]

  def __post_init__(self):
    _check(len(self.phases) > 0, "phases", "at least one phase", self.phases)
    _check_counts(self, "batch_rows")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReleaseConfig:
  """What is exported."""

  phase: Annotated[str, "phase whose last checkpoint becomes the analog"]
  dtype: Annotated[str, "of the exported weights: float32 or bfloat16"]
  max_shard_gb: Annotated[float, "most in one safetensors file, 1e9 bytes"]

  def __post_init__(self):
    _check_choice(self, "dtype", "float32", "bfloat16")
    _check(self.max_shard_gb > 0, "max_shard_gb", "> 0", self.max_shard_gb)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sections:
  """A whole config, checked: what the stages work with."""

  teacher: TeacherConfig
  student: StudentConfig
  data: DataConfig
  cache: CacheConfig
  train: TrainConfig
  measure: MeasureConfig
  release: ReleaseConfig
  watch: WatchConfig
  mesh: MeshConfig

  def __post_init__(self):
    _check(
      self.student.max_positions >= self.data.L,
      "student.max_positions",
      f"at least data.L={self.data.L}",
      self.student.max_positions,
    )
    for name in self.train.phases:
      phase = self.train.phase[name]
      _check(
        phase.rows != "cache" or phase.batch_rows <= self.cache.num_rows,
        f"train.{name}.batch_rows",
        f"at most cache.num_rows={self.cache.num_rows}",
        phase.batch_rows,
      )
      if phase.reads_records:
        self._check_records(f"train.{name}.loss", phase.loss)
    ran = f"a phase of train.phases ({listed(self.train.phases)})"
    for name in self.measure.phases:
      _check(name in self.train.phases, "measure.phases", ran, name)
    phase = self.release.phase
    _check(phase in self.train.phases, "release.phase", ran, phase)

  @property
  def reads_cache(self) -> bool:
    """Whether any phase has its rows from the cache to train on."""
    phases = (self.train.phase[name] for name in self.train.phases)
    return any(phase.rows == "cache" for phase in phases)

  def _check_records(self, field: str, loss: LossConfig) -> None:
    """Refuses what cannot be learned from the records of this cache."""
    cache = self.cache
    _check(
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
    _check(ok, f"{field}.divergence", expected, loss.divergence)


def schema() -> list[config_types.Field]:
  """Every field of a config: dotted path, type, meaning and unit."""
  return list(config_types.fields(Sections))


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
  return config_types.typed(Sections, values)


def check_values(values: Mapping[str, Any]) -> Sections:
  """The typed form of what `to_values` returned, every rule checked.

  Raises:
    ValueError: names the field, what was expected and what was found.
  """
  return config_types.build(Sections, values)
