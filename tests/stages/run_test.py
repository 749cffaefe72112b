"""The main job from end to end, killed at every stage, on the tiny pair."""

import json
import random
import shutil
import time

import psutil
import pytest
import torch
import transformers

from analogjax.config import measure
from analogjax.workdir import metrics

PHASES = ("pretrain", "control", "distill")

# Each kills the process for good, at a moment that would hurt.
KILLS = {
  "between the arrays of a cache object and its commit": """
from analogjax.cache import logit_cache
write, count = logit_cache.LogitCache.write_stored, [0]
def dying_write(self, start, stored):
  count[0] += 1
  if count[0] == 3:
    for name, value in stored.items():
      if name != "digest":
        self._arrays[name][start : start + len(value)].write(value).result()
    os.kill(os.getpid(), signal.SIGKILL)
  write(self, start, stored)
logit_cache.LogitCache.write_stored = dying_write
""",
  "in the middle of training, a save running": """
from analogjax.workdir import checkpoints as checkpoint
save = checkpoint.Checkpoints.save
def dying_save(self, step, *args, **kwargs):
  save(self, step, *args, **kwargs)
  if step == 8:
    os.kill(os.getpid(), signal.SIGKILL)
checkpoint.Checkpoints.save = dying_save
""",
  "before the first checkpoint": """
from analogjax.workdir import checkpoints as checkpoint
def dying_save(self, *args, **kwargs):
  os.kill(os.getpid(), signal.SIGKILL)
checkpoint.Checkpoints.save = dying_save
""",
  "a checkpoint just saved, the next step not begun": """
from analogjax.workdir import checkpoints as checkpoint
save = checkpoint.Checkpoints.save
def dying_save(self, step, *args, **kwargs):
  save(self, step, *args, **kwargs)
  if step == 8:
    self.finish()
    os.kill(os.getpid(), signal.SIGKILL)
checkpoint.Checkpoints.save = dying_save
""",
  "between two phases": """
from analogjax.training import loop as trainer
loop = trainer.Phase._loop
def dying_loop(self, *args):
  if self._name == "distill":
    os.kill(os.getpid(), signal.SIGKILL)
  return loop(self, *args)
trainer.Phase._loop = dying_loop
""",
  "while the export is written": """
from analogjax.models import hf_export
write = hf_export._write_checked
def dying_write(*args):
  write(*args)
  os.kill(os.getpid(), signal.SIGKILL)
hf_export._write_checked = dying_write
""",
}


# Files of the stages after the moment of a kill. A run that is killed late
# begins with the files that were there just before; the others begin with
# nothing.
_AFTER_TRAINING = (
  *("fidelity", "fidelity.json", "safety", "safety.json"),
  *("export", "export.json", "summary.json", "curves.png"),
)
LATE = {
  "between two phases": ("train/distill", *_AFTER_TRAINING),
  "while the export is written": _AFTER_TRAINING[4:],
}


def copy_without(workdir, names, to):
  """A copy of a workdir in which some folders and files were not written."""
  shutil.copytree(workdir, to)
  for name in names:
    if (to / name).is_dir():
      shutil.rmtree(to / name)
    else:
      (to / name).unlink(missing_ok=True)
  return to


def results(workdir):
  """Everything that must not depend on how often a run was killed."""
  # Without the speeds, which no two runs share.
  curves = {
    p: [
      record
      for record in metrics.read(workdir / "train" / p)
      if "speed/tokens_per_second" not in record
    ]
    for p in PHASES
  }
  export = json.loads((workdir / "export.json").read_text())
  fidelity = json.loads((workdir / "fidelity.json").read_text())
  output = fidelity["output"]["models"]
  return {"curves": curves, "files": export["files"], "output": output}


@pytest.fixture(scope="session")
def undisturbed(tiny, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("undisturbed") / "run"
  began = time.monotonic()
  done = tiny.run("run", workdir)
  return workdir, done, time.monotonic() - began


def cpu_seconds(pid):
  times = psutil.Process(pid).cpu_times()
  return times.user + times.system


@pytest.mark.medium
def test_the_whole_job_leaves_what_the_design_says(undisturbed):
  workdir, done, seconds = undisturbed
  assert "KL to teacher" in done.stdout
  names = {p.name for p in workdir.iterdir()}
  assert names >= {
    *("config.json", "ledger.jsonl", "cache", "held_out", "train", "export"),
    *("fidelity.json", "safety.json", "summary.json", "curves.png"),
  }
  summary = json.loads((workdir / "summary.json").read_text())
  assert set(summary["models"]) == {"teacher", "control", "distill"}
  teacher, analog = (summary["models"][n] for n in ("teacher", "distill"))
  assert "kl_to_teacher_nats" not in teacher  # 0 by definition.
  assert analog["kl_to_teacher_nats"]["value"] > 0
  of_teacher, of_analog = (
    m["cross_entropy_nats"]["value"] for m in (teacher, analog)
  )
  gap = analog["cross_entropy_gap_nats"]["value"]
  assert gap == pytest.approx(of_analog - of_teacher)
  assert summary["cache"]["tokens"] == 46 * 32
  assert set(summary["seconds"]) == {
    *("cache", "measure", "safety", "export"),
    *(f"train/{phase}" for phase in PHASES),
  }
  assert sum(summary["seconds"].values()) <= seconds  # None counts twice.
  assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
  records = metrics.read(workdir / "train" / "pretrain")
  key = "held_out/hard_label_nats"
  curve = [r[key] for r in records if r.get(key) is not None]
  assert len(curve) == 3 and curve[-1] < curve[0] - 0.01


@pytest.mark.medium
def test_the_analog_loads_in_transformers_and_generates(undisturbed):
  workdir, *_ = undisturbed
  folder = workdir / "export"
  model = transformers.AutoModelForCausalLM.from_pretrained(folder)
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  inputs = tokenizer("def main():", return_tensors="pt")
  with torch.no_grad():
    out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
  assert out.shape[1] == inputs["input_ids"].shape[1] + 4
  written = json.loads((workdir / "export.json").read_text())["parameters"]
  assert model.num_parameters() == written


@pytest.mark.medium
def test_a_finished_run_does_nothing_when_run_again(tiny, undisturbed):
  workdir, *_ = undisturbed
  before = {
    p: p.stat().st_mtime_ns
    for name in ("cache", "held_out", "train", "export")
    for p in (workdir / name).rglob("*")
  }
  fidelity = (workdir / "fidelity.json").stat().st_mtime_ns
  done = tiny.run("run", workdir)
  for stage in ("cache", "train distill", "measure", "export"):
    assert f"{stage}: complete" in done.stdout
  for path, changed in before.items():
    assert path.stat().st_mtime_ns == changed, path
  assert (workdir / "fidelity.json").stat().st_mtime_ns == fidelity


# Every parameter is split over both processes.
SPLIT = ("--config.mesh.data=1", "--config.mesh.fsdp=4")


@pytest.fixture
def trained(undisturbed, tmp_path):
  """A workdir in which nothing was measured or exported yet."""
  gone = [name for name in _AFTER_TRAINING if "safety" not in name]
  return copy_without(undisturbed[0], gone, tmp_path / "run")


def spent(workdir, stage):
  lines = (workdir / "ledger.jsonl").read_text().splitlines()
  entries = [json.loads(line) for line in lines]
  return [(e["tokens"], e["bytes"]) for e in entries if e["stage"] == stage]


@pytest.mark.slow
def test_two_processes_measure_and_export_what_one_does(
  tiny, undisturbed, trained
):
  arguments = tiny.command("run", trained, *SPLIT)
  said = tiny.finish(tiny.start_processes(arguments, devices=4))
  found, wanted = results(trained), results(undisturbed[0])
  assert found["files"] == wanted["files"]
  # With the mesh, sums round otherwise, and with them an id near another.
  for model, values in wanted["output"].items():
    for name, estimate in values["metrics"].items():
      again = found["output"][model]["metrics"][name]
      rounding = dict(rel=1e-4, abs=2e-3)
      assert again == pytest.approx(estimate, **rounding), (model, name)
  assert {p.name for p in trained.iterdir()} >= {
    p.name for p in undisturbed[0].iterdir()
  }
  # One of them speaks, and one keeps the ledger.
  assert "KL to teacher" in said[0][0] and "read back" in said[0][0]
  assert "measure" not in said[1][0]
  for stage in ("measure", "export"):
    assert spent(trained, stage) == 2 * spent(undisturbed[0], stage)


# A behaviour that the tiny vocabulary has words for.
_BEHAVIOUR = {
  "format": "analogjax.behaviour",
  "format_version": 1,
  "name": "letters",
  "about": "Which letter comes next",
  "pairs": [
    {"with": f"self {i} yes", "without": f"self {i} no"} for i in range(8)
  ],
  "prompts": [f"def {i} is" for i in range(8)],
  "words": {"for": ["s"], "against": ["t"]},
}


@pytest.mark.slow
def test_two_processes_measure_every_part_as_one_does(tiny, trained, tmp_path):
  path = tmp_path / "letters.json"
  path.write_text(json.dumps(_BEHAVIOUR))
  few = dict(points=64, permutations=19, depths=2, random_vectors=2)
  few |= dict(strengths=2, mapper_steps=2, stitch_steps=2, behaviours=path)
  more = [f"--config.measure.{name}={value}" for name, value in few.items()]
  parts = measure.PARTS
  more.append(f"--config.measure.parts={','.join(parts)}")
  both = [trained, shutil.copytree(trained, tmp_path / "both")]
  tiny.run("measure", both[0], *more)
  arguments = tiny.command("measure", both[1], *more, *SPLIT)
  tiny.finish(tiny.start_processes(arguments, devices=4))
  one, two = (
    json.loads((workdir / "fidelity.json").read_text()) for workdir in both
  )
  for part in parts:
    assert_close(two[part], one[part], part)
  assert two["claims"] and (both[1] / "fidelity.html").stat().st_size > 10_000
  private = both[1] / "fidelity"
  assert {p.stem for p in private.glob("*.json")} == set(parts)


def assert_close(found, wanted, where):
  """Equal up to the rounding of sums, in all JSON values."""
  if isinstance(wanted, dict):
    assert set(found) == set(wanted), where
    for name in wanted:
      assert_close(found[name], wanted[name], f"{where}/{name}")
  elif isinstance(wanted, list):
    assert len(found) == len(wanted), where
    for pair in zip(found, wanted, strict=True):
      assert_close(*pair, where)
  elif isinstance(wanted, float):
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-3), where
  else:
    assert found == wanted, where


# The failure on process `who`: the stage, and where.
_FAILS = {
  "the disk is full": (
    0,
    "export",
    """
import resource
from analogjax.models import hf_export
write = hf_export._write_checked
def limited(*args):
  resource.setrlimit(resource.RLIMIT_FSIZE, (700, resource.RLIM_INFINITY))
  write(*args)
if me == 0:
  hf_export._write_checked = limited
""",
    ".safetensors: cannot be written",
  ),
  "a row cannot be read": (
    1,
    "measure",
    """
from analogjax.cache import logit_cache
def failing(self, *args):
  raise logit_cache.CacheError("row 6 is damaged")
if me == 1:
  logit_cache.LogitCache.read = failing
""",
    "row 6 is damaged",
  ),
  "the config cannot be kept": (
    0,
    "measure",
    """
from analogjax.config import loading as config_files
def failing(*args):
  raise OSError(28, "No space left on device")
if me == 0:
  config_files.save_resolved = failing
""",
    "No space left on device",
  ),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", _FAILS)
def test_one_process_that_fails_stops_both(tiny, trained, what):
  who, stage, patch, message = _FAILS[what]
  # Files of one tensor: most of the model is left when the first one fails.
  arguments = tiny.command(
    stage, trained, *SPLIT, "--config.release.max_shard_gb=1e-7"
  )
  processes = tiny.start_processes(arguments, devices=4, patch=patch)
  said = tiny.finish(processes, code=2)
  assert message in said[who][1]
  assert f"process {who} failed" in said[1 - who][1]
  assert not (trained / "export").exists()
  assert not (trained / "fidelity.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("moment", KILLS)
def test_killed_and_started_again_it_ends_as_if_undisturbed(
  tiny, undisturbed, tmp_path, moment
):
  workdir = tmp_path / "run"
  if moment in LATE:
    copy_without(undisturbed[0], LATE[moment], workdir)
  died = tiny.run("run", workdir, patch=KILLS[moment], check=False)
  assert died.returncode == -9, died.stdout + died.stderr
  assert not (workdir / "summary.json").exists()
  tiny.run("run", workdir)
  assert results(workdir) == results(undisturbed[0])


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_as_if_undisturbed(
  tiny, undisturbed, tmp_path
):
  """Moments of work done, not of the clock: other processes may be running."""
  rng = random.Random(0)
  workdir = tmp_path / "run"
  kills = 0
  for _ in range(4):
    process = tiny.start("run", workdir)
    end = rng.uniform(1, 5)  # Importing takes 1 to 2, and the whole job 4 to 8.
    while process.poll() is None and cpu_seconds(process.pid) < end:
      time.sleep(0.01)
    kills += process.poll() is None
    process.kill()
    process.wait()
  assert kills  # Else nothing was tested: the machine is faster than we think.
  tiny.run("run", workdir)
  assert results(workdir) == results(undisturbed[0])


@pytest.mark.medium
def test_stopped_where_an_evaluation_was_due_it_is_made_later(
  tiny, undisturbed, tmp_path
):
  patch = """
from analogjax.training import report as reporter
dispatched = reporter.Reporter.dispatched
def asked(self, step, *args, **kwargs):
  if step == 6:
    os.kill(os.getpid(), signal.SIGTERM)
  return dispatched(self, step, *args, **kwargs)
reporter.Reporter.dispatched = asked
"""
  workdir = tmp_path / "run"
  stopped = tiny.run("run", workdir, patch=patch, check=False)
  assert stopped.returncode == 75, stopped.stdout + stopped.stderr
  assert metrics.read(workdir / "train" / "pretrain")[-1]["step"] == 6
  tiny.run("run", workdir)
  assert results(workdir) == results(undisturbed[0])
