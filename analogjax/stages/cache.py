"""cache: runs the teacher over the rows and writes the logit cache.

Letters: B rows of a teacher step, L positions.
"""

import functools
from pathlib import Path

import jax
from ml_collections import ConfigDict
import numpy as np

from analogjax.cache import cache_format, fill, logit_cache, teacher_pass
from analogjax.cli import progress
from analogjax.config import schema
from analogjax.data import pipeline
from analogjax.data.rows import Rows
from analogjax.distributed import processes, sharding
from analogjax.interop.distillkit import entries, importer
from analogjax.run import caches
from analogjax.run.run import Run
from analogjax.workdir import ledger, store


def run(cfg: ConfigDict, workdir: Path) -> None:
  """Fills the training cache and the held-out cache.

  Committed objects are kept, so a run that was killed continues where it was,
  with any number of processes.
  """
  run = Run(schema.to_sections(cfg), workdir)
  run.check_domains()
  _check_batch_rows(run)
  # One clock for all caches, or each would count the time of the others.
  spent = ledger.Ledger(workdir, "cache")
  _import(run, spent)
  for each in _fillers(run, spent):
    each.fill()


def repair(cfg: ConfigDict, workdir: Path) -> None:
  """Computes damaged rows and records again, and fills the holes."""
  run = Run(schema.to_sections(cfg), workdir)
  _check_batch_rows(run)
  for each in _fillers(run, ledger.Ledger(workdir, "cache")):
    each.repair()
    each.fill()


def _check_batch_rows(run: Run) -> None:
  rows = run.config.cache.batch_rows
  sharding.check_batch_rows(rows, run.mesh, "cache.batch_rows")


def _fillers(run: Run, spent: ledger.Ledger) -> list[fill.Filler]:
  options, ahead = run.config.cache, run.config.cache.write_ahead
  teaching = teacher_pass.Recorder(options, run.mesh, run.teacher)
  fillers = []
  for name in run.cache_names:
    held_out = name == caches.HELD_OUT
    num_rows = options.held_out_rows if held_out else options.num_rows
    if options.import_path and not held_out:
      continue
    rows = processes.all_or_none(
      functools.partial(run.open_rows, held_out=held_out)
    )
    if rows.num_rows is not None and rows.num_rows < num_rows:
      fill.say_fewer(name, rows.num_rows, num_rows)
      num_rows = rows.num_rows
    wanted = caches.manifest(
      run.config, run.teacher, rows.fingerprint, num_rows, held_out=held_out
    )
    cache = _create(run.cache_place(name), wanted, rows, teaching)
    fillers.append(
      fill.Filler(run.workdir, ahead, teaching, rows, cache, spent)
    )
  return fillers


def _import(run: Run, spent: ledger.Ledger) -> None:
  """Imports the training cache from another tool, if the config says so."""
  section, L = run.config.cache, run.config.data.L
  if not section.import_path or not run.config.reads_cache:
    return
  if jax.process_count() > 1:
    raise ValueError(
      "cache.import_path: an import is the work of one process, found"
      f" {jax.process_count()}. Run it alone, then start the others."
    )
  teacher = run.teacher
  dataset = entries.open_dataset(
    section.import_path,
    section.import_codec or None,
    L=L,
    V=teacher.cfg.V,
  )
  if dataset.codec.k != section.top_k:
    raise ValueError(
      f"cache.top_k={section.top_k}, but the records in {section.import_path}"
      f" have {dataset.codec.k} ids; set cache.top_k={dataset.codec.k}."
    )
  num_rows = min(section.num_rows, dataset.num_rows)
  if num_rows < section.num_rows:
    fill.say_fewer(caches.CACHE, num_rows, section.num_rows)
  wanted = caches.manifest(
    run.config, teacher, dataset.fingerprint, num_rows, held_out=False
  )
  first = range(min(num_rows, section.rows_per_object))
  cache = logit_cache.create(
    run.cache_place(caches.CACHE),
    wanted,
    lambda: importer.id_order(dataset.read(first), teacher.cfg.V),
  )
  written = store.bytes_written()

  def committed(part: range) -> None:
    nonlocal written
    before, written = written, store.bytes_written()
    tokens = len(part) * L
    spent.append(tokens=tokens, bytes=written - before)

  importer.fill(
    cache, dataset, write_ahead=section.write_ahead, committed=committed
  )


def _create(where, wanted, rows, teaching) -> logit_cache.LogitCache:
  """Makes the cache on process 0 unless it exists; opens it on all."""
  exists = cache_format.read_group(where) is not None
  order_V = np.zeros(0)
  if not processes.from_first(np.asarray(exists)):
    first = processes.all_or_none(
      lambda: _first_rows(rows, wanted.num_rows, teaching)
    )
    with progress.Activity("cache: loading the teacher, compiling"):
      order_V = teaching.id_order(first)

  def create():
    if jax.process_index() == 0:
      logit_cache.create(where, wanted, lambda: order_V)

  processes.all_or_none(create)
  return processes.all_or_none(lambda: logit_cache.create(where, wanted))


def _first_rows(rows, num_rows: int, teaching) -> Rows:
  """This group's part of the first batch, the same for any process count."""
  group = teaching.group
  batch_rows = teaching.batch_rows // len(group.ways) * group.num_ways
  try:
    first = rows.read(range(min(batch_rows, num_rows)))
  except pipeline.EndOfRows as end:
    first = rows.read(range(end.num_rows))
  if not rows.random_access:
    rows.restore(0, rows.state(0))
  last = len(first.tokens_BL) - 1
  index = np.minimum(group.indices_of(batch_rows), last)
  return Rows(*(field[index] for field in first))
