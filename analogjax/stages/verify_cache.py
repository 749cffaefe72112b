"""cache --verify: checks all bytes of the caches, and some rows' teacher."""

from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict
import numpy as np

from analogjax.cache import damage, logit_cache, teacher_pass
from analogjax.cli import progress
from analogjax.config import schema
from analogjax.distributed import processes
from analogjax.run.run import Run

# Another mesh or other software rounds logits differently; then a drawn id at
# the edge of its share, or a probability at the edge of tau, may differ.
_LEAST_EQUAL = 0.98  # Fraction of the positions of a row.
_MOST_CODES = 2  # Tolerance of a cosine, for rounding.


def run(cfg: ConfigDict, workdir: Path, *, rows: int) -> None:
  """Checks every committed row, and `rows` of them against the live teacher.

  Raises:
    ValueError: says what is damaged, by ranges of rows, and what to do.
  """
  run, problems = Run(schema.to_sections(cfg), workdir), []
  for name in run.cache_names:
    cache = logit_cache.open_cache(run.cache_place(name))
    found, holes = {}, 0
    objects = cache.objects()
    title = f"verify {name}"
    with progress.Progress(title, total=len(cache), unit="rows") as bar:
      for part in objects:
        found |= damage.damage(cache, part)
        bar.advance(
          len(part), tokens=len(part) * cache.manifest.sequence_length
        )
    problems += _ranges(found)
    if not found:
      done = cache.committed()
      holes = int((~done).sum())
      progress.say(
        f"verify {name}: {int(done.sum()):,} rows are as they were written"
        + (f"; {holes:,} are not committed." if holes else ".")
      )
      if rows:
        problems += _compare(run, cache, done, rows)
  if problems:
    raise ValueError(
      "\n  ".join(["the cache is damaged:", *problems])
      + "\nThe other rows can be read. 'analogjax cache --repair' computes"
      " these rows again."
    )


def _ranges(found: Mapping[int, str]) -> list[str]:
  """One line for each run of damaged rows with the same kind of reason."""
  lines, rows = [], sorted(found)
  while rows:
    first = last = rows.pop(0)
    while rows and rows[0] == last + 1:
      last = rows.pop(0)
    # The message already names a row and a remedy.
    reason = found[first].split(" 'analogjax cache", 1)[0]
    what = f"row {first}" if first == last else f"rows {first} to {last}"
    lines.append(f"{what}: {reason}.".replace("..", "."))
  return lines


def _compare(run: Run, cache, done, count) -> list[str]:
  """Runs the teacher on some rows again; returns a line for each difference."""
  run.check_cache(cache)
  teaching = teacher_pass.Recorder(run.config.cache, run.mesh, run.teacher)
  there = np.flatnonzero(done)
  rng = np.random.default_rng(cache.manifest.seed)
  picked = np.sort(rng.permutation(there)[:count])
  problems, equal = [], []
  for start in range(0, len(picked), teaching.batch_rows):
    index = picked[start : start + teaching.batch_rows]
    rows = cache.read(index).rows
    on_device = teaching.record(rows, cache.manifest)
    records = processes.fetch_rows(on_device)
    records = type(records)(
      *(None if field is None else field[: len(index)] for field in records)
    )
    now = cache.decode(cache.encode(rows, records), 0)
    stored = cache.read(index)
    same_BL = (now.ids_BLK == stored.ids_BLK).all(-1)
    for row, share in zip(index, same_BL.mean(-1), strict=True):
      equal.append(share)
      if share < _LEAST_EQUAL:
        problems.append(
          f"{cache.location}: row {row}: the teacher now gives other records at"
          f" {1 - share:.1%} of the positions; it, or the software, is another."
        )
    if now.gram is not None:
      codes = [np.asarray(e.gram.codes_BZP, int) for e in (now, stored)]
      most_B = np.abs(codes[0] - codes[1]).max(axis=(1, 2))
      problems += [
        f"{cache.location}: row {row}: the teacher now gives another Gram; it,"
        " or the software, is another."
        for row in index[most_B > _MOST_CODES]
      ]
  progress.say(
    f"verify: {len(picked)} rows seen by the teacher again,"
    f" {np.mean(equal):.2%} of the positions have the same record."
  )
  return problems
