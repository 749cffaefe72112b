"""Tests for analogjax/fidelity/kernels.py, against float64 and loops."""

import jax
import numpy as np
import pytest

from analogjax.fidelity import kernels

KERNELS = (kernels.neighbours, kernels.covariances, kernels.cosines)


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


def run(kernel, x_ND, *more):
  found = jax.jit(kernel, static_argnums=range(1, 1 + len(more)))(x_ND, *more)
  return jax.tree.map(np.asarray, found)


def inner(kernel, x_ND, y_ND):
  return float(np.sum(run(kernel, x_ND) * run(kernel, y_ND)))


def related(N=60, D=7, W=19):
  """Two representations that have something in common."""
  x_ND = draw(N, D)
  return x_ND, x_ND @ draw(D, W, seed=1) + 2 * draw(N, W, seed=2) + 3


def nearest(x_ND, k):
  """Sets of the k nearest by cosine about the mean, one by one."""
  x_ND = x_ND - x_ND.mean(0)
  x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
  cosine_NN = x_ND @ x_ND.T
  others = range(len(x_ND))
  return [
    set(
      sorted((j for j in others if j != i), key=lambda j: -cosine_NN[i, j])[:k]
    )
    for i in others
  ]


def hsic(x_ND, y_ND):
  """HSIC_1 as Song et al. write it, equation 5."""
  N = len(x_ND)
  a, b = (z @ z.T * (1 - np.eye(N)) for z in (x_ND, y_ND))
  ones = np.ones(N)
  total = np.trace(a @ b)
  total += (ones @ a @ ones) * (ones @ b @ ones) / ((N - 1) * (N - 2))
  total -= 2 / (N - 2) * (ones @ a @ b @ ones)
  return total / (N * (N - 3))


def test_neighbours_overlap_as_sets_do():
  x_ND, y_NW = related()
  pairs = zip(nearest(x_ND, 10), nearest(y_NW, 10), strict=True)
  expected = np.mean([len(a & b) / 10 for a, b in pairs])
  assert 0.2 < expected < 0.8
  found = inner(kernels.neighbours, x_ND, y_NW)
  assert found == pytest.approx(expected, abs=1e-5)


def test_copies_of_a_token_share_the_places():
  """By index, the same copies would be taken in both models."""
  x_ND, y_NW = draw(90, 8), draw(90, 24, seed=1)
  for z in (x_ND, y_NW):
    z[:60] = z[0]
  kernel = run(kernels.neighbours, x_ND)
  assert np.ptp(kernel[:60, :60][~np.eye(60, dtype=bool)]) == 0
  # 59 others as near: 10 places of 59 each, which overlap as in any order.
  counts = kernel / kernel[0, 1] * 10 / 59
  np.testing.assert_allclose(counts.sum(1), 10, rtol=1e-5)
  order = np.random.default_rng(0).permutation(60)
  moved_NW = np.concatenate([y_NW[:60][order], y_NW[60:]])
  by_sets = [
    np.mean(
      [
        len(a & b) / 10
        for a, b in zip(
          nearest(x_ND, 10)[:60], nearest(z, 10)[:60], strict=True
        )
      ]
    )
    for z in (y_NW, moved_NW)
  ]
  assert min(by_sets) > 0.9  # The trap: 10 of 59 are 0.17.
  left, right = kernel[:60, :60], run(kernels.neighbours, y_NW)[:60, :60]
  overlap = np.sum(left * right) / left[0, 1] / right[0, 1] * (10 / 59) ** 2
  assert overlap / 600 == pytest.approx(10 / 59, rel=1e-4)


def test_a_point_at_the_mean_has_no_direction():
  x_ND = draw(20, 4).round(1) * 10  # The mean of integers is exact.
  x_ND = np.concatenate([x_ND, -x_ND, np.zeros((1, 4))])
  assert np.isfinite(run(kernels.neighbours, x_ND)).all()
  assert np.ptp(run(kernels.cosines, x_ND)[-1, :-1]) == 0


def test_covariances_are_unbiased_cka():
  x_ND, y_NW = related()
  expected = hsic(x_ND, y_NW) / np.sqrt(hsic(x_ND, x_ND) * hsic(y_NW, y_NW))
  assert 0.1 < expected < 0.9
  found = inner(kernels.covariances, x_ND, y_NW)
  assert found == pytest.approx(expected, abs=1e-5)


def test_cosines_are_pearsons_correlation_over_pairs():
  x_ND, y_NW = related()

  def upper(z):
    z = z - z.mean(0)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    return (z @ z.T)[np.triu_indices(len(z), 1)]

  expected = np.corrcoef(upper(x_ND), upper(y_NW))[0, 1]
  assert 0.1 < expected < 0.9
  found = inner(kernels.cosines, x_ND, y_NW)
  assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("D", [20, 90])
def test_components_are_those_of_the_svd(D):
  """The smaller side of the matrix is decomposed."""
  x_ND = draw(60, D) * np.linspace(0.1, 3, D) + 5
  scores_NE, kept = run(kernels.principal, x_ND, 8)
  u_NX, s_X, _ = np.linalg.svd(x_ND - x_ND.mean(0), full_matrices=False)
  expected_NE = (u_NX * s_X)[:, 7::-1] / np.linalg.norm(s_X[:8])
  signs = np.sign(np.sum(expected_NE * scores_NE, axis=0))
  np.testing.assert_allclose(scores_NE * signs, expected_NE, atol=2e-4)
  assert kept == pytest.approx(np.sum(s_X[:8] ** 2) / np.sum(s_X**2), rel=1e-4)


def test_fewer_dimensions_than_components_keep_everything():
  scores_NE, kept = run(kernels.principal, draw(60, 5), 8)
  assert scores_NE.shape == (60, 8) and kept == pytest.approx(1)
  assert np.count_nonzero(np.any(scores_NE, axis=0)) == 5


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_know_nothing_of_the_frame_and_follow_the_order(kernel):
  x_ND = np.float32(draw(50, 12))
  turn_DD, _ = np.linalg.qr(draw(12, 12, seed=3))
  moved = np.float32(7 * x_ND @ turn_DD + draw(1, 12, seed=4))
  assert inner(kernel, x_ND, moved) == pytest.approx(1, abs=1e-4)
  order = np.random.default_rng(0).permutation(50)
  np.testing.assert_allclose(
    run(kernel, x_ND[order]), run(kernel, x_ND)[order][:, order], atol=1e-6
  )


def test_constant_points_are_found():
  assert run(kernels.is_constant, np.full((9, 4), 3e3))
  assert not run(kernels.is_constant, 3e3 + draw(9, 4))


def test_the_biased_form_says_that_noise_is_similar():
  """The reason why it is not offered: independent Gaussians, 1000 points."""
  x_ND, y_NW = draw(1000, 256), draw(1000, 1024, seed=1)
  centred = [z - z.mean(0) for z in (x_ND, y_NW)]
  a, b = (z @ z.T for z in centred)
  biased = np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)
  assert 0.3 < biased < 0.34
  assert abs(inner(kernels.covariances, x_ND, y_NW)) < 0.01
