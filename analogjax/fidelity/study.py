"""Opens a config's models and rows to measure the analog's fidelity."""

from collections.abc import Callable, Collection
import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

from analogjax.config import schema
from analogjax.distributed import processes, sharding
from analogjax.evaluation import sources
from analogjax.evaluation.models import RANDOM, Model
from analogjax.evaluation.study import Study
from analogjax.fidelity import behaviours
from analogjax.run.run import Run


class Sources(NamedTuple):
  """Inputs of a study; `open` reads the teacher's weights."""

  students: dict[str, Model]  # By name, the analog first.
  inputs: dict[str, Any]  # Everything that results depend on, as JSON values.
  open: Callable[[], Study]


def look(run: Run, options: schema.MeasureConfig) -> Sources:
  """Finds and checks everything but the teacher's weights.

  `options` is the section `measure`, or parts of it.

  Raises:
    ValueError: names the field or the file.
  """
  loaded = processes.all_or_none(
    lambda: behaviours.load_all(options.behaviours)
  )
  mesh, teacher = run.mesh, run.teacher
  sharding.check_batch_rows(options.batch_rows, mesh, "measure.batch_rows")
  rows = sources.read_rows(run, options)
  students, about = sources.open_students(
    run, options.phases, options.named_folders
  )
  analog = next(iter(students))
  inputs = {
    "analog": analog,
    "controls": controls_of(run.config, students, analog),
    "random": RANDOM,
    "teacher_digest": teacher.digest,
    "teacher_dtype": teacher.cfg.dtype,
    "students": about,
    "rows": {name: sources.digest(part) for name, part in rows.items()},
    "behaviours": {name: part.digest for name, part in loaded.items()},
    "options": published(options),
  }

  def open_study() -> Study:
    return Study(
      mesh=mesh,
      teacher=sources.read_teacher(teacher, mesh),
      students=students,
      fit=rows["fit"],
      test=rows["test"],
      domains={
        name.removeprefix("domain "): part
        for name, part in rows.items()
        if name.startswith("domain ")
      },
      tokenizer=sources.read_tokenizer(teacher),
      options=options,
    )

  return Sources(students, json.loads(json.dumps(inputs)), open_study)


def published(options: schema.MeasureConfig) -> dict[str, Any]:
  """The publishable options: names and digests, no paths.

  Folders, behaviours and the rows of domains have their digests elsewhere in
  the inputs.
  """
  values = dataclasses.asdict(options)
  values["folders"] = sorted(options.named_folders)
  values["domains"] = sorted(options.domains)
  values["behaviours"] = [Path(name).name for name in options.behaviours]
  return values


def controls_of(
  config: schema.Sections, students: Collection[str], analog: str
) -> list[str]:
  """Students that never saw the teacher; models from folders count as such."""

  def taught(phase: str) -> bool:
    chain = config.train.chain(phase)
    return any(config.train.phase[p].loss.has_teacher for p in chain)

  return [
    name
    for name in students
    if name not in (analog, RANDOM)
    and (name in config.measure.named_folders or not taught(name))
  ]
