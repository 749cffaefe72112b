"""Phases that learn from a live teacher, and from topk records."""

import dataclasses

import pytest
import tiny_pair

from analogjax.workdir import metrics

pytestmark = pytest.mark.medium

PHASES = ("--config.train.phases=distill", "--config.measure.phases=distill")
FRESH = "--config.train.distill.init_from="
FEW = tuple(
  f"--config.train.distill.{field}={value}"
  for field, value in (
    ("num_steps", 6),
    ("eval_every_steps", 6),
    ("checkpoint_every_steps", 3),
    ("batch_rows", 8),
  )
)
# Every id has its own probability: the records are the teacher.
GRAM = (
  "--config.cache.gram_layers=1",
  "--config.train.distill.loss.gram_weight=0.5",
)
ALL_IDS = ("--config.cache.kind=topk", "--config.cache.top_k=384")


def records(workdir):
  """The logged values, by step."""
  found = metrics.read(workdir / "train/distill")
  return {r["step"]: r for r in found if "train/loss_nats" in r}


def train(tiny, workdir, *more):
  common = (*PHASES, FRESH, *FEW, "--config.cache.batch_rows=8")
  for command in ("cache", "train"):
    tiny.run(command, workdir, *common, *more)
  return records(workdir)


def with_two_devices_for_the_teacher(tiny, folder):
  config = tiny_pair.write_config(
    folder / "own.py",
    tiny.config,
    "cfg.teacher.mesh = dict(data=1, fsdp=2, expert=1, tensor=1)",
  )
  return dataclasses.replace(tiny, config=config)


@pytest.fixture(scope="module")
def cached(tiny, tmp_path_factory):
  """Six steps on records that hold the whole distribution."""
  workdir = tmp_path_factory.mktemp("cached") / "run"
  return workdir, train(tiny, workdir, *ALL_IDS, *GRAM)


def assert_same_losses(found, wanted, rtol):
  assert found.keys() == wanted.keys()
  for step, values in wanted.items():
    for name in ("train/teacher_nats", "train/hard_label_nats"):
      assert found[step][name] == pytest.approx(values[name], rel=rtol)


def test_a_cached_step_equals_one_with_the_teacher_in_the_loop(
  tiny, tmp_path, cached
):
  """Same rows, same order; records are rounded to about 1/64 of a nat."""
  teacher = "--config.train.distill.loss.teacher=live"
  live = train(tiny, tmp_path / "run", *ALL_IDS, *GRAM, teacher)
  assert_same_losses(live, cached[1], rtol=0.01)
  # Both go through the same bytes.
  assert live[1]["train/gram"] == pytest.approx(
    cached[1][1]["train/gram"], rel=1e-4
  )
  assert live[6]["train/gram"] == pytest.approx(
    cached[1][6]["train/gram"], rel=0.02
  )


def test_without_records_nothing_is_cached_to_train_on(tiny, tmp_path):
  """The rows come from the pipeline; the teacher has its own devices."""
  workdir = tmp_path / "run"
  tiny = with_two_devices_for_the_teacher(tiny, tmp_path)
  four = "import jax; jax.config.update('jax_num_cpu_devices', 4)"
  more = (
    *("--config.train.distill.rows=pipeline", "--config.cache.batch_rows=8"),
    *("--config.train.distill.loss.teacher=live", *PHASES, FRESH, *FEW),
    "--config.train.distill.loss.divergence=reverse_kl",
    "--config.train.distill.microbatches=2",
    "--config.train.distill.loss.alpha_schedule=learning_rate",
    *GRAM,
  )
  tiny.run("cache", workdir, *more, patch=four)
  assert not (workdir / "cache").exists() and (workdir / "held_out").exists()
  tiny.run("train", workdir, *more, patch=four)
  found = records(workdir)
  assert len(found) == 6
  assert found[6]["train/alpha"] < found[2]["train/alpha"]
  tiny.run("train", workdir, *more, patch=four)
  assert records(workdir) == found
  tiny.run("run", workdir, *more, "--config.release.phase=distill", patch=four)


def test_topk_records_and_any_divergence(tiny, tmp_path, cached):
  more = ("--config.cache.kind=topk", "--config.cache.top_k=8")
  name = "--config.train.distill.loss.divergence=jensen_shannon"
  found = train(tiny, tmp_path / "run", *more, name)
  assert found[6]["train/teacher_nats"] < found[1]["train/teacher_nats"]
  held_out = metrics.read(tmp_path / "run/train/distill")
  bound = [r for r in held_out if "held_out/kl_lower_bound_nats" in r]
  whole = [
    r
    for r in metrics.read(cached[0] / "train/distill")
    if "held_out/kl_lower_bound_nats" in r
  ]
  # Before the first step the students are the same, and so is the teacher.
  field = "held_out/kl_lower_bound_nats"
  assert 0 < bound[0][field] < whole[0][field]


def test_no_devices_are_left(tiny, tmp_path):
  tiny = with_two_devices_for_the_teacher(tiny, tmp_path)
  done = tiny.run(
    "train",
    tmp_path / "run",
    "--config.train.distill.loss.teacher=live",
    check=False,
  )
  assert done.returncode == 2
  assert "teacher.mesh: 2 devices for the teacher leave none" in done.stderr
