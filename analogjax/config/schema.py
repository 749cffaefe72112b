"""The schema of a config: its sections, and the rules between them.

One config describes one analog. The dataclasses of this room are the only place
that defines a field's type, meaning, unit, bounds, default, and whether a
release publishes it. Four fields may hold any JSON value: those of `data` that
belong to the user's pipeline, and similar ones in `measure` and `safety`.

defaults.py makes a config from the schema, and loading.py reads files,
overrides and the saved config.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from ml_collections import ConfigDict

from analogjax.config import fields
from analogjax.config.cache import CacheConfig
from analogjax.config.data import DataConfig
from analogjax.config.fields import check, listed
from analogjax.config.measure import MeasureConfig
from analogjax.config.model import MeshConfig, StudentConfig, TeacherConfig
from analogjax.config.plan import PlanConfig
from analogjax.config.release import ReleaseConfig
from analogjax.config.safety import SafetyConfig
from analogjax.config.train import (
  LINEAR,
  LossConfig,
  TrainConfig,
  WatchConfig,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sections(fields.Section):
  """A whole, checked config, as the stages use it."""

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

  def rules(self) -> None:
    L, max_positions = self.data.L, self.student.max_positions
    expected = f"at least data.L={L}"
    ok = max_positions >= L
    check(ok, "student.max_positions", expected, max_positions)
    positions = self.cache.gram_positions
    expected = f"at most data.L={L}"
    check(positions <= L, "cache.gram_positions", expected, positions)
    for name in self.train.phases:
      self._check_phase(name)
    self._check_students()

  def _check_phase(self, name: str) -> None:
    """Checks that the cache has what a phase learns from."""
    phase, rows = self.train.phase[name], self.cache.num_rows
    ok = phase.rows != "cache" or phase.batch_rows <= rows
    expected = f"at most cache.num_rows={rows}"
    check(ok, f"train.{name}.batch_rows", expected, phase.batch_rows)
    if phase.reads_records:
      self._check_records(f"train.{name}.loss", phase.loss)
    if phase.loss.gram_weight:
      self._check_gram(f"train.{name}.loss.gram_weight")

  def _check_students(self) -> None:
    """Checks the names of phases and folders that are measured or released."""
    ran = f"a phase of train.phases ({listed(self.train.phases)})"
    for name in self.measure.phases:
      check(name in self.train.phases, "measure.phases", ran, name)
    # The stage checks whether they ran: a run of fewer phases need not be
    # evaluated.
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
    """Whether any phase has its rows from the training cache."""
    phases = (self.train.phase[name] for name in self.train.phases)
    return any(phase.rows == "cache" for phase in phases)

  def _check_records(self, field: str, loss: LossConfig) -> None:
    """Refuses a loss that the records of this cache do not support."""
    cache = self.cache
    check(
      loss.temperature == cache.temperature,
      f"{field}.temperature",
      f"cache.temperature={cache.temperature}, as the records are of that",
      loss.temperature,
    )
    ok = loss.divergence in LINEAR or cache.kind == "topk"
    names = " or ".join(map(repr, LINEAR))
    expected = (
      f"{names}, as no other is unbiased with sampled records (cache.kind"
      f" {cache.kind!r}); with cache.kind 'topk' or {field}.teacher 'live' any"
      " is"
    )
    check(ok, f"{field}.divergence", expected, loss.divergence)

  def _check_gram(self, field: str) -> None:
    """Refuses a Gram that no cache has, or that has more depths than layers."""
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
  """The plain values of a config: types checked, defaults filled in.

  Rules are not checked yet. Lists become tuples and whole numbers in float
  fields become floats, so that a config is the same before and after it is
  saved.

  Raises:
    ValueError: names the field, what was expected and what was found.
  """
  values = cfg.to_dict() if isinstance(cfg, ConfigDict) else cfg
  return fields.typed(Sections, values)


def check_values(values: Mapping[str, Any]) -> Sections:
  """The typed form of the result of `to_values`, every rule checked.

  Raises:
    ValueError: names the field, what was expected and what was found.
  """
  return fields.build(Sections, values)
