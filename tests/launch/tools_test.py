"""Output of the launchers, read by the tools that it is meant for.

shellcheck and the models of Kubernetes come with the extra dev. SkyPilot, xpk
and gcloud are large and need other versions of our dependencies, so their tests
run if these are on the PATH, from separate environments; tried with SkyPilot
0.14.1, xpk 1.16.0 and gcloud 528.0.0.
"""

import json
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys

from kubeflow_trainer_api import models
import pytest
import yaml

from analogjax.distributed import cluster, launchers

ROOT = Path(__file__).parents[2]
LINE = ["--config=a b.py", "--workdir=/mnt/it's", "--config.x.y=$(a)\n'b'"]

# In the Python of SkyPilot: its loader, and the script of a node.
_SKY = """
import json, sys
import sky, yaml
from sky.skylet import log_lib
task = sky.Task.from_yaml_config(yaml.safe_load(sys.stdin))
[resources] = task.resources
print(json.dumps({
  "nodes": task.num_nodes,
  "accelerators": resources.accelerators,
  "spot": resources.use_spot,
  "image": resources.image_id,
  "recovery": resources.job_recovery,
  "mounts": list(task.storage_mounts),
  "script": log_lib.make_task_bash_script(task.run),
}))
"""


def known(manifest):
  """A JobSet with only the fields that the models know."""
  return models.JobsetV1alpha2JobSet.from_dict(manifest).to_dict()


@pytest.mark.parametrize(
  "options",
  [
    [],
    ["--slices=2", "--limit=google.com/tpu=4", "--node-selector=a/b=c"],
    ["--claim=disk:/mnt/a", "--env=A=b", "--service-account=s"],
  ],
)
def test_a_jobset_has_what_kubernetes_knows(kit, options):
  options = ["--name=n", "--image=i", "--pods=2", *options, "--dry-run"]
  out, _ = kit.launch("gke_jobset.py", *options, "--", *LINE)
  manifest = yaml.safe_load(out)
  assert known(manifest) == manifest
  [job] = manifest["spec"]["replicatedJobs"]
  rule = job["template"]["spec"]["podFailurePolicy"]["rules"][0]
  rule["onExitCode"] = rule.pop("onExitCodes")
  assert known(manifest) != manifest


@pytest.mark.parametrize("slices", [1, 2])
def test_each_pod_finds_its_place(kit, slices):
  options = ["--name=n", "--image=i", "--pods=3", f"--slices={slices}"]
  out, _ = kit.launch("gke_jobset.py", *options, "--dry-run", "--", *LINE)
  [job] = yaml.safe_load(out)["spec"]["replicatedJobs"]
  assert job["replicas"] == slices
  [container] = job["template"]["spec"]["template"]["spec"]["containers"]
  for number in range(3 * slices):
    # Fields that the JobSet controller and Kubernetes set on a pod.
    written = {
      "jobset-name": "n",
      "replicatedjob-name": job["name"],
      "job-index": str(number // 3),
    }
    environment = {"JOB_COMPLETION_INDEX": str(number % 3)}
    for entry in container["env"]:
      value = entry.get("value")
      if value is None:
        path = entry["valueFrom"]["fieldRef"]["fieldPath"]
        name = re.fullmatch(
          r"metadata\.annotations\['jobset\.sigs\.k8s\.io/(.*)'\]", path
        )
        value = written[name[1]]
      environment[entry["name"]] = value
    assert cluster.find(environment) == launchers.Cluster(
      how="Kubernetes",
      coordinator="n-workers-0-0.n:8476",
      num_processes=3 * slices,
      process_id=number,
    )


def shellcheck(text, shell):
  """Complaints about a script; "" if there are none.

  SC2016, that $(a) in single quotes stays literal, is intended; SC1091 is about
  files that exist only on the host.
  """
  program = Path(sys.executable).with_name("shellcheck")
  done = subprocess.run(
    [program, f"--shell={shell}", "--exclude=SC1091,SC2016", "-"],
    input=text.encode(),
    capture_output=True,
  )
  assert done.returncode in (0, 1), done.stderr.decode()
  return done.stdout.decode()


def test_shellcheck_of_the_job_of_slurm():
  text = (ROOT / "launch/slurm.sbatch").read_text("utf-8")
  assert shellcheck(text, "bash") == ""
  assert "SC2206" in shellcheck(text.replace('"$@"', "$@"), "bash")


def test_shellcheck_of_a_node_of_skypilot(kit):
  options = ["--name=n", "--accelerators=H100:8", "--dry-run"]
  out, _ = kit.launch("skypilot.py", *options, "--", *LINE)
  assert shellcheck(yaml.safe_load(out)["run"], "bash") == ""


def test_shellcheck_of_a_host_of_a_tpu_pod(kit, tmp_path):
  """The command as gcloud gets it, for any POSIX shell."""
  gcloud = tmp_path / "gcloud"
  gcloud.write_text("#!/bin/sh\nprintf '%s' \"${9#--command=}\"\n")
  gcloud.chmod(0o755)
  options = ["--name=n", "--zone=z", "--setup=. venv/bin/activate"]
  environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
  out, _ = kit.launch("tpu_pod.py", *options, "--", *LINE, env=environment)
  assert out.startswith('mkdir "${TMPDIR:-/tmp}/analogjax-')
  assert shellcheck(out, "sh") == ""


def program(name):
  """Its path, and that of its Python; skips if it is missing."""
  found = shutil.which(name)
  if found is None:
    pytest.skip(f"there is no {name} on the PATH")
  first = Path(found).read_bytes().split(b"\n")[0].decode()
  return found, first.removeprefix("#!").strip()


def test_skypilot_loads_the_task_and_its_nodes_run_it(kit, probe, tmp_path):
  _, python = program("sky")
  options = ["--name=n", "--accelerators=H100:8", "--nodes=2", "--spot"]
  options += ["--image=i:1", "--mount=/mnt/a=gs://bucket/a", "--dry-run"]
  out, _ = kit.launch("skypilot.py", *options, "--", *kit.line)
  (tmp_path / "sky_workdir").mkdir()
  environment = os.environ | {"HOME": str(tmp_path), "PATH": probe.path}
  done = subprocess.run(
    [python, "-c", _SKY],
    input=out.encode(),
    env=environment,
    capture_output=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr.decode()
  task = json.loads(done.stdout.splitlines()[-1])
  script = task.pop("script")
  assert task == {
    "nodes": 2,
    "accelerators": {"H100": 8},
    "spot": True,
    "image": {"null": "docker:i:1"},
    "recovery": {"strategy": None, "recover_on_exit_codes": [75]},
    "mounts": ["/mnt/a"],
  }
  node = {
    "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8",
    "SKYPILOT_NUM_NODES": "2",
    "SKYPILOT_NODE_RANK": "1",
    "PROBE": "75",
  }
  done = subprocess.run(["bash", "-c", script], env=environment | node)
  assert done.returncode == 75
  assert probe.lines() == [["run", *kit.line]]


def test_a_pod_of_xpk_runs_the_line(kit, probe, tmp_path):
  """Containers of the manifest that xpk's own dry run prints."""
  program("xpk")
  options = ["--name=n", "--cluster=c", "--project=p", "--zone=us-east5-a"]
  options += ["--tpu-type=v5p-32", "--slices=2", "--image=i", "--xpk=--dry-run"]
  environment = os.environ | {"HOME": str(tmp_path), "PATH": probe.path}
  out, _ = kit.launch("gke_xpk.py", *options, "--", *kit.line, env=environment)
  [text] = re.findall(r" content: \n(.*?)\n\[XPK\]", out, re.DOTALL)
  manifest = yaml.safe_load(text)
  assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 100
  [job] = manifest["spec"]["replicatedJobs"]
  [rule] = job["template"]["spec"]["podFailurePolicy"]["rules"]
  codes = rule["onExitCodes"]
  assert (rule["action"], codes["operator"]) == ("FailJob", "NotIn")
  assert 75 in codes["values"] and not {0, 1, 2} & set(codes["values"])
  pod = job["template"]["spec"]["template"]["spec"]
  assert pod["terminationGracePeriodSeconds"] == 120
  words = kit.in_a_container(pod["containers"][0]["command"], {"HOME": "no"})
  done = subprocess.run(words, env=environment | {"PROBE": "75"})
  assert done.returncode == 75
  assert probe.lines() == [["run", *kit.line]]


def test_gcloud_knows_the_flags(kit, tmp_path):
  """gcloud parses its own arguments, without a server."""
  if not shutil.which("gcloud"):
    pytest.skip("there is no gcloud on the PATH")
  options = ["--name=n", "--zone=z", "--project=p"]
  made = ["--accelerator-type=v5p-128", "--runtime-version=r", "--spot"]
  out, _ = kit.launch("tpu_pod.py", *options, *made, "--dry-run", "--", *LINE)
  shown = re.findall(r"^gcloud .*?(?=\n[#g]|\Z)", out, re.M | re.S)
  assert len(shown) == 3
  # Its requests, which are not part of a dry run.
  asked = [
    f"gcloud compute tpus {kind} describe n --quiet --zone=z --project=p"
    f" '--format=value({field})'"
    for kind, field in (
      ("tpu-vm", "state"),
      ("queued-resources", "state.state"),
    )
  ]
  wrong = "gcloud compute tpus tpu-vm ssh n --zone=z --wroker=all"
  commands = [{"command_string": line} for line in (*shown, *asked, wrong)]
  (tmp_path / "commands.json").write_text(json.dumps(commands))
  done = subprocess.run(
    ["gcloud", "meta", "lint-gcloud-commands"]
    + [f"--commands-file={tmp_path / 'commands.json'}"],
    env=os.environ
    | {
      "CLOUDSDK_CONFIG": str(tmp_path),
      "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
      "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "true",
    },
    capture_output=True,
    text=True,
    timeout=60,
  )
  found = json.loads(done.stdout)
  *good, bad = [(f["success"], f["error_message"]) for f in found]
  assert good == [(True, None)] * 5, good
  assert not bad[0] and "--wroker" in bad[1]
