"""Tests for analogjax/cache/teacher_step.py: soft cap and memory."""

import dataclasses
import functools

import jax
from jax.experimental import topologies
from jax.sharding import NamedSharding
from models import parameters, tiny
import numpy as np
import pytest
from tpu import needs_libtpu

from analogjax.cache import batches, sampling, teacher_step
from analogjax.data import rows as rows_lib
from analogjax.distributed import sharding
from analogjax.models import decoder

pytestmark = pytest.mark.medium

B, L, V, CHUNK = 8, 10, 64, 4
CFG = tiny(max_positions=128)
SAMPLERS = (
  sampling.Threshold(tau=0.2),
  sampling.Random(num_draws=10),
  sampling.TopK(top_k=5),
)


def make_batch(length=L):
  rng = np.random.default_rng(0)
  segments_BL = np.ones((B, length), np.int32)
  segments_BL[:, -2:] = 0
  return batches.from_rows(
    rows_lib.Rows(
      tokens_BL=rng.integers(0, V, (B, length), np.int32),
      segments_BL=segments_BL,
      positions_BL=rows_lib.default_positions(segments_BL),
      weights_BL=(segments_BL > 0) * np.float32(1),
    )
  )


def with_cap(cap):
  return decoder.graphdef(dataclasses.replace(CFG, logit_softcap=cap))


def options(sampler, temperature=1.0):
  return dict(
    sampler=sampler,
    capture=sampling.Capture(),
    num_replicas=2,
    temperature=temperature,
  )


def logits(params, batch):
  """Without a cap, float64 [B, L, V]."""
  hidden = jax.jit(
    functools.partial(teacher_step.hidden, graphdef=with_cap(None))
  )
  x_BLD, head_VD = map(np.float64, hidden(params, batch))
  return np.einsum("BLD,VD->BLV", x_BLD, head_VD)


def test_the_teachers_logits_are_capped():
  """As if numpy had capped them; the temperature divides what is capped."""
  cap, params, batch = 1.5, parameters(CFG, 1, embed=0.6), make_batch()
  keys_B2 = np.arange(2 * B, dtype=np.uint32).reshape(B, 2)
  some = options(SAMPLERS[2], temperature=2.0)
  step = functools.partial(
    teacher_step.teacher_step, graphdef=with_cap(cap), chunk=CHUNK, **some
  )
  found = jax.jit(step)(params, batch, keys_B2)
  raw_BLV = logits(params, batch)
  assert np.abs(raw_BLV).max() > 2 * cap
  wanted = jax.jit(functools.partial(sampling.draw, **some))(
    np.float32(cap * np.tanh(raw_BLV / cap)),
    batch.targets.labels_BL,
    keys_B2,
    0,
  )
  label_BL = wanted.label_logprob_BL * (batch.targets.weights_BL > 0)
  for a, b in (
    (found.label_logprob_BL, label_BL),
    (found.entropy_BL, wanted.entropy_BL),
    (found.logprobs_BMLK, wanted.logprobs_BMLK),
    (found.log_tail_BL, wanted.log_tail_BL),
  ):
    np.testing.assert_allclose(a, b, atol=2e-5)


def compile_step(cfg, length, mesh, sampler):
  """teacher_step for a mesh, from shapes alone."""
  rows = NamedSharding(mesh, sharding.ROWS)

  def shape(leaf, where=rows):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

  params = decoder.abstract_parameters(cfg)
  params = jax.tree.map(shape, params, sharding.state_shardings(params, mesh))
  step = functools.partial(
    teacher_step.teacher_step,
    graphdef=decoder.graphdef(cfg),
    chunk=16,
    **options(sampler),
  )
  batch, keys_B2 = jax.tree.map(
    shape, (make_batch(length), np.zeros((B, 2), np.uint32))
  )
  with jax.set_mesh(mesh):
    return jax.jit(step).lower(params, batch, keys_B2).compile()


def check_memory(mesh, sampler, short=64, long=128):
  """Checks that no [B, L, V] exists: a position adds far less than V floats.

  Returns the temporaries of a step in units of one chunk's logits.
  """
  size = 16_384
  cfg = dataclasses.replace(CFG, V=size)
  bytes_of = {
    length: compile_step(cfg, length, mesh, sampler)
    .memory_analysis()
    .temp_size_in_bytes
    for length in (short, long)
  }
  tensor = mesh.shape["tensor"]
  # One position on one device.
  logits = 4 * (B // (mesh.size // tensor)) * (size // tensor)
  slope = (bytes_of[long] - bytes_of[short]) / (long - short)
  assert slope < logits / 10, (slope, logits)
  return bytes_of[short] / (16 * logits)


@pytest.mark.parametrize(
  "axes", [dict(data=1), dict(data=2, tensor=2)], ids=["alone", "split"]
)
def test_a_step_holds_the_logits_of_one_chunk_and_nothing_like_them(axes):
  number = int(np.prod(list(axes.values())))
  mesh = sharding.make_mesh(axes, jax.devices()[:number])
  assert check_memory(mesh, SAMPLERS[0]) < 1.6


@pytest.mark.parametrize("sampler", SAMPLERS[1:], ids=lambda s: s.kind)
def test_the_other_kinds_hold_little_more(sampler):
  mesh = sharding.make_mesh(dict(data=1), jax.devices()[:1])
  assert check_memory(mesh, sampler) < 2.6


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.kind)
def test_a_step_compiles_for_a_tpu(sampler):
  """Ahead of time, for 16 absent chips."""
  needs_libtpu()
  topology = topologies.get_topology_desc("v5e:4x4", "tpu")
  mesh = sharding.make_mesh(dict(data=8, tensor=2), list(topology.devices))
  # For short rows libtpu 0.0.42 uses other programs than for longer ones.
  check_memory(mesh, sampler, short=128, long=256)


def test_one_logit_that_is_nan_is_noticed_at_every_position():
  # In the program of a teacher step XLA's maximum on a CPU passes over NaN.
  x_BLD = np.random.default_rng(0).normal(size=(B, 16, 48)).astype(np.float32)
  head_VD = np.random.default_rng(1).normal(size=(384, 48)).astype(np.float32)
  head_VD[7] = np.nan

  @jax.jit
  def entropies(x_BLD, head_VD):
    def body(_, start):
      x_BSD = jax.lax.dynamic_slice_in_dim(x_BLD, start, 8, axis=1)
      records = sampling.draw(
        decoder.unembed(x_BSD, head_VD),
        np.zeros((B, 8), np.int32),
        np.ones((B, 2), np.uint32),
        start,
        sampling.Threshold(tau=0.04),
        capture=sampling.Capture(),
        num_replicas=1,
        temperature=1.0,
      )
      return None, records.entropy_BL

    return jax.lax.scan(body, None, np.arange(0, 16, 8))[1]

  with jax.set_mesh(sharding.make_mesh({}, devices=jax.devices()[:1])):
    assert np.isnan(entropies(x_BLD, head_VD)).all()
