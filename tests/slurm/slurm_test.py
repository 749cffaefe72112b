"""launch/slurm.sbatch as jobs of a real SLURM; conftest.py starts one."""

import dataclasses
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys

import pytest
import tiny_pair

from analogjax.workdir import metrics

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

# Stands for analogjax in tests of SLURM itself. Each start does one word of
# PROBE: waits for a signal that the first process asks for, or ends.
_PROBE = """#!{python}
import json, os, pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
start = os.environ.get("SLURM_RESTART_COUNT", "0")
me, folder = os.environ["SLURM_PROCID"], pathlib.Path({folder!r})
path = folder / f"{{start}}-{{me}}.json"
path.with_suffix(".part").write_text(json.dumps(sys.argv[1:]))
path.with_suffix(".part").rename(path)
does = os.environ["PROBE"].split(",")[int(start)]
asks = dict(term=["--signal=TERM"], cancel=[])
if does in asks:
  if me == "0":
    while len(list(folder.glob(f"{{start}}-*.json"))) < 2:
      time.sleep(0.1)
    subprocess.run(["scancel", *asks[does], os.environ["SLURM_JOB_ID"]])
  time.sleep(60)
sys.exit(int(does))
"""

# analogjax, of which process 1 dies at step 7 of the first start, as soon as
# what step 4 left is saved.
_DYING = """#!{python}
import os, pathlib, signal, sys, time
from analogjax import main
from analogjax.training import loop as trainer

take = trainer.Phase._next
saved = pathlib.Path({workdir!r}, "train/distill/checkpoints/4")
def dying(self, ahead, step):
  if step == 7:
    deadline = time.monotonic() + 60
    while not saved.exists() and time.monotonic() < deadline:
      time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)
  return take(self, ahead, step)
if os.environ["SLURM_PROCID"] == "1" and not int(
  os.environ.get("SLURM_RESTART_COUNT", "0")
):
  trainer.Phase._next = dying
sys.exit(main.main(sys.argv[1:]))
"""

HOSTILE = (
  "two words",
  "'single' \"double\" \\'\\\"",
  "$(touch executed) `touch executed` ${HOME} $$",
  "; touch executed; # & | < > ! * ? ~",
  "first\nsecond\n\n  third",
  "\ttab, a return\r and the end\\",
  "%j %N {0} -- --wrap=x",
  "",
)


LINE = ["--config=a b.py", "--workdir=/mnt/it's"]
LINE += [f"--config.data.arguments.x{i}={v}" for i, v in enumerate(HOSTILE)]


@dataclasses.dataclass(frozen=True)
class Job:
  """A job whose analogjax is the probe; its folder has a file per start."""

  number: int
  folder: Path

  def starts(self):
    """Names of restart-process."""
    return sorted(path.stem for path in self.folder.glob("*.json"))

  def said(self):
    return (self.folder / f"slurm-{self.number}.out").read_text()


@pytest.fixture(scope="module")
def jobs(slurm, tmp_path_factory):
  """All at once, as SLURM takes seconds to requeue a job or to end it."""

  def submit(name, does, *options, **variables):
    folder = tmp_path_factory.mktemp(name)
    program = folder / "analogjax"
    program.write_text(_PROBE.format(python=sys.executable, folder=str(folder)))
    program.chmod(0o755)
    number = slurm.submit(
      *(folder, *LINE),
      options=options,
      programs=folder,
      PROBE=does,
      **variables,
    )
    return Job(number, folder)

  return {
    "signals": submit("signals", "term,cancel,0", "--ntasks=2"),
    "good": submit("good", "0", "--ntasks=2"),
    "mistake": submit("mistake", "2,0"),
    "limit": submit("limit", "75,75,0", ANALOGJAX_MAX_RESTARTS="1"),
  }


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  compiled = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
  return tiny_pair.make_tiny(tmp_path_factory.mktemp("tiny"), compiled)


def line_of(tiny, workdir):
  """Arguments of `analogjax run`: one phase, on two devices."""
  _, *arguments = tiny.command(
    *("run", workdir, "--config.train.phases=distill"),
    *("--config.train.distill.init_from=", "--config.measure.phases=distill"),
    "--config.release.phase=distill",
  )
  return arguments


def environment_of(tiny):
  return tiny.environment() | {"JAX_NUM_CPU_DEVICES": "1"}


def results(workdir):
  curve = [
    record
    for record in metrics.read(workdir / "train/distill")
    if "speed/tokens_per_second" not in record
  ]
  export = json.loads((workdir / "export.json").read_text())
  fidelity = json.loads((workdir / "fidelity.json").read_text())
  output = fidelity["output"]["models"]
  return {"curve": curve, "files": export["files"], "output": output}


def begins(workdir, stage):
  """The steps after which a phase began or continued."""
  lines = (workdir / "ledger.jsonl").read_text().splitlines()
  entries = [json.loads(line) for line in lines]
  return [e["step"] for e in entries if e["stage"] == stage and e["begins"]]


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory):
  """The workdir of the run by launch/local.py, as two processes."""
  workdir = tmp_path_factory.mktemp("undisturbed") / "run"
  launcher = [sys.executable, ROOT / "launch/local.py", "--processes=2", "--"]
  done = subprocess.run(
    [*launcher, *line_of(tiny, workdir)],
    env=environment_of(tiny),
    capture_output=True,
    text=True,
    timeout=280,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return workdir


def test_two_processes_by_the_local_launcher(undisturbed):
  curve = results(undisturbed)["curve"]
  assert {record["step"] for record in curve} == set(range(13))


@pytest.mark.usefixtures("jobs")  # They run beside this one.
def test_killed_and_requeued_it_ends_undisturbed(
  slurm, tiny, undisturbed, tmp_path
):
  programs = tmp_path / "programs"
  programs.mkdir()
  workdir = tmp_path / "run"
  (programs / "analogjax").write_text(
    _DYING.format(python=sys.executable, workdir=str(workdir))
  )
  (programs / "analogjax").chmod(0o755)
  for name in ("cache", "held_out"):
    # To save the time: a run that is killed there is tests/stages/run_test.py.
    shutil.copytree(undisturbed / name, workdir / name)
  variables = environment_of(tiny)
  del variables["PATH"]
  job = slurm.submit(
    *(tmp_path, *line_of(tiny, workdir)),
    options=["--ntasks=2"],
    programs=programs,
    **variables,
  )
  found = slurm.wait(job, seconds=280)
  said = (tmp_path / f"slurm-{job}.out").read_text()
  assert found["JobState"] == "COMPLETED", said
  assert found["Restarts"] == "1"
  # 128 + 9 of the one that was killed; the other one says 75.
  assert f"code 137; job {job} goes back into the queue" in said
  assert "process 1 ended without a word" in said
  # Not from what it says: Gloo writes there too, in pieces.
  assert begins(workdir, "train/distill") == [0, 4]
  assert results(workdir) == results(undisturbed)


def test_sigterm_goes_on_and_scancel_does_not(slurm, jobs):
  """The signal before the time limit goes only to the processes."""
  job = jobs["signals"]
  # COMPLETING first; one that was put back would be PENDING after that.
  assert slurm.wait(job.number)["JobState"] == "CANCELLED"
  assert job.starts() == ["0-0", "0-1", "1-0", "1-1"]


def test_values_arrive_and_nothing_runs_them(slurm, jobs):
  job = jobs["good"]
  assert slurm.wait(job.number)["JobState"] == "COMPLETED"
  assert job.starts() == ["0-0", "0-1"]
  for path in job.folder.glob("*.json"):
    assert json.loads(path.read_text()) == ["run", *LINE]
  assert not (job.folder / "executed").exists()


def test_a_mistake_is_final(slurm, jobs):
  job = jobs["mistake"]
  found = slurm.wait(job.number)
  assert (found["JobState"], found["ExitCode"]) == ("FAILED", "2:0")
  assert job.starts() == ["0-0"]


def test_the_limit(slurm, jobs):
  job = jobs["limit"]
  found = slurm.wait(job.number)
  assert (found["JobState"], found["ExitCode"]) == ("FAILED", "75:0")
  assert job.starts() == ["0-0", "1-0"]
  # One file has what both starts said.
  back = f"job {job.number} goes back into the queue after 0 restarts"
  assert back in job.said()
  assert "restart 1 of ANALOGJAX_MAX_RESTARTS=1" in job.said()
