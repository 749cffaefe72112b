"""Kernels: the geometry of a representation's points, whatever its width.

A kernel is [N, N] and has Frobenius norm 1. The inner product of two kernels is
a similarity; it is 1 for a representation with itself. Kernels do not change
when the representation is shifted, rotated or scaled. They commute with a
reordering of the points: kernel(x[order]) is kernel(x)[order][:, order], so
permuting the points needs only the kernels.

Shape letters: N points, D width of the representation, E principal components.
"""

import functools

import jax
import jax.numpy as jnp

NEIGHBOURS = 10
COMPONENTS = 64

# Cosines whose difference is within rounding count as equal.
_TIED = 1e-5
# Below this fraction of the second moment there is no variance.
_LEAST = 1e-9

_dot = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def neighbours(x_ND: jax.Array, k: int = NEIGHBOURS) -> jax.Array:
  """Marks the k nearest neighbours of each point, by cosine about the mean.

  The inner product of two such kernels is mutual k-NN: the mean fraction of
  neighbours that both have. Points at equal distance, such as copies of a
  token, share the remaining places. Taken by index they would come in the same
  order in both models and look like agreement.

  Source: arXiv:2405.07987, mutual k-NN. The shared places are ours: they are
  the mean over all orders of the points that tie.
  """
  N = len(x_ND)
  assert k < N, (k, N)
  cosine_NN = jnp.where(jnp.eye(N, dtype=bool), -jnp.inf, _cosines(x_ND))
  last_N1 = jax.lax.top_k(cosine_NN, k)[0][:, -1:]
  nearer_NN = cosine_NN > last_N1 + _TIED
  tied_NN = jnp.abs(cosine_NN - last_N1) <= _TIED
  left_N1 = k - nearer_NN.sum(1, keepdims=True)
  share_N1 = left_N1 / tied_NN.sum(1, keepdims=True)
  return _unit(jnp.where(nearer_NN, 1.0, tied_NN * share_N1))


def covariances(x_ND: jax.Array) -> jax.Array:
  """Inner products of different points, U-centred: for unbiased linear CKA.

  The inner product of two such kernels is HSIC_1(s, t) / sqrt(HSIC_1(s, s)
  HSIC_1(t, t)). It is 0 on average for independent representations and can be
  negative.

  |Source: Song et al., JMLR 13 (2012), equation 5, in the form of Szekely and
  |Rizzo, Annals of Statistics 42 (2014), definition 2.
  """
  N = len(x_ND)
  assert N > 3, N
  # Centring first only reduces rounding: U-centring removes any shift.
  x_ND = _centred(x_ND)
  k_NN = _off_diagonal(_dot("ND,MD->NM", x_ND, x_ND))
  sums_N = k_NN.sum(1)
  sides_NN = (sums_N[:, None] + sums_N[None, :]) / (N - 2)
  total = sums_N.sum() / ((N - 1) * (N - 2))
  return _unit(_off_diagonal(k_NN - sides_NN + total))


def cosines(x_ND: jax.Array) -> jax.Array:
  """Cosines of different points about their mean, standardised over the pairs.

  The inner product of two such kernels is Pearson's correlation.
  """
  N = len(x_ND)
  c_NN = _off_diagonal(_cosines(x_ND))
  mean = c_NN.sum() / (N * (N - 1))
  return _unit(_off_diagonal(c_NN - mean))


def principal(
  x_ND: jax.Array, most: int = COMPONENTS
) -> tuple[jax.Array, jax.Array]:
  """The centred points in their first principal components.

  Returns:
    [N, most] of Frobenius norm 1, with zero columns where D or N is smaller;
    and the fraction of the variance that they keep.
  """
  x_ND = _unit(_centred(x_ND))
  N, D = x_ND.shape
  E = min(most, N, D)
  # Exact decomposition of the smaller side. Iterations from a random start
  # would leave traces of that start in both models and make them look alike.
  if D < N:
    _, vectors_DD = jnp.linalg.eigh(_dot("ND,NC->DC", x_ND, x_ND))
    scores_NE = _dot("ND,DE->NE", x_ND, vectors_DD[:, -E:])
  else:
    values_N, vectors_NN = jnp.linalg.eigh(_dot("ND,MD->NM", x_ND, x_ND))
    values_E = jnp.maximum(values_N[-E:], 0)
    scores_NE = vectors_NN[:, -E:] * jnp.sqrt(values_E)[None]
  kept = jnp.square(scores_NE).sum()
  return _unit(jnp.pad(scores_NE, ((0, 0), (0, most - E)))), kept


def is_constant(x_ND: jax.Array) -> jax.Array:
  """Whether all points are the same up to rounding."""
  variance = jnp.square(_centred(x_ND)).sum()
  return variance <= _LEAST * jnp.square(x_ND).sum()


def _centred(x_ND):
  return x_ND - x_ND.mean(0, keepdims=True)


def _cosines(x_ND):
  x_ND = _centred(x_ND)
  square_N1 = jnp.square(x_ND).sum(1, keepdims=True)
  # A point at the mean has no direction: its cosines are 0.
  x_ND = x_ND * jax.lax.rsqrt(jnp.where(square_N1 > 0, square_N1, jnp.inf))
  return _dot("ND,MD->NM", x_ND, x_ND)


def _off_diagonal(k_NN):
  return jnp.where(jnp.eye(len(k_NN), dtype=bool), 0.0, k_NN)


def _unit(x):
  return x / jnp.sqrt(jnp.square(x).sum())
