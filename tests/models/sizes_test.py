"""Tests for analogjax/models/sizes.py."""

import dataclasses
import itertools

from hypothesis import given, strategies as st
import jax
import jax.numpy as jnp
from models import SMOLLM2
import pytest

from analogjax.models import decoder, sizes

TINY = dataclasses.replace(SMOLLM2, V=50, D=12, Y=3, N=4, G=2, H=6, F=20)


def test_smollm2_has_the_parameters_of_its_files():
  counts = sizes.count_parameters(SMOLLM2)
  assert counts.total == 134_515_008
  assert counts.embedding == 49152 * 576
  assert counts.head == 0
  assert counts.per_layer * 30 + 576 == 134_515_008 - 49152 * 576


@pytest.mark.parametrize(
  ("tied", "attention_bias", "mlp_bias"),
  [*itertools.product((False, True), repeat=3)],
)
def test_count_is_that_of_the_model(tied, attention_bias, mlp_bias):
  cfg = dataclasses.replace(
    TINY,
    tie_embeddings=tied,
    attention_bias=attention_bias,
    mlp_bias=mlp_bias,
  )
  assert sizes.count_parameters(cfg).total == cfg.num_parameters


def test_flops_of_one_layer_by_hand():
  cfg = dataclasses.replace(TINY, V=10, D=4, Y=1, N=2, G=1, H=2, F=3)
  # Weights: q 16, k 8, v 8, o 16, MLP 36, head 40; 2 FLOPs each.
  # Attention at L = 5: a token sees 3 on average, 2 products x 2 FLOPs x N H.
  assert sizes.forward_flops_per_token(cfg, 5) == 2 * 124 + 3 * 4 * 4
  assert sizes.training_flops_per_token(cfg, 5) == 3 * (2 * 124 + 3 * 4 * 4)


def test_untied_head_costs_parameters_but_no_flops():
  untied = dataclasses.replace(TINY, tie_embeddings=False)
  extra = sizes.count_parameters(untied).total - (
    sizes.count_parameters(TINY).total
  )
  assert extra == 50 * 12
  assert sizes.forward_flops_per_token(untied, 8) == (
    sizes.forward_flops_per_token(TINY, 8)
  )


def test_flops_are_those_that_xla_counts():
  # Wide enough that norms, rotary embedding and softmax are a few per cent, in
  # one layer as XLA counts the body of a scan once.
  cfg = dataclasses.replace(TINY, V=2000, D=128, Y=1, N=4, G=2, H=32, F=512)
  B, L = 2, 64

  def logits(params, tokens_BL):
    model = jax.tree.map(lambda x: x, params)
    x_BLD = decoder.nnx.merge(decoder.graphdef(cfg), model)(
      tokens_BL,
      jnp.ones_like(tokens_BL),
      jnp.broadcast_to(jnp.arange(L), (B, L)),
    )[0]
    return x_BLD @ params["embed_VD"][...].T

  shapes = decoder.abstract_parameters(cfg)
  tokens = jax.ShapeDtypeStruct((B, L), jnp.int32)
  compiled = jax.jit(logits).lower(shapes, tokens).compile()
  counted = compiled.cost_analysis()["flops"] / (B * L)
  # The model computes the whole square of scores, not the causal half.
  whole = sizes.forward_flops_per_token(cfg, L) + 2 * cfg.N * cfg.H * (L - 1)
  assert counted == pytest.approx(whole, rel=0.08)


def test_decoded_record_bytes():
  # tau = 0.04: 26 slots of 4 + 4; token, segment, position, label, 2 weights.
  assert sizes.decoded_record_bytes(26) == 232


@pytest.mark.parametrize(
  ("kind", "parameter", "measured"),
  [
    *(("threshold", 0.02, 36.4), ("threshold", 0.04, 21.8)),
    *(("threshold", 0.2, 6.9), ("threshold", 1.0, 2.1)),
    *(("random", 50, 34.5), ("topk", 50, 125)),
  ],
)
def test_expected_bytes_go_through_the_measurements(kind, parameter, measured):
  rest = 1.9 + 0.1 + 1.1 + 1.0 + (32 + 16 + 11 * 20) / 256
  expected = sizes.expected_record_bytes(kind, parameter, 256)
  assert expected == pytest.approx(measured + rest)


@given(st.floats(1e-3, 0.99), st.floats(1.001, 2))
def test_a_larger_tau_takes_fewer_bytes(tau, factor):
  larger = min(tau * factor, 1.0)
  fewer, more = (
    sizes.expected_record_bytes("threshold", t, 256) for t in (larger, tau)
  )
  assert fewer < more


@pytest.mark.parametrize(
  ("student", "inside"),
  [(4_999, False), (5_000, True), (50_000, True), (50_001, False)],
)
def test_window_includes_both_ends(student, inside):
  verdict = sizes.size_window_verdict(student, 1_000_000)
  assert verdict.inside is inside
  assert verdict.window == (5_000, 50_000)
  assert ("inside" if inside else "outside") in str(verdict)


@given(st.integers(1, 10**15))
def test_window_is_exact_at_any_size(teacher):
  least, most = sizes.size_window_verdict(1, teacher).window
  assert sizes.size_window_verdict(least, teacher).inside is (
    least * 20 <= teacher
  )
  if least > 1:
    assert not sizes.size_window_verdict(least - 1, teacher).inside
  assert not sizes.size_window_verdict(most + 1, teacher).inside


def test_refusal_names_counts_window_and_the_way_out():
  with pytest.raises(ValueError) as info:
    sizes.check_size_window(60_000, 1_000_000, policy="refuse")
  text = str(info.value)
  for part in ("60,000", "1,000,000", "6.000 %", "5,000 to 50,000"):
    assert part in text
  assert "--config.student.size_window=warn" in text


def test_warning_instead_of_refusal():
  text = sizes.check_size_window(60_000, 1_000_000, policy="warn")
  assert "60,000" in text
  assert "cannot be released" in text
  assert sizes.check_size_window(40_000, 1_000_000, policy="warn") == ""


def test_empty_models_have_no_ratio():
  with pytest.raises(ValueError, match="expected positive parameter counts"):
    sizes.size_window_verdict(1, 0)
