"""Small logit caches of random records."""

import numpy as np

from analogjax.cache import cache_format, gram_codes, sampling
from analogjax.data import rows as rows_lib

PARAMETERS = {
  "threshold": dict(tau=0.2, num_draws=None, top_k=None),  # K = 6.
  "random": dict(tau=None, num_draws=6, top_k=None),
  "topk": dict(tau=None, num_draws=None, top_k=6),
}


def manifest(kind="threshold", **changes):
  values = dict(
    **dict(kind=kind, **PARAMETERS[kind], temperature=1.0, num_replicas=1),
    **dict(capture="all", capture_rate=1.0, seed=7, num_rows=6),
    **dict(gram_positions=0, gram_depths=()),
    **dict(sequence_length=8, vocabulary_size=100, rows_per_object=4),
    **dict(teacher_digest="a teacher", teacher_dtype="float32"),
    **dict(tokenizer_digest="a tokenizer", pipeline="lab.pipeline:rows"),
    **dict(pipeline_fingerprint="a pipeline", software={"analogjax": "0"}),
  )
  return cache_format.Manifest(**values | changes)


def rows(m, n=None, seed=0):
  """Two documents and a padded end in every row, weights and positions 1, 0."""
  n, L = m.num_rows if n is None else n, m.sequence_length
  rng = np.random.default_rng(seed)
  segments_L = np.repeat(np.int32([1, 2, 0]), [L // 2 - 1, L // 2 - 1, 2])
  counted_L = np.tile(np.arange(L // 2 - 1, dtype=np.int32), 2)
  return rows_lib.Rows(
    tokens_BL=rng.integers(0, m.vocabulary_size, (n, L)).astype(np.int32),
    segments_BL=np.tile(segments_L, (n, 1)),
    positions_BL=np.tile(np.append(counted_L, np.int32([0, 0])), (n, 1)),
    weights_BL=np.tile((segments_L > 0).astype(np.float32), (n, 1)),
  )


def rows_of(tokens_BL, segments_BL):
  """Rows with the positions and the weights that they have by default."""
  segments_BL = np.asarray(segments_BL, np.int32)
  return rows_lib.Rows(
    tokens_BL=np.asarray(tokens_BL, np.int32),
    segments_BL=segments_BL,
    positions_BL=rows_lib.default_positions(segments_BL),
    weights_BL=(segments_BL > 0).astype(np.float32),
  )


def records(m, n=None, seed=0, *, spread=1.0, full=False):
  """Records as a sampler may give them, in no order of ids or slots.

  Args:
    m: the manifest of their cache.
    spread: ids are drawn from this fraction of the vocabulary.
    full: every position is captured and fills all its slots, if possible.
  """
  n, sampler = m.num_rows if n is None else n, m.sampler
  shape = n, m.num_replicas, m.sequence_length
  K, rng = sampler.num_slots, np.random.default_rng(seed)
  ids = np.zeros((*shape, K), np.int32)
  codes = np.zeros((*shape, K), np.uint8)
  inclusion = np.full((n, m.sequence_length), sampling.ALWAYS, np.uint8)
  if m.capture != "all" and not full:
    inclusion[:] = rng.integers(1, 256, inclusion.shape)
    inclusion[rng.random(inclusion.shape) < 0.5] = 0
  for b, r, i in np.ndindex(*shape):
    if inclusion[b, i]:
      got = _record(rng, sampler, m.vocabulary_size, spread, full)
      place = rng.permutation(K)[: len(got[0])]
      ids[b, r, i, place], codes[b, r, i, place] = got
  logprobs = log_tail = None
  if m.kind == "topk":
    logprobs = np.where(codes > 0, -rng.exponential(4, codes.shape), 0)
    logprobs = logprobs.astype(np.float32)
    log_tail = -rng.exponential(1, inclusion.shape).astype(np.float32)
    log_tail[0, 0] = -np.inf  # Nothing outside.
  gram = None
  if m.gram_positions:
    pairs = gram_codes.num_pairs(m.gram_positions)
    gram = rng.integers(-127, 128, (n, len(m.gram_depths), pairs), np.int8)
  return sampling.Records(
    ids_BMLK=ids,
    codes_BMLK=codes,
    logprobs_BMLK=logprobs,
    log_tail_BL=log_tail,
    entropy_BL=rng.uniform(0, 9, inclusion.shape).astype(np.float32),
    label_logprob_BL=-rng.uniform(0, 9, inclusion.shape).astype(np.float32),
    inclusion_BL=inclusion,
    gram_BZP=gram,
  )


def _record(rng, sampler, V, spread, full):
  """(ids, codes) of one position; a threshold's tail may repeat an id."""
  K, most = sampler.num_slots, max(int(V * spread), 1)
  if isinstance(sampler, sampling.Random):
    drawn = rng.integers(0, most, K)
    if full:
      drawn[: min(K, V)] = _different(rng, max(most, min(K, V)), min(K, V))
    return np.unique(drawn, return_counts=True)
  if isinstance(sampler, sampling.TopK):
    return _different(rng, max(most, K), K), np.ones(K, int)
  num_head = int(rng.integers(0, min(K - 1, most) + 1))
  num_tail = K - num_head
  if not full:
    num_tail = int(rng.integers(0 if num_head else 1, num_tail + 1))
  levels = sampling.head_levels(sampler.tau)
  levels = levels[levels > 0]
  codes, left = np.zeros(num_head, int), 1 - num_head * sampler.tau
  for i in range(num_head):
    wanted = sampler.tau + rng.random() * max(left, 0)
    at = np.abs(levels - wanted).argmin()
    codes[i] = sampling.FIRST_HEAD + at
    left -= levels[at] - sampler.tau
  tail = rng.integers(0, most, num_tail)
  head = _different(rng, most, num_head)
  tails = np.full(num_tail, sampling.TAIL)
  return np.append(head, tail), np.append(codes, tails)


def _different(rng, most, count):
  """Distinct ids below `most`, as one permutation would be too slow."""
  found = np.zeros(0, int)
  while len(found) < count:
    more = rng.integers(0, most, 2 * count + 8)
    found = np.unique(np.append(found, more))
  return rng.permutation(found)[:count]


def take(fields, part):
  """Some rows of Rows, Records or Entries."""
  if fields is None or isinstance(fields, np.ndarray):
    return fields if fields is None else fields[part]
  return type(fields)(*(take(field, part) for field in fields))


def write_all(cache, rows, records):
  for hole in cache.holes():
    part = slice(hole.start, hole.stop)
    cache.write(hole.start, take(rows, part), take(records, part))


def assert_equal(one, other):
  for name, a, b in zip(one._fields, one, other, strict=True):
    if isinstance(a, tuple):
      assert_equal(a, b)
    elif a is None:
      assert b is None, name
    else:
      np.testing.assert_array_equal(a, b, err_msg=name)
      assert a.dtype == b.dtype, name
