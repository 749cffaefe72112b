"""Refusals of launch/slurm.sbatch; tests/slurm runs it as a job."""

import os
from pathlib import Path
import subprocess

import pytest

SCRIPT = Path(__file__).parents[2] / "launch/slurm.sbatch"


@pytest.mark.parametrize(
  ("variables", "expected"),
  [
    ({}, "this is no job of SLURM"),
    (
      {"SLURM_JOB_ID": "7", "ANALOGJAX_MAX_RESTARTS": "many"},
      "ANALOGJAX_MAX_RESTARTS='many': expected a number",
    ),
  ],
)
def test_a_mistake_is_named(variables, expected):
  done = subprocess.run(
    ["bash", SCRIPT, "--config=a.py", "--workdir=b"],
    env={"PATH": os.environ["PATH"]} | variables,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  assert expected in done.stderr and not done.stdout
