"""cache: the teacher over the rows, into the logit cache.

Letters: B rows of a teacher step, L positions.
"""

import functools
from pathlib import Path

import jax
from jax.sharding import NamedSharding, PartitionSpec as P
from ml_collections import ConfigDict
import numpy as np

from analogjax import (
  assemble,
  config,
  config_files,
  ledger,
  progress,
  sharding,
  steps,
)
from analogjax.data import batches, logit_cache, pipeline, sampling
from analogjax.data.rows import Rows, rows_digests
from analogjax.models import decoder, hf_folder, sizes


def run(cfg: ConfigDict, workdir: Path) -> None:
  """Fills workdir/cache (to train on) and workdir/held_out (to measure on).

  Objects that are committed already are left alone, so a run that was killed
  goes on where it was.
  """
  sections = config.to_sections(cfg)
  mesh = assemble.make_mesh(sections)
  sharding.check_batch_rows(sections.cache.batch_rows, mesh, "cache.batch_rows")
  teacher = assemble.open_teacher(sections, workdir)
  jobs = []
  for name, num_rows in (
    (assemble.CACHE, sections.cache.num_rows),
    (assemble.HELD_OUT, sections.cache.held_out_rows),
  ):
    held_out = name == assemble.HELD_OUT
    rows = assemble.open_rows(sections, teacher, workdir, held_out=held_out)
    if rows.num_rows is not None and rows.num_rows < num_rows:
      _say_fewer(name, rows.num_rows, num_rows)
      num_rows = rows.num_rows
    wanted = assemble.manifest(sections, teacher, rows, num_rows)
    jobs.append((rows, logit_cache.create(workdir / name, wanted)))

  # Only when there are rows for it: a frontier teacher is large.
  @functools.cache
  def read_params():
    return hf_folder.read_parameters(
      teacher.folder, teacher.cfg, mesh, dtype=teacher.cfg.dtype
    )

  for rows, cache in jobs:
    _Filler(sections, workdir, mesh, teacher, read_params, rows, cache).fill()
  if not read_params.cache_info().currsize:
    progress.say("cache: complete.")


class _Filler:
  """Fills the holes of one cache."""

  def __init__(
    self, sections, workdir, mesh, teacher, read_params, rows, cache
  ):
    self._rows: pipeline.RowSource = rows
    self._cache: logit_cache.LogitCache = cache
    self._mesh, self._read_params = mesh, read_params
    self._batch_rows = sections.cache.batch_rows
    self._name = Path(cache.location).name
    self._position = workdir / f"{self._name}_position.json"
    self._ledger = ledger.Ledger(workdir, "cache")
    L = sections.data.L
    self._flops_per_row = L * sizes.forward_flops_per_token(teacher.cfg, L)
    self._step = jax.jit(
      functools.partial(
        steps.teacher_step,
        graphdef=decoder.graphdef(teacher.cfg),
        sampler=cache.manifest.sampler,
        chunk=sections.cache.chunk,
      ),
      out_shardings=NamedSharding(mesh, P(sharding.ROWS[0])),
    )

  def fill(self) -> None:
    holes = self._cache.holes()
    if not holes:
      return
    self._go_to(holes[0].start)
    total = self._cache.manifest.num_rows
    done = total - sum(map(len, holes))
    L = self._cache.manifest.sequence_length
    title = f"cache {self._name}"
    with progress.Progress(title, total=total, unit="rows", done=done) as bar:
      for hole in holes:
        try:
          rows = self._rows.read(hole)
        except pipeline.EndOfRows as end:
          self._cut_short(end.num_rows)
          return
        records = []
        for start in range(0, len(hole), self._batch_rows):
          part = slice(start, start + self._batch_rows)
          rows_part = Rows(*(field[part] for field in rows))
          records.append(self._records(rows_part, hole.start + start))
          num = len(rows_part.tokens_BL)
          bar.advance(num, tokens=num * L)
        joined = map(np.concatenate, zip(*records, strict=True))
        self._cache.write(hole.start, rows, sampling.Records(*joined))
        self._save_position(hole.stop)
        self._ledger.append(
          tokens=len(hole) * L,
          flops=len(hole) * self._flops_per_row,
          bytes=self._cache.object_bytes(hole.start),
        )

  def _records(self, rows: Rows, first_row: int) -> sampling.Records:
    """The records of up to batch_rows rows, on the host."""
    B = len(rows.tokens_BL)
    # The last batch is filled up with copies, so that one program serves all.
    padded = Rows(*(_fill_up(field, self._batch_rows) for field in rows))
    keys_B2 = sampling.row_keys(rows_digests(padded), self._cache.manifest.seed)
    on_mesh = sharding.put_rows(
      (batches.from_rows(padded), keys_B2), self._mesh
    )
    with jax.set_mesh(self._mesh):
      records = jax.device_get(self._step(self._read_params(), *on_mesh))
    records = sampling.Records(*(field[:B] for field in records))
    finite_B = np.isfinite(records.entropy_BL).all(axis=-1)
    if not finite_B.all():
      row = first_row + int(np.argmin(finite_B))
      raise ValueError(
        f"cache: the teacher's logits for row {row} are NaN or infinite;"
        " nothing of its object was written. Check the checkpoint and"
        " teacher.dtype."
      )
    return records

  def _cut_short(self, num_rows: int) -> None:
    """The stream ended: cuts the cache to the rows there are, and fills it."""
    _say_fewer(self._name, num_rows, self._cache.manifest.num_rows)
    self._cache = self._cache.resized(num_rows)
    self.fill()

  def _go_to(self, row: int) -> None:
    """Takes a stream to this row, without reading what is before if it can."""
    if self._rows.random_access:
      return
    saved = {}
    if self._position.exists():
      saved = hf_folder.read_json(self._position)
    if saved.get("row") == row:
      self._rows.restore(row, saved["state"])

  def _save_position(self, row: int) -> None:
    if self._rows.random_access:
      return
    value = {"row": row, "state": self._rows.state(row)}
    config_files.write_json(self._position, value)


def _say_fewer(name: str, found: int, wanted: int) -> None:
  progress.say(
    f"{name}: the pipeline ends after {found} rows; the config asks for"
    f" {wanted}. Going on with {found}."
  )


def _fill_up(field: np.ndarray, rows: int) -> np.ndarray:
  missing = rows - len(field)
  return np.concatenate([field, np.repeat(field[-1:], missing, axis=0)])
