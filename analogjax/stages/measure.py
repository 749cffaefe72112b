"""measure: what of the teacher is found in the analog and its controls.

Each part is kept in workdir/fidelity/ when it is done, so that a run that was
stopped goes on with the next one; together they are fidelity.json, of which
fidelity.html is the page to read.
"""

from collections.abc import Callable, Collection, Mapping
import functools
from pathlib import Path
import time
from typing import Any

from ml_collections import ConfigDict

from analogjax.cli import progress
from analogjax.config import loading, schema
from analogjax.distributed import processes
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
from analogjax.models import sizes
from analogjax.run import identity
from analogjax.run.run import Run
from analogjax.workdir import files, ledger

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
  """Writes fidelity.json and fidelity.html; measures what is missing.

  The teacher runs live, and divergences are dense over the vocabulary: nothing
  here depends on how the cache was sampled.

  Args:
    cfg: the config.
    workdir: with caches and trained phases.
    quick: less of everything, `MeasureConfig.quick`.
    only: names of PARTS; empty: those of the config.
    command: for the page: what measures everything again.

  Raises:
    ValueError: names the field or the file.
  """
  if unknown := [name for name in only if name not in PARTS]:
    raise ValueError(
      f"--only: expected one of {', '.join(PARTS)}, or several with commas,"
      f" found {unknown[0]!r}."
    )
  run = Run(schema.to_sections(cfg), workdir)
  options = run.config.measure
  with progress.Activity("measure: opening the rows and the students"):
    sources = study_lib.look(run, options.quick() if quick else options)
  inputs = sources.inputs
  folder = workdir / "fidelity"
  wanted = [name for name in PARTS if name in (only or options.parts)]
  missing = [
    name
    for name in wanted
    if processes.first_decides(
      functools.partial(_differs, folder / f"{name}.json", inputs)
    )
  ]
  if missing:
    with progress.Activity("measure: loading the teacher"):
      study = sources.open()
    processes.on_first(lambda: folder.mkdir(exist_ok=True))
    _measure(missing, study, inputs, folder, workdir)
  else:
    progress.say("measure: complete.")
  processes.on_first(lambda: _conclude(workdir, inputs, quick, command))


def _measure(
  names: list[str],
  study: Study,
  inputs: dict[str, Any],
  folder: Path,
  workdir: Path,
) -> None:
  """The parts of these names, each into its file."""
  for name in names:
    spent, before = ledger.Ledger(workdir, "measure"), dict(study.tokens)
    began = time.monotonic()
    with progress.Activity(
      f"measure {name}", lambda: f"{sum(study.tokens.values()):,} tokens"
    ):
      found = PARTS[name](study)
    seconds = time.monotonic() - began
    tokens = {
      model: number - before.get(model, 0)
      for model, number in study.tokens.items()
    }
    value = {
      "inputs": inputs,
      "result": found,
      "cost": {
        "seconds": seconds,
        "device_seconds": seconds * study.mesh.size,
        "tokens": sum(tokens.values()),
      },
    }
    conclude = functools.partial(
      _keep, folder / f"{name}.json", value, spent, study, tokens
    )
    processes.on_first(conclude)
    progress.say(
      f"measure {name}: {sum(tokens.values()):,} tokens in {seconds:.0f} s."
    )


def _keep(
  path: Path,
  value: dict[str, Any],
  spent: ledger.Ledger,
  study: Study,
  tokens: dict[str, int],
) -> None:
  loading.write_json(path, value)
  L = study.test.tokens_BL.shape[1]
  models = {study.teacher.name: study.teacher, **study.students}
  flops = {
    name: number * sizes.forward_flops_per_token(models[name].cfg, L)
    for name, number in tokens.items()
  }
  spent.append(
    tokens=sum(tokens.values()),
    flops=sum(flops.values()),
    teacher_flops=flops.get(study.teacher.name, 0),
  )


def _differs(path: Path, inputs: dict[str, Any]) -> bool:
  """Whether a part is not there, or is of other inputs."""
  return not path.exists() or files.read_json(path)["inputs"] != inputs


def _conclude(
  workdir: Path,
  inputs: dict[str, Any],
  quick: bool,
  command: str = claims.COMMAND,
) -> None:
  """fidelity.json and its page, of the parts that there are of these inputs."""
  found = {}
  for name in PARTS:
    path = workdir / "fidelity" / f"{name}.json"
    if not _differs(path, inputs):
      found[name] = files.read_json(path)
  value = document.make(
    {name: part["result"] for name, part in found.items()},
    inputs={**inputs, "quick": quick},
    cost={name: part["cost"] for name, part in found.items()},
    software=identity.software_versions(),
  )
  _renew(workdir / "fidelity.json", loading.to_json(value))
  _renew(workdir / "fidelity.html", page.render(value, command))


def _renew(path: Path, text: str) -> None:
  """Leaves a file alone that says the same."""
  if not path.exists() or path.read_bytes() != text.encode():
    loading.write_text(path, text)
