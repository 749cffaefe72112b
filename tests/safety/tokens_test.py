"""Tests for analogjax/safety/tokens.py and generate.py."""

from flax import nnx
import jax
import numpy as np
import pytest

from analogjax.safety import generate, tokens
from analogjax.safety.evaluation import as_documents


def dense(model, rows):
  """log softmax of all logits, float64 [R, L, V]; from the model itself."""
  merged = nnx.merge(model.graphdef, model.params)
  x_RLD, _ = merged(rows.tokens_BL, rows.segments_BL, rows.positions_BL)
  z_RLV = np.float64(merged.cap(x_RLD @ merged.head_VD.T))
  z_RLV -= z_RLV.max(-1, keepdims=True)
  return z_RLV - np.log(np.exp(z_RLV).sum(-1, keepdims=True))


@pytest.mark.parametrize("where", ["one_device", "many_devices"])
def test_it_is_what_all_logits_at_once_say(kit, request, where):
  mesh = request.getfixturevalue(where)
  made = kit.make_evaluation(mesh)
  rows = made.held_out  # 12 rows: the last batch is filled up.
  found = tokens.said(made, made.analog, rows)
  alone = kit.make_model(
    request.getfixturevalue("one_device"), kit.parameters()
  )
  logp = dense(alone, rows)[:, :-1]
  labels = rows.tokens_BL[:, 1:]
  is_label = (rows.segments_BL[:, 1:] == rows.segments_BL[:, :-1]) & (
    rows.segments_BL[:, 1:] > 0
  )
  p = np.exp(logp)
  mean = (p * logp).sum(-1)
  expected = tokens.Said(
    np.take_along_axis(logp, labels[..., None], -1)[..., 0],
    logp.argmax(-1) == labels,
    mean,
    np.sqrt((p * (logp - mean[..., None]) ** 2).sum(-1)),
  )
  for name, mine, other in zip(found._fields, found, expected, strict=True):
    np.testing.assert_allclose(
      *(x[is_label] for x in (np.float64(mine[:, :-1]), np.float64(other))),
      rtol=2e-4,
      atol=2e-4,
      err_msg=name,
    )
  assert np.ptp(found.spread[:, :-1][is_label]) > 0.1
  assert made.tokens == {"analog": rows.tokens_BL.size}


def test_a_damaged_model_is_named(kit, one_device):
  params = jax.tree.map(lambda x: x * np.nan, kit.parameters())
  made = kit.make_evaluation(one_device, params)
  with pytest.raises(ValueError, match="of analog are not finite"):
    tokens.said(made, made.analog, made.members)


@pytest.mark.parametrize("where", ["one_device", "many_devices"])
def test_a_greedy_continuation_is_token_by_token_the_likeliest(
  kit, request, where
):
  made = kit.make_evaluation(request.getfixturevalue(where))
  alone = kit.make_model(
    request.getfixturevalue("one_device"), kit.parameters()
  )
  rng = np.random.default_rng(0)
  texts = [rng.integers(2, kit.CFG.V, n).tolist() for n in (3, 9, 1, 5, 9) * 2]
  found = generate.greedy(made, made.analog, texts, 5)
  assert found.shape == (10, 5)
  whole = np.zeros((10, 16), int)
  for row, text, mine in zip(whole, texts, found, strict=True):
    row[: len(text) + 5] = [*text, *mine]
  logp = dense(alone, as_documents(whole))
  for row, text, mine in zip(logp, texts, found, strict=True):
    said = row[len(text) - 1 : len(text) + 4]
    # But for rounding: two tokens may be alike.
    assert (said[np.arange(5), mine] >= said.max(-1) - 1e-4).all()
  assert len(np.unique(found)) > 5
  assert made.tokens["analog"] == 10 * 16 * 5


def test_what_follows_verbatim_is_seen_in_one_pass(kit, one_device):
  """The greedy tokens of true prefixes equal the continuation."""
  made = kit.make_evaluation(one_device)
  rng = np.random.default_rng(1)
  prefixes = rng.integers(2, kit.CFG.V, (8, 6))
  went_on = generate.greedy(made, made.analog, prefixes.tolist(), 4)
  whole = np.concatenate([prefixes, went_on], axis=1)
  whole[4:, 8] = (whole[4:, 8] + 1) % kit.CFG.V  # Not what it says.
  said = tokens.said(made, made.analog, as_documents(whole))
  assert said.greedy[:4, 5:9].all()
  assert said.greedy[4:, 5:7].all() and not said.greedy[4:, 7].any()


def test_an_answer_ends_before_its_end_token(kit, one_device):
  made = kit.make_evaluation(one_device)
  assert generate.to_text(np.asarray([5, 6, kit.END, 7]), made) == "w5 w6"
