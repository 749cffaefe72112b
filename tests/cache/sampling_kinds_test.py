"""Tests for analogjax/cache/sampling.py: kinds, replicas, capture, temperature.

The threshold sampler itself is in sampling_test.py.
"""

import math

import drawing
from drawing import keys
import jax
import numpy as np
import pytest
from scipy import special, stats

from analogjax.cache import sampling

pytestmark = pytest.mark.medium

NUM = 4096
ALPHA = 1e-3  # Chance that a correct sampler fails one of these tests.
SAMPLERS = (
  sampling.Threshold(tau=0.1),
  sampling.Random(num_draws=20),
  sampling.TopK(top_k=7),
)


def draw(logits_BLV, sampler, *, labels_BL=None, keys_B2=None, **options):
  logits_BLV = np.float32(logits_BLV)
  B, L, _ = logits_BLV.shape
  labels_BL = np.zeros((B, L), np.int32) if labels_BL is None else labels_BL
  keys_B2 = keys(B) if keys_B2 is None else keys_B2
  options["sampler"] = sampler
  return jax.device_get(drawing.draw(logits_BLV, labels_BL, keys_B2, **options))


def some_logits(B=6, L=5, V=300, seed=0, least=0.1, most=20):
  """From nearly uniform to nearly one-hot."""
  scale = np.geomspace(least, most, B * L).reshape(B, L, 1)
  return np.float32(np.random.default_rng(seed).normal(size=(B, L, V)) * scale)


def peaked(V=120, seed=1):
  """A distribution with a head and a long tail, as float64 logits."""
  p_V = 1 / np.arange(1, V + 1) ** 1.3
  return np.log(np.random.default_rng(seed).permutation(p_V / p_V.sum()))


def dense(records, sampler, V):
  """The weight of every id, float64 [B, M, L, V]."""
  weights = sampling.decode(records.codes_BMLK, sampler, records.logprobs_BMLK)
  out = np.zeros((*weights.shape[:3], V))
  index = np.indices(weights.shape)[:3]
  np.add.at(out, (*index, records.ids_BMLK), np.float64(weights))
  return out


def bonferroni(samples_PX, wanted_X):
  """Largest |z| of the means over its bound."""
  error_X = samples_PX.std(0) / np.sqrt(len(samples_PX))
  z_X = (samples_PX.mean(0) - wanted_X) / np.maximum(error_X, 1e-6)
  return np.abs(z_X).max() / stats.norm.isf(ALPHA / 2 / len(wanted_X))


def classes(p_V, num):
  """Ids that are expected at least ten times each, the others by the dozen."""
  rare_V = p_V * num < 10
  names_V = np.where(rare_V, len(p_V) + np.arange(len(p_V)) // 12, 0)
  names_V = np.where(rare_V, names_V, np.arange(len(p_V)))
  inverse_V = np.unique(names_V, return_inverse=True)[1]
  return np.eye(inverse_V.max() + 1)[inverse_V]


# Random.


def test_random_counts_sum_to_n_and_ids_rise():
  sampler = sampling.Random(num_draws=20)
  records = draw(some_logits(), sampler, replicas=2)
  assert (records.codes_BMLK.sum(-1, dtype=int) == 20).all()
  for ids_K, codes_K in zip(
    records.ids_BMLK.reshape(-1, 20),
    records.codes_BMLK.reshape(-1, 20),
    strict=True,
  ):
    n = np.count_nonzero(codes_K)
    assert (codes_K[:n] > 0).all() and (np.diff(ids_K[:n]) > 0).all()
    assert (ids_K[n:] == 0).all()
  weights = sampling.decode(records.codes_BMLK, sampler)
  np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)


def test_random_draws_follow_p():
  """Chi-square of all draws: they are independent, so counts add up."""
  V, N = 120, 50
  logp_V = peaked(V)
  sampler = sampling.Random(num_draws=N)
  records = draw(np.broadcast_to(logp_V, (NUM, 1, V)), sampler)
  counts_V = np.zeros(V)
  np.add.at(counts_V, records.ids_BMLK, records.codes_BMLK)
  expected_V = np.exp(logp_V) * NUM * N
  assert expected_V.min() > 5
  statistic = ((counts_V - expected_V) ** 2 / expected_V).sum()
  assert stats.chi2.sf(statistic, V - 1) > ALPHA
  # Independent within a record, too: a count is binomial.
  best = int(np.argmax(logp_V))
  count_P = (records.codes_BMLK * (records.ids_BMLK == best)).sum(-1).ravel()
  p = np.exp(logp_V[best])
  ratio = count_P.var(ddof=1) / (N * p * (1 - p))
  assert abs(ratio - 1) < stats.norm.isf(ALPHA / 2) * np.sqrt(2 / NUM)


def test_random_at_its_largest_count():
  """One-hot: all 255 draws are one id, and 255 fits the byte."""
  logits_BLV = np.full((2, 3, 70), -np.inf)
  logits_BLV[..., 69] = 0
  records = draw(logits_BLV, sampling.Random(num_draws=255))
  assert (records.ids_BMLK[..., 0] == 69).all()
  assert (records.codes_BMLK[..., 0] == 255).all()
  assert not records.codes_BMLK[..., 1:].any()


# Top-k.


def oracle(logits_V, k):
  """Ids, log p and log of the remaining mass, float64."""
  logits_V = np.float64(logits_V)
  logp_V = logits_V - special.logsumexp(logits_V)
  order_V = np.argsort(-logits_V, kind="stable")
  rest = logp_V[order_V[k:]]
  tail = special.logsumexp(rest) if len(rest) else -np.inf
  return order_V[:k], logp_V[order_V[:k]], tail


@pytest.mark.parametrize("k", [1, 7, 299, 300])
def test_topk_equals_numpy(k):
  """Down to tails of e^-60, which one minus the head could not tell from 0."""
  logits_BLV = some_logits()
  logits_BLV[1, 1, 40:140] = logits_BLV[1, 1].max()  # Ties: lowest id first.
  logits_BLV[2, 2] = 1.0
  logits_BLV[3, 3, 5:] = -np.inf
  records = draw(logits_BLV, sampling.TopK(top_k=k))
  B, L, _ = logits_BLV.shape
  for b in range(B):
    for i in range(L):
      ids_K, logp_K, tail = oracle(logits_BLV[b, i], k)
      np.testing.assert_array_equal(records.ids_BMLK[b, 0, i], ids_K)
      np.testing.assert_allclose(
        records.logprobs_BMLK[b, 0, i], logp_K, rtol=1e-6, atol=2e-6
      )
      np.testing.assert_allclose(
        records.log_tail_BL[b, i], tail, rtol=1e-6, atol=4e-6
      )
  assert (records.codes_BMLK == 1).all()


def test_a_topk_tail_of_1e_8_is_exact():
  V, tail = 5000, 1e-8
  logits_V = np.full(V, np.log(tail / (V - 2)))
  logits_V[[3, 4000]] = np.log([0.6, 0.4])
  records = draw(logits_V[None, None], sampling.TopK(top_k=2))
  np.testing.assert_allclose(np.exp(records.log_tail_BL), tail, rtol=1e-5)
  weights = sampling.decode(
    records.codes_BMLK, sampling.TopK(top_k=2), records.logprobs_BMLK
  )
  np.testing.assert_allclose(weights[0, 0, 0], [0.6, 0.4], rtol=1e-6)


def test_topk_of_more_than_the_vocabulary_is_refused():
  with pytest.raises(ValueError, match=r"cache\.top_k: 8 is more .* 7 ids"):
    draw(np.zeros((1, 1, 7)), sampling.TopK(top_k=8))


# Replicas.


@pytest.mark.parametrize("sampler", SAMPLERS[:2], ids=lambda s: s.kind)
def test_replicas_are_independent_and_each_is_unbiased(sampler):
  """Their errors do not correlate."""
  V = 120
  logp_V = peaked(V)
  records = draw(np.broadcast_to(logp_V, (NUM, 1, V)), sampler, replicas=2)
  member_VC = classes(np.exp(logp_V), NUM)
  dense_PMC = dense(records, sampler, V)[:, :, 0] @ member_VC
  wanted_C = np.exp(logp_V) @ member_VC
  for m in range(2):
    assert bonferroni(dense_PMC[:, m], wanted_C) < 1
  one_PC, other_PC = (dense_PMC[:, m] - wanted_C for m in range(2))
  # Products of rare ids are too far from normal for a bound on z.
  product_PC = (one_PC * other_PC)[:, wanted_C > 0.01]
  assert bonferroni(product_PC, np.zeros(product_PC.shape[1])) < 1
  assert (records.ids_BMLK[:, 0] != records.ids_BMLK[:, 1]).any()


def test_a_replica_draws_the_same_whatever_their_number():
  logits_BLV = some_logits()
  for sampler in SAMPLERS:
    two, three = (draw(logits_BLV, sampler, replicas=m) for m in (2, 3))
    np.testing.assert_array_equal(two.ids_BMLK, three.ids_BMLK[:, :2])
    np.testing.assert_array_equal(two.codes_BMLK, three.codes_BMLK[:, :2])


# Capture.


def expected_codes(capture, entropy_BL):
  """By the definition, float64; where float32 could round either way, None."""
  if capture.kind == "random":
    return np.full(entropy_BL.shape, math.ceil(capture.rate * 255)), None
  exact_BL = capture.rate * 255 * np.float64(entropy_BL)
  codes_BL = np.clip(np.ceil(exact_BL), 1, 255)
  return codes_BL, np.abs(exact_BL - np.round(exact_BL)) < 1e-4


@pytest.mark.parametrize(
  "capture",
  [
    sampling.Capture(kind="random", rate=0.3),
    sampling.Capture(kind="random", rate=1.0),
    sampling.Capture(kind="entropy", rate=0.12),
    sampling.Capture(kind="entropy", rate=9.0),
  ],
  ids=str,
)
def test_capture_probabilities_are_exact_and_weighting_unbiased(capture):
  """The stored code is the probability, and 1 / pi makes up for the rest."""
  B, L, V = 1024, 8, 40
  logits_LV = some_logits(1, L, V, seed=4, least=0.2, most=6)[0]
  logits_BLV = np.broadcast_to(logits_LV, (B, L, V))
  sampler = sampling.Random(num_draws=5)
  records = draw(logits_BLV, sampler, capture=capture)
  is_kept_BL = records.inclusion_BL > 0
  wanted_BL, unsure_BL = expected_codes(capture, records.entropy_BL)
  good_BL = records.inclusion_BL == wanted_BL
  if unsure_BL is not None:
    good_BL |= unsure_BL
  assert good_BL[is_kept_BL].all()

  pi_L = np.float64(records.inclusion_BL.max(0)) / 255
  p_values = [
    stats.binomtest(int(kept_B.sum()), B, pi).pvalue
    for kept_B, pi in zip(is_kept_BL.T, pi_L, strict=True)
  ]
  assert min(p_values) > ALPHA / L
  # Any quantity of a position, weighted, has the mean over all positions.
  weight_BL = np.where(is_kept_BL, 255 / np.maximum(records.inclusion_BL, 1), 0)
  assert bonferroni(weight_BL * records.entropy_BL, records.entropy_BL[0]) < 1
  # Positions that are not captured are empty, the others as without capture.
  assert (records.codes_BMLK[:, 0][~is_kept_BL] == 0).all()
  assert (records.ids_BMLK[:, 0][~is_kept_BL] == 0).all()
  everywhere = draw(logits_BLV, sampler)
  np.testing.assert_array_equal(
    records.codes_BMLK[:, 0][is_kept_BL],
    everywhere.codes_BMLK[:, 0][is_kept_BL],
  )
  np.testing.assert_array_equal(records.entropy_BL, everywhere.entropy_BL)


def test_capture_and_draws_are_independent():
  """The kept positions have the draws of all."""
  V, rate = 60, 0.5
  logp_V = peaked(V)
  sampler = sampling.Random(num_draws=1)
  records = draw(
    np.broadcast_to(logp_V, (NUM, 1, V)),
    sampler,
    capture=sampling.Capture(kind="random", rate=rate),
  )
  kept_B = records.inclusion_BL[:, 0] > 0
  samples_PV = np.eye(V)[records.ids_BMLK[kept_B, 0, 0, 0]]
  member_VC = classes(np.exp(logp_V), NUM * rate)
  assert bonferroni(samples_PV @ member_VC, np.exp(logp_V) @ member_VC) < 1


# Temperature.


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.kind)
def test_temperature_divides_the_logits_but_not_the_labels(sampler):
  # A power of two divides exactly, as the test does.
  logits_BLV, T = some_logits(), 2.0
  labels_BL = np.random.default_rng(1).integers(0, 300, (6, 5), np.int32)
  hot = draw(logits_BLV, sampler, T=T, labels_BL=labels_BL)
  cold = draw(logits_BLV, sampler, labels_BL=labels_BL)
  divided = draw(logits_BLV / np.float32(T), sampler, labels_BL=labels_BL)
  np.testing.assert_array_equal(hot.ids_BMLK, divided.ids_BMLK)
  np.testing.assert_array_equal(hot.codes_BMLK, divided.codes_BMLK)
  np.testing.assert_array_equal(hot.entropy_BL, divided.entropy_BL)
  np.testing.assert_array_equal(hot.label_logprob_BL, cold.label_logprob_BL)
  logp_BLV = special.log_softmax(np.float64(logits_BLV) / T, axis=-1)
  entropy_BL = special.entr(np.exp(logp_BLV)).sum(-1)
  np.testing.assert_allclose(hot.entropy_BL, entropy_BL, atol=1e-5)


# All kinds.


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.kind)
def test_chunks_and_other_batches_draw_the_same(sampler):
  logits_BLV = some_logits(8, 12, 150)
  capture = sampling.Capture(kind="entropy", rate=0.2)
  options = dict(capture=capture, replicas=2)
  whole = draw(logits_BLV, sampler, keys_B2=keys(8), **options)
  rows = np.array([6, 1, 3])
  some = draw(
    logits_BLV[rows, 4:7], sampler, keys_B2=keys(8)[rows], first=4, **options
  )
  for name, one, other in zip(whole._fields, whole, some, strict=True):
    if one is None:
      assert other is None
      continue
    axis = 2 if one.ndim == 4 else 1
    part = np.take(one[rows], np.arange(4, 7), axis=axis)
    np.testing.assert_array_equal(part, other, err_msg=name)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.kind)
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, "all -inf"])
def test_logits_that_are_not_finite_show_in_the_entropy(sampler, bad):
  """And in no other position; -inf alone is a token that cannot come."""
  logits_BLV = some_logits(2, 3, 150)
  logits_BLV[0, 1] = -np.inf if bad == "all -inf" else logits_BLV[0, 1]
  logits_BLV[0, 1, 77] = -np.inf if bad == "all -inf" else bad
  logits_BLV[1, 2, :70] = -np.inf
  records = draw(logits_BLV, sampler)
  is_bad_BL = ~np.isfinite(records.entropy_BL)
  np.testing.assert_array_equal(np.argwhere(is_bad_BL), [[0, 1]])
  if sampler.kind != "topk":
    used_K = records.codes_BMLK[1, 0, 2] > 0
    assert (records.ids_BMLK[1, 0, 2][used_K] >= 70).all()


def test_the_other_kinds_are_pinned():
  """A cache may be filled up by another version: its draws must not change."""
  logits_BLV = some_logits()
  two = draw(logits_BLV, SAMPLERS[1], replicas=2, keys_B2=PINNED_KEYS)
  np.testing.assert_array_equal(two.ids_BMLK[3, 1, 2, :6], PINNED_IDS)
  half = sampling.Capture(kind="random", rate=0.5)
  kept = draw(logits_BLV, SAMPLERS[2], capture=half, keys_B2=PINNED_KEYS)
  np.testing.assert_array_equal(np.flatnonzero(kept.inclusion_BL), PINNED_KEPT)


PINNED_KEYS = np.arange(12, dtype=np.uint32).reshape(6, 2)
PINNED_IDS = [6, 24, 31, 47, 89, 102]
PINNED_KEPT = [1, 2, 4, 7, 11, 12, 13, 15, 17, 19, 21, 24]


# Arguments.


def test_make_sampler():
  values = dict(tau=0.1, num_draws=20, top_k=7)
  for sampler in SAMPLERS:
    assert sampling.make_sampler(sampler.kind, **values) == sampler
  # The others' parameters may be anything.
  assert (
    sampling.make_sampler("topk", tau=0, num_draws=0, top_k=3).num_slots == 3
  )
  with pytest.raises(ValueError, match=r"cache\.kind: .* found 'nucleus'"):
    sampling.make_sampler("nucleus", **values)


@pytest.mark.parametrize(
  "make, field, values",
  [
    (lambda n: sampling.Random(num_draws=n), "num_draws", (0, -1, 256)),
    (lambda n: sampling.TopK(top_k=n), "top_k", (0, 1025)),
    (
      lambda r: sampling.Capture(kind="random", rate=r),
      "capture_rate",
      (0, -0.1, 1.1, float("nan")),
    ),
    (
      lambda r: sampling.Capture(kind="entropy", rate=r),
      "capture_rate",
      (0, -2, float("nan")),
    ),
    (lambda k: sampling.Capture(kind=k), "capture", ("none", "")),
  ],
)
def test_arguments_out_of_bounds_are_refused(make, field, values):
  for value in values:
    with pytest.raises(ValueError, match=rf"cache\.{field}: .* found"):
      make(value)


def test_a_vocabulary_that_is_too_large_is_refused():
  with pytest.raises(ValueError, match="a vocabulary of 1048577 ids"):
    jax.eval_shape(
      lambda z: drawing.draw(
        z, np.zeros((1, 1), np.int32), keys(1), sampler=SAMPLERS[0]
      ),
      jax.ShapeDtypeStruct((1, 1, (1 << 20) + 1), np.float32),
    )


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.kind)
def test_the_largest_vocabulary(sampler):
  """Uniform over 2^20 ids, and one with a tail of a few shares each."""
  V = 1 << 20
  logits_BLV = np.zeros((1, 2, V), np.float32)
  logits_BLV[0, 1, V // 2] = 14.5
  records = draw(logits_BLV, sampler, replicas=2)
  logp_BLV = special.log_softmax(np.float64(logits_BLV), axis=-1)
  entropy_BL = special.entr(np.exp(logp_BLV)).sum(-1)
  np.testing.assert_allclose(records.entropy_BL, entropy_BL, rtol=1e-3)
  assert records.ids_BMLK.max() < V
  assert (records.ids_BMLK[:, :, 1] == V // 2).any(-1).all()
  if sampler.kind != "topk":
    weights = sampling.decode(records.codes_BMLK, sampler)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    assert records.ids_BMLK[0, :, 0].max() > V * 0.75
