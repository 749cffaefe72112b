"""Splash attention: jax's Pallas kernel for TPUs, over packed rows.

It computes the scores in blocks, forward and backward, so [L, M] is never in
memory; blocks above the diagonal are skipped. Key/value heads are shared, not
repeated.

Shape letters (docs/glossary.md): B batch, L query position, M key position, N
query heads, G key/value heads, H head width.
"""

import functools

import jax
from jax.sharding import PartitionSpec as P

from analogjax.distributed import sharding

# Sides of a block of scores, positions, largest first. The kernels hold several
# such blocks in float32: 512 is the default of MaxText, 1,024 compiles for a
# v5e too, 2,048 exceeds its VMEM. Which is fastest is not measured.
BLOCKS = (512, 256, 128)
# The kernel compiles for any head width; others run it with multiples of this.
HEAD_WIDTH = 64


def unmet(L: int, G: int, H: int) -> list[str]:
  """Requirements of the kernel on shapes and mesh that are not met."""
  found = []
  if L % BLOCKS[-1]:
    found.append(f"L a multiple of {BLOCKS[-1]} (found {L})")
  if H % HEAD_WIDTH:
    found.append(f"H a multiple of {HEAD_WIDTH} (found {H})")
  axis = sharding.ACTIVATION_AXES["G"]
  tensor = jax.sharding.get_abstract_mesh().shape.get(axis, 1)
  if G % tensor:
    found.append(f"G a multiple of mesh.{axis}={tensor} (found {G})")
  return found


def attend(
  q_BLNH: jax.Array,
  k_BMGH: jax.Array,
  v_BMGH: jax.Array,
  segments_BL: jax.Array,
  *,
  interpret: bool = False,
) -> jax.Array:
  """Causal attention within segments, as [B, L, N, H] in the dtype of q.

  Scores are q k / sqrt(H), the softmax is in float32. Each device computes its
  own rows and heads, without communication.

  Args:
    q_BLNH: queries, already rotated; `unmet` names what their shape must be.
    k_BMGH: keys, already rotated, at the same positions as the queries.
    segments_BL: int32 document of each token; padding is one more document, so
      every token sees at least itself, and no softmax is empty.
    interpret: run the kernel's program on any platform, slowly, for tests.
  """
  local = functools.partial(_attend, interpret=interpret)
  if jax.sharding.get_abstract_mesh().empty:
    return local(q_BLNH, k_BMGH, v_BMGH, segments_BL)
  rows = sharding.ACTIVATION_AXES["B"]
  queries = P(rows, None, sharding.ACTIVATION_AXES["N"])
  keys = P(rows, None, sharding.ACTIVATION_AXES["G"])
  return jax.shard_map(
    local,
    in_specs=(queries, keys, keys, P(rows)),
    out_specs=queries,
    # The kernel does not say over which axes its outputs vary.
    check_vma=False,
  )(q_BLNH, k_BMGH, v_BMGH, segments_BL)


def _attend(q_BLNH, k_BMGH, v_BMGH, segments_BL, *, interpret):
  """Does the work of `attend`, on one device's rows and heads."""
  # Not at the top: importing Pallas is slow, and only a TPU needs it.
  from jax.experimental.pallas.ops.tpu import splash_attention

  _, L, N, H = q_BLNH.shape
  block = block_size(L)
  kernel = splash_attention.make_splash_mha(
    splash_attention.MultiHeadMask([splash_attention.CausalMask((L, L))] * N),
    block_sizes=splash_attention.BlockSizes(
      block_q=block,
      block_kv=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      block_q_dq=block,
      block_kv_dq=block,
    ),
    head_shards=1,
    q_seq_shards=1,
    interpret=interpret,
  )
  # The kernel does not scale. Not a product in bfloat16, which would round the
  # scale itself, the same way for every score.
  q_BLNH = (q_BLNH.astype("float32") * H**-0.5).astype(q_BLNH.dtype)
  q_BNLH, k_BGMH, v_BGMH = (x.swapaxes(1, 2) for x in (q_BLNH, k_BMGH, v_BMGH))
  segments = splash_attention.SegmentIds(q=segments_BL, kv=segments_BL)
  y_BNLH = jax.vmap(kernel)(q_BNLH, k_BGMH, v_BGMH, segments)
  assert isinstance(y_BNLH, jax.Array)  # Not a pair with residuals.
  return y_BNLH.swapaxes(1, 2)


def block_size(L: int) -> int:
  """Side of a block of scores: the largest that divides L."""
  return next(block for block in BLOCKS if L % block == 0)
