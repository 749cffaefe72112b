"""One run: a config, its workdir, and the objects that every stage opens."""

from collections.abc import Mapping
import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx
from jax.sharding import Mesh

from analogjax.cache import logit_cache
from analogjax.config.schema import Sections
from analogjax.data import pipeline
from analogjax.distributed import sharding
from analogjax.models import decoder
from analogjax.models.teacher import Teacher
from analogjax.run import caches, identity, meshes, teacher
from analogjax.workdir import checkpoints, store


class Trained(NamedTuple):
  """A student after the last step of a phase."""

  step: int
  params: nnx.State
  fingerprints: dict[str, Any]  # See identity.check_identity.


class Run:
  """Opens the inputs of the stages, each once, on first use.

  A stage makes one Run and passes it on. Several processes open the teacher
  together, so all of them must use `teacher` for the first time together.
  """

  def __init__(self, config: Sections, workdir: Path):
    self.config, self.workdir = config, workdir
    self._caches: dict[str, logit_cache.LogitCache] = {}

  @functools.cached_property
  def teacher(self) -> Teacher:
    """The checked teacher; see `run.teacher.open_teacher`."""
    return teacher.open_teacher(self.config, self.workdir)

  @functools.cached_property
  def student(self) -> decoder.DecoderConfig:
    return identity.student_config(self.config)

  @functools.cached_property
  def mesh(self) -> Mesh:
    """All devices, for every stage but train."""
    return sharding.make_mesh(dataclasses.asdict(self.config.mesh))

  @functools.cached_property
  def train_meshes(self) -> tuple[Mesh, Mesh]:
    """The meshes of the student and of a live teacher."""
    return meshes.make_train_meshes(self.config)

  @functools.cached_property
  def chain(self) -> list[str]:
    """Phases that lead to the analog, in running order."""
    return self.config.train.chain(self.config.release.phase)

  @property
  def export_folder(self) -> Path:
    """The Hugging Face folder of the analog."""
    return self.workdir / "export"

  # Rows.

  def open_rows(
    self,
    *,
    held_out: bool,
    arguments: Mapping[str, Any] = {},  # noqa: B006 (never written to)
  ) -> pipeline.RowSource:
    """Opens the pipeline anew, since a stream has its own position.

    Args:
      held_out: whether data.held_out_arguments apply.
      arguments: override those of the config.

    Raises:
      ValueError: names the field.
    """
    data = self.config.data
    given = dict(data.arguments)
    if held_out:
      given |= data.held_out_arguments
    return pipeline.open_pipeline(
      data.pipeline,
      given | dict(arguments),
      L=data.L,
      V=self.teacher.cfg.V,
      substitutions={
        "teacher": str(self.teacher.folder),
        "workdir": str(self.workdir),
      },
    )

  def check_domains(self) -> None:
    """Refuses domains to measure on that the pipeline cannot take.

    The cache stage calls it: a config that was copied from another one may
    still have that one's domains, and `measure` comes hours later.

    Raises:
      ValueError: names the domain.
    """
    data = self.config.data
    for name, arguments in self.config.measure.domains.items():
      given = {**data.arguments, **data.held_out_arguments, **arguments}
      try:
        pipeline.check_arguments(data.pipeline, given)
      except ValueError as error:
        raise ValueError(f"measure.domains.{name}: {error}") from error

  # Caches.

  @property
  def cache_names(self) -> tuple[str, ...]:
    return caches.cache_names(self.config)

  def cache_place(self, name: str) -> store.Place:
    """The place of caches.CACHE or caches.HELD_OUT."""
    root = self.config.cache.location or self.workdir
    return store.place(root, self.config.cache.s3_endpoint) / name

  def check_cache(self, cache: logit_cache.LogitCache) -> None:
    caches.check_cache(self.config, self.teacher, cache)

  def cache(self, name: str) -> logit_cache.LogitCache:
    """A complete cache that this config and this teacher made.

    Raises:
      ValueError: rows are missing, or the manifest disagrees. The manifest is
        the truth; a config that disagrees is refused, with both values.
    """
    if name not in self._caches:
      cache = logit_cache.open_cache(self.cache_place(name))
      self.check_cache(cache)
      if holes := cache.holes():
        raise ValueError(
          f"{cache.location}: {sum(map(len, holes))} of"
          f" {cache.manifest.num_rows} rows are not cached yet, the first is"
          f" {holes[0].start}; run 'analogjax cache'."
        )
      self._caches[name] = cache
    return self._caches[name]

  # Phases of training.

  def phase_folder(self, phase: str) -> Path:
    """The folder of a phase's checkpoints and metrics."""
    return self.workdir / "train" / phase

  def checkpoint_place(self, phase: str) -> Path | store.Place:
    """The place of a phase's checkpoints: its folder, or a bucket."""
    train = self.config.train
    if not train.location:
      return self.phase_folder(phase) / "checkpoints"
    root = store.place(train.location, train.s3_endpoint, section="train")
    return root / phase

  def open_checkpoints(
    self, phase: str, *, writes: bool
  ) -> checkpoints.Checkpoints:
    """The checkpoints of a phase; without `writes` nothing is changed."""
    section = self.config.train.phase[phase]
    place = self.checkpoint_place(phase)
    staging = None
    if isinstance(place, store.Place):
      staging = self.phase_folder(phase) / "checkpoints"
    return checkpoints.Checkpoints(
      place,
      keep=section.keep_checkpoints if writes else None,
      keep_best=section.keep_best_checkpoints if writes else 0,
      staging=staging,
    )

  def read_phase(self, phase: str, mesh: Mesh | None = None) -> Trained:
    """Reads the student after a phase, onto `mesh` or else onto `self.mesh`.

    Raises:
      ValueError: the phase is not finished, or its student is not the config's.
    """
    place = self.checkpoint_place(phase)
    last = self.config.train.phase[phase].num_steps
    missing = ValueError(
      f"{place}: there is no checkpoint of step {last}, the last one of phase"
      f" {phase!r}; run 'analogjax train' first."
    )
    if isinstance(place, Path) and not place.is_dir():
      raise missing
    reader = self.open_checkpoints(phase, writes=False)
    with contextlib.closing(reader) as saved:
      if last not in saved.steps():
        raise missing
      fingerprints = saved.about(last)["fingerprints"]
      wanted = {"student": identity.student_identity(self.config)}
      identity.check_identity(place, fingerprints, wanted)
      abstract = decoder.abstract_parameters(self.student)
      shardings = sharding.state_shardings(abstract, mesh or self.mesh)
      try:
        params = saved.restore_params(last, abstract, shardings)
      except checkpoints.CheckpointError as error:
        raise ValueError(
          f"{error} Run 'analogjax train': it continues from the one before."
        ) from error
      return Trained(last, params, fingerprints)
