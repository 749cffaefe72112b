"""Tests for analogjax/fidelity/activations.py and least_squares.py."""

import dataclasses

from flax import nnx
import jax
import numpy as np
import pytest

from analogjax.fidelity import activations, least_squares
from analogjax.models import decoder

DEPTHS = (1 / 3, 2 / 3, 1.0)


@pytest.fixture(scope="module")
def fitted(pair, kit):
  return moments(pair, pair.fit), moments(pair, pair.test)


def moments(study, rows, student="analog", rng=None):
  points = activations.draw_points(rows, 8, study.rng("points"))
  model = study.students[student]
  streams = (
    activations.stream(study, model, rows, points, DEPTHS)
    for model in (model, study.teacher)
  )
  return least_squares.of_streams(study, *streams, rng)


def test_the_planted_pair_is_one(pair, kit):
  """The teacher's stream is the analog's, rotated; their logits are equal."""
  R_DW = kit.orthonormal(kit.ANALOG.D, 2 * kit.ANALOG.D)
  (batch, _), *_ = pair.batches(pair.test)

  def run(model):
    x_BLD, stream_YBLD = nnx.merge(model.graphdef, model.params)(
      *batch[:3], probe=lambda out: out["resid_post"]
    )
    head_VD = nnx.merge(model.graphdef, model.params).head_VD
    return np.asarray(x_BLD @ head_VD.T), np.asarray(stream_YBLD)

  logits, x_YBLD = run(pair.analog)
  teacher_logits, y_YBLW = run(pair.teacher)
  np.testing.assert_allclose(teacher_logits, logits, rtol=2e-3, atol=2e-3)
  np.testing.assert_allclose(y_YBLW, x_YBLD @ R_DW, rtol=2e-3, atol=2e-3)
  # A distribution that has something to say, and blocks that do something.
  assert 1 < np.std(logits) < 10
  assert np.std(x_YBLD[-1] - x_YBLD[0]) > 0.3 * np.std(x_YBLD[0])


def test_points_are_tokens_and_the_same_for_every_caller(pair):
  points = activations.draw_points(pair.test, 8, pair.rng("points"))
  again = activations.draw_points(pair.test, 8, pair.rng("points"))
  np.testing.assert_array_equal(points, again)
  assert points.shape == (16, 8) and (np.diff(points) > 0).all()
  assert (np.take_along_axis(pair.test.segments_BL, points, 1) > 0).all()
  assert len(np.unique(points)) == 30  # Two of 32 are padding.
  with pytest.raises(ValueError, match="row 0 has 30 tokens, expected at lea"):
    activations.draw_points(pair.test, 31, pair.rng("points"))


def test_a_stream_is_what_the_model_computes(pair):
  points = activations.draw_points(pair.test, 8, pair.rng("points"))
  model = pair.analog
  for x_PBMD, here in activations.stream(
    pair, model, pair.test, points, (1 / 3, 1.0)
  ):
    _, x_YBLD = nnx.merge(model.graphdef, model.params)(
      *(field[here] for field in pair.test[:3]),
      probe=lambda out: out["resid_post"],
    )
    index = points[here][None, ..., None]
    expected = np.take_along_axis(np.asarray(x_YBLD), index, axis=2)[[0, 2]]
    np.testing.assert_allclose(x_PBMD, expected, rtol=1e-4, atol=1e-4)


def test_the_planted_map_is_found_at_every_depth(fitted, kit):
  fit, test = fitted
  R_DW = kit.orthonormal(kit.ANALOG.D, 2 * kit.ANALOG.D)
  for p in range(3):
    found = least_squares.solve(fit, p, p)
    np.testing.assert_allclose(found.w_DW, R_DW, atol=5e-3)
    assert least_squares.unexplained(found, test, p, p) < 1e-3
    # Another layer is not this one.
    other = (p + 1) % 3
    elsewhere = least_squares.solve(fit, p, other)
    assert least_squares.unexplained(elsewhere, test, p, other) > 0.05


def test_unexplained_is_what_a_second_pass_would_find(pair, fitted):
  fit, test = fitted
  found = least_squares.solve(fit, 0, 2)
  points = activations.draw_points(pair.test, 8, pair.rng("points"))
  pairs = zip(
    activations.stream(pair, pair.analog, pair.test, points, (1 / 3,)),
    activations.stream(pair, pair.teacher, pair.test, points, (1.0,)),
    strict=True,
  )
  parts = [(np.asarray(a), np.asarray(b)) for (a, _), (b, _) in pairs]
  x, y = zip(*parts, strict=True)
  x_ND = np.concatenate(x, axis=1).reshape(-1, pair.analog.cfg.D)
  y_NW = np.concatenate(y, axis=1).reshape(-1, pair.teacher.cfg.D)
  error = np.square(x_ND @ found.w_DW + found.b_W[None] - y_NW).sum()
  expected = error / np.square(y_NW - y_NW.mean(0, keepdims=True)).sum()
  assert least_squares.unexplained(found, test, 0, 2) == pytest.approx(
    expected, rel=1e-3
  )


def test_shuffled_pairs_and_another_model_are_not_mapped(pair, fitted):
  _, test = fitted
  shuffled = least_squares.solve(
    moments(pair, pair.fit, rng=pair.rng("shuffled")), 1, 1
  )
  assert least_squares.unexplained(shuffled, test, 1, 1) > 0.9
  of_random = moments(pair, pair.test, "random")
  random = least_squares.solve(moments(pair, pair.fit, "random"), 1, 1)
  assert least_squares.unexplained(random, of_random, 1, 1) > 0.2


def test_a_mesh_changes_nothing(fitted, kit, many_devices):
  study = kit.make_study(many_devices)
  found = moments(study, study.fit)
  for field in dataclasses.fields(least_squares.Moments):
    np.testing.assert_allclose(
      getattr(found, field.name),
      getattr(fitted[0], field.name),
      rtol=2e-3,
      atol=1e-2,
    )


def test_the_last_batch_may_be_short(pair, kit):
  """Rows that fill it up do not count."""
  some = kit.random_rows(11, 5)
  first = type(some)(*(field[:8] for field in some))
  points = activations.draw_points(some, 8, pair.rng("points"))
  whole = moments(pair, some)
  assert whole.n == 88
  x_PD = sum(
    np.asarray(x_PBMD, np.float64)[:, : here.stop - here.start].sum((1, 2))
    for x_PBMD, here in activations.stream(
      pair, pair.analog, some, points, DEPTHS
    )
  )
  np.testing.assert_allclose(whole.x_PD, x_PD, rtol=1e-4, atol=1e-3)
  assert np.abs(whole.x_PD - moments(pair, first).x_PD).max() > 0.1
  del pair.tokens["teacher"]
  moments(pair, some)
  assert pair.tokens["teacher"] == 11 * kit.L


def test_depths_name_no_block_twice(pair, kit):
  four = dataclasses.replace(
    pair.teacher, cfg=dataclasses.replace(pair.teacher.cfg, Y=40)
  )
  for depths, expected in ((3, [12, 26, 39]), (1, [39])):
    study = dataclasses.replace(
      pair, options=dataclasses.replace(kit.OPTIONS, depths=depths)
    )
    assert [four.block(d) for d in study.depths(four)] == expected
  many = dataclasses.replace(
    pair, options=dataclasses.replace(kit.OPTIONS, depths=7)
  )
  assert [pair.analog.block(d) for d in many.depths(pair.analog)] == [0, 1, 2]


def test_activations_that_are_not_finite_are_refused(pair):
  params = jax.tree_util.tree_map_with_path(
    lambda path, x: x.at[1].set(np.nan) if "wup" in str(path) else x,
    pair.analog.params,
  )
  broken = dataclasses.replace(pair.analog, params=params)
  points = activations.draw_points(pair.test, 8, pair.rng("points"))
  message = "activations of analog at depth 0.67 are not finite"
  with pytest.raises(ValueError, match=message):
    list(activations.stream(pair, broken, pair.test, points, DEPTHS))
  assert decoder.graphdef(broken.cfg) is pair.analog.graphdef


def test_points_that_do_not_count_are_in_no_pair(pair):
  """In shuffled pairs, too: a point is left out on both sides."""
  rng = np.random.default_rng(0)
  x_PBMD = np.float32(rng.normal(size=(1, 8, 4, 3)))
  y_QBMW = np.float32(rng.normal(size=(1, 8, 4, 5)))
  out_BM = rng.random((8, 4)) < 0.3
  x_PBMD[0, out_BM] = y_QBMW[0, out_BM] = 1e3
  weights_BM = np.float32(~out_BM)
  for shuffles in (None, pair.rng("a")):
    found = least_squares.of_batch(
      *(pair, x_PBMD, y_QBMW, slice(0, 8), shuffles), weights_BM=weights_BM
    )
    assert 5 < found.n <= weights_BM.sum()
    assert found.yy_Q[0] < 1e3 and found.xx_PDD.max() < 1e3
