"""Tests for analogjax/cache/record_codec.py."""

import types

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from analogjax.cache import record_codec, sampling

KINDS = ("threshold", "random", "topk")


@st.composite
def cases(draw):
  """(parameters of a manifest, of its records, and a seed)."""
  kind = draw(st.sampled_from(KINDS))
  K = draw(st.sampled_from([1, 2, 6, 40, 255]))
  if kind == "topk":
    K = draw(st.sampled_from([K, 300]))  # Counts of two bytes.
  parameters = dict(
    threshold=dict(tau=max(1 / K, 0.001)),
    random=dict(num_draws=K),
    topk=dict(top_k=K),
  )[kind]
  least = K if kind == "topk" else 1
  V = draw(st.sampled_from([1, 2, 7, 300, 32_640, 32_641, 2**17, 2**20]))
  changes = dict(
    **parameters,
    num_replicas=draw(st.sampled_from([1, 1, 3])),
    capture=draw(st.sampled_from(["all", "random"])),
    num_rows=draw(st.integers(1, 3)),
    sequence_length=draw(st.sampled_from([4, 8, 22])),
    vocabulary_size=max(V, least),
  )
  records = dict(
    seed=draw(st.integers(0, 2**32 - 1)),
    spread=draw(st.sampled_from([1.0, 1.0, 0.01, 1e-5])),
    full=draw(st.booleans()),
  )
  return kind, changes, records


class Case(types.SimpleNamespace):
  """A manifest's layout, its records, and their stored form."""


def make_case(kit, case):
  kind, changes, of_records = case
  m = kit.manifest(kind, **changes)
  records = kit.records(m, **of_records)
  rng = np.random.default_rng(of_records["seed"])
  order_V = rng.permutation(m.vocabulary_size)
  rank_V = np.argsort(order_V)
  stored = record_codec.encode(records, m.layout, rank_V)
  return Case(
    **dict(m=m, layout=m.layout, records=records, order_V=order_V),
    **dict(rank_V=rank_V, stored=stored),
  )


def replica(stored, r):
  return {name: array[:, r] for name, array in stored.items()}


def weights_of(case):
  """The weight of every slot of the records, by the sampler's own rule."""
  logprobs = case.records.logprobs_BMLK
  if logprobs is not None:
    logprobs = logprobs.astype(np.float16).astype(np.float32)
  return sampling.decode(case.records.codes_BMLK, case.m.sampler, logprobs)


@hypothesis.settings(max_examples=150)
@hypothesis.given(case=cases())
def test_what_is_encoded_is_decoded(kit, case):
  """Every entry with its weight, as often as it occurs."""
  case = make_case(kit, case)
  codes_BMLK, p_BMLK = case.records.codes_BMLK, weights_of(case)
  for name, (size, dtype) in case.layout.arrays().items():
    shape = case.m.num_rows, case.m.num_replicas, size
    assert case.stored[name].shape == shape, name
    assert case.stored[name].dtype == dtype, name
  for r in range(case.m.num_replicas):
    one = replica(case.stored, r)
    found = record_codec.decode(one, case.layout, case.order_V)
    assert found.ids_BLK.dtype == np.int32 and found.p_BLK.dtype == np.float32
    for b, i in np.ndindex(*found.num_BL.shape):
      there = codes_BMLK[b, r, i] > 0
      number, heads = found.num_BL[b, i], found.num_head_BL[b, i]
      assert number == there.sum()
      is_tail = codes_BMLK[b, r, i] == sampling.TAIL
      tails = (is_tail & there).sum() if case.m.kind == "threshold" else 0
      assert heads == number - tails
      ids_K, p_K = found.ids_BLK[b, i], found.p_BLK[b, i]
      assert not ids_K[number:].any() and not p_K[number:].any()
      wanted = sorted_entries(
        case.records.ids_BMLK[b, r, i][there], p_BMLK[b, r, i][there]
      )
      got = sorted_entries(ids_K[:number], p_K[:number])
      np.testing.assert_array_equal(got[0], wanted[0])
      np.testing.assert_allclose(got[1], wanted[1], rtol=1e-5, atol=1e-7)
      # The head comes first, then the tail, each in the order of rank.
      ranks = case.rank_V[ids_K[:number]]
      assert (np.diff(ranks[:heads]) > 0).all()
      assert (np.diff(ranks[heads:]) >= 0).all()
    total_BL = found.p_BLK.astype(np.float64).sum(-1)
    if case.m.kind == "topk":
      wanted_BL = case.records.log_tail_BL
      np.testing.assert_array_equal(found.log_tail_BL, wanted_BL)
    else:
      assert found.log_tail_BL is None
      wanted_BL = case.records.inclusion_BL > 0
      np.testing.assert_allclose(total_BL, wanted_BL, atol=1e-6)


def sorted_entries(ids_K, p_K):
  order = np.lexsort((p_K, ids_K))
  return ids_K[order], p_K[order]


@hypothesis.settings(max_examples=60)
@hypothesis.given(case=cases())
def test_what_is_not_in_use_is_zero_and_counted(kit, case):
  case = make_case(kit, case)
  for r in range(case.m.num_replicas):
    one = replica(case.stored, r)
    counts = record_codec.used(one)
    assert counts.keys() == one.keys()
    for name, array in one.items():
      for b, count in enumerate(counts[name]):
        assert not array[b, count:].any(), name
    # Each entry has its first byte, and rest bytes as that one says.
    number_B = (case.records.codes_BMLK[:, r] > 0).sum((1, 2))
    np.testing.assert_array_equal(counts["id_first"], number_B)


def test_the_bytes_of_gaps_by_hand():
  """The smallest and largest gap of each length, each followed by its rest."""
  ids = np.cumsum([127, 128, 128 + 255, 128 + 256, 32_639, 32_640, 0xA1B2C])
  V = 2**20
  assert ids[-1] < V
  layout = record_codec.Layout(sampler=sampling.TopK(top_k=7), L=1, V=V)
  records = sampling.Records(
    ids_BMLK=ids[None, None, None],
    codes_BMLK=np.ones((1, 1, 1, 7), np.uint8),
    logprobs_BMLK=np.zeros((1, 1, 1, 7), np.float32),
    log_tail_BL=np.full((1, 1), -np.inf, np.float32),
    **dict(entropy_BL=None, label_logprob_BL=None, inclusion_BL=None),
  )
  stored = record_codec.encode(records, layout, np.arange(V))
  assert stored["id_first"][0, 0].tolist() == [
    127,
    128,
    128,
    129,
    254,
    255,
    255,
  ]
  rest = [0, 255, 0, 255, 0x80, 0x7F, 0, 0x2C, 0x1B, 0x0A]
  assert stored["id_rest"][0, 0].tolist() == rest + [0] * (21 - 10)
  assert stored["num_head"][0, 0].tolist() == [7]
  found = record_codec.decode(replica(stored, 0), layout, np.arange(V))
  np.testing.assert_array_equal(found.ids_BLK[0, 0], ids)


@pytest.mark.parametrize("V", [32_639, 32_640, 65_281, 2**20])
@pytest.mark.parametrize("num_head", [0, 1, 2, 3])
@pytest.mark.parametrize("tau", [0.2, 0.3])  # K = 6 and 4.
def test_the_longest_gaps_have_room(V, num_head, tau):
  """Head and tail that extend as far as possible in the fewest steps."""
  sampler = sampling.Threshold(tau=tau)
  layout = record_codec.Layout(sampler=sampler, L=1, V=V)
  K = sampler.num_slots
  far = np.minimum(np.arange(1, K + 1) * 32_640, V - 1)
  ids = np.append(np.unique(far)[:num_head], far)[:K]
  num_head = min(num_head, len(np.unique(far)))
  codes = np.where(np.arange(K) < num_head, sampling.FIRST_HEAD, sampling.TAIL)
  records = sampling.Records(
    ids_BMLK=ids[None, None, None],
    codes_BMLK=codes[None, None, None].astype(np.uint8),
    **dict(logprobs_BMLK=None, log_tail_BL=None, entropy_BL=None),
    **dict(label_logprob_BL=None, inclusion_BL=None),
  )
  stored = record_codec.encode(records, layout, np.arange(V))
  found = record_codec.decode(replica(stored, 0), layout, np.arange(V))
  np.testing.assert_array_equal(np.sort(found.ids_BLK[0, 0]), np.sort(ids))


def test_likely_ids_take_a_byte_each(kit):
  """The purpose of ranks: ids of low rank are near each other."""
  m = kit.manifest(vocabulary_size=2**16, sequence_length=64)
  records = kit.records(m, spread=60 / 2**16)
  likely_first = record_codec.encode(records, m.layout, np.arange(2**16))
  rank_V = np.random.default_rng(0).permutation(2**16)
  as_they_come = record_codec.encode(records, m.layout, rank_V)
  assert not likely_first["id_rest"].any()
  assert as_they_come["id_rest"].any(-1).all()


@hypothesis.given(entropy=st.floats(0, 15.8), nats=st.floats(0, 63.5))
def test_the_grids_are_fine_enough(entropy, nats):
  """Equal steps of the square root: an error of at most half a step."""
  code = record_codec.encode_entropy(np.float32([[entropy]]))
  assert code.dtype == np.uint8
  error = abs(record_codec.entropy_levels()[code[0, 0]] - entropy)
  assert error <= np.sqrt(entropy) / 64 + 1 / 128**2 + 1e-6
  code = record_codec.encode_label_logprob(np.float32([[-nats]]))
  assert code.dtype == np.uint8
  error = abs(record_codec.label_logprob_levels()[code[0, 0]] + nats)
  assert error <= np.sqrt(nats) / 32 + 1 / 64**2 + 1e-5


def test_the_ends_of_the_grids():
  entropies = np.float32([0, -1e-7, np.log(2**20), 99])
  codes = record_codec.encode_entropy(entropies)
  assert codes.tolist() == [0, 0, 238, 255]
  logprobs = np.float32([0, 1e-7, -63.6, -1e30, -np.inf, np.nan])
  codes = record_codec.encode_label_logprob(logprobs)
  assert codes.tolist() == [0, 0, 255, 255, 255, 255]
  # Every level is its own code.
  levels = record_codec.entropy_levels()
  np.testing.assert_array_equal(
    record_codec.encode_entropy(levels), np.arange(256)
  )
  levels = record_codec.label_logprob_levels()
  np.testing.assert_array_equal(
    record_codec.encode_label_logprob(levels), np.arange(256)
  )


def test_value_levels():
  levels = record_codec.value_levels(sampling.Threshold(tau=0.04))
  assert levels.shape == (256,) and not levels[:2].any()
  heads = levels[levels > 0]
  np.testing.assert_allclose(heads[[0, -1]], [0.04, 1])
  np.testing.assert_allclose(np.diff(np.log(heads), 2), 0, atol=1e-12)
  levels = record_codec.value_levels(sampling.Random(num_draws=50))
  np.testing.assert_array_equal(levels[:51], np.arange(51) / 50)
  assert not record_codec.value_levels(sampling.TopK(top_k=4)).any()


def test_a_log_probability_beyond_float16_is_no_probability(kit):
  """As for an id whose logit is masked."""
  m = kit.manifest("topk", num_rows=1)
  records = kit.records(m)
  records.logprobs_BMLK[0, 0, 0, :2] = -np.inf, -1e9
  stored = record_codec.encode(records, m.layout, np.arange(100))
  assert np.isfinite(stored["logprobs"]).all()
  found = record_codec.decode(replica(stored, 0), m.layout, np.arange(100))
  masked = records.ids_BMLK[0, 0, 0, :2]
  assert not found.p_BLK[0, 0][np.isin(found.ids_BLK[0, 0], masked)].any()


# Damage.


@pytest.mark.parametrize("kind", KINDS)
def test_the_digest_covers_all_that_is_in_use(kit, kind):
  """And the row: a record stored at another row is not its record."""
  m = kit.manifest(kind, num_rows=1, vocabulary_size=2**20)
  stored = record_codec.encode(kit.records(m), m.layout, np.arange(2**20))
  one = replica(stored, 0)
  counts = record_codec.used(one)
  parts = {name: a[0, : counts[name][0]] for name, a in one.items()}
  wanted = record_codec.record_digest(b"row", parts, 16)
  assert len(wanted) == 16 and all(len(part) for part in parts.values())
  assert record_codec.record_digest(b"raw", parts, 16) != wanted
  for name, part in parts.items():
    for at in range(len(part)):
      changed = part.copy()
      changed.view(np.uint8)[at * part.itemsize] ^= 1
      digest = record_codec.record_digest(b"row", parts | {name: changed}, 16)
      assert digest != wanted, (name, at)


GARBAGE = dict(
  num_head=st.one_of(st.integers(0, 2), st.integers(0, 255)),
  num_tail=st.one_of(st.just(0), st.integers(0, 2), st.integers(0, 255)),
)


@hypothesis.settings(max_examples=300)
@hypothesis.given(
  kind=st.sampled_from(KINDS),
  V=st.sampled_from([7, 100, 2**20]),
  data=st.data(),
)
def test_garbage_is_an_error_or_a_record(kit, kind, V, data):
  """Any bytes: never an invalid id, never weights that form no record."""
  m = kit.manifest(kind, vocabulary_size=V, num_rows=2)
  rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
  stored = {}
  for name, (size, dtype) in m.layout.arrays().items():
    if name in GARBAGE:
      values = data.draw(st.lists(GARBAGE[name], min_size=16, max_size=16))
      stored[name] = np.array(values, dtype).reshape(2, size)
    else:
      most = data.draw(st.sampled_from([1, 2, 256]))
      raw = rng.integers(0, most, (2, size * np.dtype(dtype).itemsize))
      stored[name] = raw.astype(np.uint8).view(dtype)
  check_garbage(m, stored)


def check_garbage(m, stored):
  V = m.vocabulary_size
  try:
    found = record_codec.decode(stored, m.layout, np.arange(V) + 1000)
  except record_codec.LayoutError:
    return
  K = m.sampler.num_slots
  assert found.ids_BLK.shape == (2, 8, K) and found.num_BL.max() <= K
  used_BLK = np.arange(K) < found.num_BL[..., None]
  ids = found.ids_BLK[used_BLK]
  assert ((ids >= 1000) & (ids < 1000 + V)).all()
  assert np.isfinite(found.p_BLK).all()
  if m.kind != "topk":
    totals = found.p_BLK.astype(np.float64).sum(-1)
    np.testing.assert_allclose(totals, found.num_BL > 0, atol=1e-4)


@hypothesis.settings(max_examples=300)
@hypothesis.given(kind=st.sampled_from(KINDS), data=st.data())
def test_one_wrong_byte_is_an_error_or_a_record(kit, kind, data):
  m = kit.manifest(kind, vocabulary_size=70_000, num_rows=2)
  stored = record_codec.encode(kit.records(m), m.layout, np.arange(70_000))
  one = {name: array.copy() for name, array in replica(stored, 0).items()}
  name = data.draw(st.sampled_from(sorted(one)))
  flat = one[name].view(np.uint8).reshape(-1)
  at = data.draw(st.integers(0, flat.size - 1))
  flat[at] ^= data.draw(st.integers(1, 255))
  check_garbage(m, one)


def broken(name):
  """A change of the arrays of rows of one kind that no writer makes."""

  def more_than_slots(a):
    a["num_head"][1, 2] = 200

  def rank_beyond(a):
    a["id_first"][0, 0], a["id_rest"][0, :2] = 254, 255

  def rank_just_beyond(a):
    a["id_first"][0, 0] = 100

  def missing_rest(a):
    a["id_first"][0, 0] ^= 0x80

  def no_level(a):
    a["values"][0, 0] = 1

  def a_tail(a):
    a["num_tail"][0, 0], a["num_head"][0, 0] = 1, a["num_head"][0, 0] - 1

  def another_count(a):
    a["values"][0, 0] += 1

  def far_above_one(a):
    a["logprobs"][0, 0] = 99

  def not_a_number(a):
    a["log_tail"][1, 1] = np.nan

  return locals()[name]


@pytest.mark.parametrize(
  ("kind", "what", "message"),
  [
    *((kind, "more_than_slots", "than its counts say") for kind in KINDS),
    *((kind, "rank_beyond", "an id of rank") for kind in KINDS),
    *((kind, "rank_just_beyond", "an id of rank 1") for kind in KINDS),
    *((kind, "missing_rest", "'id_rest'|an id of rank") for kind in KINDS),
    ("threshold", "no_level", "stands for no probability"),
    ("random", "a_tail", "only threshold records"),
    ("topk", "a_tail", "only threshold records"),
    ("random", "another_count", "another number of draws"),
    ("topk", "far_above_one", "a log-probability that is none"),
    ("topk", "not_a_number", "a log-probability that is none"),
  ],
)
def test_what_no_writer_makes_is_refused(kit, kind, what, message):
  m = kit.manifest(kind, num_rows=2)
  stored = record_codec.encode(
    kit.records(m, full=True), m.layout, np.arange(100)
  )
  one = {name: array.copy() for name, array in replica(stored, 0).items()}
  record_codec.decode(one, m.layout, np.arange(100))
  broken(what)(one)
  with pytest.raises(record_codec.LayoutError, match=message):
    record_codec.decode(one, m.layout, np.arange(100))


@pytest.mark.parametrize("first", [200, 255])
def test_a_byte_behind_the_last_entry_asks_for_no_other(kit, first):
  m = kit.manifest(num_rows=2)
  stored = record_codec.encode(kit.records(m), m.layout, np.arange(100))
  one = {name: array.copy() for name, array in replica(stored, 0).items()}
  assert one["id_first"][0, -1] == 0
  one["id_first"][0, -1] = first
  with pytest.raises(record_codec.LayoutError, match="'id_rest' is not what"):
    record_codec.decode(one, m.layout, np.arange(100))
