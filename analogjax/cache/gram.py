"""The feature-Gram loss: match the geometry of a teacher's tokens.

Cosines between the hidden states of some tokens of a row, [M, M], do not depend
on the width of the states. So teacher and student need no projector, and a
cache that holds the cosines reveals no width. They are invariant under
rotations and scalings of the hidden states, and under nothing else.

Shape letters: B batch, L position, M sampled tokens of a row, D model width, Y
layers, Z depths at which states are compared.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from analogjax.cache import gram_codes
from analogjax.config import cache
from analogjax.distributed import sharding
from analogjax.models import decoder

# Below this squared norm a centred state has no meaningful direction.
_LEAST = 1e-12


def matrix(x_BMD: jax.Array, weights_BM: sharding.Array) -> jax.Array:
  """Cosines between centred hidden states, float32 [B, M, M].

  Args:
    x_BMD: hidden states of the sampled tokens, of any dtype.
    weights_BM: 1, or 0 for padding, which is left out of the centre and whose
      rows and columns are 0.
  """
  # float32 throughout: cosines near 1 differ in their last digits.
  x_BMD = x_BMD.astype(jnp.float32)
  w_BM1 = (weights_BM > 0).astype(jnp.float32)[..., None]
  count_B11 = jnp.maximum(jnp.sum(w_BM1, axis=1, keepdims=True), 1.0)
  mean_B1D = jnp.sum(x_BMD * w_BM1, axis=1, keepdims=True) / count_B11
  x_BMD = (x_BMD - mean_B1D) * w_BM1
  square_BM1 = jnp.sum(jnp.square(x_BMD), axis=-1, keepdims=True)
  # The inner where keeps the derivative finite for a state without direction.
  has_norm = square_BM1 > _LEAST
  scale_BM1 = jax.lax.rsqrt(jnp.where(has_norm, square_BM1, 1.0))
  x_BMD = x_BMD * jnp.where(has_norm, scale_BM1, 0.0)
  return jnp.einsum(
    "BMD,BND->BMN", x_BMD, x_BMD, precision=jax.lax.Precision.HIGHEST
  )


def loss(
  x_BMD: jax.Array, teacher_BMM: jax.Array, weights_BM: sharding.Array
) -> jax.Array:
  """The sum over rows of the mean squared difference of two such matrices.

  The mean is over all pairs of different tokens with a weight; a row with fewer
  than two has none and adds 0. No unit; the caller divides by the rows.

  Source: arXiv:2509.25253 (feature-Gram distance, ||S - T||^2 of normalised and
  centred states).
  """
  w_BM = (weights_BM > 0).astype(jnp.float32)
  M = w_BM.shape[-1]
  pairs_BMM = w_BM[:, :, None] * w_BM[:, None, :] * (1 - jnp.eye(M))[None]
  square_BMM = jnp.square(matrix(x_BMD, weights_BM) - teacher_BMM)
  count_B = jnp.maximum(jnp.sum(pairs_BMM, axis=(1, 2)), 1.0)
  return jnp.sum(jnp.sum(square_BMM * pairs_BMM, axis=(1, 2)) / count_B)


class Sums(NamedTuple):
  """Sums over rows, float32 scalars."""

  distance: jax.Array | float  # The mean of `loss` over the depths.
  rows: jax.Array | float  # Rows with two tokens or more: the divisor.


def probe(sample: gram_codes.Sample) -> decoder.Probe:
  """Keeps each block's output at the drawn positions only, [B, M, D]."""

  def keep(activations: decoder.Activations) -> jax.Array:
    at_BM1 = sample.positions_BM[..., None]
    x_BLD = activations["resid_post"]
    x_BMD = jnp.take_along_axis(x_BLD, at_BM1, axis=1, mode="clip")
    return sharding.constrain(x_BMD, "BMD")

  return keep


def at_depths(states_YBMD: Any, number: int) -> jax.Array:
  """Selects evenly spaced depths from what `probe` kept in all blocks."""
  Y = len(states_YBMD)
  blocks = [gram_codes.block_at(d, Y) for d in cache.depths(number)]
  return states_YBMD[np.array(blocks)]


def codes(states_ZBMD: jax.Array, sample: gram_codes.Sample) -> jax.Array:
  """A teacher's cosines in the form of a cache, int8 [B, Z, P]."""
  of_depths = jax.vmap(matrix, in_axes=(0, None))
  return gram_codes.encode(of_depths(states_ZBMD, sample.weights_BM))


def distance(states_ZBMD: jax.Array, sample: gram_codes.Sample) -> jax.Array:
  """A student's `loss`, averaged over the depths and summed over rows.

  `states_ZBMD` are the student's, at the depths of the codes.
  """
  teacher_BZMM = gram_codes.decode(sample)
  of_depths = jax.vmap(loss, in_axes=(0, 1, None))
  return jnp.mean(of_depths(states_ZBMD, teacher_BZMM, sample.weights_BM))


def num_rows(sample: gram_codes.Sample) -> jax.Array:
  """Rows with two tokens or more, float32; others have no distance."""
  has_pair_B = jnp.sum(sample.weights_BM > 0, axis=-1) >= 2
  return jnp.sum(has_pair_B, dtype=jnp.float32)
