"""Tests for tests/benchmarks/soak.py: a few ends, and its verdict."""

import importlib
import json
from pathlib import Path
import shutil
import signal

import numpy as np
import pytest


@pytest.fixture(scope="module")
def modules():
  """Imports soak, soak_checks and soak_ends as the script does."""
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parent))
    yield tuple(
      map(importlib.import_module, ("soak", "soak_checks", "soak_ends"))
    )


@pytest.fixture(scope="module")
def soaked(modules, tmp_path_factory):
  """A soak of a few ends: (folder, pair, output, report)."""
  soak, *_ = modules
  folder = tmp_path_factory.mktemp("soak")
  pair = soak.durability.make_pair(folder / "pair")
  plan = soak.Plan(2, 1, 600.0, cases=("1 and 2 by turns",))
  said = []
  disturbing = soak.Soak(
    pair, folder, plan, seed=1, say=said.append, steps=10, rows=32
  )
  return folder, pair, said, disturbing.run()


def test_a_pair_outside_of_pytest(modules, tmp_path, monkeypatch):
  """As in `make soak`: nothing says where compiled programs go."""
  soak, *_ = modules
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
  pair = soak.durability.make_pair(tmp_path / "pair")
  assert pair.compilation_cache == tmp_path / "pair" / "compiled"
  assert (pair.teacher / "model.safetensors").exists()


@pytest.mark.slow
def test_a_few_ends_lose_nothing(modules, soaked):
  soak, *_ = modules
  *_, said, report = soaked
  assert report["damage"] == [], said
  assert report["kills"] >= 2 and report["terms"] >= 1
  assert sum(report["runs_whole"].values()) >= 1
  assert report["rows_compared"] > 0 and report["checkpoints_restored"] > 0
  assert soak.is_good(report)
  assert "soak: nothing was lost." in soak.table(report)


def add_to_ledger(workdir, **values):
  lines = (workdir / "ledger.jsonl").read_text().splitlines()
  entries = [e for e in map(json.loads, lines) if e["stage"] == values["stage"]]
  with open(workdir / "ledger.jsonl", "a") as file:
    file.write(json.dumps({**entries[-1], **values}) + "\n")


def change_metrics(workdir, change):
  path = workdir / "train" / "control" / "metrics.jsonl"
  records = [json.loads(line) for line in path.read_text().splitlines()]
  change(records)
  path.write_text("".join(json.dumps(r) + "\n" for r in records))


def move_a_loss(records):
  record = next(r for r in records if "train/loss_nats" in r)
  record["train/loss_nats"] += 1e-5


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(bytes(data))


def largest(folder):
  files = [path for path in folder.rglob("*") if path.is_file()]
  return max(files, key=lambda path: path.stat().st_size)


# Changes of a finished workdir, and the expected verdict.
BREAKS = {
  "a step twice in the metrics": (
    lambda w: change_metrics(w, lambda r: r.insert(3, r[3])),
    "metrics of control: record",
  ),
  "a record too few": (
    lambda w: change_metrics(w, lambda r: r.pop(1)),
    "metrics of control: record",
  ),
  "another loss": (
    lambda w: change_metrics(w, move_a_loss),
    "metrics of control: differs by",
  ),
  "the newest checkpoint gone": (
    lambda w: shutil.rmtree(w / "train" / "distill" / "checkpoints" / "10"),
    "step 10 was committed before",
  ),
  "a bit of a checkpoint": (
    lambda w: flip(largest(w / "train" / "pretrain" / "checkpoints" / "10")),
    "the checkpoint of step 10 is damaged",
  ),
  "a cache object gone": (
    lambda w: shutil.rmtree(w / "cache" / "digest" / "c" / "0"),
    "were committed before",
  ),
  "a bit of the export": (
    lambda w: flip(w / "export" / "model.safetensors"),
    "not the undisturbed one",
  ),
  "a file left over": (
    lambda w: (w / "train" / "pretrain" / "metrics.incomplete").touch(),
    "are only in one of the runs",
  ),
  "rows computed twice": (
    lambda w: add_to_ledger(w, stage="cache", tokens=32 * 8),
    "48.0 rows; some done twice",
  ),
  "steps spent twice": (
    lambda w: add_to_ledger(w, stage="train/control", tokens=128, step=11),
    "1.0 steps again; 0 lost",
  ),
  "more time than there was": (
    lambda w: add_to_ledger(w, stage="measure", seconds=1e6),
    "the ledger has",
  ),
}


@pytest.mark.slow
def test_the_verdict_names_what_is_broken(modules, soaked, tmp_path):
  soak, soak_checks, _ = modules
  folder, pair, *_ = soaked
  more = soak.overrides(10)
  runs = soak.durability.Runs(pair, rows=32, command="run", overrides=more)

  def check(workdir, seen, inspector):
    none = dict.fromkeys(inspector.phases, (0, 0))
    inspector.finished(
      workdir, wanted, seen, exact=True, seconds=1000.0, done_again=none
    )

  whole = folder / "undisturbed1"
  first = soak_checks.Inspector(runs.arguments(whole))
  wanted = soak_checks.Undisturbed(whole, first.phases)
  seen = first.look(whole, wanted, soak_checks.Seen(), exact=True)
  check(whole, seen, first)
  for number, (what, (damage, message)) in enumerate(BREAKS.items()):
    workdir = tmp_path / str(number)
    shutil.copytree(whole, workdir)
    damage(workdir)
    inspector = soak_checks.Inspector(runs.arguments(workdir))
    with pytest.raises(soak.Damage, match=message):
      check(workdir, seen, inspector)
      pytest.fail(f"not seen: {what}")


def test_which_exit_codes_are_right(modules):
  *_, soak_ends = modules

  def allowed(what, moment, **how):
    end = soak_ends.End(what, moment, 1, [], 0.0)
    return soak_ends.allowed_codes(end, **how)

  killed = allowed("SIGKILL", "wrote", is_victim=True, is_done=False)
  assert killed == {-signal.SIGKILL, 75}
  # It has to end by itself, and to say so.
  other = allowed("SIGKILL", "wrote", is_victim=False, is_done=False)
  assert other == {75}
  asked = allowed("SIGTERM", "wrote", is_victim=True, is_done=False)
  assert asked == {75}
  early = allowed("SIGTERM", "starting", is_victim=True, is_done=False)
  assert early == {75, -signal.SIGTERM}
  late = allowed("SIGTERM", "wrote", is_victim=True, is_done=True)
  assert late == {75, 0}


def test_differences_of_nested_values(modules):
  soak, soak_checks, _ = modules
  wanted = [{"step": 1, "loss": 4.0}, {"step": 2, "loss": 0.5}]
  near = [{"step": 1, "loss": 4.0}, {"step": 2, "loss": 0.75}]
  assert soak_checks.largest_difference(wanted, wanted) == 0
  assert soak_checks.largest_difference(near, wanted) == 0.25
  nan = [{"step": 1, "loss": float("nan")}, wanted[1]]
  assert np.isinf(soak_checks.largest_difference(nan, wanted))
  for other in ([wanted[0]], [wanted[0], {"step": 3, "loss": 0.5}]):
    with pytest.raises(soak.Damage, match="instead of"):
      soak_checks.largest_difference(other, wanted)


def test_what_no_process_may_say(modules):
  _, soak_checks, _ = modules
  fine = "train: 3/10 steps\nanalogjax run: stopped, train: after step 3"
  assert soak_checks.unwanted(fine) == []
  said = f"{fine}\nTraceback (most recent call last):\n  x\n"
  assert soak_checks.unwanted(said) == ["Traceback (most recent call last):"]
