"""Examines a whole cache: its damage and statistics of its content.

Shape letters (docs/glossary.md): B rows, L position, K slots of a record.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from analogjax.cache import logit_cache, sampling
from analogjax.cache.cache_format import CacheError


def damage(cache: logit_cache.LogitCache, part: range) -> dict[int, str]:
  """Damage in the rows of one object: row -> reason.

  Rows that are not committed are holes, not damage. If the digests of an object
  cannot be read, all its rows count as damaged.
  """
  try:
    committed = np.any(cache.digests(part), axis=-1)
  except CacheError as error:
    return dict.fromkeys(part, str(error))
  there = np.array(part)[committed]
  if not len(there):
    return {}
  try:
    cache.read_stored(there)
    return {}
  except CacheError:
    pass
  found = {}
  for row in there:
    try:
      cache.read_stored(np.array([row]))
    except CacheError as error:
      found[int(row)] = str(error)
  return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
  """Statistics of sampled rows; means are over captured positions."""

  num_rows: int
  num_committed: int
  holes: list[range]
  sampled_rows: int
  bytes_per_token: dict[str, float]  # By array, of the sampled objects.
  captured: float  # Share of positions.
  ids_per_record: float
  head_ids_per_record: float
  head_mass: float  # Threshold: of the head. topk: of the K ids. random: 1.
  mean_entropy_nats: float
  entropy_nats: np.ndarray  # Every sampled position.
  ids: np.ndarray  # Kept at every sampled captured position.
  label_nats: float  # Mean -log p of the next token, where one is predicted.
  noise: float | None  # Bound of E||record - p||^2; topk: None.
  noise_between_replicas: float | None  # The same, measured; needs 2 replicas.


def summarize(
  cache: logit_cache.LogitCache, objects: Sequence[range], batch_rows: int = 64
) -> Summary:
  """Summarizes these objects, whose rows must all be committed.

  The noise of the targets is the variance of the gradient: the gradient of the
  cross-entropy with respect to the logits is q - record. For a threshold record
  it is the sum over tail ids of p (w - p), at most the tail's mass times its
  weight w. For N draws it is (1 - sum p^2) / N, at most 1 / N.
  """
  m = cache.manifest
  entropies, ids, heads, masses, labels, noises = [], [], [], [], [], []
  between, captured = [], 0.0
  rows = [row for part in objects for row in part]
  for start in range(0, len(rows), batch_rows):
    index = np.array(rows[start : start + batch_rows])
    got = cache.read(index)
    is_kept_BL = got.capture_weights_BL > 0
    captured += is_kept_BL.sum()
    entropies.append(got.entropy_BL.ravel())
    segments_BL = got.rows.segments_BL
    same_BL = segments_BL[:, 1:] == segments_BL[:, :-1]
    # Elsewhere there is no label; weights of padding are 0.
    same_BL &= got.rows.weights_BL[:, 1:] > 0
    labels.append(got.label_logprob_BL[:, :-1][same_BL])
    head_BL, num_head_BL, num_BL = _head(got, m.sampler)
    ids.append(num_BL[is_kept_BL])
    heads.append(num_head_BL[is_kept_BL])
    masses.append(head_BL[is_kept_BL])
    if isinstance(m.sampler, sampling.Threshold):
      tail_BL = np.maximum(1 - head_BL, 0)
      draws_BL = np.maximum(num_BL - num_head_BL, 1)
      noises.append((tail_BL**2 / draws_BL)[is_kept_BL])
    if m.num_replicas > 1 and not isinstance(m.sampler, sampling.TopK):
      other = cache.read(index, 1)
      between.append(_distance(got, other)[is_kept_BL] / 2)

  def mean(parts):
    whole = np.concatenate(parts) if parts else np.zeros(0)
    return float(whole.mean()) if whole.size else float("nan")

  if isinstance(m.sampler, sampling.Threshold):
    noise = mean(noises)
  elif isinstance(m.sampler, sampling.Random):
    noise = 1 / m.sampler.num_draws
  else:
    noise = None
  tokens = max(len(rows), 1) * m.sequence_length
  sizes = cache.bytes_by_array(objects)
  done = cache.committed()
  return Summary(
    num_rows=len(cache),
    num_committed=int(done.sum()),
    holes=[o for o in cache.objects() if not done[o.start : o.stop].all()],
    sampled_rows=len(rows),
    bytes_per_token={name: size / tokens for name, size in sizes.items()},
    captured=captured / tokens,
    ids_per_record=mean(ids),
    head_ids_per_record=mean(heads),
    head_mass=mean(masses),
    mean_entropy_nats=mean(entropies),
    entropy_nats=np.concatenate(entropies) if entropies else np.zeros(0),
    ids=np.concatenate(ids) if ids else np.zeros(0),
    label_nats=-mean(labels),
    noise=noise,
    noise_between_replicas=mean(between) if between else None,
  )


def _head(got: logit_cache.Entries, sampler):
  """Mass and number of ids with a value of their own, and number of ids."""
  num_BL = got.num_BL
  if not isinstance(sampler, sampling.Threshold):
    return got.p_BLK.sum(-1), num_BL, num_BL
  slot_K = np.arange(got.p_BLK.shape[-1])
  is_head_BLK = slot_K < got.num_head_BL[..., None]
  head_BL = np.where(is_head_BLK, got.p_BLK, 0).sum(-1)
  return head_BL, got.num_head_BL, num_BL


def _distance(a: logit_cache.Entries, b: logit_cache.Entries) -> np.ndarray:
  """||a - b||^2 of two sets of records, [B, L]."""

  def square(x, y):
    equal = x.ids_BLK[..., :, None] == y.ids_BLK[..., None, :]
    return (equal * x.p_BLK[..., :, None] * y.p_BLK[..., None, :]).sum((-1, -2))

  return square(a, a) + square(b, b) - 2 * square(a, b)
