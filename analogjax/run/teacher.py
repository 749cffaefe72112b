"""Opens the teacher of a config: folder, shape, tokenizer and digest."""

import dataclasses
import functools
import hashlib
from pathlib import Path

import numpy as np

from analogjax.cli import progress
from analogjax.config.schema import Sections, TeacherConfig
from analogjax.demo import gguf
from analogjax.distributed import processes
from analogjax.models import decoder, hf_import, sizes
from analogjax.models.teacher import Teacher
from analogjax.run import identity
from analogjax.workdir import files

FOLDER = "teacher"  # In the workdir, if the config has no path.


def open_teacher(config: Sections, workdir: Path) -> Teacher:
  """Checks the teacher's folder; converts a GGUF file first if one is given.

  All processes call it together: process 0 converts, and each hashes some of
  the files. If one process fails, all stop.

  Raises:
    ValueError: a file is missing or damaged, a digest or a vocabulary does not
      match, rows are longer than the teacher's context, or the student is
      outside the size window.
  """
  section = config.teacher
  folder = Path(section.path) if section.path else workdir / FOLDER
  if not section.path:
    processes.on_first(lambda: _convert_teacher(section, folder))
  cfg, tokenizer_digest = processes.all_or_none(
    lambda: _check_teacher(config, folder)
  )
  digest = _teacher_digest(folder)
  if section.sha256 and section.sha256 != digest:
    raise ValueError(
      f"teacher.sha256: expected {section.sha256}, but {folder} has {digest}:"
      " it is another checkpoint, or a damaged one. Fetch it again, or set"
      " teacher.sha256 to the digest found if you trust it."
    )
  return Teacher(
    folder=folder, cfg=cfg, digest=digest, tokenizer_digest=tokenizer_digest
  )


def _convert_teacher(section: TeacherConfig, folder: Path) -> None:
  assert section.gguf is not None
  source = gguf.find_gguf(**dataclasses.asdict(section.gguf))
  gguf.convert(source, folder)


def _check_teacher(
  config: Sections, folder: Path
) -> tuple[decoder.DecoderConfig, str]:
  """Returns the teacher's shape and the digest of its tokenizer."""
  cfg = hf_import.read_config(folder, dtype=config.teacher.dtype)
  cfg = dataclasses.replace(cfg, attention=config.teacher.attention)
  check_pair(config, cfg)
  tokenizer = folder / "tokenizer.json"
  if not tokenizer.is_file():
    raise ValueError(no_tokenizer(folder))
  # Before hours of work go into a cache with a wrong digest.
  hf_import.check_weights(folder, cfg)
  return cfg, files.file_sha256(tokenizer)


def no_tokenizer(folder: Path) -> str:
  """The message for a teacher's folder without tokenizer.json."""
  return (
    f"{folder / 'tokenizer.json'}: expected the teacher's tokenizer, found no"
    " such file. Copy it from where the teacher comes from; rows and analog"
    " need it too."
  )


def _teacher_digest(folder: Path) -> str:
  # The stamps of process 0: the digest is known to all processes or to none.
  stamps = processes.from_first(processes.all_or_none(lambda: _stamps(folder)))
  return _digest_of(folder, stamps.tobytes())


# `analogjax run` opens the teacher in every stage, and hashing a frontier
# checkpoint takes minutes.
@functools.lru_cache(maxsize=1)
def _digest_of(folder: Path, stamps: bytes) -> str:
  del stamps  # Part of the key: they change when a file is written.
  return hf_import.folder_digest(folder)


def _stamps(folder: Path) -> np.ndarray:
  """Digest of the sizes and times of the files of a folder, uint8 [32]."""
  paths = sorted(path for path in folder.iterdir() if path.is_file())
  stats = [(path.name, path.stat()) for path in paths]
  values = [(name, s.st_size, s.st_mtime_ns) for name, s in stats]
  return np.frombuffer(hashlib.sha256(repr(values).encode()).digest(), np.uint8)


def check_pair(config: Sections, teacher: decoder.DecoderConfig) -> None:
  """Refuses a student and rows that do not fit the teacher."""
  if config.student.V != teacher.V:
    raise ValueError(
      f"student.V={config.student.V}, but the teacher's vocabulary has"
      f" {teacher.V} entries; they share the tokenizer, so set"
      f" student.V={teacher.V}."
    )
  if config.data.L > teacher.max_positions:
    raise ValueError(
      f"data.L={config.data.L} tokens, but the teacher's context is"
      f" {teacher.max_positions}; set data.L to that or less."
    )
  warning = sizes.check_size_window(
    identity.student_config(config).num_parameters,
    teacher.num_parameters,
    policy=config.student.size_window,
  )
  if warning:
    progress.say(f"warning: {warning}")
