"""Tests for analogjax/cache/gram.py."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from scipy import stats

from analogjax.cache import gram

B, M, D, W = 3, 7, 5, 9


def make(seed=0, width=D):
  rng = np.random.default_rng(seed)
  x_BMD = rng.normal(size=(B, M, width)).astype(np.float32)
  weights_BM = (rng.random((B, M)) < 0.8).astype(np.float32)
  weights_BM[:, :2] = 1
  return x_BMD, weights_BM


def oracle(x_BMD, weights_BM):
  """Row by row, only of the tokens with a weight, in float64."""
  out = np.zeros((B, M, M))
  for b in range(B):
    (at,) = np.nonzero(weights_BM[b])
    x = np.float64(x_BMD[b, at])
    x -= x.mean(0)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    out[b][np.ix_(at, at)] = x @ x.T
  return out


def test_matrix_and_loss_equal_the_oracle():
  x_BMD, weights_BM = make()
  teacher_BMM = oracle(make(1, W)[0], weights_BM)
  found = gram.matrix(x_BMD, weights_BM)
  wanted = oracle(x_BMD, weights_BM)
  np.testing.assert_allclose(found, wanted, atol=1e-6)
  total = 0.0
  for b in range(B):
    (at,) = np.nonzero(weights_BM[b])
    square = (wanted[b] - teacher_BMM[b])[np.ix_(at, at)] ** 2
    np.fill_diagonal(square, 0)
    total += square.sum() / (len(at) * (len(at) - 1))
  value = gram.loss(x_BMD, np.float32(teacher_BMM), weights_BM)
  np.testing.assert_allclose(value, total, rtol=1e-5)


def test_rotations_scalings_and_shifts_change_nothing():
  x_BMD, weights_BM = make(width=W)
  teacher_BMM = gram.matrix(x_BMD, weights_BM)
  rotation = stats.ortho_group.rvs(W, random_state=0).astype(np.float32)
  moved = 3 * x_BMD @ rotation + np.arange(W, dtype=np.float32)
  value = gram.loss(moved, teacher_BMM, weights_BM)
  np.testing.assert_allclose(value, 0, atol=1e-9)
  stretched = x_BMD * np.linspace(0.2, 3, W, dtype=np.float32)
  assert gram.loss(stretched, teacher_BMM, weights_BM) > 0.01


def test_a_wider_teacher_is_reached_by_descent():
  """Without a projector, five numbers per token learn the cosines of nine."""
  x_BMD, weights_BM = make()
  teacher_BMM = gram.matrix(make(1, W)[0], weights_BM)
  step = jax.jit(jax.value_and_grad(gram.loss))
  first, _ = step(x_BMD, teacher_BMM, weights_BM)
  for _ in range(400):
    value, gradient = step(x_BMD, teacher_BMM, weights_BM)
    x_BMD = x_BMD - 2 * gradient
  assert value < 0.05 * first


def test_padding_and_states_without_direction_are_left_out():
  x_BMD, weights_BM = make()
  weights_BM[0] = 0
  weights_BM[1, 1:] = 0  # Only one token: no pair, and no distance.
  x_BMD[2] = 1.5  # All tokens alike.
  teacher_BMM = gram.matrix(make(1, W)[0], weights_BM)
  value, gradient = jax.value_and_grad(gram.loss)(
    x_BMD, teacher_BMM, weights_BM
  )
  assert np.isfinite(value) and np.isfinite(gradient).all()
  assert not np.any(np.asarray(gradient)[:2])
  other = np.where(weights_BM[..., None] > 0, x_BMD, 1e6).astype(np.float32)
  assert gram.loss(other, teacher_BMM, weights_BM) == value


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_the_gradient_equals_float64(dtype):
  x_BMD, weights_BM = make()
  x_BMD = x_BMD.astype(dtype)
  teacher_BMM = oracle(make(1, W)[0], weights_BM)
  found = jax.grad(gram.loss)(
    jnp.asarray(x_BMD), np.float32(teacher_BMM), weights_BM
  )
  assert found.dtype == dtype

  def value(x):
    difference = oracle(x, weights_BM) - teacher_BMM
    total = 0.0
    for b in range(B):
      n = weights_BM[b].sum()
      total += (difference[b] ** 2).sum() / (n * (n - 1))
    return total

  x = np.float64(x_BMD)
  rtol = 1e-5 if dtype == np.float32 else 2**-8
  for at in ((0, 0, 0), (1, 1, 3), (2, 0, 4)):
    step = np.zeros_like(x)
    step[at] = 1e-5
    slope = (value(x + step) - value(x - step)) / 2e-5
    np.testing.assert_allclose(float(found[at]), slope, rtol=rtol, atol=1e-6)
