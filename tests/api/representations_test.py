"""Tests for analogjax/api/representations.py, against numpy."""

import numpy as np
import pytest

import analogjax as aj


def points(N, D, seed=0):
  return np.random.default_rng(seed).normal(size=(N, D))


def test_turned_and_scaled_is_the_same():
  x = points(40, 6)
  rotation, _ = np.linalg.qr(points(6, 6, seed=1))
  found = aj.similarity(x, 3 * x @ rotation + 2, permutations=99)
  assert set(found) == {"mutual_knn", "unbiased_cka", "procrustes"}
  for one in found.values():
    np.testing.assert_allclose([one.value, one.calibrated], 1, atol=1e-3)
    assert one.p_value == 0.01


def test_cka_and_neighbours_are_those_of_numpy():
  x = points(30, 5)
  y = np.tanh(x @ points(5, 7, seed=1)) + 0.3 * points(30, 7, seed=2)
  found = aj.similarity(x, y, permutations=19)

  def hsic(k, m):
    """Song et al. (2012), equation 5, literally."""
    n = len(k)
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    ones = np.ones(n)
    value = np.trace(k @ m) - 2 / (n - 2) * ones @ k @ m @ ones
    value += (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
    return value / (n * (n - 3))

  k, m = x @ x.T, y @ y.T
  expected = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
  np.testing.assert_allclose(found["unbiased_cka"].value, expected, rtol=1e-4)

  def neighbours(x):
    x = x - x.mean(0)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = x @ x.T
    np.fill_diagonal(cosines, -np.inf)
    return [set(row[-10:]) for row in np.argsort(cosines, axis=1)]

  sides = neighbours(x), neighbours(y)
  shared = [len(a & b) / 10 for a, b in zip(*sides, strict=True)]
  np.testing.assert_allclose(
    found["mutual_knn"].value, np.mean(shared), rtol=1e-4
  )


def test_p_values_of_unrelated_points_are_uniform():
  p = [
    aj.similarity(points(16, 4, 2 * i), points(16, 4, 2 * i + 1))
    for i in range(40)
  ]
  for name in p[0]:
    below = np.mean([one[name].p_value <= 0.25 for one in p])
    # 40 draws of a fair quarter: outside once in 2,000 times.
    assert 0.04 < below < 0.5, name


def test_rows_are_permuted_whole():
  # All points of a row are one point and a little noise: with N independent
  # points any likeness of two rows would count many times.
  centres = points(8, 1, 3)[:, None], points(8, 1, 4)[:, None]
  a, b = (
    c + 0.01 * points(8 * 20, 1, 5 + i).reshape(8, 20, 1)
    for i, c in enumerate(centres)
  )
  by_rows = aj.similarity(a, b)["unbiased_cka"]
  by_points = aj.similarity(a.reshape(160, 1), b.reshape(160, 1))
  by_points = by_points["unbiased_cka"]
  assert by_rows.value == pytest.approx(by_points.value, abs=1e-5)
  assert by_rows.p_value > 0.05 and by_rows.null_q95 > 2 * by_points.null_q95


@pytest.mark.parametrize(
  ("a", "b", "options", "expected"),
  [
    (points(20, 3), points(21, 3), {}, "a, b: .* \\[20, 3\\] and \\[21, 3\\]"),
    (points(20, 3), points(20, 3)[0], {}, "b: expected .* shape \\[3\\]"),
    (points(9, 3), points(9, 3), {}, "a: expected .* 12 to 20,000 points"),
    (np.full((20, 3), np.inf), points(20, 3), {}, "a: .* NaN or infinity"),
    (points(20, 3), np.ones((20, 3)), {}, "b: .* all alike"),
    (points(20, 3), points(20, 3), dict(permutations=9), "permutations: .* 9"),
  ],
)
def test_wrong_input_is_refused_by_name(a, b, options, expected):
  with pytest.raises(ValueError, match=expected):
    aj.similarity(a, b, **options)
