"""Tests for analogjax/cache/sampling.py on meshes: the same bits everywhere."""

import functools

import jax
from jax.sharding import NamedSharding, PartitionSpec as P
from models import mesh_id
import numpy as np
import pytest

from analogjax.cache import sampling
from analogjax.distributed import sharding

pytestmark = pytest.mark.medium

B, L = 8, 13  # A number of positions that fills no vector register.
MESHES = (
  dict(data=8),
  dict(fsdp=8),
  dict(tensor=8),
  dict(data=2, fsdp=2, tensor=2),
  dict(expert=2, tensor=4),
)
SAMPLERS = (
  sampling.Threshold(tau=0.04),
  sampling.Random(num_draws=50),
  sampling.TopK(top_k=50),
)


@functools.partial(jax.jit, static_argnums=(3, 4))
def jit_draw(logits_BLV, labels_BL, keys_B2, sampler, temperature):
  return sampling.draw(
    logits_BLV,
    labels_BL,
    keys_B2,
    5,
    sampler,
    capture=sampling.Capture(kind="entropy", rate=0.2),
    num_replicas=2,
    temperature=temperature,
  )


@functools.cache
def inputs(V):
  """From nearly uniform to nearly one-hot, with ties and ruled-out ids."""
  rng = np.random.default_rng(V)
  scale = np.geomspace(0.1, 9, B * L).reshape(B, L, 1)
  logits_BLV = np.float32(rng.normal(size=(B, L, V)) * scale)
  logits_BLV[0, 0] = 0
  logits_BLV[1, 0, V // 3 :] = -np.inf
  logits_BLV[2, 0] = np.round(logits_BLV[2, 0])
  labels_BL = rng.integers(0, V, (B, L), np.int32)
  keys_B2 = rng.integers(0, 2**32, (B, 2), np.uint32)
  return logits_BLV, labels_BL, keys_B2


@functools.cache
def drawn(V, sampler, temperature, axes=()):
  """Records on the host; axes of the mesh, None: no mesh."""
  logits_BLV, labels_BL, keys_B2 = inputs(V)
  if not axes:
    records = jit_draw(logits_BLV, labels_BL, keys_B2, sampler, temperature)
    return jax.device_get(records)
  number = int(np.prod([size for _, size in axes]))
  mesh = sharding.make_mesh(dict(axes), jax.devices()[:number])
  with jax.set_mesh(mesh):
    # Where V does not split evenly it arrives whole.
    split = "tensor" if V % mesh.shape["tensor"] == 0 else None
    spec = P(*sharding.ROWS, None, split)
    logits_BLV = jax.device_put(logits_BLV, NamedSharding(mesh, spec))
    labels_BL, keys_B2 = sharding.put_rows((labels_BL, keys_B2), mesh)
    records = jit_draw(logits_BLV, labels_BL, keys_B2, sampler, temperature)
    return jax.device_get(records)


def check_same(V, sampler, axes, temperature=1.0):
  one = drawn(V, sampler, temperature)
  other = drawn(V, sampler, temperature, tuple(axes.items()))
  for name, a, b in zip(one._fields, one, other, strict=True):
    assert (a is None) == (b is None)
    if a is not None:
      assert a.dtype == b.dtype
      # NaN does not occur, so equal values are equal bits except for -0.
      np.testing.assert_array_equal(a, b, err_msg=name)
  assert 0 < np.count_nonzero(one.inclusion_BL) < B * L


@pytest.mark.parametrize("axes", MESHES, ids=mesh_id)
def test_blocks_divide_no_shard(axes):
  """1,336 ids on 8 devices: 167 each, a prime."""
  check_same(1336, SAMPLERS[0], axes)


@pytest.mark.parametrize(
  "sampler", [*SAMPLERS[1:], sampling.TopK(top_k=600)], ids=str
)
def test_blocks_divide_no_shard_of_other_kinds(sampler):
  """600 is more than a device's ids, and than those that can come."""
  check_same(1336, sampler, dict(tensor=8))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.kind)
def test_the_mesh_does_not_divide_the_vocabulary(sampler):
  check_same(1337, sampler, dict(data=2, fsdp=2, tensor=2))


def test_a_mesh_of_one_device():
  check_same(1336, SAMPLERS[0], dict(data=1))


@pytest.mark.parametrize("axes", MESHES[2:4], ids=mesh_id)
def test_at_a_temperature(axes):
  check_same(1336, SAMPLERS[0], axes, temperature=1.7)


@pytest.mark.parametrize("V", [49_152, 16_032])
@pytest.mark.parametrize("axes", MESHES, ids=mesh_id)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.kind)
def test_vocabularies_of_real_models(sampler, axes, V):
  """SmolLM2's, and an eighth of Llama 3's."""
  check_same(V, sampler, axes)


def test_no_device_sees_another_ones_logits():
  """Only a few numbers for each slot cross the devices, never V."""
  V = 4096
  mesh = sharding.make_mesh(dict(data=2, tensor=4))
  with jax.set_mesh(mesh):
    spec = NamedSharding(mesh, P(*sharding.ROWS, None, "tensor"))
    logits = jax.ShapeDtypeStruct((B, L, V), np.float32, sharding=spec)
    rows = NamedSharding(mesh, sharding.ROWS)
    labels = jax.ShapeDtypeStruct((B, L), np.int32, sharding=rows)
    keys = jax.ShapeDtypeStruct((B, 2), np.uint32, sharding=rows)
    for sampler in SAMPLERS:
      text = (
        jit_draw.lower(logits, labels, keys, sampler, 1.0).compile().as_text()
      )
      for line in text.splitlines():
        if " all-gather(" in line or " all-reduce(" in line:
          shape = line.split(" = ")[1].split("[")[1].split("]")[0]
          size = int(np.prod([int(n) for n in shape.split(",") if n]))
          slots = 2 * sampler.num_slots * mesh.shape["tensor"]
          assert size <= B // 2 * L * max(slots, 8) * 2, line
        assert "all-to-all(" not in line and "permute(" not in line, line
