"""Tests for analogjax/fidelity/mappers.py."""

import dataclasses

import numpy as np
import pytest

from analogjax.fidelity import mappers


@pytest.fixture(scope="module")
def pairs(pair):
  """The planted pair at half depth: fitting and test pairs."""

  def kept(rows, name):
    points = mappers.draw_points(pair, rows, name)
    return mappers.pair(
      pair,
      *(
        mappers.keep(pair, model, rows, points, [2 / 3])[2 / 3]
        for model in (pair.analog, pair.teacher)
      ),
    )

  return kept(pair.fit, "fit"), kept(pair.test, "test")


def cosine(a, b):
  return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_a_direction_goes_where_the_planted_map_takes_it(pair, pairs, kit):
  R_DW = kit.orthonormal(kit.ANALOG.D, 2 * kit.ANALOG.D)
  with_D, without_D = np.random.default_rng(0).normal(size=(2, kit.ANALOG.D))
  expected = (with_D - without_D) @ R_DW
  for found in (
    mappers.fit_embedding(pair, pair.analog),
    mappers.fit_affine(pair, *pairs),
  ):
    direction = found.direction(with_D, without_D)
    assert cosine(direction, expected) > 0.999
    assert found.unexplained < 1e-3 and found.cosine > 0.999
  shuffled = mappers.fit_affine(pair, *pairs, np.random.default_rng(0))
  assert shuffled.unexplained > 0.9 and abs(shuffled.cosine) < 0.3
  random = mappers.fit_embedding(pair, pair.students["random"])
  assert random.unexplained > 0.9


def test_the_autoencoder_learns_the_planted_map(pair, pairs, kit):
  R_DW = kit.orthonormal(kit.ANALOG.D, 2 * kit.ANALOG.D)
  trained = dataclasses.replace(
    pair, options=dataclasses.replace(pair.options, mapper_steps=300)
  )
  found = mappers.fit_autoencoder(trained, "analog", *pairs)
  # 22 units that only add, of 336 points.
  assert found.unexplained < 0.5 and found.cosine > 0.7
  # On what it was trained on: it is not linear.
  x_ND = np.concatenate([np.asarray(x_PBMD)[0] for x_PBMD, _ in pairs[0][0]])
  x_ND = x_ND.reshape(-1, kit.ANALOG.D).astype(np.float64)
  with_D, without_D = x_ND[:50].mean(0), x_ND[50:100].mean(0)
  direction = found.direction(with_D, without_D)
  assert cosine(direction, (with_D - without_D) @ R_DW) > 0.8
  again = mappers.fit_autoencoder(trained, "analog", *pairs)
  assert again.unexplained == found.unexplained


def test_points_are_no_first_tokens(pair):
  points = mappers.draw_points(pair, pair.fit, "fit")
  positions = np.take_along_axis(pair.fit.positions_BL, points, 1)
  assert points.shape == (48, 7) and positions.min() == 1
  assert (np.take_along_axis(pair.fit.segments_BL, points, 1) > 0).all()


def test_massive_activations_count_for_nothing(pair, pairs):
  fit, test = pairs
  (x_PBMD, here), *rest = fit.teacher
  massive = x_PBMD.at[0, 3, 2].multiply(1000)
  found = mappers.pair(pair, fit.student, [(massive, here), *rest])
  assert found.weights[0][3, 2] == 0
  dropped = sum((1 - w_BM).sum() for w_BM in found.weights)
  assert dropped - sum((1 - w_BM).sum() for w_BM in fit.weights) <= 1
  assert mappers.fit_affine(pair, found, test).unexplained < 1e-3
  # With it least squares would see nothing else.
  spoilt = found._replace(weights=[np.ones_like(w) for w in found.weights])
  assert mappers.fit_affine(pair, spoilt, test).unexplained > 0.1


def test_rows_that_fill_up_a_batch_count_for_nothing(pair, kit):
  rows = kit.random_rows(11, 5)
  points = mappers.draw_points(pair, rows, "fit")
  kept = mappers.keep(pair, pair.analog, rows, points, [1.0])[1.0]
  found = mappers.pair(pair, kept, kept)
  assert [w_BM.shape[0] for w_BM in found.weights] == [8, 8]
  assert not found.weights[1][3:].any() and found.weights[1][:3].any()
