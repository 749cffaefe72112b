"""reproduce: does the recorded run, at toy size, give the same twice?"""

from collections.abc import Sequence
import dataclasses
import json
import os
from pathlib import Path
import subprocess
import sys
import tempfile
from typing import Any

from ml_collections import ConfigDict

from analogjax.bundle import folder as walk
from analogjax.config import schema as config
from analogjax.run import identity
from analogjax.verify import reproduce, toy

# Of the one process that a stage runs in; a toy takes seconds.
_SECONDS = 600

_VALUES = 100_000  # Of a JSON file, hundreds of times what a bundle has.

_CONFIG = '''"""A toy of a bundle's config; written by analogjax reproduce."""

import json
import pathlib

from ml_collections import ConfigDict


def get_config():
  path = pathlib.Path(__file__).with_name("toy.json")
  return ConfigDict(json.loads(path.read_text(encoding="utf-8")))
'''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """What a bundle says of its run, checked."""

  config: dict[str, Any]
  stages: list[str]
  taught: dict[str, bool]
  not_taken: list[str]  # Fields of the config.
  not_repeated: list[str]  # Commands.
  other_software: list[str]


def run(
  bundle: Path, *, workdir: Path | None = None, check: bool = False
) -> int:
  """Says how the run of a bundle can be repeated; with `check`, repeats it.

  A toy of it runs twice, each time in processes of its own, and what they
  leave is compared bit for bit. It cannot show that the lab's run gave these
  weights: that takes the frontier model and its data.

  Args:
    bundle: folder of a release.
    workdir: where the toy runs are kept; None: they are removed.
    check: whether to run.

  Returns:
    The exit code: 0, or 1 if two runs differ.

  Raises:
    ValueError: the bundle's config or record is not to be trusted, or a stage
      fails.
  """
  recipe = read_recipe(bundle)
  print(f"{bundle}: stages {', '.join(recipe.stages)}, with these stand-ins:")
  _list(toy.STAND_INS)
  if not check:
    print("--check runs them twice at toy size and compares.")
    return 0
  if workdir is not None:
    workdir.mkdir(parents=True, exist_ok=True)
    if any(workdir.iterdir()):
      raise ValueError(
        f"{workdir}: expected an empty folder for two toy runs, found files."
      )
    return _check(recipe, workdir)
  with tempfile.TemporaryDirectory(prefix="analogjax-reproduce-") as folder:
    return _check(recipe, Path(folder))


def read_recipe(bundle: Path) -> Recipe:
  """What a toy run takes from a bundle.

  Raises:
    ValueError: names file and field.
  """
  tree = walk.open_tree(bundle)
  record = tree.read_json(reproduce.RECORD, most_values=_VALUES)
  reproduce.check_family(record)
  config_json = tree.read_json(reproduce.CONFIG, most_values=_VALUES)
  public, not_taken = reproduce.check_config(config_json)
  stages, others = reproduce.commands_of(record)
  if not stages:
    raise ValueError(
      f"{reproduce.RECORD}: repro.commands: expected commands of"
      f" analogjax ({', '.join(reproduce.STAGES)} or run), found none."
    )
  return Recipe(
    config=public,
    stages=stages,
    taught=reproduce.taught_phases(record, public),
    not_taken=not_taken,
    not_repeated=others,
    other_software=reproduce.other_software(
      record, identity.software_versions()
    ),
  )


def _check(recipe: Recipe, folder: Path) -> int:
  values = toy.values(recipe.config, folder, recipe.taught)
  config.to_sections(ConfigDict(values))
  toy.write_inputs(folder, values["student"])
  (folder / "toy.json").write_text(json.dumps(values, indent=2) + "\n")
  (folder / "toy.py").write_text(_CONFIG)
  found = []
  # All of them in one process start faster than each in its own.
  whole = tuple(recipe.stages) == reproduce.STAGES
  for name in ("first", "second"):
    for stage in ["run"] if whole else recipe.stages:
      _run_stage(stage, folder, folder / name)
    phases = recipe.config["train"]["phases"]
    found.append(reproduce.results(folder / name, phases))
  first, second = found
  names = list(dict.fromkeys([*first, *second]))
  if not names:
    raise ValueError(
      f"stages {', '.join(recipe.stages)} leave nothing to compare; expected"
      " train, measure or export among them."
    )
  differ = [name for name in names if first.get(name) != second.get(name)]
  for name in names:
    print(f"  {'DIFFERS' if name in differ else 'same':<8} {name}")
  print("Not checked, as a bundle has no frontier model and no data:")
  _list(
    [
      "that the lab's own run gave the weights of this bundle",
      f"{len(recipe.not_taken)} fields of {reproduce.CONFIG} that a toy of the"
      " run has no use for, and those that are not published",
      *(f"command {command}" for command in recipe.not_repeated),
      *(f"version: {line}" for line in recipe.other_software),
    ]
  )
  verdict = "differ" if differ else "are the same, bit for bit"
  print(f"Two toy runs {verdict} ({len(names)} results).")
  return 1 if differ else 0


def _run_stage(stage: str, folder: Path, workdir: Path) -> None:
  """One stage as a user starts it, in a process of its own.

  Raises:
    ValueError: it fails; with what it said last.
  """
  arguments = [f"--config={folder / 'toy.py'}", f"--workdir={workdir}"]
  environment = os.environ | {
    # Alone, also where this process is one of several.
    "ANALOGJAX_CLUSTER": "none",
    "HF_HUB_OFFLINE": "1",
    # Phases of one run share programs; the two runs share none.
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  try:
    done = subprocess.run(
      [sys.executable, "-m", "analogjax.main", stage, *arguments],
      env=environment,
      capture_output=True,
      text=True,
      timeout=_SECONDS,
    )
  except subprocess.TimeoutExpired:
    raise ValueError(
      f"reproduce: {stage} took more than {_SECONDS} s at toy size."
    ) from None
  if done.returncode:
    said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
    raise ValueError(
      f"reproduce: {stage} ended with code {done.returncode} at toy size, and"
      f" said: {said}"
    )


def _list(lines: Sequence[str]) -> None:
  for line in lines:
    print(f"  - {line}")
