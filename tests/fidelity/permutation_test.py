"""Tests for analogjax/fidelity/permutation.py."""

import jax
import numpy as np
import pytest

from analogjax.fidelity import permutation


def draw(*shape, seed=0):
  return np.float32(np.random.default_rng(seed).normal(size=shape))


@pytest.fixture(scope="module")
def orders_CU():
  return permutation.draw_orders(6, 20, np.random.default_rng(0))


def points_of(order_U, M):
  """The points, where units of M points stay together."""
  return (np.asarray(order_U)[:, None] * M + np.arange(M)[None]).ravel()


def test_the_first_order_is_theirs(orders_CU):
  assert orders_CU.shape == (21, 6)
  np.testing.assert_array_equal(orders_CU[0], np.arange(6))
  assert len(np.unique(orders_CU, axis=0)) > 15
  np.testing.assert_array_equal(
    np.sort(orders_CU), np.tile(np.arange(6), (21, 1))
  )


def test_inner_products_of_whole_units(orders_CU, one_device):
  left, right = draw(2, 24, 24), draw(24, 24, seed=1)
  found = permutation.inner_products(left, right, orders_CU, one_device)
  for c in (0, 7, 20):
    i = points_of(orders_CU[c], 4)
    expected = np.sum(left * right[i][:, i], axis=(1, 2))
    np.testing.assert_allclose(found[c], expected, rtol=1e-4, atol=1e-4)


def test_nuclear_norms_of_whole_units(orders_CU, one_device):
  left, right = draw(2, 24, 5), draw(24, 5, seed=1)
  found = permutation.nuclear_norms(left, right, orders_CU, one_device)
  for c in (0, 7, 20):
    i = points_of(orders_CU[c], 4)
    expected = [np.linalg.norm(one.T @ right[i], "nuc") for one in left]
    np.testing.assert_allclose(found[c], expected, rtol=1e-4)


def test_devices_share_the_orders_out(orders_CU, one_device, many_devices):
  """21 orders do not divide by 8 devices."""
  for statistic, left, right in (
    (permutation.inner_products, draw(2, 24, 24), draw(24, 24, seed=1)),
    (permutation.nuclear_norms, draw(2, 24, 5), draw(24, 5, seed=1)),
  ):
    one, many = (
      statistic(left, right, orders_CU, mesh)
      for mesh in (one_device, many_devices)
    )
    assert many.shape == (21, 2)
    np.testing.assert_allclose(many, one, rtol=1e-4, atol=1e-4)


def test_at_a_time_is_bounded(orders_CU, one_device, monkeypatch):
  """Permuted kernels in pieces give the same numbers."""
  left, right = draw(1, 24, 24), draw(24, 24, seed=1)
  whole = permutation.inner_products(left, right, orders_CU, one_device)
  monkeypatch.setattr(permutation, "_BYTES", 3 * right.nbytes)
  run = permutation._make(permutation._inner_product, one_device, 3)
  shapes = str(jax.make_jaxpr(run)(left, right, orders_CU))
  assert "f32[3,24,24]" in shapes and "f32[21,24,24]" not in shapes
  parts = permutation.inner_products(left, right, orders_CU, one_device)
  np.testing.assert_allclose(parts, whole, rtol=1e-5)


def test_calibration_by_hand():
  null_C = np.arange(19) / 100  # 0 to 0.18.
  found = permutation.calibrated(0.59, null_C)
  # With 19, p <= 0.05 needs more than all.
  assert found["null_q95"] == 0.18 and found["p"] == 1 / 20
  assert found["calibrated"] == pytest.approx(0.5)
  assert permutation.calibrated(0.18, null_C)["p"] == 2 / 20  # A tie counts.
  assert permutation.calibrated(-1, null_C)["p"] == 1
  assert found["null"] == null_C.tolist()


@pytest.mark.parametrize("C", [19, 20, 38, 39, 99, 100, 199, 1000])
def test_above_the_quantile_is_below_five_percent(C):
  null_C = np.random.default_rng(C).permutation(C) / C / 2
  q95 = permutation.calibrated(0.9, null_C)["null_q95"]
  for step, is_evidence in ((1e-4, True), (0, False), (-1e-4, False)):
    found = permutation.calibrated(q95 + step, null_C)
    assert (found["p"] <= 0.05) == is_evidence == (found["calibrated"] > 0)


def test_units_that_are_all_alike_are_refused():
  with pytest.raises(ValueError, match="the held-out rows are all alike"):
    permutation.calibrated(1.0, np.ones(19))
