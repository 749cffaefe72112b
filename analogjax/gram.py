"""The feature-Gram loss: match how a teacher's tokens lie to each other.

Cosines between the hidden states of some tokens of a row, [M, M], say nothing
of the width that they were computed from, so teacher and student need no
projector and a cache that holds them gives no width away. They do not change
under rotations and scalings of the hidden states, and under nothing else.

Shape letters: B batch, M sampled tokens of a row, D model width.
"""

import jax
import jax.numpy as jnp

# Below this squared norm a centred state has no direction worth matching.
_LEAST = 1e-12


def matrix(x_BMD: jax.Array, weights_BM: jax.Array) -> jax.Array:
  """Cosines between centred hidden states, float32 [B, M, M].

  Args:
    x_BMD: hidden states of the sampled tokens, of any dtype.
    weights_BM: 1, or 0 for padding; it has no part in the centre, and its rows
      and columns are 0.
  """
  # float32 throughout: cosines near 1 differ in their last digits.
  x_BMD = x_BMD.astype(jnp.float32)
  w_BM1 = (weights_BM > 0).astype(jnp.float32)[..., None]
  count_B11 = jnp.maximum(jnp.sum(w_BM1, axis=1, keepdims=True), 1.0)
  mean_B1D = jnp.sum(x_BMD * w_BM1, axis=1, keepdims=True) / count_B11
  x_BMD = (x_BMD - mean_B1D) * w_BM1
  square_BM1 = jnp.sum(jnp.square(x_BMD), axis=-1, keepdims=True)
  # The inner where keeps the derivative of a state without direction finite.
  has_norm = square_BM1 > _LEAST
  scale_BM1 = jax.lax.rsqrt(jnp.where(has_norm, square_BM1, 1.0))
  x_BMD = x_BMD * jnp.where(has_norm, scale_BM1, 0.0)
  return jnp.einsum(
    "BMD,BND->BMN", x_BMD, x_BMD, precision=jax.lax.Precision.HIGHEST
  )


def loss(
  x_BMD: jax.Array, teacher_BMM: jax.Array, weights_BM: jax.Array
) -> jax.Array:
  """The sum over rows of the mean squared difference of two such matrices.

  Means over all pairs of different tokens with a weight; a row with fewer than
  two has none and adds 0. No unit; the caller divides by the rows.

  Args:
    x_BMD: the student's hidden states.
    teacher_BMM: `matrix` of the teacher's, at the same tokens.
    weights_BM: as in `matrix`.

  Source: arXiv:2509.25253 (feature-Gram distance, ||S - T||^2 of normalised and
  centred states).
  """
  w_BM = (weights_BM > 0).astype(jnp.float32)
  M = w_BM.shape[-1]
  pairs_BMM = w_BM[:, :, None] * w_BM[:, None, :] * (1 - jnp.eye(M))[None]
  square_BMM = jnp.square(matrix(x_BMD, weights_BM) - teacher_BMM)
  count_B = jnp.maximum(jnp.sum(pairs_BMM, axis=(1, 2)), 1.0)
  return jnp.sum(jnp.sum(square_BMM * pairs_BMM, axis=(1, 2)) / count_B)
