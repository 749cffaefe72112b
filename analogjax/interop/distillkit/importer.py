"""Converts caches of other tools to ours.

Letters: B rows, L positions, K entries of a record.
"""

from collections.abc import Callable

import numpy as np

from analogjax.cache import (
  batches,
  logit_cache,
  sampling,
  writer as cache_writer,
)
from analogjax.cli import progress
from analogjax.interop.distillkit import entries as distillkit


def fill(
  cache: logit_cache.LogitCache,
  dataset: distillkit.DistillKitRows,
  *,
  write_ahead: int,
  committed: Callable[[range], None],
) -> None:
  """Writes the missing objects from DistillKit's captures.

  Raises:
    ValueError: a row does not fit, or the store refuses.
  """
  holes = cache.holes()
  if not holes:
    return
  done = len(cache) - sum(map(len, holes))
  title = "cache, imported"
  counts = distillkit.Counts()
  with (
    cache_writer.CacheWriter(cache, depth=write_ahead) as writer,
    progress.Progress(title, total=len(cache), unit="rows", done=done) as bar,
  ):
    for hole in holes:
      entries = dataset.read(hole)
      counts += entries.counts
      stored = cache.encode(entries.rows, to_records(entries))
      writer.submit(
        hole.start, lambda s=stored: s, lambda hole=hole: committed(hole)
      )
      tokens = len(hole) * cache.manifest.sequence_length
      bar.advance(len(hole), tokens=tokens)
    writer.finish()
  progress.say(
    f"{title}: {counts.num_records:,} records;"
    f" {counts.num_clamped:,} of them hold all mass and more, so their tail is"
    f" {distillkit.MIN_TAIL:.1e}; {counts.num_unreadable:,} could not be"
    " decoded and count as not captured."
  )


def to_records(entries: distillkit.Entries) -> sampling.Records:
  """Converts to records of kind topk.

  The entropy is that of the K probabilities and the mass outside, a lower bound
  of the teacher's. The log-probability of a next token that is not among the
  ids is unknown, NaN. Positions without a record were not captured.
  """
  logp_BLK, tail_BL = entries.logprobs_BLK, entries.log_tail_BL
  is_entry_BLK = np.isfinite(logp_BLK)
  captured_BL = is_entry_BLK.any(-1)
  logp_BLK = np.where(is_entry_BLK, logp_BLK, 0)
  terms_BLK = np.where(is_entry_BLK, np.exp(logp_BLK) * logp_BLK, 0)
  entropy_BL = -terms_BLK.sum(-1) - np.exp(tail_BL) * tail_BL
  labels_BL, _ = batches.labels(entries.rows)
  is_label_BLK = is_entry_BLK & (entries.ids_BLK == labels_BL[..., None])
  label_BL = np.where(is_label_BLK, logp_BLK, 0).sum(-1)
  label_BL = np.where(is_label_BLK.any(-1), label_BL, np.nan)
  return sampling.Records(
    ids_BMLK=np.where(is_entry_BLK, entries.ids_BLK, 0)[:, None],
    codes_BMLK=is_entry_BLK.astype(np.uint8)[:, None],
    logprobs_BMLK=logp_BLK[:, None],
    log_tail_BL=tail_BL,
    entropy_BL=np.where(captured_BL, np.maximum(entropy_BL, 0), 0),
    label_logprob_BL=label_BL,
    inclusion_BL=np.where(captured_BL, sampling.ALWAYS, 0).astype(np.uint8),
  )


def id_order(entries: distillkit.Entries, V: int) -> np.ndarray:
  """All ids, by falling mass in these records."""
  mass = np.exp(entries.logprobs_BLK.ravel(), dtype=np.float64)
  mass_V = np.bincount(entries.ids_BLK.ravel(), mass, minlength=V)
  return np.argsort(-mass_V, kind="stable")
