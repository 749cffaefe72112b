"""What several stages open in the same way, from the sections of a config."""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import math
from pathlib import Path
from typing import Any

from flax import nnx
import jax
from jax.sharding import Mesh
import numpy as np

import analogjax
from analogjax.cache import cache_format, logit_cache
from analogjax.cli import progress
from analogjax.config import model
from analogjax.config.schema import Sections, TeacherConfig
from analogjax.data import pipeline
from analogjax.demo import gguf
from analogjax.distributed import processes, sharding
from analogjax.models import (
  decoder,
  hf_import,
  sizes,
  teacher as teacher_lib,
)
from analogjax.workdir import checkpoints, files as files_lib, store

CACHE, HELD_OUT, TEACHER, EXPORT = "cache", "held_out", "teacher", "export"

DISTILLKIT = "distillkit"  # In place of a pipeline: rows that were imported.

_SOFTWARE = ("jax", "flax", "grain", "tensorstore", "tokenizers")


def phase_folder(workdir: Path, phase: str) -> Path:
  """Where a phase keeps its checkpoints and metrics."""
  return workdir / "train" / phase


def make_mesh(sections: Sections) -> Mesh:
  return sharding.make_mesh(dataclasses.asdict(sections.mesh))


def make_train_meshes(
  sections: Sections, devices: Sequence[Any] | None = None
) -> tuple[Mesh, Mesh]:
  """The student's mesh, and that of a teacher in the loop.

  The same one, unless teacher.mesh sets devices aside: the last ones.

  Args:
    sections: the config.
    devices: all of them, if not those that are here.

  Raises:
    ValueError: too few devices, or several processes.
  """
  phases = (sections.train.phase[name] for name in sections.train.phases)
  own = sections.teacher.mesh
  student_axes = dataclasses.asdict(sections.mesh)
  if own is None or not any(phase.runs_teacher for phase in phases):
    mesh = sharding.make_mesh(student_axes, devices)
    return mesh, mesh
  axes = dataclasses.asdict(own)
  devices = list(jax.devices() if devices is None else devices)
  number = math.prod(axes.values())
  if jax.process_count() > 1:
    raise ValueError(
      "teacher.mesh: devices of its own need a single process, found"
      f" {jax.process_count()}; set teacher.mesh=None, and the teacher shares"
      " the student's."
    )
  if number >= len(devices):
    raise ValueError(
      f"teacher.mesh: {number} devices for the teacher leave none of the"
      f" {len(devices)} for the student; make it smaller, or set"
      " teacher.mesh=None, and the teacher shares the student's."
    )
  student = sharding.make_mesh(student_axes, devices[:-number])
  return student, sharding.make_mesh(axes, devices[-number:])


def check_phase_rows(
  sections: Sections, name: str, mesh: Mesh, teacher_mesh: Mesh
) -> None:
  """Refuses a phase whose rows the meshes cannot share out evenly.

  Raises:
    ValueError: names the field.
  """
  phase, field = sections.train.phase[name], f"train.{name}.batch_rows"
  if phase.runs_teacher:
    sharding.check_batch_rows(phase.batch_rows, teacher_mesh, field)
  if phase.microbatches > 1:
    field += f" / train.{name}.microbatches"
  rows = phase.batch_rows // phase.microbatches
  sharding.check_batch_rows(rows, mesh, field)


def student_config(sections: Sections) -> decoder.DecoderConfig:
  fields = {f.name for f in dataclasses.fields(decoder.DecoderConfig)}
  values = dataclasses.asdict(sections.student)
  if values["rope_scaling"] is not None:
    values["rope_scaling"] = model.RopeScaling(**values["rope_scaling"])
  return decoder.DecoderConfig(
    **{name: value for name, value in values.items() if name in fields}
  )


def open_teacher(sections: Sections, workdir: Path) -> teacher_lib.Teacher:
  """The teacher's folder, converted first where the config says so.

  All processes call it: process 0 converts, and each hashes some of the files.
  Where one fails, all stop.

  Raises:
    ValueError: a missing or damaged file, a digest or a vocabulary that does
      not match, rows longer than the teacher's context, or a student outside
      the size window.
  """
  section = sections.teacher
  folder = Path(section.path) if section.path else workdir / TEACHER
  if not section.path:
    processes.on_first(lambda: _convert_teacher(section, folder))
  cfg, tokenizer_digest = processes.together(
    lambda: _check_teacher(sections, folder)
  )
  digest = _teacher_digest(folder)
  if section.sha256 and section.sha256 != digest:
    raise ValueError(
      f"teacher.sha256: expected {section.sha256}, but {folder} has {digest}:"
      " it is another checkpoint, or a damaged one. Fetch it again, or set"
      " teacher.sha256 to the digest found if you trust it."
    )
  return teacher_lib.Teacher(
    folder=folder, cfg=cfg, digest=digest, tokenizer_digest=tokenizer_digest
  )


def _convert_teacher(section: TeacherConfig, folder: Path) -> None:
  assert section.gguf is not None
  source = gguf.find_gguf(**dataclasses.asdict(section.gguf))
  gguf.convert(source, folder)


def _check_teacher(
  sections: Sections, folder: Path
) -> tuple[decoder.DecoderConfig, str]:
  """The model of a folder that can be this run's teacher; tokenizer digest."""
  cfg = hf_import.read_config(folder, dtype=sections.teacher.dtype)
  cfg = dataclasses.replace(cfg, attention=sections.teacher.attention)
  check_pair(sections, cfg)
  tokenizer = folder / "tokenizer.json"
  if not tokenizer.is_file():
    raise ValueError(
      f"{tokenizer}: expected the teacher's tokenizer, found no such file. Copy"
      " it from where the teacher comes from; rows and analog need it too."
    )
  # Before hours of work, and before a cache that carries a bad digest.
  hf_import.check_weights(folder, cfg)
  return cfg, files_lib.file_sha256(tokenizer)


def _teacher_digest(folder: Path) -> str:
  # Of process 0: all have to find the digest among those known, or none.
  stamps = processes.from_first(processes.together(lambda: _stamps(folder)))
  return _digest_of(folder, stamps.tobytes())


# `run` opens the teacher once for each stage; hashing a frontier checkpoint
# takes minutes.
@functools.lru_cache(maxsize=1)
def _digest_of(folder: Path, stamps: bytes) -> str:
  del stamps  # Part of the key: what changes when a file is written.
  return hf_import.folder_digest(folder)


def _stamps(folder: Path) -> np.ndarray:
  """A digest of when the files of a folder were written, uint8 [32]."""
  files = sorted(path for path in folder.iterdir() if path.is_file())
  stats = [(path.name, path.stat()) for path in files]
  values = [(name, s.st_size, s.st_mtime_ns) for name, s in stats]
  return np.frombuffer(hashlib.sha256(repr(values).encode()).digest(), np.uint8)


def check_pair(sections: Sections, teacher: decoder.DecoderConfig) -> None:
  """Refuses a student and rows that do not fit the teacher."""
  if sections.student.V != teacher.V:
    raise ValueError(
      f"student.V={sections.student.V}, but the teacher's vocabulary has"
      f" {teacher.V} entries; they share the tokenizer, so set"
      f" student.V={teacher.V}."
    )
  if sections.data.L > teacher.max_positions:
    raise ValueError(
      f"data.L={sections.data.L} tokens, but the teacher's context is"
      f" {teacher.max_positions}; set data.L to that or less."
    )
  warning = sizes.check_size_window(
    student_config(sections).num_parameters,
    teacher.num_parameters,
    policy=sections.student.size_window,
  )
  if warning:
    progress.say(f"warning: {warning}")


def open_rows(
  sections: Sections,
  teacher: teacher_lib.Teacher,
  workdir: Path,
  *,
  held_out: bool,
  arguments: Mapping[str, Any] = {},  # noqa: B006 (never written to)
) -> pipeline.RowSource:
  """The frontier run's pipeline, of training rows or of held-out rows.

  Args:
    sections: the config.
    teacher: whose tokenizer and vocabulary the rows are of.
    workdir: of the run.
    held_out: whether data.held_out_arguments apply.
    arguments: laid over them.

  Raises:
    ValueError: names the field.
  """
  data = sections.data
  given = dict(data.arguments)
  if held_out:
    given |= data.held_out_arguments
  given |= arguments
  return pipeline.open_pipeline(
    data.pipeline,
    given,
    L=data.L,
    V=teacher.cfg.V,
    substitutions={"teacher": str(teacher.folder), "workdir": str(workdir)},
  )


def check_domains(sections: Sections) -> None:
  """Refuses domains to measure on that the pipeline cannot take.

  Long before they are measured: a config that was made of another one may have
  that one's domains.

  Raises:
    ValueError: names the domain.
  """
  data = sections.data
  for name, arguments in sections.measure.domains.items():
    given = {**data.arguments, **data.held_out_arguments, **arguments}
    try:
      pipeline.check_arguments(data.pipeline, given)
    except ValueError as error:
      raise ValueError(f"measure.domains.{name}: {error}") from error


def student_identity(sections: Sections) -> dict[str, Any]:
  """What makes the student's parameters what they are; JSON values."""
  student = dataclasses.asdict(sections.student)
  # They change no number, but for the rounding of another kernel.
  for free in ("size_window", "remat", "attention"):
    del student[free]
  return student


def read_phase(
  sections: Sections, workdir: Path, phase: str, mesh: Mesh
) -> tuple[int, nnx.State, dict[str, Any]]:
  """The student after a phase: (step, parameters, fingerprints).

  Raises:
    ValueError: the phase is not finished, or its student is another one than
      the config's.
  """
  place = checkpoint_place(sections, workdir, phase)
  last = sections.train.phase[phase].num_steps
  missing = ValueError(
    f"{place}: there is no checkpoint of step {last}, the last one of phase"
    f" {phase!r}; run 'analogjax train' first."
  )
  if isinstance(place, Path) and not place.is_dir():
    raise missing
  reader = open_checkpoints(sections, workdir, phase, writes=False)
  with contextlib.closing(reader) as saved:
    if last not in saved.steps():
      raise missing
    fingerprints = saved.about(last)["fingerprints"]
    wanted = {"student": student_identity(sections)}
    check_identity(place, fingerprints, wanted)
    abstract = decoder.abstract_parameters(student_config(sections))
    shardings = sharding.state_shardings(abstract, mesh)
    try:
      params = saved.restore_params(last, abstract, shardings)
    except checkpoints.CheckpointError as error:
      raise ValueError(
        f"{error} Run 'analogjax train': it goes on from the one before."
      ) from error
    return last, params, fingerprints


def checkpoint_place(
  sections: Sections, workdir: Path, phase: str
) -> Path | store.Place:
  """Where the checkpoints of a phase lie: its folder, or a bucket."""
  train = sections.train
  if not train.location:
    return phase_folder(workdir, phase) / "checkpoints"
  root = store.place(train.location, train.s3_endpoint, section="train")
  return root / phase


def open_checkpoints(
  sections: Sections, workdir: Path, phase: str, *, writes: bool
) -> checkpoints.Checkpoints:
  """The checkpoints of a phase; without `writes` nothing there is touched."""
  section = sections.train.phase[phase]
  place = checkpoint_place(sections, workdir, phase)
  staging = None
  if isinstance(place, store.Place):
    staging = phase_folder(workdir, phase) / "checkpoints"
  return checkpoints.Checkpoints(
    place,
    keep=section.keep_checkpoints if writes else None,
    keep_best=section.keep_best_checkpoints if writes else 0,
    staging=staging,
  )


def check_identity(
  place: Path | store.Place, found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
  """Refuses checkpoints that another config made; names what differs.

  Args:
    place: of the checkpoints, for the message.
    found: fingerprints of a checkpoint: sections of plain values.
    wanted: those that have to be the same.
  """
  before = _leaves({name: found.get(name) for name in wanted})
  now = _leaves(wanted)
  differs = [
    f"{field} is {before.get(field)!r} there and {now.get(field)!r} now"
    for field in {**before, **now}
    if before.get(field) != now.get(field)
  ]
  if differs:
    raise ValueError(
      f"{place}: these checkpoints were made with another config:"
      f" {'; '.join(differs)}. Set it back, use another --workdir, or move that"
      " folder away to train anew."
    )


def _leaves(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
  leaves = {}
  for name, value in values.items():
    if isinstance(value, Mapping):
      leaves |= _leaves(value, f"{path}{name}.")
    else:
      leaves[path + name] = value
  return leaves


def cache_names(sections: Sections) -> tuple[str, ...]:
  """The caches that this config's stages read."""
  return (CACHE, HELD_OUT) if sections.reads_cache else (HELD_OUT,)


def cache_place(sections: Sections, workdir: Path, name: str) -> store.Place:
  """Where the cache of this name lies: CACHE or HELD_OUT."""
  root = sections.cache.location or workdir
  return store.place(root, sections.cache.s3_endpoint) / name


def manifest(
  sections: Sections,
  teacher: teacher_lib.Teacher,
  fingerprint: str,
  num_rows: int,
  *,
  held_out: bool,
) -> cache_format.Manifest:
  """The manifest that this config gives a cache of rows with a fingerprint."""
  return cache_format.Manifest(
    **_recorded(sections, held_out=held_out),
    **_origin(sections, teacher, held_out=held_out),
    num_rows=num_rows,
    rows_per_object=sections.cache.rows_per_object,
    pipeline_fingerprint=fingerprint,
    software=software_versions(),
  )


def _recorded(sections: Sections, *, held_out: bool) -> dict[str, Any]:
  """Fields of a manifest: what is kept of the teacher's distribution."""
  cache = sections.cache
  sampled = not held_out and not cache.import_path
  return {
    "kind": cache.kind,
    # Of the parameters of all kinds, the one that counts.
    "tau": cache.tau if cache.kind == "threshold" else None,
    "num_draws": cache.num_draws if cache.kind == "random" else None,
    "top_k": cache.top_k if cache.kind == "topk" else None,
    "temperature": cache.temperature,
    # What is measured on is recorded once, everywhere.
    "num_replicas": cache.num_replicas if sampled else 1,
    "capture": cache.capture if sampled else "all",
    "capture_rate": cache.capture_rate if sampled else 1.0,
    "gram_positions": cache.gram_positions,
    "gram_depths": cache.gram_depths,
    "seed": cache.seed,
  }


def _origin(
  sections: Sections, teacher: teacher_lib.Teacher, *, held_out: bool
) -> dict[str, Any]:
  """Fields of a manifest: where rows and distribution come from."""
  imported = sections.cache.import_path and not held_out
  return {
    "sequence_length": sections.data.L,
    "vocabulary_size": teacher.cfg.V,
    "teacher_digest": teacher.digest,
    "teacher_dtype": teacher.cfg.dtype,
    "tokenizer_digest": teacher.tokenizer_digest,
    "pipeline": DISTILLKIT if imported else sections.data.pipeline,
  }


def open_cache(
  sections: Sections, teacher: teacher_lib.Teacher, workdir: Path, name: str
) -> logit_cache.LogitCache:
  """A complete cache that this config and this teacher made.

  Raises:
    ValueError: rows are missing, or the manifest says otherwise. The manifest
      is the truth; a config that disagrees is refused, with both values.
  """
  cache = logit_cache.open_cache(cache_place(sections, workdir, name))
  check_cache(sections, teacher, cache)
  if holes := cache.holes():
    raise ValueError(
      f"{cache.location}: {sum(map(len, holes))} of"
      f" {cache.manifest.num_rows} rows are not cached yet, the first is"
      f" {holes[0].start}; run 'analogjax cache'."
    )
  return cache


def check_cache(
  sections: Sections,
  teacher: teacher_lib.Teacher,
  cache: logit_cache.LogitCache,
) -> None:
  """Refuses a cache that another config or teacher made; names what differs."""
  # The pipeline is not opened here: its rows are in the cache.
  held_out = cache.location.name == HELD_OUT
  wanted = dataclasses.replace(
    cache.manifest,
    **_recorded(sections, held_out=held_out),
    **_origin(sections, teacher, held_out=held_out),
  )
  cache_format.check(cache.location, cache.manifest, wanted)


def software_versions() -> dict[str, str]:
  others = {name: importlib.metadata.version(name) for name in _SOFTWARE}
  return {"analogjax": analogjax.__version__, **others}
