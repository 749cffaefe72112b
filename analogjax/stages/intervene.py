"""intervene: tests on the teacher a vector that was found on the analog.

It serves people who have the released analog but not the teacher: they send a
vector, and the lab runs this and sends the answer back.
"""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
import rich.table

from analogjax.cli import progress
from analogjax.config import loading, schema
from analogjax.distributed import processes
from analogjax.evaluation import parts
from analogjax.fidelity import behaviours, intervention, study as study_lib
from analogjax.run import identity
from analogjax.run.run import Run
from analogjax.workdir import files, ledger

FORMAT = "analogjax.intervention"
FORMAT_VERSION = 1


def run(
  cfg: ConfigDict, workdir: Path, *, vector: str, behaviour: str = ""
) -> None:
  """Writes workdir/interventions/NAME.json and prints it.

  `vector` is a safetensors file, `behaviour` a name or a JSON file; without one
  all behaviours of the config are scored.

  Raises:
    ValueError: names the field or the file.
  """
  run = Run(schema.to_sections(cfg), workdir)
  names = (behaviour,) if behaviour else run.config.measure.behaviours
  if not names:
    raise ValueError(
      "measure.behaviours is empty; give --behaviour=NAME, or a JSON file."
    )
  # Only the analog: the others would be read for nothing.
  analog = run.config.release.phase
  options = dataclasses.replace(
    run.config.measure,
    behaviours=names,
    phases=(analog,),
    folders=type(run.config.measure.folders)(),
    domains={},
  )
  sources = study_lib.look(run, options)
  found = processes.all_or_none(
    lambda: intervention.read_vector(
      Path(vector), sources.students[analog], _released(workdir)
    )
  )
  spent = ledger.Ledger(workdir, "intervene")
  with progress.Activity("intervene: loading the teacher"):
    study = sources.open()
  folder = workdir / "fidelity" / "maps"
  with progress.Activity("intervene: the map, and both models' responses"):
    map_ = intervention.find_map(study, found.depth, folder, _of_maps(sources))
    answers = {
      name: intervention.answer(study, found, map_, part)
      for name, part in behaviours.load_all(names).items()
    }
  value = {
    "format": FORMAT,
    "format_version": FORMAT_VERSION,
    "vector": {"sha256": found.sha256, "depth": found.depth},
    "model": analog,
    "inputs": hashlib.sha256(
      json.dumps(sources.inputs, sort_keys=True).encode()
    ).hexdigest(),
    "software": identity.software_versions(),
    "behaviours": answers,
  }
  name = f"{Path(vector).stem}-{found.sha256[:8]}.json"
  path = workdir / "interventions" / name
  processes.on_first(lambda: _keep(path, value))
  processes.on_first(
    lambda: parts.account(spent, study, study.tokens, run.config.data.L)
  )
  for name, part in answers.items():
    _say(name, part)
  progress.say(f"intervene: {path}")


def _keep(path: Path, value: dict[str, Any]) -> None:
  path.parent.mkdir(exist_ok=True)
  loading.write_json(path, value)


def _of_maps(sources: study_lib.Sources) -> dict[str, Any]:
  """The inputs that a map depends on; behaviours, for example, are not."""
  inputs, options = sources.inputs, sources.inputs["options"]
  used = ("seed", "fit_rows", "points", "depths", "batch_rows")
  return {
    **{k: inputs[k] for k in ("teacher_digest", "teacher_dtype", "students")},
    "rows": inputs["rows"],
    **{name: options[name] for name in used},
  }


def _released(workdir: Path) -> dict[str, str]:
  """SHA-256 of the exported files, by name."""
  receipt = workdir / "export.json"
  return files.read_json(receipt)["files"] if receipt.exists() else {}


def _say(name: str, part: dict[str, Any]) -> None:
  table = rich.table.Table(title=f"{name}: log-odds, nats")
  for column in ("strength", "analog", "frontier", "random", "perplexity"):
    table.add_column(column, justify="right")
  frontier = part["frontier"]
  number = functools.partial("{:.2f}".format)
  for i, strength in enumerate(frontier["strengths"]):
    table.add_row(
      number(strength),
      number(part["analog"]["score"][i]),
      number(frontier["score"][i]),
      number(frontier["random_score"][i]),
      f"x {number(frontier['perplexity_ratio'][i])}",
    )
  progress.console().print(table)
  progress.say(f"{name}: {part['verdict']}: {part['because']}.")
