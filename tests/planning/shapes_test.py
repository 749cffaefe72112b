"""Tests for analogjax/planning/shapes.py: what a plan compiles is what runs."""

import jax
import numpy as np
import pytest

from analogjax import assemble, hosts
from analogjax.data import batches, logit_cache
from analogjax.data.rows import Rows
from analogjax.planning import shapes

AXES = dict(data=2, fsdp=2, tensor=2)
MESH = tuple(f"mesh.{axis}={n}" for axis, n in AXES.items())
STUDENT = dict(V=512, D=32, Y=2, N=4, G=2, H=8, F=64)


def rows(B, L):
  rng = np.random.default_rng(0)
  tokens_BL = rng.integers(0, 512, (B, L)).astype(np.int32)
  ones_BL = np.ones_like(tokens_BL)
  return Rows(tokens_BL, ones_BL, ones_BL, ones_BL.astype(np.float32))


def prepared(stage, cfg, teacher):
  for request in shapes.requests(cfg):
    if request.stage == stage:
      return shapes.prepare(request, cfg, teacher, jax.devices())
  raise AssertionError(stage)


def of(tree):
  """Shapes, dtypes and places of arrays or of their stand-ins."""
  return jax.tree.map(lambda x: (x.shape, str(x.dtype), x.sharding), tree)


@pytest.mark.parametrize("kind", ["threshold", "topk"])
def test_a_batch_is_that_of_the_loop(sections, teacher, kind):
  cfg = sections(*MESH, f"cache.kind={kind}")
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
  )
  mesh = assemble.make_mesh(cfg)
  real = hosts.put_rows(batches.from_entries(entries), mesh, hosts.group(mesh))
  _, planned, teacher_in_loop = step.call
  assert of(planned) == of(real)
  assert teacher_in_loop is None
  assert step.num_slots > 0
