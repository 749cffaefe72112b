"""Tests for analogjax/models/splash.py.

The kernel is a TPU's; on a CPU its program runs in Pallas's interpreter.
"""

import dataclasses
import functools

from flax import nnx
import jax
from jax.experimental import topologies
import jax.numpy as jnp
from jax.sharding import NamedSharding
import numpy as np
import pytest
from tpu import needs_libtpu

from analogjax.distributed import sharding
from analogjax.models import decoder, splash

# Three blocks of 128 a side: above the diagonal, on it and below. Two documents
# have one token, one of them first in its block, and others span blocks.
L, H = 384, 64
ROWS = {
  "documents": [(100, 1), (28, 2), (1, 3), (149, 4), (1, 5), (59, 6), (46, 0)],
  "a hole": [(130, 1), (120, 0), (134, 2)],
  "one document": [(384, 1)],
  "padding": [(384, 0)],
}
SEGMENTS_BL = np.asarray(
  [np.repeat(*np.transpose(row)[::-1]) for row in ROWS.values()], np.int32
)
B = len(ROWS)


def _arrays(N, G, dtype="float32"):
  """Queries, keys, values, and weights that reduce the output to a scalar."""
  rng = np.random.default_rng(0)
  shapes = [(B, L, N, H), (B, L, G, H), (B, L, G, H), (B, L, N, H)]
  return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def _splash(q_BLNH, k_BMGH, v_BMGH, segments_BL):
  return splash.attend(q_BLNH, k_BMGH, v_BMGH, segments_BL, interpret=True)


def _xla(q_BLNH, k_BMGH, v_BMGH, segments_BL):
  same_BLM = segments_BL[:, :, None] == segments_BL[:, None, :]
  return jax.nn.dot_product_attention(
    *(q_BLNH, k_BMGH, v_BMGH), mask=same_BLM[:, None], is_causal=True
  )


@functools.partial(jax.jit, static_argnums=0)
def _value_and_gradients(attend, arrays, segments_BL):
  """Attention, and the gradients of a weighted sum of it in q, k and v."""
  *qkv, weights_BLNH = arrays

  def loss(qkv):
    y_BLNH = attend(*qkv, segments_BL)
    return jnp.sum(y_BLNH.astype(jnp.float32) * weights_BLNH), y_BLNH

  gradients, y_BLNH = jax.grad(loss, has_aux=True)(tuple(qkv))
  return y_BLNH, *gradients


def _assert_close(found, expected, tolerance):
  for name, a, b in zip(("y", "dq", "dk", "dv"), found, expected, strict=True):
    assert a.dtype == b.dtype
    a, b = np.float32(a), np.float32(b)
    assert np.isfinite(a).all(), name
    # Row by row, so that a row that is wrong is not lost in the largest one.
    scale_B = np.abs(b).max((1, 2, 3))
    assert scale_B.min() > 0.1, name
    error_B = np.abs(a - b).max((1, 2, 3)) / scale_B
    assert error_B.max() < tolerance, (name, error_B)


@pytest.mark.parametrize(("N", "G"), [(4, 2), (3, 1), (2, 2)])
def test_it_is_attention_within_documents(N, G):
  arrays = _arrays(N, G)
  found = _value_and_gradients(_splash, arrays, SEGMENTS_BL)
  expected = _value_and_gradients(_xla, arrays, SEGMENTS_BL)
  _assert_close(found, expected, 1e-5)


def test_bfloat16():
  arrays = _arrays(4, 2, "bfloat16")
  found = _value_and_gradients(_splash, arrays, SEGMENTS_BL)
  exact = _value_and_gradients(
    _xla, [x.astype(jnp.float32) for x in arrays], SEGMENTS_BL
  )
  exact = [x.astype(jnp.bfloat16) for x in exact]
  _assert_close(found, exact, 0.02)


def test_no_document_feels_another():
  """The gradient of one query's output is exactly 0 elsewhere."""
  *qkv, _ = _arrays(2, 1)
  segments_L = SEGMENTS_BL[0]
  at = 270  # In a document that began in the block before.
  assert segments_L[at] == segments_L[129] == 4

  @jax.jit
  def gradients(k_BMGH, v_BMGH):
    def scalar(k_BMGH, v_BMGH):
      y_BLNH = _splash(qkv[0], k_BMGH, v_BMGH, SEGMENTS_BL)
      return jnp.sum(y_BLNH[0, at])

    return jax.grad(scalar, argnums=(0, 1))(k_BMGH, v_BMGH)

  for d_BMGH in gradients(*qkv[1:]):
    felt_M = np.abs(d_BMGH[0]).max((1, 2)) > 0
    seen_M = (segments_L == 4) & (np.arange(L) <= at)
    np.testing.assert_array_equal(felt_M, seen_M)
    assert not np.asarray(d_BMGH[1:]).any()


@pytest.mark.parametrize(
  "sizes",
  [
    dict(fsdp=2, tensor=2),
    dict(data=2, expert=2, tensor=2),
    dict(fsdp=4),
  ],
  ids=str,
)
def test_a_mesh_changes_where_it_runs_and_nothing_else(sizes):
  arrays = _arrays(4, 2)
  alone = _value_and_gradients(_splash, arrays, SEGMENTS_BL)
  count = int(np.prod(list(sizes.values())))
  mesh = sharding.make_mesh(sizes, jax.devices()[:count])
  with jax.set_mesh(mesh):
    found = _value_and_gradients(
      _splash, *sharding.put_rows((arrays, SEGMENTS_BL), mesh)
    )
  tensor = sizes.get("tensor", 1)
  for x, whole in zip(found, alone, strict=True):
    rows, _, heads, _ = x.addressable_shards[0].data.shape
    assert (rows, heads) == (B * tensor // count, whole.shape[2] // tensor)
  _assert_close(found, alone, 1e-6)


@pytest.mark.parametrize(
  ("length", "block"),
  [(128, 128), (256, 256), (384, 128), (512, 512), (768, 256), (4096, 512)],
)
def test_blocks_divide_the_row(length, block):
  assert splash.block_size(length) == block


def test_unmet():
  assert splash.unmet(L=384, G=1, H=64) == []
  assert splash.unmet(L=100, G=1, H=6) == [
    "L a multiple of 128 (found 100)",
    "H a multiple of 64 (found 6)",
  ]
  mesh = sharding.make_mesh(dict(data=2, tensor=4))
  with jax.set_mesh(mesh):
    assert splash.unmet(L=128, G=4, H=64) == []
    expected = ["G a multiple of mesh.tensor=4 (found 2)"]
    assert splash.unmet(L=128, G=2, H=64) == expected


CFG = decoder.DecoderConfig(
  **dict(V=256, D=128, Y=2, N=4, G=2, H=64, F=128, max_positions=4096),
  **dict(rope_theta=1e4, rms_norm_eps=1e-5, tie_embeddings=True),
  **dict(attention_bias=False, mlp_bias=False, dtype="bfloat16"),
)


def _compiled(cfg, length, mesh, rows=16):
  """The gradient of a decoder for a mesh, from shapes alone."""

  def loss(params, tokens_BL, segments_BL, positions_BL):
    model = nnx.merge(decoder.graphdef(cfg), params)
    x_BLD, _ = model(tokens_BL, segments_BL, positions_BL)
    return jnp.sum(x_BLD.astype(jnp.float32))

  params = decoder.abstract_parameters(cfg)
  params = jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    params,
    sharding.state_shardings(params, mesh),
  )
  where = NamedSharding(mesh, sharding.ROWS)
  ids_BL = jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=where)
  with jax.set_mesh(mesh):
    lowered = jax.jit(jax.grad(loss)).lower(params, ids_BL, ids_BL, ids_BL)
    return lowered.compile()


@pytest.mark.usefixtures("optimized")
@pytest.mark.medium
@pytest.mark.parametrize("H", [64, 128])
def test_a_decoder_compiles_for_a_tpu(H):
  """Ahead of time, for 16 absent chips."""
  needs_libtpu()
  topology = topologies.get_topology_desc("v5e:4x4", "tpu")
  mesh = sharding.make_mesh(
    dict(data=2, fsdp=4, tensor=2), list(topology.devices)
  )
  cfg = dataclasses.replace(CFG, H=H)
  compiled = _compiled(cfg, 1024, mesh)
  program = compiled.as_text()
  for kernel in ("fwd", "dq", "dkv"):
    assert f"splash_mha_{kernel}_segmented" in program
  assert "1024,1024]" not in program
  xla = _compiled(dataclasses.replace(cfg, attention="xla"), 1024, mesh)
  assert "1024,1024]" in xla.as_text()
