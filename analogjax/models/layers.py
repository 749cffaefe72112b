"""The small layers: RMS norm, rotary embedding, gated MLP.

Shape letters (docs/glossary.md): B batch, L position, D model width, H head
width, F feed-forward width.
"""

import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from analogjax.config import model


class RMSNorm(nnx.Module):
  """x / rms(x) * scale, in float32 whatever the dtype of x."""

  def __init__(self, D: int, eps: float):
    self.eps = eps
    self.scale_D = nnx.Param(jnp.ones((D,)))

  def __call__(self, x_BLD: jax.Array) -> jax.Array:
    y_BLD = x_BLD.astype(jnp.float32)
    variance_BL1 = jnp.mean(jnp.square(y_BLD), axis=-1, keepdims=True)
    y_BLD = y_BLD * jax.lax.rsqrt(variance_BL1 + self.eps)
    return (y_BLD * self.scale_D[...][None, None]).astype(x_BLD.dtype)


def rotary_frequencies(
  H: int, theta: float, scaling: model.RopeScaling | None
) -> np.ndarray:
  """Radians per position of each of the H / 2 rotated planes, float32.

  Source: RoFormer, arXiv:2104.09864, eq. 15; the llama3 scaling keeps short
  wavelengths, divides long ones by `factor` and interpolates between (Llama 3
  herd of models, arXiv:2407.21783, and its published code).
  """
  # In numpy, while tracing: XLA's float32 power is off by some ulps, which
  # become 1e-3 radians at position 8,192.
  exponents = np.arange(0, H, 2, dtype=np.float32) / H
  frequencies = 1 / np.power(np.float32(theta), exponents)
  if scaling is None:
    return frequencies
  if scaling.kind == "linear":
    return frequencies / np.float32(scaling.factor)
  wavelengths = 2 * math.pi / frequencies
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  keep = scaling.original_max_positions / wavelengths
  keep = np.clip((keep - low) / (high - low), 0.0, 1.0)
  blend = keep + (1 - keep) / scaling.factor
  return (frequencies * blend).astype(np.float32)


def rotate(
  x_BLNH: jax.Array, positions_BL: jax.Array, frequencies: np.ndarray
) -> jax.Array:
  """Applies rotary embedding, in the half-rotation layout of Hugging Face.

  Plane i is made of features i and i + H / 2. Checkpoints that interleave them
  (2 i and 2 i + 1) must be permuted on import.
  """
  angles = positions_BL[:, :, None, None].astype(jnp.float32)
  angles = angles * frequencies[None, None, None]
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  first, second = jnp.split(x_BLNH.astype(jnp.float32), 2, axis=-1)
  rotated = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(rotated, axis=-1).astype(x_BLNH.dtype)


class MLP(nnx.Module):
  """Gated feed-forward layer: down(silu(gate x) * up x)."""

  def __init__(self, cfg, *, rngs: nnx.Rngs):
    self.dtype = cfg.dtype
    init = nnx.initializers.variance_scaling(1.0, "fan_in", "normal")
    self.wgate_DF = nnx.Param(init(rngs.params(), (cfg.D, cfg.F)))
    self.wup_DF = nnx.Param(init(rngs.params(), (cfg.D, cfg.F)))
    # Each of the 2 Y branches adds to the residual stream; this keeps the
    # stream's variance at initialisation independent of depth (GPT-2).
    scale = (2 * cfg.Y) ** -0.5
    self.wdown_FD = nnx.Param(scale * init(rngs.params(), (cfg.F, cfg.D)))
    if cfg.mlp_bias:
      self.bgate_F = nnx.Param(jnp.zeros((cfg.F,)))
      self.bup_F = nnx.Param(jnp.zeros((cfg.F,)))
      self.bdown_D = nnx.Param(jnp.zeros((cfg.D,)))
    self.mlp_bias = cfg.mlp_bias

  def __call__(self, x_BLD: jax.Array) -> jax.Array:
    gate_BLF = x_BLD @ self.wgate_DF[...].astype(self.dtype)
    up_BLF = x_BLD @ self.wup_DF[...].astype(self.dtype)
    if self.mlp_bias:
      gate_BLF += self.bgate_F[...].astype(self.dtype)[None, None]
      up_BLF += self.bup_F[...].astype(self.dtype)[None, None]
    y_BLF = jax.nn.silu(gate_BLF) * up_BLF
    y_BLD = y_BLF @ self.wdown_FD[...].astype(self.dtype)
    if self.mlp_bias:
      y_BLD += self.bdown_D[...].astype(self.dtype)[None, None]
    return y_BLD
