"""Tests for tests/benchmarks/accelerator.py: the whole script, at toy size."""

import importlib
import json
import os
from pathlib import Path
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

FOLDER = Path(__file__).parent


@pytest.fixture
def module(monkeypatch):
  """Imports modules as the script does, from its folder."""
  monkeypatch.syspath_prepend(str(FOLDER))
  return importlib.import_module


def run(out, *arguments, path=""):
  root = str(FOLDER.parents[1])
  places = [str(path), root, *os.environ.get("PYTHONPATH", "").split(":")]
  environment = {**os.environ, "PYTHONPATH": ":".join(filter(None, places))}
  command = [sys.executable, str(FOLDER / "accelerator.py"), f"--out={out}"]
  done = subprocess.run(
    [*command, "--toy", *arguments],
    env=environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return json.loads((out / "accelerator.json").read_text())


@pytest.mark.slow
def test_the_whole_script(tmp_path):
  results = run(tmp_path)
  lines = results["lines"]
  kinds = ("hard", "threshold", "topk", "live-1B")
  wanted = ["loss-plain", "loss-threshold", *(f"135M-{k}" for k in kinds)]
  assert list(lines) == wanted
  assert {line["status"] for line in lines.values()} == {"ok"}, lines
  for line in lines.values():
    assert len(line["seconds"]) == 3
    assert line["min_s"] <= line["median_s"] <= line["p90_s"]
    assert line["tokens_per_s"] == pytest.approx(128 / line["median_s"])
    assert line["peak_bytes"] > 0
  # Three products of [128, 48] and [512, 48].
  assert lines["loss-plain"]["flops"] == 3 * 2 * 128 * 48 * 512
  live, cached = lines["135M-live-1B"], lines["135M-threshold"]
  # At toy size the teacher is as large as the student.
  assert 3 * live["teacher_flops"] == live["student_flops"]
  assert cached["teacher_flops"] == 0 < cached["flops"] < live["flops"]
  page = (tmp_path / "accelerator.md").read_text()
  assert f"{lines['loss-plain']['device']}, one; jax {jax.__version__}" in page
  assert "| 135M, live 1B | 2, dots |" in page
  assert "| 135M | 1B | " in page and "| 1.33 |" in page
  assert set(tmp_path.iterdir()) == {
    tmp_path / "accelerator.json",
    tmp_path / "accelerator.md",
  }


@pytest.mark.slow
def test_packages_that_read_data_may_be_missing(tmp_path):
  missing = tmp_path / "missing"
  missing.mkdir()
  for name in ("grain", "tensorstore"):
    code = f"raise ModuleNotFoundError('none', name={name!r})"
    (missing / f"{name}.py").write_text(code)
  out = tmp_path / "out"
  results = run(out, "--only=loss-threshold", path=missing)
  assert sorted(results["missing"]) == ["grain", "tensorstore"]
  assert results["lines"]["loss-threshold"]["status"] == "ok"
  page = (out / "accelerator.md").read_text()
  assert "Not installed, not needed: " in page


def test_a_stand_in_can_be_named_and_not_used(module):
  grain = module("stand_ins")._StandIn("grain")
  assert grain.IterDataset | grain.DataLoader  # As annotations do.
  with pytest.raises(ModuleNotFoundError, match="grain is not installed"):
    grain.MapDataset(1)


def test_a_package_that_is_needed_is_not_replaced(module, monkeypatch):
  stand_ins = module("stand_ins")
  monkeypatch.setitem(sys.modules, "optax", None)
  monkeypatch.delitem(sys.modules, "students", raising=False)
  with pytest.raises(ModuleNotFoundError, match="optax"):
    stand_ins.import_all(("students",))


def test_what_does_not_fit_is_reported(module):
  attempt = module("accelerator").attempt
  found = attempt(lambda: {"x": jnp.zeros(1 << 50, "uint8")})
  assert found["status"] == "out of memory"

  def numpy():
    raise MemoryError("32 GiB")

  assert attempt(numpy)["status"] == "out of memory"
  assert attempt(lambda: {"x": 1}) == {"status": "ok", "x": 1}

  def wrong():
    raise ValueError("attention: 'splash' needs a TPU")

  assert attempt(wrong)["status"] == "failed"


@pytest.mark.parametrize(
  ("code", "status"),
  [("kill -9 $$", "killed by signal 9"), ("echo why >&2; exit 3", "failed")],
)
def test_a_line_that_dies_is_reported(
  module, tmp_path, monkeypatch, code, status
):
  accelerator = module("accelerator")
  program = tmp_path / "program"
  program.write_text(f"#!/bin/sh\n{code}\n")
  program.chmod(0o755)
  monkeypatch.setattr(accelerator.sys, "executable", str(program))
  arguments = [f"--out={tmp_path}", "--toy", "--only=135M-hard"]
  assert accelerator.main(arguments) == 0
  results = json.loads((tmp_path / "accelerator.json").read_text())
  assert results["lines"]["135M-hard"]["status"] == status
  assert (
    f"| 135M, hard labels | - | {status} |"
    in (tmp_path / "accelerator.md").read_text()
  )


def test_a_group_waits_at_its_ends_alone(module, monkeypatch):
  accelerator = module("accelerator")
  events = []

  class Run:
    out = 0

    def start(self):
      events.append("start")

    def step(self):
      self.out += 1
      events.append(self.out)

  monkeypatch.setattr(
    accelerator.jax, "block_until_ready", lambda x: events.append("wait")
  )
  assert len(accelerator._time(Run(), groups=2, group=3)) == 2
  assert events == [
    *("start", 1, 2, "wait"),
    *(3, 4, 5, "wait"),
    *(6, 7, 8, "wait"),
  ]


def test_cached_against_live(module):
  report = module("accelerator_report")
  # The student costs 3 and its teacher 9, so cached could be 4 times faster.
  live = dict(tokens_per_s=100.0, student_flops=3, teacher_flops=9)
  cached = dict(tokens_per_s=300.0)
  assert report.compare(cached, live) == (3.0, 4.0)
  lines = {
    "1B-threshold": dict(status="ok", **cached),
    "1B-live-8B": dict(status="ok", **live),
    "135M-live-1B": dict(status="out of memory"),
  }
  assert list(report._cached_and_live(lines)) == [
    "| 1B | 8B | 3.00 | 4.00 | 75 % |"
  ]


def test_the_plain_loss_is_ours(module):
  """The yardstick measures the same: value and gradients."""
  accelerator, students = module("accelerator"), module("students")
  losses = module("analogjax.training.losses")
  V, D, L = 40, 8, 12
  targets = students.make_batch("hard", 1, L, V).targets
  rng = np.random.default_rng(0)
  x_BLD = rng.normal(size=(1, L, D)).astype(np.float32)
  head_VD = rng.normal(size=(V, D)).astype(np.float32)

  def ours(x_BLD, head_VD, targets):
    objective = losses.Objective(chunk=5)
    return (
      losses.distillation_loss(x_BLD, head_VD, targets, 0.0, objective)[0] / L
    )

  found, expected = (
    jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(x_BLD, head_VD, targets)
    for f in (accelerator.plain_loss, ours)
  )
  for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["hard", "threshold", "topk", "live"])
def test_batches_are_what_the_loss_expects(module, kind):
  students = module("students")
  batch = students.make_batch(kind, 2, 9, 100)
  targets = batch.targets
  ids_BLK, p_BLK = targets.ids_BLK, targets.p_BLK
  assert ids_BLK.shape[-1] == dict(threshold=26, topk=16).get(kind, 0)
  assert (np.diff(ids_BLK) > 0).all() and (ids_BLK < 100).all()
  mass_BL = p_BLK.sum(-1)
  if kind == "topk":
    mass_BL += np.exp(targets.log_tail_BL)
  if kind in ("threshold", "topk"):
    np.testing.assert_allclose(mass_BL, 1, rtol=1e-6)
  assert (targets.teacher_weights_BL == (kind != "hard")).all()
  assert batch.positions_BL[1].tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5]
  assert batch.segments_BL[1].tolist() == [1, 1, 1, 2, 2, 2, 2, 2, 2]
