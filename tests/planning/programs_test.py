"""Tests for analogjax/planning/programs.py: plans compile what runs."""

from pathlib import Path
import types

import jax
import numpy as np
import pytest

from analogjax.cache import batches, gram_codes, logit_cache, teacher_pass
from analogjax.data.rows import Rows, rows_digests
from analogjax.distributed import processes
from analogjax.models import teacher as teacher_lib
from analogjax.planning import programs
from analogjax.run import caches
from analogjax.run.run import Run
from analogjax.training import live_teacher, loop

MESH = ("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2")


def rows(B, L):
  rng = np.random.default_rng(0)
  tokens_BL = rng.integers(0, 512, (B, L)).astype(np.int32)
  ones_BL = np.ones_like(tokens_BL)
  return Rows(tokens_BL, ones_BL, ones_BL, ones_BL.astype(np.float32))


def prepared(stage, cfg, teacher):
  for request in programs.requests(cfg):
    if request.stage == stage:
      return programs.prepare(
        request, cfg, teacher, *programs.meshes(request, cfg, jax.devices())
      )
  raise AssertionError(stage)


def open_teacher(cfg):
  return teacher_lib.Teacher(
    folder=Path(), cfg=cfg, digest="", tokenizer_digest=""
  )


def zeros(tree):
  return jax.tree.map(
    lambda x: jax.numpy.zeros(x.shape, x.dtype, device=x.sharding), tree
  )


def of(tree):
  """Shapes, dtypes and places of arrays or of their stand-ins."""
  return jax.tree.map(lambda x: (x.shape, str(x.dtype), x.sharding), tree)


def sample(cfg, of_rows):
  """A batch from a cache, with codes."""
  number = cfg.cache.gram_positions
  drawn = gram_codes.draw(
    rows_digests(of_rows), of_rows.segments_BL, number, cfg.cache.seed
  )
  shape = len(of_rows.tokens_BL), cfg.cache.gram_layers
  pairs = number * (number - 1) // 2
  return drawn._replace(codes_BZP=np.zeros((*shape, pairs), np.int8))


@pytest.mark.parametrize("weight", [0, 2])
@pytest.mark.parametrize("kind", ["threshold", "topk"])
def test_a_batch_is_that_of_the_loop(sections, teacher, kind, weight):
  cfg = sections(
    *MESH, f"cache.kind={kind}", f"train.distill.loss.gram_weight={weight}"
  )
  step = prepared("train.distill", cfg, teacher)
  B, L = 8, cfg.data.L
  K = step.num_slots
  of_rows = rows(B, L)
  entries = logit_cache.Entries(
    rows=of_rows,
    ids_BLK=np.zeros((B, L, K), np.int32),
    p_BLK=np.zeros((B, L, K), np.float32),
    log_tail_BL=np.zeros((B, L), np.float32) if kind == "topk" else None,
    num_head_BL=np.zeros((B, L), np.int32),
    num_BL=np.zeros((B, L), np.int32),
    capture_weights_BL=np.ones((B, L), np.float32),
    entropy_BL=np.zeros((B, L), np.float32),
    label_logprob_BL=np.zeros((B, L), np.float32),
    gram=sample(cfg, of_rows) if weight else None,
  )
  mesh = Run(cfg, Path()).mesh
  real = processes.put_rows(
    batches.from_entries(entries), mesh, processes.group(mesh)
  )
  _, planned, teacher_in_loop = step.call
  assert of(planned) == of(real)
  assert teacher_in_loop is None
  assert step.num_slots > 0


@pytest.mark.parametrize("weight", [0, 2])
def test_a_teacher_in_the_loop_is_that_of_the_loop(
  sections, teacher, monkeypatch, weight
):
  weighs = f"train.distill.loss.gram_weight={weight}"
  cfg = sections(*MESH, "train.distill.loss.teacher=live", weighs)
  step = prepared("train.distill", cfg, teacher)
  of_teacher = prepared("train.distill.teacher", cfg, teacher)
  mesh = step.mesh
  params = zeros(of_teacher.call[0])
  read = lambda folder, cfg, mesh, *, dtype: params  # noqa: E731
  monkeypatch.setattr(live_teacher.hf_import, "read_parameters", read)
  opened = open_teacher(teacher)
  layers = cfg.cache.gram_layers
  running = live_teacher.LiveTeacher(opened, mesh, mesh, gram_layers=layers)
  of_rows = rows(8, cfg.data.L)
  batch = batches.for_live_teacher(of_rows)
  if weight:
    number = cfg.cache.gram_positions
    batch = batches.with_positions(batch, of_rows, number, cfg.cache.seed)
  batch = processes.put_rows(batch, mesh, processes.group(mesh))
  _, planned, hidden = step.call
  assert of(planned) == of(batch) == of(of_teacher.call[1])
  assert of(hidden) == of(running.hidden(batch))


def test_the_cache_step_is_that_of_the_recorder(sections, teacher, monkeypatch):
  cfg = sections(*MESH, "cache.num_replicas=2", "cache.capture=entropy")
  step = prepared("cache", cfg, teacher)
  opened = open_teacher(teacher)
  teaching = teacher_pass.Recorder(cfg.cache, step.mesh, opened)
  seen = []
  original = teacher_pass.teacher_programs.make_teacher_step

  def make(*args, **kwargs):
    teacher_step = original(*args, **kwargs)

    def run(*call):
      seen.append((teacher_step.lower(*call).as_text(), of(call)))
      return teacher_step(*call)

    return run

  monkeypatch.setattr(teacher_pass.teacher_programs, "make_teacher_step", make)
  params = zeros(step.call[0])
  read = lambda *args, **kwargs: params  # noqa: E731
  monkeypatch.setattr(teacher_pass.hf_import, "read_parameters", read)
  manifest = caches.manifest(cfg, opened, "", 8, held_out=False)
  teaching.record(rows(8, cfg.data.L), manifest)
  monkeypatch.undo()
  ((text, call),) = seen
  assert call == of(step.call)
  assert text == step.lower().as_text()


def test_a_phase_runs_what_is_compiled(sections, teacher, tmp_path):
  cfg = sections(
    *MESH, "train.distill.microbatches=2", "train.distill.loss.gram_weight=2"
  )
  opened = open_teacher(teacher)
  held_out = caches.manifest(cfg, opened, "", 8, held_out=True)
  run = Run(cfg, tmp_path)
  run.teacher = opened
  # A program depends on nothing of the held-out cache but its manifest.
  run.cache = lambda name: types.SimpleNamespace(manifest=held_out)
  phase = loop.Phase(
    "distill",
    run,
    order=loop.RowOrder(identity={}, read=None, position=None, restore=None),
    make_teacher=None,
  )
  step = prepared("train.distill", cfg, teacher)
  of_eval = prepared("train.distill.eval", cfg, teacher)
  with jax.set_mesh(step.mesh):
    state = phase._training.start()
    text = phase._train_step.lower(state, zeros(step.call[1]), None).as_text()
    eval_text = phase._eval_step.lower(
      state.params, zeros(of_eval.call[1])
    ).as_text()
  assert of(step.call[0]) == of(state)
  assert text == step.lower().as_text()
  assert eval_text == of_eval.lower().as_text()
  # A device holds the part that a plan says.
  here = sum(
    x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state.params)
  )
  assert programs.bytes_of(step.arguments["parameters"]) == here
