"""measure: compares the analog and its controls with the teacher.

Each finished part is kept in workdir/fidelity/, so that an interrupted run
continues with the next part. Together the parts make fidelity.json, and
fidelity.html is the page to read.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from analogjax.cli import progress
from analogjax.config import loading, schema
from analogjax.distributed import processes
from analogjax.evaluation import parts
from analogjax.evaluation.study import Study
from analogjax.fidelity import (
  claims,
  document,
  output,
  similarity,
  steering,
  stitching,
  study as study_lib,
)
from analogjax.fidelity.report import page
from analogjax.run import identity
from analogjax.run.run import Run

PARTS: Mapping[str, Callable[[Study], dict[str, Any]]] = {
  "output": output.measure,
  "similarity": similarity.measure,
  "steering": steering.measure,
  "stitching": stitching.measure,
}


def run(
  cfg: ConfigDict,
  workdir: Path,
  *,
  quick: bool = False,
  only: Collection[str] = (),
  command: str = claims.COMMAND,
) -> None:
  """Writes fidelity.json and fidelity.html; measures missing parts.

  The teacher runs live, and divergences are dense over the vocabulary: nothing
  here depends on how the cache was sampled.

  Args:
    quick: less of everything, `MeasureConfig.quick`.
    only: names of PARTS; empty: those of the config.
    command: for the page: the command that measures everything again.

  Raises:
    ValueError: names the field or the file.
  """
  parts.check_names(only, PARTS, "the parts")
  run = Run(schema.to_sections(cfg), workdir)
  options = run.config.measure
  with progress.Activity("measure: opening the rows and the students"):
    sources = study_lib.look(run, options.quick() if quick else options)
  kept = _parts(workdir, sources.inputs)
  if missing := kept.missing(only or options.parts):
    with progress.Activity("measure: loading the teacher"):
      study = sources.open()
    kept.measure(missing, study, run.config.data.L)
  else:
    progress.say("measure: complete.")
  processes.on_first(lambda: _conclude(workdir, sources.inputs, quick, command))


def _parts(workdir: Path, inputs: Mapping[str, Any]) -> parts.Parts:
  folder = workdir / "fidelity"
  return parts.Parts(
    stage="measure", workdir=workdir, folder=folder, inputs=inputs, table=PARTS
  )


def _conclude(
  workdir: Path,
  inputs: Mapping[str, Any],
  quick: bool,
  command: str = claims.COMMAND,
) -> None:
  """Writes fidelity.json and its page from the parts with these inputs."""
  found = _parts(workdir, inputs).kept()
  value = document.make(
    {name: part["result"] for name, part in found.items()},
    inputs={**inputs, "quick": quick},
    cost={name: part["cost"] for name, part in found.items()},
    software=identity.software_versions(),
  )
  parts.renew(workdir / "fidelity.json", loading.to_json(value))
  parts.renew(workdir / "fidelity.html", page.render(value, command))
