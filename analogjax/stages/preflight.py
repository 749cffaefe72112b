"""Finds at the start what a later stage would refuse hours later.

No row and no weight is read: the pipeline's module is imported and its
arguments are bound, and the files that a config names are opened.
"""

from collections.abc import Callable, Iterator, Sequence
import importlib.util
from pathlib import Path

import tokenizers

from analogjax.config.schema import Sections
from analogjax.data import pipeline
from analogjax.fidelity import behaviours
from analogjax.models import hf_import
from analogjax.release import material
from analogjax.run import teacher as teacher_lib
from analogjax.safety import prompts

STAGES = ("cache", "train", "measure", "safety", "export", "release")


def problems(
  config: Sections, workdir: Path | None, stages: Sequence[str] = STAGES
) -> list[str]:
  """Reasons why stages will refuse a config, a sentence or two each.

  `workdir` may hold a converted teacher; None: there is none.
  """
  found: list[str] = []
  for stage, check in (
    ("cache", lambda: _pipeline(config)),
    ("cache", lambda: _tokenizer_file(config, workdir)),
    ("measure", lambda: _behaviours(config, workdir)),
    ("safety", lambda: _prompts(config)),
    ("release", lambda: _release(config)),
  ):
    if stage in stages:
      found += check()
  return list(dict.fromkeys(found))


def check(
  config: Sections, workdir: Path, stages: Sequence[str] = STAGES
) -> None:
  """Refuses a config that a stage would refuse later.

  Raises:
    ValueError: names all problems.
  """
  if found := problems(config, workdir, stages):
    raise ValueError(" ".join(found))


def _message(call: Callable[[], object]) -> list[str]:
  try:
    call()
  except ValueError as error:
    return [str(error)]
  return []


def _teacher_folder(config: Sections, workdir: Path | None) -> Path | None:
  """The teacher's folder; None: it is converted when the run begins."""
  if config.teacher.path:
    return Path(config.teacher.path)
  folder = workdir and workdir / teacher_lib.FOLDER
  return folder if folder is not None and folder.is_dir() else None


def _tokenizer_file(config: Sections, workdir: Path | None) -> Iterator[str]:
  folder = _teacher_folder(config, workdir)
  if folder is not None and not (folder / "tokenizer.json").is_file():
    yield teacher_lib.no_tokenizer(folder)


def _pipeline(config: Sections) -> Iterator[str]:
  """Binds the arguments of training rows, held-out rows and domains."""
  data = config.data
  held_out = {**data.arguments, **data.held_out_arguments}
  try:
    pipeline.check_arguments(data.pipeline, data.arguments)
    pipeline.check_arguments(data.pipeline, held_out)
  except ValueError as error:
    yield str(error)
    return
  for name, arguments in config.measure.domains.items():
    for error in _message(
      lambda given=held_out | dict(arguments): pipeline.check_arguments(
        data.pipeline, given
      )
    ):
      yield f"measure.domains.{name}: {error}"


def _behaviours(config: Sections, workdir: Path | None) -> Iterator[str]:
  """Reads the behaviours, and looks their words up in the tokenizer."""
  try:
    loaded = behaviours.load_all(config.measure.behaviours)
  except ValueError as error:
    yield str(error)
    return
  if "steering" not in config.measure.parts:
    return  # No other part uses their texts.
  folder = _teacher_folder(config, workdir)
  if folder is None or not (folder / "tokenizer.json").is_file():
    return
  tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
  context = min(
    config.student.max_positions, hf_import.read_config(folder).max_positions
  )
  for behaviour in loaded.values():
    yield from _message(
      lambda one=behaviour: behaviours.check(one, tokenizer, context)
    )


def _prompts(config: Sections) -> Iterator[str]:
  if "refusal" not in config.safety.parts:
    return
  for field in ("harmful", "harmless"):
    files = getattr(config.safety, field)
    yield from _message(
      lambda: prompts.load_all(files, f"safety.{field}")  # noqa: B023
    )


def _release(config: Sections) -> Iterator[str]:
  yield from _message(lambda: material.read_licence(config, "2000-01-01"))
  if importlib.util.find_spec("model_signing") is None:
    yield (
      "release: signing needs model-signing, which is not installed; install"
      " analogjax with the extra 'release'."
    )
