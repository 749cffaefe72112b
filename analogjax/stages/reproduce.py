"""reproduce: whether a toy run of a bundle's config repeats bit for bit."""

from collections.abc import Sequence
import json
import os
from pathlib import Path
import subprocess
import sys
import tempfile

from ml_collections import ConfigDict

from analogjax.config import schema as config
from analogjax.run import identity
from analogjax.verify import reproduce, toy
from analogjax.verify.reproduce import Recipe

_SECONDS = 600  # For one process; a toy takes seconds.
_CONFIG = '''"""A toy of a bundle's config; written by analogjax reproduce."""

import json
import pathlib

from ml_collections import ConfigDict


def get_config():
  path = pathlib.Path(__file__).with_name("toy.json")
  return ConfigDict(json.loads(path.read_text(encoding="utf-8")))
'''


def run(
  bundle: Path, *, workdir: Path | None = None, check: bool = False
) -> int:
  """Prints how a bundle's run can be repeated; with `check`, runs a toy twice.

  Two toy runs, in separate processes, are compared bit for bit. They cannot
  show that the lab's run gave these weights: that takes the frontier model and
  its data. `workdir` keeps the toy runs; None removes them.

  Returns:
    The exit code: 0, or 1 if the two runs differ.

  Raises:
    ValueError: the bundle's config or record is not valid, or a stage fails.
  """
  recipe = reproduce.read_recipe(bundle, identity.software_versions())
  print(f"{bundle}: stages {', '.join(recipe.stages)}, with these stand-ins:")
  _print_list(toy.STAND_INS)
  if not check:
    print("--check runs them twice at toy size and compares the results.")
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


def _check(recipe: Recipe, folder: Path) -> int:
  values = toy.values(recipe.config, folder, recipe.taught)
  config.to_sections(ConfigDict(values))
  toy.write_inputs(folder, values["student"])
  (folder / "toy.json").write_text(json.dumps(values, indent=2) + "\n")
  (folder / "toy.py").write_text(_CONFIG)
  found = []
  # One process for all stages starts faster than one for each.
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
  _print_list(
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
  """Runs a stage in a separate process, as a user would.

  Raises:
    ValueError: it fails; with the last line that it printed.
  """
  arguments = [f"--config={folder / 'toy.py'}", f"--workdir={workdir}"]
  environment = os.environ | {
    # One process, even if this one belongs to a cluster.
    "ANALOGJAX_CLUSTER": "none",
    "HF_HUB_OFFLINE": "1",
    # The phases of a run share compiled programs.
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


def _print_list(lines: Sequence[str]) -> None:
  for line in lines:
    print(f"  - {line}")
