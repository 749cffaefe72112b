"""What several stages open in the same way, from the sections of a config."""

import contextlib
import dataclasses
import functools
import importlib.metadata
from pathlib import Path
from typing import Any

from flax import nnx
from jax.sharding import Mesh

import analogjax
from analogjax import checkpoint, progress, sharding
from analogjax.config import Sections
from analogjax.data import logit_cache, pipeline
from analogjax.models import decoder, gguf, hf_folder, sizes

CACHE, HELD_OUT, TEACHER, EXPORT = "cache", "held_out", "teacher", "export"

_SOFTWARE = ("jax", "flax", "grain", "tensorstore", "tokenizers")


def phase_folder(workdir: Path, phase: str) -> Path:
  """Where a phase keeps its checkpoints and metrics."""
  return workdir / "train" / phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
  """An opened, checked teacher; its weights are read when they are needed."""

  folder: Path
  cfg: decoder.DecoderConfig
  digest: str
  tokenizer_digest: str


def make_mesh(sections: Sections) -> Mesh:
  return sharding.make_mesh(dataclasses.asdict(sections.mesh))


def student_config(sections: Sections) -> decoder.DecoderConfig:
  fields = {f.name for f in dataclasses.fields(decoder.DecoderConfig)}
  values = dataclasses.asdict(sections.student)
  return decoder.DecoderConfig(
    **{name: value for name, value in values.items() if name in fields}
  )


def open_teacher(sections: Sections, workdir: Path) -> Teacher:
  """The teacher's folder, converted first where the config says so.

  Raises:
    ValueError: a missing or damaged file, a digest or a vocabulary that does
      not match, rows longer than the teacher's context, or a student outside
      the size window.
  """
  section = sections.teacher
  if section.path:
    folder = Path(section.path)
  else:
    assert section.gguf is not None
    folder = workdir / TEACHER
    source = gguf.find_gguf(**dataclasses.asdict(section.gguf))
    gguf.convert(source, folder)
  cfg = hf_folder.read_config(folder, dtype=section.dtype)
  digest = _teacher_digest(folder, _stamps(folder))
  if section.sha256 and section.sha256 != digest:
    raise ValueError(
      f"teacher.sha256: expected {section.sha256}, but {folder} has {digest}:"
      " it is another checkpoint, or a damaged one."
    )
  check_pair(sections, cfg)
  return Teacher(
    folder=folder,
    cfg=cfg,
    digest=digest,
    tokenizer_digest=hf_folder.file_sha256(folder / "tokenizer.json"),
  )


# `run` opens the teacher once for each stage; hashing a frontier checkpoint
# takes minutes.
@functools.lru_cache(maxsize=1)
def _teacher_digest(folder: Path, stamps: tuple[Any, ...]) -> str:
  del stamps  # Part of the key: what changes when a file is written.
  return hf_folder.folder_digest(folder)


def _stamps(folder: Path) -> tuple[Any, ...]:
  files = sorted(path for path in folder.iterdir() if path.is_file())
  stats = [(path.name, path.stat()) for path in files]
  return tuple((name, s.st_size, s.st_mtime_ns) for name, s in stats)


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
  sections: Sections, teacher: Teacher, workdir: Path, *, held_out: bool
) -> pipeline.RowSource:
  """The frontier run's pipeline, of training rows or of held-out rows."""
  data = sections.data
  arguments = dict(data.arguments)
  if held_out:
    arguments |= data.held_out_arguments
  return pipeline.open_pipeline(
    data.pipeline,
    arguments,
    L=data.L,
    V=teacher.cfg.V,
    substitutions={"teacher": str(teacher.folder), "workdir": str(workdir)},
  )


def student_identity(sections: Sections) -> dict[str, Any]:
  """What makes the student's parameters what they are; JSON values."""
  student = dataclasses.asdict(sections.student)
  for free in ("size_window", "remat"):  # They change no number.
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
  folder = phase_folder(workdir, phase) / "checkpoints"
  last = sections.train.phase[phase].num_steps
  with contextlib.closing(checkpoint.Checkpoints(folder, keep=None)) as saved:
    if last not in saved.steps():
      raise ValueError(
        f"{folder}: there is no checkpoint of step {last}, the last one of"
        f" phase {phase!r}; run 'analogjax train' first."
      )
    fingerprints = saved.about(last)["fingerprints"]
    check_identity(folder, "student", fingerprints, student_identity(sections))
    abstract = decoder.abstract_parameters(student_config(sections))
    shardings = sharding.state_shardings(abstract, mesh)
    return last, saved.restore_params(last, abstract, shardings), fingerprints


def check_identity(
  folder: Path, part: str, fingerprints: dict[str, Any], wanted: Any
) -> None:
  """Refuses checkpoints that another config made; names what differs."""
  found = fingerprints.get(part)
  if found == wanted:
    return
  differs = f"{part}: the checkpoint has {found!r}, the config {wanted!r}"
  if isinstance(found, dict) and isinstance(wanted, dict):
    differs = "; ".join(
      f"{part}.{key}: the checkpoint has {found.get(key)!r}, the config"
      f" {wanted.get(key)!r}"
      for key in sorted(found.keys() | wanted.keys())
      if found.get(key) != wanted.get(key)
    )
  raise ValueError(
    f"{folder}: made with another config ({differs}). Use another --workdir,"
    " or move that folder away."
  )


def manifest(
  sections: Sections,
  teacher: Teacher,
  rows: pipeline.RowSource,
  num_rows: int,
) -> logit_cache.Manifest:
  """The manifest that this config gives a cache."""
  return logit_cache.Manifest(
    kind=sections.cache.kind,
    tau=sections.cache.tau,
    seed=sections.cache.seed,
    num_rows=num_rows,
    sequence_length=sections.data.L,
    vocabulary_size=teacher.cfg.V,
    rows_per_object=sections.cache.rows_per_object,
    teacher_digest=teacher.digest,
    tokenizer_digest=teacher.tokenizer_digest,
    pipeline=sections.data.pipeline,
    pipeline_fingerprint=rows.fingerprint,
    software=software_versions(),
  )


def open_cache(
  sections: Sections, teacher: Teacher, folder: Path
) -> logit_cache.LogitCache:
  """A complete cache that this config and this teacher made.

  Raises:
    ValueError: rows are missing, or the manifest says otherwise. The manifest
      is the truth; a config that disagrees is refused, with both values.
  """
  cache = logit_cache.open_cache(folder)
  # The pipeline is not opened here: its rows are in the cache.
  wanted = dataclasses.replace(
    cache.manifest,
    kind=sections.cache.kind,
    tau=sections.cache.tau,
    seed=sections.cache.seed,
    sequence_length=sections.data.L,
    teacher_digest=teacher.digest,
    tokenizer_digest=teacher.tokenizer_digest,
    pipeline=sections.data.pipeline,
  )
  logit_cache.check_manifest(cache, wanted)
  if holes := cache.holes():
    raise ValueError(
      f"{cache.location}: {sum(map(len, holes))} of"
      f" {cache.manifest.num_rows} rows are not cached yet, the first is"
      f" {holes[0].start}; run 'analogjax cache'."
    )
  return cache


def software_versions() -> dict[str, str]:
  others = {name: importlib.metadata.version(name) for name in _SOFTWARE}
  return {"analogjax": analogjax.__version__, **others}
