"""Grouped-query attention over packed rows.

Shape letters (docs/glossary.md): B batch, L query position, M key position,
D model width, N query heads, G key/value heads, H head width.
"""

from typing import Literal

from flax import nnx
import jax
import jax.numpy as jnp

from analogjax.models import layers


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

    same_BLM = segments_BL[:, :, None] == segments_BL[:, None, :]
    y_BLNH = jax.nn.dot_product_attention(
      q_BLNH,
      k_BMGH,
      v_BMGH,
      mask=same_BLM[:, None],
      is_causal=True,
      implementation=_implementation(cfg.dtype),
    )
    y_BLD = jnp.einsum("BLNH,NHD->BLD", y_BLNH, self.wo_NHD.astype(cfg.dtype))
    if cfg.attention_bias:
      y_BLD += self.bo_D.astype(cfg.dtype)[None, None]
    return y_BLD


def _implementation(dtype: str) -> Literal["cudnn", "xla"]:
  # cuDNN's kernel takes 16-bit inputs alone.
  fused = jax.default_backend() == "gpu" and dtype == "bfloat16"
  return "cudnn" if fused else "xla"
