"""Values of overrides arrive at analogjax unchanged, and nothing runs them.

tests/slurm does the same for launch/slurm.sbatch, through SLURM itself.
"""

import os
from pathlib import Path
import subprocess

import pytest
import yaml

# As gcloud gives a command to each host, over ssh to a login shell.
_GCLOUD = """#!/bin/sh
for word in "$@"; do
  case $word in --command=*) exec {shell} -c "${{word#--command=}}" ;; esac
done
"""

# Where xpk 1.16 puts a command.
_XPK = """\
containers:
- command:
  - bash
  - -c
  - |
    trap _sigterm SIGTERM;
    ({command}) & PID=$!;
    wait $PID;
"""


@pytest.fixture(autouse=True)
def nothing_is_executed(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  yield
  assert not Path("executed").exists()


def test_local(kit, probe):
  python = probe.folder / "python"
  kit.launch("local.py", "--processes=2", "--", *kit.line, python=python)
  assert probe.lines() == [["run", *kit.line]] * 2


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_tpu_pod(kit, probe, tmp_path, shell):
  gcloud = probe.folder / "gcloud"
  gcloud.write_text(_GCLOUD.format(shell=shell))
  gcloud.chmod(0o755)
  options = ["--name=n", "--zone=z", "--setup=export X='1 2'\nunset Y"]
  environment = os.environ | {"PATH": probe.path, "TMPDIR": str(tmp_path)}
  kit.launch("tpu_pod.py", *options, "--", *kit.line, env=environment)
  assert probe.lines() == [["run", *kit.line]]


def test_gke_jobset(kit):
  options = ["--name=n", "--image=i", "--pods=2", "--env=X=$(HOME) $$"]
  out, _ = kit.launch("gke_jobset.py", *options, "--dry-run", "--", *kit.line)
  [job] = yaml.safe_load(out)["spec"]["replicatedJobs"]
  [container] = job["template"]["spec"]["template"]["spec"]["containers"]
  command = kit.in_a_container(container["command"], {"HOME": "wrong"})
  assert command == ["analogjax", "run", *kit.line]
  [given] = [e["value"] for e in container["env"] if e["name"] == "X"]
  assert kit.in_a_container([given], {"HOME": "wrong"}) == ["$(HOME) $$"]


def test_gke_xpk(kit, probe):
  xpk = probe.folder / "xpk"
  xpk.write_text('#!/bin/sh\nprintf "%s" "${13#--command=}" > command\n')
  xpk.chmod(0o755)
  options = ["--name=n", "--cluster=c", "--tpu-type=v5p-8", "--image=i"]
  options += ["--project=p", "--zone=z"]
  environment = os.environ | {"PATH": probe.path}
  kit.launch("gke_xpk.py", *options, "--", *kit.line, env=environment)
  manifest = yaml.safe_load(_XPK.format(command=Path("command").read_text()))
  words = manifest["containers"][0]["command"]
  subprocess.run(
    kit.in_a_container(words, {"HOME": "wrong"}), env=environment, check=True
  )
  assert probe.lines() == [["run", *kit.line]]


def test_skypilot(kit, probe):
  options = ["--name=n", "--accelerators=H100:8", "--nodes=2"]
  out, _ = kit.launch("skypilot.py", *options, "--dry-run", "--", *kit.line)
  node = {
    "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8",
    "SKYPILOT_NUM_NODES": "2",
    "SKYPILOT_NODE_RANK": "1",
  }
  subprocess.run(
    ["bash", "-c", yaml.safe_load(out)["run"]],
    env=os.environ | node | {"PATH": probe.path},
    check=True,
  )
  [said] = probe.said().values()
  assert said["arguments"] == ["run", *kit.line]
  assert said["environment"] == {
    "ANALOGJAX_COORDINATOR": "10.0.0.7:8476",
    "ANALOGJAX_NUM_PROCESSES": "2",
    "ANALOGJAX_PROCESS_ID": "1",
  }


def test_a_dry_run_is_a_command_of_a_shell(kit, probe):
  """The output of the launchers can be pasted into a shell."""
  options = ["--processes=1", "--port=8476", "--dry-run"]
  out, _ = kit.launch(
    "local.py", *options, "--", *kit.line, python=probe.folder / "python"
  )
  subprocess.run(["bash", "-c", out], check=True)
  [said] = probe.said().values()
  assert said["arguments"] == ["run", *kit.line]
  assert said["environment"]["ANALOGJAX_COORDINATOR"] == "localhost:8476"
