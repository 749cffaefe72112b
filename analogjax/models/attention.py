"""Grouped-query attention over packed rows.

There are three implementations, chosen by `DecoderConfig.attention`:

- splash, on a TPU (splash.py): [L, M] is never in memory.
- cudnn, in bfloat16 on a GPU: no scores are stored, but the mask is, as a bias
  of 2 B L M bytes that all heads share. Before jax 0.12 the backward pass
  writes as much again, a gradient of the bias that nothing reads. cuDNN could
  be told where documents start instead, but jax has no public way to do so, and
  until after 0.11.0 its private one read the wrong keys where G < N (jax
  #39521).
- xla, anywhere: scores of 4 B N L M bytes, their gradients, and the mask.

The sizes of cudnn are those of the lowered program (jax 0.10.2) and of jax's
source (0.11.0, 0.12.0). The actual allocation on a GPU is not verified.

Shape letters (docs/glossary.md): B batch, L query position, M key position, D
model width, N query heads, G key/value heads, H head width.
"""

from typing import Literal

from flax import nnx
import jax
import jax.numpy as jnp

from analogjax.distributed import sharding
from analogjax.models import layers, splash

CHOICES = ("auto", "xla", "cudnn", "splash")
Implementation = Literal["cudnn", "splash", "xla"]


class Attention(nnx.Module):
  """Causal grouped-query attention with rotary embedding.

  Two tokens attend to each other only if they share a segment id, so documents
  packed into one row stay independent. Segment 0 is padding.
  """

  def __init__(self, cfg, *, rngs: nnx.Rngs):
    self.cfg = cfg
    init = nnx.initializers.variance_scaling
    # fan_in is D for the inputs and N * H for the output, hence the axes.
    into = init(1.0, "fan_in", "normal", in_axis=0, out_axis=(1, 2))
    out = init(1.0, "fan_in", "normal", in_axis=(0, 1), out_axis=2)
    self.wq_DNH = nnx.Param(into(rngs.params(), (cfg.D, cfg.N, cfg.H)))
    self.wk_DGH = nnx.Param(into(rngs.params(), (cfg.D, cfg.G, cfg.H)))
    self.wv_DGH = nnx.Param(into(rngs.params(), (cfg.D, cfg.G, cfg.H)))
    scale = (2 * cfg.Y) ** -0.5  # As in layers.MLP.
    wo_NHD = scale * out(rngs.params(), (cfg.N, cfg.H, cfg.D))
    self.wo_NHD = nnx.Param(wo_NHD)
    if cfg.attention_bias:
      self.bq_NH = nnx.Param(jnp.zeros((cfg.N, cfg.H)))
      self.bk_GH = nnx.Param(jnp.zeros((cfg.G, cfg.H)))
      self.bv_GH = nnx.Param(jnp.zeros((cfg.G, cfg.H)))
      self.bo_D = nnx.Param(jnp.zeros((cfg.D,)))

  def __call__(
    self,
    x_BLD: jax.Array,
    segments_BL: jax.Array,
    positions_BL: jax.Array,
  ) -> jax.Array:
    cfg = self.cfg
    q_BLNH = jnp.einsum("BLD,DNH->BLNH", x_BLD, self.wq_DNH.astype(cfg.dtype))
    k_BMGH = jnp.einsum("BMD,DGH->BMGH", x_BLD, self.wk_DGH.astype(cfg.dtype))
    v_BMGH = jnp.einsum("BMD,DGH->BMGH", x_BLD, self.wv_DGH.astype(cfg.dtype))
    if cfg.attention_bias:
      q_BLNH += self.bq_NH.astype(cfg.dtype)[None, None]
      k_BMGH += self.bk_GH.astype(cfg.dtype)[None, None]
      v_BMGH += self.bv_GH.astype(cfg.dtype)[None, None]

    frequencies = layers.rotary_frequencies(
      cfg.H, cfg.rope_theta, cfg.rope_scaling
    )
    q_BLNH = layers.rotate(q_BLNH, positions_BL, frequencies)
    k_BMGH = layers.rotate(k_BMGH, positions_BL, frequencies)

    name = implementation(
      cfg.attention, dtype=cfg.dtype, L=x_BLD.shape[1], G=cfg.G, H=cfg.H
    )
    if name == "splash":
      y_BLNH = splash.attend(q_BLNH, k_BMGH, v_BMGH, segments_BL)
    else:
      same_BLM = segments_BL[:, :, None] == segments_BL[:, None, :]
      if name == "cudnn":
        # Each device has the mask of its own rows only: without this, the
        # partitioner may hold that of the whole batch. Not verified.
        same_BLM = sharding.constrain(same_BLM, "BLM")
      # A boolean mask, not a bias: from jax 0.12 on it has no gradient.
      y_BLNH = jax.nn.dot_product_attention(
        q_BLNH,
        k_BMGH,
        v_BMGH,
        mask=same_BLM[:, None],
        is_causal=True,
        implementation=name,
      )
    y_BLD = jnp.einsum("BLNH,NHD->BLD", y_BLNH, self.wo_NHD.astype(cfg.dtype))
    if cfg.attention_bias:
      y_BLD += self.bo_D.astype(cfg.dtype)[None, None]
    return y_BLD


def implementation(
  choice: str, *, dtype: str, L: int, G: int, H: int
) -> Implementation:
  """The implementation on the devices that this is traced for.

  "auto" is the first of cudnn, splash and xla that can run.

  Raises:
    ValueError: the choice cannot run on these devices or shapes.
  """
  platform = _platform()
  # In the order of preference.
  unmet: dict[Implementation, list[str]] = {
    "cudnn": [],
    "splash": splash.unmet(L, G, H),
    "xla": [],
  }
  if platform != "tpu":
    unmet["splash"].insert(0, f"a TPU (found {platform})")
  if platform != "gpu":
    unmet["cudnn"].append(f"a GPU (found {platform})")
  if dtype != "bfloat16":
    unmet["cudnn"].append(f"dtype bfloat16 (found {dtype})")
  # The three below are checked as in jax.nn; it checks itself that heads wider
  # than 128 have a Hopper.
  if H % 8:
    unmet["cudnn"].append(f"H a multiple of 8 (found {H})")
  if H > 256:
    unmet["cudnn"].append(f"H of 256 at most (found {H})")
  if L % 2:
    unmet["cudnn"].append(f"L even (found {L})")
  for name, needs in unmet.items():
    if choice in ("auto", name) and not needs:
      return name
    if choice == name:
      raise ValueError(
        f"attention: {choice!r} needs {' and '.join(needs)}; use 'auto' or"
        " 'xla'."
      )
  raise AssertionError(choice)


def _platform() -> str:
  """Platform of the mesh's devices or, without a mesh, of the default device.

  A program may be compiled for absent devices: a TPU's on a CPU.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  # jax 0.10.0 does not know the platform of a mesh.
  return getattr(device, "platform", None) or jax.default_backend()
