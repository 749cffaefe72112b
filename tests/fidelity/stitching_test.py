"""Tests for analogjax/fidelity/stitching.py and Decoder.run_blocks."""

import dataclasses
import json

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analogjax.fidelity import activations, least_squares as affine, stitching
from analogjax.fidelity.stitching import Stitch

pytestmark = pytest.mark.medium

DEPTH = 1 / 3
STITCH = Stitch(DEPTH, DEPTH)


def written_by(model, rows, sharpness=3.0):
  """Rows whose tokens the model draws, so that it predicts them well."""
  merged = nnx.merge(model.graphdef, model.params)

  @jax.jit
  def draw(tokens_RL, i, key):
    x_RLD, _ = merged(tokens_RL, rows.segments_BL, rows.positions_BL)
    z_RV = sharpness * (x_RLD[:, i - 1] @ merged.head_VD.T)
    return tokens_RL.at[:, i].set(jax.random.categorical(key, z_RV))

  tokens_RL = jnp.asarray(rows.tokens_BL)
  for i in range(1, tokens_RL.shape[1]):
    tokens_RL = draw(tokens_RL, i, jax.random.key(i))
  return rows._replace(tokens_BL=np.asarray(tokens_RL))


def with_rows(study, fit, test):
  return dataclasses.replace(study, fit=fit, test=test)


@pytest.fixture(scope="module")
def rows(pair):
  """Rows to fit on and to test on; drawn together, with one program."""
  both = [np.concatenate(two) for two in zip(pair.fit, pair.test, strict=True)]
  drawn = written_by(pair.analog, type(pair.fit)(*both))
  R = len(pair.fit.tokens_BL)
  parts = slice(R), slice(R, None)
  return [type(drawn)(*(a[here] for a in drawn)) for here in parts]


@pytest.fixture(scope="module")
def study(kit, one_device, rows):
  return with_rows(kit.make_study(one_device, stitch_steps=24), *rows)


@pytest.fixture(scope="module")
def measured(study):
  return stitching.measure(study)


def by_fit(entries):
  return {(x["teacher_depth"], x["fit"]): x["recovered"] for x in entries}


def test_blocks_one_by_one_are_the_model(pair):
  """Any cut gives the same stream, and its gradient."""
  (batch, _), *_ = pair.batches(pair.test)
  model = nnx.merge(pair.analog.graphdef, pair.analog.params)
  x_BLD, stream_YBLD = model(*batch[:3], probe=lambda out: out["resid_post"])

  @jax.jit
  def run(x_BLD, first, last):
    more = dict(first=first, last=last)
    return model.run_blocks(
      x_BLD, batch.segments_BL, batch.positions_BL, **more
    )

  start = model.embed(batch.tokens_BL)
  for cut in range(3):
    middle = run(start, 0, cut)
    np.testing.assert_allclose(middle, stream_YBLD[cut], rtol=1e-5, atol=1e-5)
    end = model.final_norm(run(middle, cut + 1, 3))
    np.testing.assert_allclose(end, x_BLD, rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(run(start, 2, 1), start)
  shift = jax.random.normal(jax.random.key(0), start.shape)

  def loss(x_BLD):
    return jnp.sum(run(x_BLD, 1, 2) ** 2)

  step = 1e-2 * shift
  slope = (loss(start + step) - loss(start - step)) / 2
  by_reverse = jnp.sum(jax.grad(loss)(start) * step)
  np.testing.assert_allclose(by_reverse, slope, rtol=1e-2)


def test_a_stitch_to_itself_recovers_everything(study):
  W = study.teacher.cfg.D
  eye = affine.Affine(np.eye(W, dtype=np.float32), np.zeros(W, np.float32))
  whole = stitching.cross_entropy(study, study.teacher, None, 1.0, 1.0)
  for depth in (1 / 3, 2 / 3):
    found = stitching.cross_entropy(study, study.teacher, eye, depth, depth)
    np.testing.assert_allclose(found, whole, rtol=1e-5)


def test_cross_entropy_is_the_teachers(study):
  model = nnx.merge(study.teacher.graphdef, study.teacher.params)
  x_RLW, _ = model(*(field for field in study.test[:3]))
  logp = np.asarray(jax.nn.log_softmax(x_RLW @ model.head_VD.T))
  labels = study.test.tokens_BL[:, 1:]
  loss = -np.take_along_axis(logp[:, :-1], labels[..., None], -1)[..., 0]
  same = study.test.segments_BL[:, 1:] == study.test.segments_BL[:, :-1]
  weights = same & (study.test.segments_BL[:, 1:] > 0)
  found = stitching.cross_entropy(study, study.teacher, None, DEPTH, DEPTH)
  np.testing.assert_allclose(found, (loss * weights).sum(1), rtol=1e-3)


def test_the_planted_pair_recovers_all_and_random_parameters_do_not(measured):
  json.dumps(measured, allow_nan=False)
  losses = measured["cross_entropy_nats"]
  assert set(losses["mean_ablated"]) == {"0.33", "0.67"}
  assert min(losses["mean_ablated"].values()) > losses["teacher"] + 0.5
  analog, random = (by_fit(measured["models"][n]) for n in ("analog", "random"))
  assert len(analog) == len(random) == 3
  for (_, fit), recovered in analog.items():
    assert recovered["n"] == 16
    assert recovered["value"] > 0.99 or fit == "trained", recovered
    assert recovered["low"] <= recovered["value"] <= recovered["high"]
  least_squares = [x for key, x in random.items() if "least_squares" in key]
  assert max(x["value"] for x in least_squares) < 0.6


def moments(study, model, points):
  return affine.of_streams(
    study,
    *(
      activations.stream(study, m, study.fit, points, (DEPTH,))
      for m in (model, study.teacher)
    ),
  )


def test_the_mean_alone_recovers_nothing(study, measured):
  """The map of `_mean` gives the loss that is called mean-ablated."""
  points = stitching._points(study, study.fit)
  m = moments(study, study.students["random"], points)
  constant = stitching._mean(m, 0)
  ablated = stitching.cross_entropy(study, study.analog, constant, *STITCH)
  weight = stitching._weights(study.test).sum()
  expected = measured["cross_entropy_nats"]["mean_ablated"]["0.33"]
  assert ablated.sum() / weight == pytest.approx(expected, rel=1e-5)
  whole = stitching.cross_entropy(study, study.teacher, None, *STITCH)
  found = stitching._recovered(study, ablated, whole, ablated)
  assert found.value == found.low == found.high == 0
  # And the mean is that of the teacher, not of nothing.
  assert np.abs(constant.b_W).max() > 0.1
  upside_down = stitching._recovered(study, whole, ablated, whole)
  assert upside_down.value is None and "no worse" in upside_down.why


def test_training_lowers_the_loss_of_the_rows_it_is_trained_on(study):
  study = dataclasses.replace(study, test=study.fit)
  model = study.students["random"]
  points = stitching._points(study, study.fit)
  m = moments(study, model, points)
  start = affine.solve(m, 0, 0)
  trained = stitching.train(study, model, STITCH, start, m)
  before, after = (
    stitching.cross_entropy(study, model, map_, *STITCH).sum()
    for map_ in (start, trained)
  )
  assert after < 0.98 * before
  # Not a step of it: to white and back is nothing.
  still = dataclasses.replace(
    study, options=dataclasses.replace(study.options, stitch_steps=0)
  )
  same = stitching.train(still, model, STITCH, start, m)
  np.testing.assert_allclose(same.w_DW, start.w_DW, rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(same.b_W, start.b_W, rtol=1e-3, atol=1e-3)
  for a, b in zip(
    jax.tree.leaves(trained), jax.tree.leaves(start), strict=True
  ):
    assert a.shape == b.shape and a.dtype == np.float32


def test_a_mesh_changes_nothing(kit, many_devices, rows, measured):
  study = with_rows(kit.make_study(many_devices, stitch_steps=0), *rows)
  study = dataclasses.replace(study, students={"analog": study.analog})
  found = stitching.measure(study)
  assert found["cross_entropy_nats"]["teacher"] == pytest.approx(
    measured["cross_entropy_nats"]["teacher"], rel=1e-3
  )
  alone = by_fit(measured["models"]["analog"])
  for key, recovered in by_fit(found["models"]["analog"]).items():
    assert recovered["value"] == pytest.approx(alone[key]["value"], abs=5e-3)


def test_what_is_not_finite_is_refused(study):
  W = study.teacher.cfg.D
  broken = affine.Affine(
    np.full((W, W), np.nan, np.float32), np.zeros(W, np.float32)
  )
  message = "teacher stitched to the teacher at depth 0.33 has a loss that is n"
  with pytest.raises(ValueError, match=message):
    stitching.cross_entropy(study, study.teacher, broken, *STITCH)


@pytest.mark.parametrize(
  ("student", "teacher", "expected"),
  [
    ((0.25, 0.5, 0.75, 1.0), (0.25, 0.5, 0.75, 1.0), (0.5, 0.75)),
    ((0.5, 1.0), (0.25, 0.5, 0.75, 1.0), (0.5,)),
    ((0.25, 1.0), (0.25, 0.5, 0.75, 1.0), (0.25,)),
    ((1.0,), (0.5, 1.0), (1.0,)),
    (tuple(i / 8 for i in range(1, 9)),) * 2 + ((4 / 8, 6 / 8),),
  ],
)
def test_stitches_are_few_and_leave_something_of_the_teacher(
  student, teacher, expected
):
  found = stitching.choose(student, teacher)
  assert found == [Stitch(d, d) for d in expected]


def test_a_student_of_other_depths_is_joined_where_it_is_nearest():
  found = stitching.choose((0.3, 0.6, 0.9), (0.25, 0.5, 0.75, 1.0))
  assert found == [Stitch(0.6, 0.5)]  # 0.9 is nearest to the end.
