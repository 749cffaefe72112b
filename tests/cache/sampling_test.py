"""Tests for analogjax/cache/sampling.py."""

from typing import NamedTuple

import drawing
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from analogjax.cache import draws, sampling

TAU = 0.04
NUM = 8192  # Keys of a Monte-Carlo estimate.
# Probability that a correct sampler fails one of these tests. The keys are
# fixed, so a test that has passed keeps passing until the code changes.
ALPHA = 1e-3


class Drawn(NamedTuple):
  """The content of a threshold record: one replica, captured everywhere."""

  ids_BLK: np.ndarray
  codes_BLK: np.ndarray
  entropy_BL: np.ndarray
  label_logprob_BL: np.ndarray


def draw(logits_BLV, *, tau=TAU, keys_B2=None, labels_BL=None, first=0):
  """Records on the host; keys and labels have defaults."""
  logits_BLV = np.asarray(logits_BLV, np.float32)
  B, L, _ = logits_BLV.shape
  labels_BL = np.zeros((B, L), np.int32) if labels_BL is None else labels_BL
  keys_B2 = drawing.keys(B) if keys_B2 is None else keys_B2
  sampler = sampling.Threshold(tau=tau)
  records = drawing.draw(logits_BLV, labels_BL, keys_B2, first, sampler=sampler)
  assert records.logprobs_BMLK is None and records.log_tail_BL is None
  records = jax.tree.map(np.asarray, records)
  assert (records.inclusion_BL == sampling.ALWAYS).all()
  return Drawn(
    records.ids_BMLK[:, 0],
    records.codes_BMLK[:, 0],
    records.entropy_BL,
    records.label_logprob_BL,
  )


def logits_of(p_V):
  """Logits whose softmax is p; zero is replaced by almost zero."""
  with np.errstate(divide="ignore"):
    return np.maximum(np.log(np.asarray(p_V, np.float64)), -1e4)


def softmax64(logits):
  logits = np.asarray(logits, np.float64)
  p = np.exp(logits - logits.max(-1, keepdims=True))
  return p / p.sum(-1, keepdims=True)


def language_like(V, seed=0):
  """A distribution with a head and a long tail, its ids in random order."""
  p_V = 1 / np.arange(1, V + 1) ** 1.2
  return np.random.default_rng(seed).permutation(p_V / p_V.sum())


def dense(records, V, tau=TAU):
  """The mean decoded record over rows and positions, float64 [V]."""
  weights = sampling.decode(records.codes_BLK, sampling.Threshold(tau=tau))
  total_V = np.zeros(V)
  np.add.at(total_V, records.ids_BLK.ravel(), weights.ravel().astype(float))
  B, L, _ = weights.shape
  return total_V / (B * L)


def check_record(p_V, ids_K, codes_K, tau=TAU):
  """Checks that hold for every record, whatever was drawn."""
  used_K = codes_K != sampling.EMPTY
  head_K = codes_K >= sampling.FIRST_HEAD
  assert used_K.sum() <= int(1 / tau + 1e-9) + 1
  assert (ids_K >= 0).all() and (ids_K < len(p_V)).all()
  assert (p_V[ids_K[used_K]] > 0).all(), "a token that cannot come was drawn"
  # A probability within rounding of tau may fall on either side of it.
  sure = np.flatnonzero(p_V >= tau * (1 + 1e-5))
  never = np.flatnonzero(p_V < tau * (1 - 1e-5))
  head = ids_K[head_K]
  assert len(set(head)) == len(head), "a token is twice in the head"
  assert set(sure) <= set(head) and not set(never) & set(head)
  weights_K = sampling.decode(codes_K, sampling.Threshold(tau=tau))
  assert abs(weights_K.astype(np.float64).sum() - 1) < 1e-6
  assert (weights_K[~used_K] == 0).all() and (ids_K[~used_K] == 0).all()


def reference(p_V, tau):
  """How one position is sampled, in float64, by the design's description.

  Returns the head's ids, and for every tail draw the probability of each id:
  draw k takes the token that holds a point, uniform in the k-th of n equal
  pieces of the tail's cumulative sum.
  """
  head = np.flatnonzero(p_V >= tau)
  rest_V = np.where(p_V >= tau, 0, p_V)
  tail = rest_V.sum()
  n = max(int(np.floor(tail / tau)), 1)
  ends_V = np.cumsum(rest_V)
  edges = np.linspace(0, tail, n + 1)
  draws_nV = np.stack(
    [
      np.clip(ends_V, low, high) - np.clip(ends_V - rest_V, low, high)
      for low, high in zip(edges[:-1], edges[1:], strict=True)
    ]
  )
  return head, draws_nV * n / tail


def chi_square_p(counts_V, p_V, num):
  """p-value of the counts; ids with fewer than 5 expected are one class."""
  expected_V = p_V * num
  assert counts_V[p_V == 0].sum() == 0
  rare_V = expected_V < 5
  found = np.append(counts_V[~rare_V], counts_V[rare_V].sum())
  wanted = np.append(expected_V[~rare_V], expected_V[rare_V].sum())
  if wanted[-1] < 5:  # Too rare even together: join them to another class.
    found = np.append(found[:-2], found[-2:].sum())
    wanted = np.append(wanted[:-2], wanted[-2:].sum())
  if len(wanted) < 2:
    return 1.0
  statistic = ((found - wanted) ** 2 / wanted).sum()
  return stats.chi2.sf(statistic, len(wanted) - 1)


def test_the_reference_draws_are_the_distribution():
  """Each draw is a distribution; inclusion is p / weight, at most one."""
  p_V = language_like(300)
  head, draws_nV = reference(p_V, TAU)
  np.testing.assert_allclose(draws_nV.sum(-1), 1, rtol=1e-12)
  tail_V = np.where(p_V >= TAU, 0, p_V)
  inclusion_V = draws_nV.sum(0)
  np.testing.assert_allclose(inclusion_V * tail_V.sum() / len(draws_nV), tail_V)
  assert len(head) and inclusion_V.max() <= 1


def test_draws_follow_the_reference():
  """Chi-square for each draw of a record, over all keys, and the head."""
  num, V = NUM, 300
  p_V = language_like(V)
  head, draws_nV = reference(p_V, TAU)
  n, h = len(draws_nV), len(head)
  logits_BLV = np.broadcast_to(logits_of(p_V), (num, 1, V))
  records = draw(logits_BLV)
  ids_PK = records.ids_BLK.reshape(num, -1)
  codes_PK = records.codes_BLK.reshape(num, -1)

  np.testing.assert_array_equal(ids_PK[:, :h], np.tile(head, (num, 1)))
  assert (codes_PK[:, h : h + n] == sampling.TAIL).all()
  assert (codes_PK[:, h + n :] == sampling.EMPTY).all()
  p_values = [
    chi_square_p(np.bincount(ids_PK[:, h + k], minlength=V), draws_V, num)
    for k, draws_V in enumerate(draws_nV)
  ]
  assert min(p_values) > ALPHA / n, p_values


@pytest.mark.parametrize("tau", [0.04, 0.2])
def test_the_expected_record_is_the_teachers_distribution(tau):
  """Decoded weights, rounding of the head included, over all keys.

  Rare ids are pooled until each class is expected ten times; the bound is
  Bonferroni's over the classes.
  """
  num, V = NUM, 300
  p_V = language_like(V)
  head, draws_nV = reference(p_V, tau)
  records = draw(np.broadcast_to(logits_of(p_V), (num, 1, V)), tau=tau)
  weights_PK = sampling.decode(records.codes_BLK, sampling.Threshold(tau=tau))[
    :, 0
  ].astype(np.float64)
  dense_PV = np.zeros((num, V))
  np.add.at(
    dense_PV,
    (np.arange(num)[:, None], records.ids_BLK[:, 0]),
    weights_PK,
  )
  inclusion_V = draws_nV.sum(0) * num
  inclusion_V[head] = num
  classes_V = np.unique(
    np.where(inclusion_V >= 10, np.arange(V) + 100, np.arange(V) // 100),
    return_inverse=True,
  )[1]
  C = classes_V.max() + 1
  member_VC = np.eye(C)[classes_V]
  found_PC, wanted_C = dense_PV @ member_VC, p_V @ member_VC
  error_C = found_PC.std(0) / np.sqrt(num)
  # A probability that is exactly a code has no spread.
  z_C = (found_PC.mean(0) - wanted_C) / np.maximum(error_C, 1e-7)
  bound = stats.norm.isf(ALPHA / 2 / C)
  assert np.abs(z_C).max() < bound, (np.abs(z_C).max(), bound)


def test_head_probabilities_are_rounded_without_bias():
  tau, num, V = 0.04, NUM, 300
  for p in (0.041, 0.0777, 0.31, 0.9, 0.99):
    p_V = [p] + [(1 - p) / (V - 1)] * (V - 1)
    records = draw(np.broadcast_to(logits_of(p_V), (num, 1, V)), tau=tau)
    value_P = sampling.decode(records.codes_BLK, sampling.Threshold(tau=tau))[
      :, 0, 0
    ].astype(float)
    levels = sampling.head_levels(tau)
    levels = levels[levels > 0]
    above = np.searchsorted(levels, p)
    assert set(np.unique(value_P)) == set(np.float32(levels[above - 1 :][:2]))
    z = (value_P.mean() - p) / (value_P.std() / np.sqrt(num))
    assert abs(z) < stats.norm.isf(ALPHA / 2 / 5), (p, z)


def adversarial(V):
  """Distributions over V ids where counting, ties and tails may go wrong."""
  rng = np.random.default_rng(3)
  one = np.eye(V)
  ties = np.zeros((4, V))
  ids = rng.permutation(V)
  ties[0, ids[:25]] = 0.04  # At tau, and no tail.
  ties[1] = np.full(V, 0.2 / (V - 20))  # At tau, and a tail of 5 tau.
  ties[1, ids[:20]] = 0.04
  ties[2, ids[:24]] = 1 / 24  # Every slot but one is head.
  ties[3, ids[:25]] = 0.04 * (1 - 1e-7)  # A tail whose tokens are near tau.
  tiny = np.full((2, V), 1e-30)
  tiny[0, 5] = 1
  tiny[1, [5, V - 5]] = 0.7, 0.3
  ends = np.zeros((4, V))
  ends[0, -20:], ends[0, -21] = 0.05 / 20, 0.95  # All in the last block,
  ends[1, 20:40] = 1 / 20  # all in the first,
  ends[2, -1], ends[2, 0] = 0.97, 0.03  # at both ends,
  ends[3, :60] = 1 / 60  # and nothing in the last.
  yield from (one[17], one[-1], one[0], (one[3] + one[V - 10]) / 2)
  yield from (*ties, *tiny, *ends, np.full(V, 1 / V), language_like(V))


@pytest.mark.parametrize(
  "V, tau, num", [(300, 0.04, 256), (64, 0.5, 256), (300, 1e-3, 8)]
)
def test_adversarial_distributions(V, tau, num):
  p_LV = np.stack(list(adversarial(V)))
  records = draw(np.tile(logits_of(p_LV), (num, 1, 1)), tau=tau)
  assert records.codes_BLK.shape[-1] == sampling.Threshold(tau=tau).num_slots
  for i, p_V in enumerate(p_LV):
    for ids_K, codes_K in zip(
      records.ids_BLK[:, i], records.codes_BLK[:, i], strict=True
    ):
      check_record(p_V, ids_K, codes_K, tau)
    # The mean is near, too: a tail token has weight tau_n < 2 tau, so its
    # standard error is below sqrt(p 2 tau / num).
    part = Drawn(*(field[:, i : i + 1] for field in records))
    error_V = np.abs(dense(part, V, tau) - p_V)
    assert (error_V < 5 * np.sqrt(p_V * 2 * tau / num) + 2e-3).all(), i


def test_random_distributions():
  """From nearly uniform to nearly one-hot; V is not a multiple of the block."""
  rng, tau = np.random.default_rng(5), 0.3
  logits_BLV = rng.normal(size=(64, 8, 517)) * np.geomspace(
    0.01, 30, 64 * 8
  ).reshape(64, 8, 1)
  records = draw(logits_BLV, tau=tau)
  p_BLV = softmax64(np.float32(logits_BLV))
  for b in range(64):
    for i in range(8):
      check_record(
        p_BLV[b, i], records.ids_BLK[b, i], records.codes_BLK[b, i], tau
      )


@hypothesis.settings(max_examples=60)
@hypothesis.given(
  st.lists(
    st.tuples(
      st.sampled_from([0.0, 0.5, -0.5, -3.2, -20.0, -69.0, -np.inf, 88.0]),
      st.sampled_from([0.0, 1e-7, 1e-6]),
      st.integers(1, 130),
    ),
    min_size=1,
    max_size=12,
  ),
  st.sampled_from([0.04, 0.3, 1.0]),
)
def test_whatever_the_distribution(runs, tau):
  """Runs of equal logits: ties, one-hot, nothing, next to nothing.

  The tail's common weight is its mass over floor(mass / tau), at least one.
  """
  V = 300
  values = [np.full(n, a + b) for a, b, n in runs]
  logits_V = np.full(V, -np.inf)
  joined = np.concatenate(values)[:V]
  logits_V[: len(joined)] = joined
  hypothesis.assume(np.isfinite(logits_V).any())
  records = draw(np.tile(logits_V, (4, 2, 1)), tau=tau)
  p_V = softmax64(np.float32(logits_V))
  tail = p_V[p_V < tau].sum()
  # Next to tau, or to a multiple of it, rounding may decide.
  unsure = (np.abs(p_V / tau - 1) < 1e-5).any()
  unsure |= abs(tail / tau - max(1, round(tail / tau))) < 1e-4
  n = max(1, int(tail / tau))
  for ids_K, codes_K in zip(
    records.ids_BLK.reshape(8, -1),
    records.codes_BLK.reshape(8, -1),
    strict=True,
  ):
    check_record(p_V, ids_K, codes_K, tau)
    num_tails = (codes_K == sampling.TAIL).sum()
    # A tail of less than half a share for each id may be none.
    nothing = num_tails == 0 and tail < V * 2.0**-30
    assert num_tails == n or unsure or nothing


def test_a_uniform_distribution_over_a_large_vocabulary():
  V = 262_144
  records = draw(np.zeros((1, 4, V)))
  for ids_K, codes_K in zip(
    records.ids_BLK[0], records.codes_BLK[0], strict=True
  ):
    check_record(np.full(V, 1 / V), ids_K, codes_K)
    drawn_K = ids_K[codes_K == sampling.TAIL]
    # 1 / tau is whole: rounding may not take the last draw away.
    assert len(drawn_K) == 25
    # Equal pieces of the vocabulary.
    np.testing.assert_allclose(np.diff(drawn_K), V / 25, atol=8)
  np.testing.assert_allclose(records.entropy_BL, np.log(V), rtol=1e-6)


def test_the_least_and_the_largest_offset_stay_inside(monkeypatch):
  """The first point is at the first tail token, the last at the last."""
  monkeypatch.setattr(
    draws,
    "bits",
    lambda keys_B2, stream, positions_L, count: jnp.broadcast_to(
      jnp.where(positions_L > 0, jnp.uint32(0xFFFFFFFF), 0)[None, :, None],
      (1, len(positions_L), count),
    ),
  )
  p_V = np.zeros(130)
  p_V[10:100] = 1 / 90
  # Not drawing.draw: it may have been traced without the patch.
  records = sampling.draw(
    jnp.asarray(np.tile(logits_of(p_V), (1, 2, 1)), jnp.float32),
    jnp.zeros((1, 2), jnp.int32),
    jnp.zeros((1, 2), jnp.uint32),
    0,
    sampling.Threshold(tau=TAU),
    capture=sampling.Capture(),
    num_replicas=1,
    temperature=1.0,
  )
  for i, (drawn, wanted) in enumerate([(0, 10), (-1, 99)]):
    ids_K = np.asarray(records.ids_BMLK)[0, 0, i]
    codes_K = np.asarray(records.codes_BMLK)[0, 0, i]
    check_record(p_V, ids_K, codes_K)
    assert ids_K[codes_K == sampling.TAIL][drawn] == wanted


def test_rounding_takes_no_draw_away():
  """A tail of 1 is 25 times tau, however the sum of its terms is rounded."""
  logits_BLV = 0.3 * np.random.default_rng(2).normal(size=(8, 12, 150))
  assert softmax64(logits_BLV).max() < TAU
  codes_BLK = draw(logits_BLV).codes_BLK
  assert ((codes_BLK == sampling.TAIL).sum(-1) == 25).all()


def some_rows(B=8, L=12, V=150):
  rng = np.random.default_rng(7)
  logits_BLV = rng.normal(scale=3, size=(B, L, V)).astype(np.float32)
  labels_BL = rng.integers(0, V, (B, L)).astype(np.int32)
  return logits_BLV, labels_BL, drawing.keys(B, seed=11)


def test_keys_follow_the_seed_and_the_digest_alone():
  digests_B32 = np.random.default_rng(0).integers(0, 256, (4, 32), np.uint8)
  one = sampling.row_keys(digests_B32, 5)
  assert one.dtype == np.uint32 and one.shape == (4, 2)
  np.testing.assert_array_equal(
    one[2:3], sampling.row_keys(digests_B32[2:3], 5)
  )
  for seed in (6, 5 + 2**32):
    assert (sampling.row_keys(digests_B32, seed) != one).any(-1).all()
  assert len({tuple(key) for key in one}) == 4
  # By hand: little-endian words of the first eight bytes, each XOR the seed's.
  first = np.arange(32, dtype=np.uint8)[None]
  np.testing.assert_array_equal(
    sampling.row_keys(first, 1 + 2**33), [[0x03020101, 0x07060506]]
  )


def test_seeds_rows_and_positions_draw_differently():
  """Same logits everywhere: the draws differ only by their randomness."""
  logits_BLV = np.tile(logits_of(language_like(150)), (8, 12, 1))
  digests_B32 = np.random.default_rng(0).integers(0, 256, (8, 32), np.uint8)
  seen = set()
  for seed in (0, 1):
    out = draw(logits_BLV, keys_B2=sampling.row_keys(digests_B32, seed))
    both = np.concatenate([out.ids_BLK, out.codes_BLK], axis=-1)
    seen |= {tuple(record) for record in both.reshape(96, -1).tolist()}
  # Chance makes some of the 192 equal; without the seed it were 96 at most,
  # without the position or the row fewer still.
  assert len(seen) > 140


def test_the_draws_are_pinned():
  """A cache may be filled up by another version: its draws must not change.

  If they have to change, the format version of the cache has to rise.
  """
  records = draw(*some_rows()[:1], keys_B2=PINNED_KEYS)
  num_K = (records.codes_BLK != sampling.EMPTY).sum(-1)
  np.testing.assert_array_equal(records.ids_BLK[0, 0, :9], PINNED_IDS)
  np.testing.assert_array_equal(records.codes_BLK[0, 0, :9], PINNED_CODES)
  assert num_K.sum() == PINNED_NUM


PINNED_KEYS = np.arange(16, dtype=np.uint32).reshape(8, 2)
PINNED_IDS = [49, 79, 103, 7, 44, 55, 60, 74, 93]
PINNED_CODES = [33, 4, 48, 1, 1, 1, 1, 1, 1]
PINNED_NUM = 1008


def test_entropy_and_label_logprob_equal_numpy():
  rng = np.random.default_rng(9)
  B, L, V = 8, 12, 150
  scale = np.geomspace(0.1, 40, B * L).reshape(B, L, 1)
  logits_BLV = np.float32(rng.normal(size=(B, L, V)) * scale + 1000)
  labels_BL = rng.integers(0, V, (B, L)).astype(np.int32)
  records = draw(logits_BLV, labels_BL=labels_BL)
  p_BLV = softmax64(logits_BLV)
  with np.errstate(divide="ignore", invalid="ignore"):
    terms_BLV = np.where(p_BLV > 0, p_BLV * np.log(p_BLV), 0)
    logp_BLV = np.log(p_BLV)
  label_BL = np.take_along_axis(logp_BLV, labels_BL[..., None], -1)[..., 0]
  # Logits near 1000 have ulps of 6e-5 already; the sums add little to it.
  np.testing.assert_allclose(records.entropy_BL, -terms_BLV.sum(-1), atol=2e-4)
  np.testing.assert_allclose(records.label_logprob_BL, label_BL, atol=2e-4)


def test_bfloat16_logits_are_computed_in_float32():
  logits_BLV = jnp.asarray(some_rows()[0], jnp.bfloat16)
  labels_BL = np.zeros(logits_BLV.shape[:2], np.int32)
  sampler = sampling.Threshold(tau=TAU)
  out = drawing.draw(logits_BLV, labels_BL, drawing.keys(8), sampler=sampler)
  assert out.entropy_BL.dtype == jnp.float32
  wide = draw(np.asarray(logits_BLV, np.float32))
  np.testing.assert_array_equal(out.ids_BMLK[:, 0], wide.ids_BLK)
  np.testing.assert_array_equal(out.entropy_BL, wide.entropy_BL)


def test_slots_by_hand():
  for tau, K in ((1.0, 2), (0.5, 3), (0.3, 4), (0.04, 26), (1e-3, 1001)):
    assert sampling.Threshold(tau=tau).num_slots == K


@pytest.mark.parametrize("tau", [0, -0.1, 9.9e-4, 1.01, 40, float("nan")])
def test_a_tau_out_of_bounds_is_refused(tau):
  with pytest.raises(ValueError, match=rf"cache\.tau: .* found {tau};"):
    sampling.Threshold(tau=tau)


def test_head_levels_by_hand():
  levels = sampling.head_levels(0.04)
  assert levels.shape == (256,) and levels.dtype == np.float64
  assert levels[sampling.EMPTY] == levels[sampling.TAIL] == 0
  # 4 ln(25) / sqrt(0.04) = 64.4: 65 equal steps.
  np.testing.assert_allclose(levels[[2, 67]], [0.04, 1.0])
  np.testing.assert_allclose(np.diff(np.log(levels[2:68])), np.log(25) / 65)
  assert not levels[68:].any()
  # At most as many as there are codes, at least the two ends.
  assert np.count_nonzero(sampling.head_levels(1e-3)) == 254
  np.testing.assert_allclose(sampling.head_levels(1.0)[2:4], [1.0, 1.0])


def test_decode_by_hand():
  low, high = sampling.head_levels(0.2)[[9, 17]]
  assert high == 1
  codes = np.array(
    [[[9, 1, 1, 0], [1, 1, 0, 0], [17, 0, 0, 0], [17, 9, 1, 0]]], np.uint8
  )
  np.testing.assert_allclose(
    sampling.decode(codes, sampling.Threshold(tau=0.2)),
    [
      [
        [low, (1 - low) / 2, (1 - low) / 2, 0],
        [0.5, 0.5, 0, 0],
        [1, 0, 0, 0],
        # Rounded up, the head holds more than all: the tail pays it back.
        [high, low, -low, 0],
      ]
    ],
    rtol=1e-6,
  )
  # A rounded head without a tail is scaled to one; an empty record stays 0.
  alone = sampling.decode(
    np.array([[[9, 9], [0, 0]]], np.uint8), sampling.Threshold(tau=0.2)
  )
  np.testing.assert_allclose(alone, [[[0.5, 0.5], [0, 0]]])
