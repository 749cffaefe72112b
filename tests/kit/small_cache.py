"""A small logit cache, its records drawn from logits that tests know."""

import numpy as np

from analogjax.cache import cache_format, logit_cache, sampling
from analogjax.data import rows as rows_lib

V, R, L = 61, 8, 16


def teacher_logits():
  return 2 * np.random.default_rng(1).normal(size=(R, L, V))


def write(folder, kind="threshold", **changes):
  """Records of `teacher_logits`; returns their rows."""
  values = dict(
    **dict(kind=kind, tau=None, num_draws=None, top_k=None),
    **dict(temperature=1.0, num_replicas=1, capture="all", capture_rate=1.0),
    **dict(gram_positions=0, gram_depths=(), seed=0, num_rows=R),
    **dict(sequence_length=L, vocabulary_size=V, rows_per_object=4),
    **dict(teacher_digest="t", teacher_dtype="float32", tokenizer_digest="t"),
    **dict(pipeline="lab:rows", pipeline_fingerprint="f", software={}),
  )
  name = {"threshold": "tau", "random": "num_draws", "topk": "top_k"}[kind]
  values[name] = {"tau": 0.04, "num_draws": 20, "top_k": 5}[name]
  cache = logit_cache.create(folder, cache_format.Manifest(**values | changes))
  rng = np.random.default_rng(0)
  segments = np.repeat(np.int32([1, 2, 0]), [9, 6, 1])
  rows = rows_lib.Rows(
    rng.integers(0, V, (R, L)).astype(np.int32),
    np.tile(segments, (R, 1)),
    np.tile(rows_lib.default_positions(segments), (R, 1)),
    np.tile((segments > 0).astype(np.float32), (R, 1)),
  )
  records = sampling.draw(
    np.float32(teacher_logits()),
    np.zeros((R, L), np.int32),
    sampling.row_keys(rows_lib.rows_digests(rows), 0),
    0,
    cache.manifest.sampler,
    capture=sampling.Capture(
      kind=cache.manifest.capture, rate=cache.manifest.capture_rate
    ),
    num_replicas=1,
    temperature=1.0,
  )
  records = sampling.Records(
    *(None if x is None else np.asarray(x) for x in records)
  )
  for part in cache.objects():
    cut = slice(part.start, part.stop)
    piece = rows_lib.Rows(*(x[cut] for x in rows))
    some = (None if x is None else x[cut] for x in records)
    cache.write(part.start, piece, sampling.Records(*some))
  return rows
