"""Tests for analogjax/fidelity/steering*.py and maps.py.

The effects of pushes are known for the pair of steered.py: the teacher is the
analog, rotated, so anything that works in one works in the other.
"""

import functools
import json

from flax import nnx
import jax
import numpy as np
import pytest
import steered

from analogjax.fidelity import (
  behaviours,
  steering,
  steering_response,
  steering_vectors,
)
from analogjax.models import decoder

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """Two behaviours; the words of the second are read by the same direction."""
  folder = tmp_path_factory.mktemp("behaviours")
  idle = {"for": ["w18"], "against": ["w19", "w20"]}
  return steered.write(folder), steered.write(folder, name="idle", words=idle)


@pytest.fixture(scope="module")
def planted(kit, one_device, files):
  return steered.make_study(kit, one_device, files)


@pytest.fixture(scope="module")
def found(planted):
  return steering.measure(planted)


@pytest.fixture(scope="module")
def part(planted):
  path = planted.options.behaviours[0]
  return steering_vectors.prepare(planted, behaviours.load(path))


def ratios(found, behaviour="planted"):
  return {
    (r["model"], r["mapper"], r["matched"]): r["ratio"]
    for r in found["behaviours"][behaviour]["transfer"]
  }


@pytest.mark.parametrize("matched", ["norm", "perplexity"])
def test_what_is_planted_transfers_and_nothing_else_does(found, matched):
  of = ratios(found)
  for mapper in ("embedding", "affine"):
    ratio = of["analog", mapper, matched]
    assert ratio["value"] == pytest.approx(1, abs=0.1)
    assert ratio["low"] > 0.9 and ratio["high"] < 1.1
    assert abs(of["random", mapper, matched]["value"]) < 0.3
  shuffled = of["analog", "shuffled", matched]
  assert shuffled["value"] == pytest.approx(0, abs=0.1)


def test_the_report_of_a_behaviour(found, planted):
  part = found["behaviours"]["planted"]
  assert json.loads(json.dumps(found, allow_nan=False)) == found
  assert (part["prompts"], part["pairs"]) == (12, 16)
  # The models are one, so they choose one depth, and not the last.
  assert part["own"]["analog"]["depth"] == part["depth"] < 1
  for arm in part["arms"]:
    assert arm["strengths"] == [-0.5, -0.25, 0, 0.25, 0.5]
    assert arm["perplexity_ratio"][2] == 1
    for low, score, high in zip(
      arm["score_low"], arm["score"], arm["score_high"], strict=True
    ):
      assert low <= score <= high
  native, random, *_ = part["arms"]
  assert native["score"][-1] > native["score"][0] + 5
  assert native["perplexity_ratio"][-1] > 1.1
  assert (random["kind"], random["vectors"]) == ("random", 16)
  # Where nothing has an effect, as in idle, the depths need not agree.
  assert found["maps"]["analog"]["affine"]["unexplained"] < 0.2
  assert found["maps"]["analog"]["embedding"]["cosine"] > 0.999
  assert found["maps"]["random"]["affine"]["unexplained"] > 0.5


def test_without_an_effect_there_is_no_ratio(found):
  part = found["behaviours"]["idle"]
  assert "does not raise idle" in part["undefined"]
  # Its vector is the planted one all the same, as its pairs are.
  assert part["arms"][-1]["kind"] == "wrong_behaviour"
  for ratio in ratios(found, "idle").values():
    assert ratio["value"] is None and ratio["why"] == part["undefined"]


def test_the_same_seed_gives_the_same_numbers(found, planted):
  assert steering.measure(planted) == found


def test_a_mesh_changes_nothing(kit, many_devices, files, planted, part):
  study = steered.make_study(kit, many_devices, files)
  contrast = steering_vectors.find_own(planted, planted.teacher, part).contrast
  own, same = (
    steering_response.respond(
      s, s.teacher, part.test, part.words, 1 / 3, contrast.vector_D[None]
    )
    for s in (planted, study)
  )
  np.testing.assert_allclose(own.scores_ASR, same.scores_ASR, atol=5e-3)
  np.testing.assert_allclose(own.nats_AS, same.nats_AS, atol=5e-3)
  assert np.ptp(own.scores_ASR[0], axis=0).min() > 5


@functools.partial(jax.jit, static_argnums=(0, 3))
def logits_by_hand(cfg, params, rows, block, push_D):
  """With a push, block by block; uses only our blocks."""
  decoder_ = nnx.merge(decoder.graphdef(cfg), params)
  graphdef, state = nnx.split(decoder_.blocks_Y)
  x_BLD = decoder_.embed_VD[...][rows.tokens_BL]
  for i in range(cfg.Y):
    run = nnx.merge(graphdef, jax.tree.map(lambda a, i=i: a[i], state))
    x_BLD = run(x_BLD, rows.segments_BL, rows.positions_BL)["resid_post"]
    if i == block:
      x_BLD = x_BLD + push_D[None, None]
  return decoder_.final_norm(x_BLD) @ decoder_.head_VD.T


def by_hand(model, rows, push_D):
  push_D = np.float32(push_D)
  return np.asarray(logits_by_hand(model.cfg, model.params, rows, 1, push_D))


def test_scores_and_nats_are_what_is_found_by_hand(planted, part):
  model, rng = planted.teacher, np.random.default_rng(0)
  vector_D = np.float32(rng.normal(size=model.cfg.D))
  at = 2 / 3, 3 * vector_D[None]  # After the second block; strength 0.5.
  scores = steering_response.scores(planted, model, part.test, part.words, *at)[
    0, [2, -1]
  ]
  nats = steering_response.nats_per_token(planted, model, *at)[0, [2, -1]]
  text = type(planted.test)(*(field[:8] for field in planted.test))
  for i, push_D in enumerate((np.zeros(model.cfg.D), 1.5 * vector_D)):
    logits = by_hand(model, part.test.rows, push_D)
    logits = logits[np.arange(len(logits)), part.test.last_R]
    odds = [
      np.log(np.exp(logits[:, [*ids]]).sum(-1))
      for ids in (steered.FOR, steered.AGAINST)
    ]
    np.testing.assert_allclose(scores[i], odds[0] - odds[1], atol=2e-3)
    logp = jax.nn.log_softmax(by_hand(model, text, push_D))
    labels = text.tokens_BL[:, 1:, None]
    each = -np.take_along_axis(np.asarray(logp)[:, :-1], labels, -1)[..., 0]
    same = (text.segments_BL[:, 1:] == text.segments_BL[:, :-1]) & (
      text.segments_BL[:, 1:] > 0
    )
    assert nats[i] == pytest.approx(each[same].mean(), abs=2e-3)
  assert abs(scores[1] - scores[0]).max() > 0.1


def test_one_program_serves_every_push_and_depth(planted, part):
  model = planted.teacher
  step = steering_response._make_score_step(model.cfg, planted.mesh)
  before = step._cache_size()
  for depth in (1 / 3, 2 / 3, 1.0):
    vectors = np.full((1, model.cfg.D), 0.1 * depth)
    steering_response.scores(
      planted, model, part.test, part.words, depth, vectors
    )
  assert step._cache_size() == before > 0


def test_the_vector_is_the_planted_direction(kit, planted, part):
  cfg = planted.analog.cfg
  _, d_D = steered.with_direction(cfg, kit.trained_looking(cfg, 0))
  own = steering_vectors.contrasts(
    planted, planted.analog, part.with_, part.without
  )
  vector_D = own[1 / 3].vector_D
  assert vector_D @ d_D / np.linalg.norm(vector_D) > 0.6
  # And what the means are: of the last tokens, one text a row.
  rows, last_R = part.with_
  _, x_YRLD = nnx.merge(planted.analog.graphdef, planted.analog.params)(
    *rows[:3], probe=lambda out: out["resid_post"]
  )
  x_RD = np.asarray(x_YRLD[0])[np.arange(len(last_R)), last_R]
  np.testing.assert_allclose(own[1 / 3].with_D, x_RD.mean(0), atol=1e-4)
