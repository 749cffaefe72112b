"""cache: the teacher over the rows, into the logit cache.

Letters: B rows of a teacher step, L positions.
"""

import functools
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from analogjax.cache import cache_format, fill, logit_cache, teacher_pass
from analogjax.config import schema
from analogjax.data import pipeline
from analogjax.data.rows import Rows
from analogjax.distributed import processes, sharding
from analogjax.interop.distillkit import entries, importer
from analogjax.run import run as assemble
from analogjax.workdir import ledger, store


def run(cfg: ConfigDict, workdir: Path) -> None:
  """Fills the cache (to train on) and the held-out one (to measure on).

  Objects that are committed already are left alone, so a run that was killed
  goes on where it was, with any number of processes.
  """
  sections = schema.to_sections(cfg)
  assemble.check_domains(sections)
  mesh = _make_mesh(sections)
  # One clock for all caches, or each would count what the others took.
  spent = ledger.Ledger(workdir, "cache")
  _import(sections, workdir, spent)
  for each in _fillers(sections, workdir, mesh, spent):
    each.fill()


def repair(cfg: ConfigDict, workdir: Path) -> None:
  """Computes again what is damaged, rows and records, and fills the holes."""
  sections = schema.to_sections(cfg)
  spent = ledger.Ledger(workdir, "cache")
  for each in _fillers(sections, workdir, _make_mesh(sections), spent):
    each.repair()
    each.fill()


def _make_mesh(sections: schema.Sections) -> Mesh:
  mesh = assemble.make_mesh(sections)
  sharding.check_batch_rows(sections.cache.batch_rows, mesh, "cache.batch_rows")
  return mesh


def _fillers(
  sections: schema.Sections, workdir: Path, mesh: Mesh, spent: ledger.Ledger
) -> list[fill.Filler]:
  teacher = assemble.open_teacher(sections, workdir)
  teaching = teacher_pass.Recorder(sections, mesh, teacher)
  fillers = []
  for name in assemble.cache_names(sections):
    held_out = name == assemble.HELD_OUT
    num_rows = (
      sections.cache.held_out_rows if held_out else sections.cache.num_rows
    )
    if sections.cache.import_path and not held_out:
      continue
    open_rows = functools.partial(
      assemble.open_rows, sections, teacher, workdir
    )
    rows = processes.together(functools.partial(open_rows, held_out=held_out))
    if rows.num_rows is not None and rows.num_rows < num_rows:
      fill.say_fewer(name, rows.num_rows, num_rows)
      num_rows = rows.num_rows
    wanted = assemble.manifest(
      sections, teacher, rows.fingerprint, num_rows, held_out=held_out
    )
    where = assemble.cache_place(sections, workdir, name)
    cache = _create(where, wanted, rows, teaching)
    fillers.append(
      fill.Filler(sections, workdir, teacher, teaching, rows, cache, spent)
    )
  return fillers


def _import(
  sections: schema.Sections, workdir: Path, spent: ledger.Ledger
) -> None:
  """Fills the cache to train on from another tool's, if the config says so."""
  section = sections.cache
  if not section.import_path or not sections.reads_cache:
    return
  if jax.process_count() > 1:
    raise ValueError(
      "cache.import_path: an import is the work of one process, found"
      f" {jax.process_count()}. Run it alone, then start the others."
    )
  teacher = assemble.open_teacher(sections, workdir)
  dataset = entries.open_dataset(
    section.import_path,
    section.import_codec or None,
    L=sections.data.L,
    V=teacher.cfg.V,
  )
  if dataset.codec.k != section.top_k:
    raise ValueError(
      f"cache.top_k={section.top_k}, but the records in {section.import_path}"
      f" have {dataset.codec.k} ids; set cache.top_k={dataset.codec.k}."
    )
  num_rows = min(section.num_rows, dataset.num_rows)
  if num_rows < section.num_rows:
    fill.say_fewer(assemble.CACHE, num_rows, section.num_rows)
  wanted = assemble.manifest(
    sections, teacher, dataset.fingerprint, num_rows, held_out=False
  )
  first = range(min(num_rows, section.rows_per_object))
  cache = logit_cache.create(
    assemble.cache_place(sections, workdir, assemble.CACHE),
    wanted,
    lambda: importer.id_order(dataset.read(first), teacher.cfg.V),
  )
  written = store.bytes_written()

  def committed(part: range) -> None:
    nonlocal written
    before, written = written, store.bytes_written()
    tokens = len(part) * sections.data.L
    spent.append(tokens=tokens, bytes=written - before)

  importer.fill(
    cache, dataset, write_ahead=section.write_ahead, committed=committed
  )


def _create(where, wanted, rows, teaching) -> logit_cache.LogitCache:
  """The cache, made by process 0 and opened by all."""
  exists = cache_format.read_group(where) is not None
  order_V = np.zeros(0)
  if not processes.from_first(np.asarray(exists)):
    order_V = teaching.id_order(
      processes.together(lambda: _first_rows(rows, wanted.num_rows, teaching))
    )

  def create():
    if jax.process_index() == 0:
      logit_cache.create(where, wanted, lambda: order_V)

  processes.together(create)
  return processes.together(lambda: logit_cache.create(where, wanted))


def _first_rows(rows, num_rows: int, teaching) -> Rows:
  """This group's part of the first batch, the same for any processes."""
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
