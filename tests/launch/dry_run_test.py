"""The dry run of each launcher, word for word.

`python tests/launch/dry_run_test.py` rewrites tests/launch/expected/; read the
difference before committing it.
"""

import os
from pathlib import Path
import re
import subprocess
import sys

import pytest

ROOT = Path(__file__).parents[2]
EXPECTED = Path(__file__).with_name("expected")

LINE = ["--config=ours.py", "--workdir=/mnt/ours", "--config.cache.tau=0.1"]
LINE += ["--config.data.arguments.title=it's $(two) words"]
_OURS = ["--name=ours", "--image=registry.example/analogjax:1"]
# File -> launcher, options.
CASES = {
  "local": ("local.py", ["--processes=2", "--port=8476"]),
  "local_gpus": (
    "local.py",
    ["--processes=2", "--port=8476", "--gpus-per-process=4"],
  ),
  "slurm": ("slurm.sbatch", []),
  "tpu_pod": (
    "tpu_pod.py",
    ["--name=ours", "--zone=us-east5-a", "--setup=. venv/bin/activate"],
  ),
  "tpu_pod_queued": (
    "tpu_pod.py",
    [
      *("--name=ours", "--zone=us-east5-a", "--project=p", "--spot"),
      *("--accelerator-type=v5p-128", "--runtime-version=v2-alpha-tpuv5"),
      "--gcloud=--internal-ip",
    ],
  ),
  "gke_jobset": (
    "gke_jobset.py",
    [*_OURS, "--pods=4", "--limit=nvidia.com/gpu=8", "--claim=disk:/mnt/ours"],
  ),
  "gke_jobset_tpu": (
    "gke_jobset.py",
    [
      *(*_OURS, "--namespace=team", "--pods=4", "--slices=2"),
      *("--limit=google.com/tpu=4", "--claim=disk:/mnt/ours"),
      "--node-selector=cloud.google.com/gke-tpu-accelerator=tpu-v5p-slice",
      "--node-selector=cloud.google.com/gke-tpu-topology=2x2x4",
      *("--env=A=b c", "--service-account=runner", "--max-restarts=9"),
    ],
  ),
  "gke_xpk": (
    "gke_xpk.py",
    [*_OURS, "--cluster=c", "--tpu-type=v5p-32", "--slices=2"],
  ),
  "skypilot": ("skypilot.py", [*_OURS, "--accelerators=H100:8"]),
  "skypilot_nodes": (
    "skypilot.py",
    [
      *("--name=ours", "--accelerators=H100:8", "--nodes=2", "--spot"),
      *("--infra=gcp", "--mount=/mnt/ours=gs://bucket/ours"),
      "--setup=pip install --constraint constraints.txt '.[gpu]'",
      "--sky=--detach-run",
    ],
  ),
}


def dry_run(name):
  script, options = CASES[name]
  path = ROOT / "launch" / script
  if script.endswith(".sbatch"):
    # Its own options are those of sbatch, and there is no other argument.
    command = ["bash", path, "--dry-run", *options, *LINE]
  else:
    command = [sys.executable, path, *options, "--dry-run", "--", *LINE]
  environment = {
    k: v
    for k, v in os.environ.items()
    if k not in ("CUDA_VISIBLE_DEVICES", "ANALOGJAX_MAX_RESTARTS")
  }
  done = subprocess.run(command, capture_output=True, env=environment)
  text = done.stdout.decode()
  assert done.returncode == 0, done.stderr.decode()
  # Whichever analogjax this environment has; a name that no start shares.
  text = re.sub(r"\S+/analogjax run", "analogjax run", text)
  return re.sub(r"analogjax-[0-9a-f]{16}", "analogjax-0123456789abcdef", text)


@pytest.mark.parametrize("name", CASES)
def test_it_would_do_what_it_did(name):
  wanted = (EXPECTED / f"{name}.txt").read_text("utf-8")
  assert dry_run(name) == wanted, f"to renew: python {Path(__file__).name}"


@pytest.mark.parametrize("name", CASES)
def test_there_is_one_line_of_analogjax_for_each_process(name):
  lines = re.findall(
    r"analogjax run|^ +- analogjax\n +- run$", dry_run(name), re.M
  )
  assert len(lines) == (2 if name.startswith("local") else 1)


def test_every_launcher_has_a_case_and_a_page():
  launchers = {
    p.name
    for p in (ROOT / "launch").iterdir()
    if p.suffix in (".py", ".sbatch")
  } - {"arguments.py", "restarts.py"}
  assert launchers == {script for script, _ in CASES.values()}
  pages = "".join(
    p.read_text("utf-8") for p in (ROOT / "docs/running").glob("*.md")
  )
  for name in (*launchers, "Containerfile"):
    assert f"launch/{name}" in pages, name


if __name__ == "__main__":
  for case in CASES:
    (EXPECTED / f"{case}.txt").write_text(dry_run(case), "utf-8")
