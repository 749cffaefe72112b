"""Tests for analogjax/api/models.py."""

import numpy as np
import pytest
import torch

import analogjax as aj

TOKENS = np.random.default_rng(0).integers(0, 61, (2, 12))
SITE = "block00.resid_post"


@pytest.fixture(scope="module")
def model(analog):
  return aj.load_model(analog[0])


def theirs(analog, tokens, **hooks):
  with torch.no_grad():
    return analog[1](torch.as_tensor(tokens), **hooks)


def continuation(analog, steps):
  tokens = torch.as_tensor(TOKENS)
  with torch.no_grad():
    found = analog[1].generate(
      tokens,
      attention_mask=torch.ones_like(tokens),
      max_new_tokens=steps,
      do_sample=False,
      eos_token_id=-1,
      pad_token_id=0,
    )
  return found.numpy()[:, -steps:]


def test_logits_are_those_of_transformers(analog, model):
  found = model.logits(TOKENS)
  expected = theirs(analog, TOKENS).logits.numpy()
  assert found.dtype == np.float32 and expected.std() > 0.5
  np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)
  np.testing.assert_allclose(model.logits(TOKENS[1]), found[1], atol=1e-5)


def test_activations_are_those_of_transformers(analog, model):
  assert model.sites[:2] == ["block00.resid_pre", "block00.attn_out"]
  assert len(model.sites) == 8
  found = model.activations(TOKENS, model.sites)
  states = theirs(analog, TOKENS, output_hidden_states=True).hidden_states
  for site, i in {
    "block00.resid_pre": 0,
    SITE: 1,
    "block01.resid_pre": 1,
  }.items():
    np.testing.assert_allclose(found[site], states[i].numpy(), atol=2e-4)
  parts = ("resid_pre", "attn_out", "mlp_out")
  total = sum(found[f"block01.{part}"] for part in parts)
  np.testing.assert_allclose(found["block01.resid_post"], total, atol=1e-5)


def test_documents_of_a_row_do_not_see_each_other(model):
  segments = np.repeat([1, 2], [5, 7])
  found = model.logits(TOKENS[0], segments=segments)
  np.testing.assert_allclose(
    found[5:], model.logits(TOKENS[0, 5:]), rtol=0, atol=1e-4
  )


def test_bfloat16_is_near(analog, model):
  half = aj.load_model(analog[0], dtype="bfloat16")
  assert half.unembedding.dtype == "bfloat16" and "bfloat16" in repr(half)
  found, expected = half.logits(TOKENS), np.asarray(model.logits(TOKENS))
  assert found.dtype == np.float32
  difference = np.abs(np.asarray(found) - expected).max()
  assert 1e-3 < difference < 0.2 * expected.std()


@pytest.mark.medium
def test_the_continuation_is_that_of_transformers(analog, model):
  found = model.generate(TOKENS, steps=6)
  expected = continuation(analog, 6)
  np.testing.assert_array_equal(found, expected)
  np.testing.assert_array_equal(model.generate(TOKENS[0], steps=6), found[0])


def test_a_bundle_is_a_model_too(desk):
  model = aj.load_model(desk / "runs/demo/bundle")
  assert model.tokenizer.token_to_id("cat") == 3
  assert model.logits([1, 2, 3]).shape == (3, 61)


@pytest.fixture
def pushed(analog):
  """transformers with a vector added after its first block."""
  vector = np.random.default_rng(3).normal(size=16).astype(np.float32)
  added = 2.5 * torch.as_tensor(vector)

  def add(module, inputs, output):
    return (
      (output[0] + added, *output[1:])
      if isinstance(output, tuple)
      else output + added
    )

  handle = analog[1].model.layers[0].register_forward_hook(add)
  yield vector
  handle.remove()


@pytest.mark.medium
def test_a_steered_model_is_what_a_hook_makes_of_it(analog, model, pushed):
  steered = aj.steer(model, pushed, SITE, strength=2.5)
  expected = theirs(analog, TOKENS).logits.numpy()
  np.testing.assert_allclose(steered.logits(TOKENS), expected, atol=2e-4)
  own = model.activations(TOKENS, [SITE])[SITE]
  changed = steered.activations(TOKENS, [SITE])[SITE]
  moved = np.broadcast_to(2.5 * pushed, own.shape)
  np.testing.assert_allclose(changed - own, moved, atol=1e-5)
  expected = continuation(analog, 4)
  np.testing.assert_array_equal(steered.generate(TOKENS, 4), expected)


def test_the_dose_response_is_the_log_odds_at_the_last_token(model):
  vector = np.random.default_rng(4).normal(size=16)
  steered = aj.steer(model, vector, SITE)
  doses = [-2.0, 0.0, 1.0]
  found = steered.dose_response(TOKENS, [3, 4], [5], doses)
  assert found.shape == (3, 2)
  for dose, response in zip(doses, found, strict=True):
    last = np.asarray(steered.at(dose).logits(TOKENS), np.float64)[:, -1]
    p = np.exp(last)
    expected = np.log(p[:, [3, 4]].sum(1) / p[:, 5])
    np.testing.assert_allclose(response, expected, atol=1e-5)
  np.testing.assert_allclose(
    steered.at(0).logits(TOKENS), model.logits(TOKENS), atol=1e-6
  )


@pytest.mark.parametrize(
  ("call", "expected"),
  [
    (
      lambda m: m.logits([0, 61]),
      "tokens: expected ids from 0 to 60, found 61",
    ),
    (lambda m: m.logits([-1]), "tokens: .* found -1"),
    (lambda m: m.logits([0.5]), "tokens: expected integers, found float64"),
    (lambda m: m.logits(3), "tokens: .* found shape \\[\\]"),
    (lambda m: m.logits([[]]), "tokens: .* found shape \\[1, 0\\]"),
    (lambda m: m.generate([1] * 60, 5), "at most 64 positions, found 65"),
    (lambda m: m.logits([1, 2], segments=[1]), "segments: .* \\[2\\]"),
    (lambda m: m.activations([1], ["block02.resid_pre"]), "below 2"),
    (lambda m: m.activations([1], "block01.resid_pre"), "sites: .* list"),
    (lambda m: aj.steer(m, [1.0], SITE), "vector: expected 16"),
    (lambda m: aj.steer(m, [np.nan] * 16, SITE), "with NaN"),
    (lambda m: aj.steer(m, [1.0] * 16, "block00.mlp_out"), "site: .*mlp_out"),
    (
      lambda m: aj.steer(aj.steer(m, [1.0] * 16, SITE), [1.0] * 16, SITE),
      "model: .* steered already",
    ),
    (
      lambda m: aj.steer(m, [1.0] * 16, SITE).dose_response(
        [1], [61], [0], [1]
      ),
      "ids: expected a list of token ids below 61",
    ),
    (lambda m: aj.load_model("no-such-folder"), "no-such-folder"),
  ],
)
def test_wrong_input_is_refused_by_name(model, call, expected):
  with pytest.raises(ValueError, match=expected):
    call(model)
