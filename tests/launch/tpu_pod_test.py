"""Tests for launch/tpu_pod.py against a gcloud of two hosts on this machine.

It replaces Google's, which needs an account and a TPU; tools_test.py checks the
flags with the real one if it is installed.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

LINE = ["--config=a.py", "--workdir=b"]

# A TPU whose states are read one by one from a file; the last one stays. Codes
# of ssh come from the hosts, the first that is not 0, as gcloud has it.
_GCLOUD = """#!{python}
import json, os, pathlib, subprocess, sys
folder = pathlib.Path({folder!r})
words = sys.argv[1:]
with open(folder / "gcloud.log", "a") as log:
  log.write(json.dumps(words) + "\\n")
if words[3] == "describe":
  path = folder / words[2]
  states = path.read_text().split(",")
  if len(states) > 1:
    path.write_text(",".join(states[1:]))
  print(states[0])
elif words[3] == "ssh":
  command = words[-1].removeprefix("--command=")
  for i in range(2):
    (folder / f"host{{i}}").mkdir(exist_ok=True)
  hosts = [
    subprocess.Popen(
      ["sh", "-c", command],
      env=os.environ
      | dict(ANALOGJAX_PROCESS_ID=str(i), TMPDIR=str(folder / f"host{{i}}")),
    )
    for i in range(2)
  ]
  sys.exit(next(filter(None, [host.wait() for host in hosts]), 0))
"""


@pytest.fixture
def pod(kit, probe):
  """Starts it; the hosts run the probe."""
  path = probe.folder / "gcloud"
  path.write_text(
    _GCLOUD.format(python=sys.executable, folder=str(probe.folder))
  )
  path.chmod(0o755)

  def begin(*options, plan="0", tpu="READY", queued="ACTIVE"):
    (probe.folder / "tpu-vm").write_text(tpu)
    (probe.folder / "queued-resources").write_text(queued)
    options = ("--name=n", "--zone=z", "--pause=0", *options)
    return kit.start(
      *("tpu_pod.py", *options, "--", *LINE),
      env=os.environ | {"PATH": probe.path, "PROBE": plan},
    )

  return begin


def end(process, code):
  try:
    _, err = process.communicate(timeout=60)
  finally:
    process.kill()
  assert process.returncode == code, err
  return err.decode()


def verbs(probe):
  lines = (probe.folder / "gcloud.log").read_text().splitlines()
  return [" ".join(json.loads(line)[2:4]) for line in lines]


def test_all_hosts_start_again(pod, probe):
  end(pod(plan="75,kill1,255,0"), 0)
  assert sorted(probe.said()) == [(i, j) for i in range(1, 5) for j in (0, 1)]
  assert verbs(probe) == ["tpu-vm ssh"] * 4


@pytest.mark.parametrize("code", [1, 2])
def test_other_codes_are_final(pod, probe, code):
  end(pod(plan=f"{code},0"), code)
  assert len(probe.said()) == 2


def test_the_limit(pod, probe):
  assert "--max-restarts" in end(pod("--max-restarts=1", plan="75"), 75)
  assert len(probe.said()) == 4


def test_a_tpu_that_was_taken_away_is_made_again(pod, probe):
  process = pod(
    *("--accelerator-type=v5p-16", "--runtime-version=r", "--spot"),
    plan="1,0",
    # There; gone after the first run; made again.
    tpu="READY,PREEMPTED,PREEMPTED,READY",
    queued="SUSPENDED,PROVISIONING",
  )
  err = end(process, 0)
  assert "queued resource n is SUSPENDED: made again" in err
  assert [v for v in verbs(probe) if "describe" not in v] == [
    *("tpu-vm ssh", "queued-resources delete", "queued-resources create"),
    "tpu-vm ssh",
  ]
  assert len(probe.said()) == 4


def test_a_tpu_that_cannot_be_made_is_no_reason_to_try_for_ever(pod, probe):
  process = pod(
    *("--accelerator-type=v5p-16", "--runtime-version=r"),
    tpu="",
    queued=",FAILED",
  )
  assert "expected a TPU, found FAILED" in end(process, 2)
  assert not probe.said()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_where_it_ends_the_hosts_save_and_end(pod, probe, number):
  """Their standard input ends with it, even if it is killed."""
  process = pod(plan="wait,0")
  try:
    while len(probe.said()) < 2:
      assert process.poll() is None
      time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=20)
  finally:
    process.kill()
  assert process.returncode == {signal.SIGTERM: 75}.get(number, -number)
  deadline = time.monotonic() + 20
  for said in probe.said().values():
    while os.path.exists(f"/proc/{said['pid']}"):
      assert time.monotonic() < deadline
      time.sleep(0.05)
  assert len(probe.said()) == 2


def test_a_host_that_gets_the_same_command_again_does_not_run_it(kit, probe):
  """gcloud repeats it on a host whose connection broke."""
  options = ("--name=n", "--zone=z", "--dry-run")
  out, _ = kit.launch("tpu_pod.py", *options, "--", *LINE)
  [line] = [x for x in out.splitlines() if "mkdir" in x]
  line = line.split("'--command=")[1]
  environment = os.environ | {"TMPDIR": str(probe.folder)}
  codes = [
    subprocess.run(["sh", "-c", line], env=environment).returncode
    for _ in range(2)
  ]
  assert codes == [0, 75]


@pytest.mark.parametrize(
  ("options", "expected"),
  [
    (["--accelerator-type=v5p-16"], "expected both or neither"),
    (["--spot"], "--spot is for a TPU that is made"),
  ],
)
def test_options_that_need_others(kit, options, expected):
  options = ["--name=n", "--zone=z", *options, "--dry-run"]
  _, err = kit.launch("tpu_pod.py", *options, "--", *LINE, code=2)
  assert expected in err
