"""Tests for analogjax/models/layers.py."""

import math
import types

from flax import nnx
from hypothesis import given, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analogjax.config import model
from analogjax.models import layers

D, F, H = 6, 10, 8


def _random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_rms_norm_by_hand():
  norm = layers.RMSNorm(2, eps=0.5)
  norm.scale_D.set_value(jnp.asarray([2.0, -3.0]))
  # The mean square of (3, 4) is 12.5; with eps, sqrt(13).
  expected = [6 / math.sqrt(13), -12 / math.sqrt(13)]
  y_BLD = norm(jnp.asarray([[[3.0, 4.0]]]))
  np.testing.assert_allclose(y_BLD[0, 0], expected, rtol=1e-6)


def test_rms_norm_rounds_to_bfloat16_once():
  norm = layers.RMSNorm(512, eps=0.0)
  x_BLD = jnp.asarray(_random(1, 1, 512), jnp.bfloat16)
  y_BLD = norm(x_BLD)
  assert y_BLD.dtype == jnp.bfloat16
  exact_D = np.float64(x_BLD[0, 0])
  exact_D /= np.sqrt(np.mean(exact_D**2))
  # Half a unit of the 8th bit; squares in bfloat16 would give several.
  error_D = np.abs(np.float64(y_BLD[0, 0]) / exact_D - 1)
  assert error_D.max() < 2**-8 * 1.001


def test_mlp_is_its_equation():
  sizes = types.SimpleNamespace(D=D, F=F, Y=3, mlp_bias=True, dtype="float32")
  mlp = layers.MLP(sizes, rngs=nnx.Rngs(0))
  bgate_F, bup_F, bdown_D = _random(F), _random(F, seed=1), _random(D, seed=2)
  mlp.bgate_F.set_value(jnp.asarray(bgate_F))
  mlp.bup_F.set_value(jnp.asarray(bup_F))
  mlp.bdown_D.set_value(jnp.asarray(bdown_D))
  x_LD = _random(4, D, seed=3).astype(np.float64)
  gate_LF = x_LD @ np.float64(mlp.wgate_DF[...]) + bgate_F
  up_LF = x_LD @ np.float64(mlp.wup_DF[...]) + bup_F
  y_LF = gate_LF / (1 + np.exp(-gate_LF)) * up_LF
  y_LD = y_LF @ np.float64(mlp.wdown_FD[...]) + bdown_D
  found_BLD = mlp(jnp.asarray(x_LD[None], jnp.float32))
  np.testing.assert_allclose(found_BLD[0], y_LD, atol=1e-5)


def test_plain_frequencies_by_hand():
  found = layers.rotary_frequencies(8, 10_000.0, None)
  np.testing.assert_allclose(found, [1, 0.1, 0.01, 0.001], rtol=1e-6)
  assert found.dtype == np.float32


def test_linear_scaling_divides_every_frequency():
  scaling = model.RopeScaling(kind="linear", factor=4.0)
  found = layers.rotary_frequencies(8, 10_000.0, scaling)
  np.testing.assert_allclose(found, [0.25, 0.025, 0.0025, 0.00025], rtol=1e-6)


def test_llama3_scaling_by_hand():
  scaling = model.RopeScaling(
    kind="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_positions=32,
  )
  found = layers.rotary_frequencies(8, 100.0, scaling)
  # theta = 100 gives 1, 100^-1/4, 0.1, 100^-3/4. Wavelengths 6.28 (below 32/4:
  # kept), 19.87 (between), 62.8 and 198.7 (above 32/1: divided).
  middle = 100**-0.25
  smooth = (32 * middle / (2 * math.pi) - 1) / 3
  blended = middle * (smooth + (1 - smooth) / 8)
  assert 0 < smooth < 1
  expected = [1, blended, 0.1 / 8, 100**-0.75 / 8]
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_frequencies_are_precise_far_into_the_context():
  found = layers.rotary_frequencies(64, 100_000.0, None)
  exact = 100_000.0 ** -(np.arange(0, 64, 2) / 64)
  # Radians at position 8,192; XLA's own power is ten times worse.
  assert np.abs(np.float64(found) - exact).max() * 8192 < 6e-4


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(kind="yarn"), "kind: expected 'llama3' or 'linear'.*'yarn'"),
    (dict(factor=0.5), r"factor: expected 1 or more, found 0\.5"),
    (
      dict(low_freq_factor=4.0),
      r"high_freq_factor: expected more than low_freq_factor=4\.0, found 4\.0",
    ),
  ],
)
def test_a_bad_scaling_is_named(changes, message):
  with pytest.raises(ValueError, match=message):
    model.RopeScaling(**dict(kind="llama3", factor=2.0) | changes)


def _rotate(x_LNH, positions_L):
  frequencies = layers.rotary_frequencies(H, 100.0, None)
  positions_L = jnp.asarray(positions_L, jnp.int32)
  x_BLNH = jnp.asarray(x_LNH, jnp.float32)[None]
  return layers.rotate(x_BLNH, positions_L[None], frequencies)[0]


def test_rotation_of_one_plane_by_hand():
  # Feature 1 is the cosine half of plane 1 and feature 5 its sine half.
  x_LNH = np.zeros((1, 1, H))
  x_LNH[0, 0, 1] = 2.0
  angle = 3 * 100**-0.25
  expected = np.zeros(H)
  expected[[1, 5]] = 2 * math.cos(angle), 2 * math.sin(angle)
  np.testing.assert_allclose(_rotate(x_LNH, [3])[0, 0], expected, atol=1e-6)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_scores_depend_on_the_distance_alone(query, key, shift):
  q_NH, k_NH = _random(2, H), _random(2, H, seed=1)

  def scores(first, second):
    x_LNH = _rotate(np.stack([q_NH, k_NH]), [first, second])
    return jnp.sum(x_LNH[0] * x_LNH[1], axis=-1)

  shifted = scores(query + shift, key + shift)
  np.testing.assert_allclose(scores(query, key), shifted, atol=2e-4)


def test_rotation_keeps_dtype_and_computes_in_float32():
  frequencies = layers.rotary_frequencies(H, 100.0, None)
  x_BLNH = jnp.ones((1, 1, 1, H), jnp.bfloat16)
  positions_BL = jnp.asarray([[1001]])  # bfloat16 would make 1000 of it.
  found = layers.rotate(x_BLNH, positions_BL, frequencies)
  assert found.dtype == jnp.bfloat16
  exact = layers.rotate(x_BLNH.astype(jnp.float32), positions_BL, frequencies)
  np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))
  assert not np.allclose(exact, jax.lax.stop_gradient(x_BLNH), atol=0.1)
