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
from typing import Any

from ml_collections import ConfigDict

from analogjax.config import (
  cache as cache_lib,
  data as data_lib,
  fields,
  train as train_lib,
)
from analogjax.config.fields import (
  check,
  listed,
)
from analogjax.config.measure import MeasureConfig
from analogjax.config.model import MeshConfig, StudentConfig, TeacherConfig
from analogjax.config.plan import PlanConfig
from analogjax.config.release import ReleaseConfig
from analogjax.config.safety import SafetyConfig
from analogjax.config.train import LossConfig, WatchConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sections:
  """A whole config, checked: what the stages work with."""

  teacher: TeacherConfig
  student: StudentConfig
  data: data_lib.DataConfig
  cache: cache_lib.CacheConfig
  train: train_lib.TrainConfig
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
    ok = loss.divergence in train_lib.LINEAR or cache.kind == "topk"
    names = " or ".join(map(repr, train_lib.LINEAR))
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
