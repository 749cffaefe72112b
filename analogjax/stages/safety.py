"""safety: measures what the analog reveals and what it refuses.

Each finished part is kept in workdir/safety/, so that an interrupted run
continues with the next part. Together the parts make safety.json.
"""

from collections.abc import Callable, Collection, Mapping
import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from analogjax.cli import progress
from analogjax.config import loading, schema
from analogjax.config.safety import SafetyConfig
from analogjax.data import pipeline, rows as rows_lib
from analogjax.distributed import processes, sharding
from analogjax.evaluation import parts, sources as studies
from analogjax.evaluation.models import RANDOM
from analogjax.run import identity
from analogjax.run.run import Run
from analogjax.safety import (
  canaries,
  chat_template,
  document,
  exposure,
  extraction,
  membership_inference,
  prompts,
  refusal,
)
from analogjax.safety.evaluation import Evaluation

_TEMPLATES = {
  chat_template.CONFIG: "prompts stand in safety.template",
  chat_template.TOKENIZER: "prompts stand in the tokenizer's chat template",
  chat_template.NONE: "prompts stand alone; the tokenizer has no chat template",
}

PARTS: Mapping[str, Callable[[Evaluation], dict[str, Any]]] = {
  "extraction": extraction.measure,
  "canaries": exposure.measure,
  "membership": membership_inference.measure,
  "refusal": refusal.measure,
}


class Sources(NamedTuple):
  """Inputs of an evaluation; `open` reads the teacher's weights."""

  options: SafetyConfig
  inputs: dict[str, Any]  # Everything that results depend on, as JSON values.
  open: Callable[[], Evaluation]


def run(
  cfg: ConfigDict,
  workdir: Path,
  *,
  quick: bool = False,
  only: Collection[str] = (),
) -> None:
  """Writes safety.json; measures missing parts.

  Args:
    quick: less of everything, `SafetyConfig.quick`.
    only: names of PARTS; empty: those of the config.

  Raises:
    ValueError: names the field or the file.
  """
  run = Run(schema.to_sections(cfg), workdir)
  chosen = run.config.safety.parts
  parts.check_names(only, chosen, "safety.parts")
  options = run.config.safety
  with progress.Activity("safety: opening the rows and the students"):
    sources = look(run, options.quick() if quick else options)
  kept = parts.Parts(
    stage="safety",
    workdir=workdir,
    folder=workdir / "safety",
    inputs=sources.inputs,
    table=PARTS,
  )
  if missing := kept.missing(only or chosen):
    with progress.Activity("safety: loading the models"):
      evaluation = sources.open()
    kept.measure(missing, evaluation, run.config.data.L)
  else:
    progress.say("safety: complete.")
  processes.on_first(lambda: _conclude(workdir, sources, kept, quick))


def look(run: Run, options: SafetyConfig) -> Sources:
  """Finds and checks everything but the teacher's weights.

  `options` is the section `safety`, or parts of it.

  Raises:
    ValueError: names the field or the file.
  """
  for name in options.phases:
    if name not in run.config.train.phases:
      raise ValueError(
        f"safety.phases: {name!r} is not one of train.phases"
        f" ({', '.join(run.config.train.phases)}), so there is no checkpoint of"
        " it; leave it out."
      )
  loaded = {}
  if "refusal" in options.parts:
    loaded, template = processes.all_or_none(lambda: _prompts(run, options))
    options = dataclasses.replace(options, template=template.text)
    progress.say(f"safety refusal: {_TEMPLATES[template.source]}.")
  planted = _planted(run.config, options)
  mesh, teacher = run.mesh, run.teacher
  sharding.check_batch_rows(options.batch_rows, mesh, "safety.batch_rows")
  rows = _read_rows(run, options)
  analog = run.config.release.phase
  students, about = studies.open_students(
    run,
    tuple(dict.fromkeys((analog, *options.phases))),
    options.named_folders,
    section="safety",
  )
  inputs = {
    "analog": analog,
    "random": RANDOM,
    "teacher_digest": teacher.digest,
    "teacher_dtype": teacher.cfg.dtype,
    "tokenizer_digest": teacher.tokenizer_digest,
    "students": about,
    "rows": {name: studies.digest(part) for name, part in rows.items()},
    "canaries": planted,
    "prompts": {
      side: [file.to_json() for file in files] for side, files in loaded.items()
    },
    "options": published(options),
  }

  def open_evaluation() -> Evaluation:
    has_teacher = bool(set(options.teacher_parts) & set(options.parts))
    return Evaluation(
      mesh=mesh,
      students=students,
      teacher=studies.read_teacher(teacher, mesh) if has_teacher else None,
      members=rows["members"],
      held_out=rows["held_out"],
      teacher_only=rows.get("teacher_only"),
      canaries=planted,
      prompts=loaded,
      tokenizer=studies.read_tokenizer(teacher),
      options=options,
    )

  return Sources(options, json.loads(json.dumps(inputs)), open_evaluation)


def _prompts(
  run: Run, options: SafetyConfig
) -> tuple[dict[str, tuple[prompts.Prompts, ...]], chat_template.Template]:
  """The prompts by side, and the template that they stand in."""
  loaded = {
    "harmful": prompts.load_all(options.harmful, "safety.harmful"),
    "harmless": prompts.load_all(options.harmless, "safety.harmless"),
  }
  return loaded, chat_template.choose(options.template, run.teacher.folder)


def published(options: SafetyConfig) -> dict[str, Any]:
  """The publishable options: names and digests, no paths.

  Folders and prompts have their digests elsewhere in the inputs; thresholds
  change no number.
  """
  values = dataclasses.asdict(options)
  for field in ("thresholds", "harmful", "harmless"):
    del values[field]
  values["folders"] = sorted(options.named_folders)
  values["teacher_only"] = bool(options.teacher_only)
  return values


def _planted(
  config: schema.Sections, options: SafetyConfig
) -> dict[str, Any] | None:
  """The canaries of the config's pipeline, as plain values."""
  data = config.data
  found = None
  if data.pipeline == canaries.SPEC:
    found = canaries.planned(data.arguments)
  if "canaries" in options.parts and found is None:
    raise ValueError(
      "safety.parts: 'canaries' needs rows that canaries were planted in, but"
      f" data.pipeline={data.pipeline!r} plants none; wrap it in"
      f" {canaries.SPEC!r} before the cache is made (docs/safety.md), or leave"
      " 'canaries' out."
    )
  return None if found is None else dataclasses.asdict(found)


def _read_rows(run: Run, options: SafetyConfig) -> dict[str, rows_lib.Rows]:
  """Training rows, held-out rows, and those of the teacher alone, if named."""
  members = studies.read_trained(
    run, run.config.release.phase, options.rows, options.seed
  )
  held_out = studies.read_held_out(run)
  found = {
    "members": members,
    "held_out": rows_lib.Rows(*(field[: options.rows] for field in held_out)),
  }
  if options.teacher_only and "membership" in options.parts:
    number = len(found["held_out"].tokens_BL)
    try:
      found["teacher_only"] = processes.all_or_none(
        lambda: studies.read_some(
          run,
          number,
          options.seed,
          field="safety.rows",
          held_out=True,
          arguments=options.teacher_only,
        )
      )
    except (ValueError, pipeline.EndOfRows) as error:
      raise ValueError(f"safety.teacher_only: {error}") from error
  return found


def _conclude(
  workdir: Path, sources: Sources, kept: parts.Parts, quick: bool
) -> None:
  """Writes safety.json from the parts with these inputs."""
  value = document.make(
    {name: part["result"] for name, part in kept.kept().items()},
    inputs=sources.inputs,
    thresholds=sources.options.thresholds,
    quick=quick,
    software=identity.software_versions(),
  )
  parts.renew(workdir / "safety.json", loading.to_json(value))
  progress.say(f"safety: {value['verdict']}: {value['because']}.")
