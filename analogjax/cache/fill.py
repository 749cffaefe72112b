"""Fills a logit cache: rows from the pipeline, records from the teacher.

Letters: B rows of a teacher step, L positions.
"""

import collections
from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from analogjax.cache import (
  damage as cache_check,
  logit_cache,
  sampling,
  teacher_pass,
  writer as cache_writer,
)
from analogjax.cli import progress
from analogjax.config import loading
from analogjax.data import pipeline
from analogjax.data.rows import Rows
from analogjax.distributed import processes, stopping
from analogjax.models import sizes
from analogjax.workdir import files, ledger, store

_KEPT_POSITIONS = 8


@dataclasses.dataclass(kw_only=True)
class _Job:
  """One object to write."""

  rows: range  # All rows of the object.
  wanted: np.ndarray  # Those to compute; the others are kept.
  kept: Callable[[], logit_cache.Stored] | None = None  # Reads the others.
  read: Rows | None = None  # The wanted rows.
  position: dict[str, Any] | None = None  # State of a stream after them.
  pieces: list[sampling.Records] = dataclasses.field(default_factory=list)


class Filler:
  """Fills the holes of a cache."""

  def __init__(self, workdir, write_ahead, teaching, rows, cache, spent):
    self._rows: pipeline.RowSource = rows
    self._cache: logit_cache.LogitCache = cache
    self._recorder: teacher_pass.Recorder = teaching
    self._write_ahead = write_ahead
    self._board = processes.Board(teaching.mesh, 1)
    self._name = cache.location.name
    self._title = "cache" if self._name == "cache" else f"cache {self._name}"
    self._positions = workdir / f"{self._name}_position.json"
    self._ledger: ledger.Ledger = spent
    L = cache.manifest.sequence_length
    self._flops_per_row = L * sizes.forward_flops_per_token(teaching.cfg, L)
    # Since the last entry in the ledger, by this process.
    self._committed_rows, self._written = 0, store.bytes_written()
    self._failure: Exception | None = None
    self._stop = False  # Whether a process was asked to stop.

  def fill(self) -> None:
    """Writes every object that has uncommitted rows."""
    while True:
      processes.barrier("about to look for holes")
      jobs = self._holes()
      if not jobs:
        progress.say(f"{self._title}: complete.")
        return
      end = self._go_through(jobs)
      if end is not None:
        self._cut_short(end)

  def repair(self) -> None:
    """Computes damaged rows again; keeps the other rows of their objects."""
    processes.barrier("about to look for damage")
    jobs = processes.all_or_none(self._damaged)
    processes.all_or_none(lambda: self._remove_partial(jobs))
    end = self._go_through(jobs)
    assert end is None, "The rows were there before."

  def _damaged(self) -> list[_Job]:
    jobs = []
    for part in self._cache.objects():
      damage = cache_check.damage(self._cache, part)
      if not damage:
        continue
      is_wanted = np.isin(np.array(part), list(damage))
      if not is_wanted.all():
        # A cache that grew has holes beside rows of the same object.
        is_wanted |= ~np.any(self._cache.digests(part), axis=-1)
      wanted, healthy = np.array(part)[is_wanted], np.array(part)[~is_wanted]
      job = _Job(rows=part, wanted=wanted)
      if len(healthy):
        # Read now, because the object may be removed before it is written
        # again.
        stored = self._cache.read_stored(healthy)
        job.kept = lambda stored=stored: stored
      jobs.append(job)
      progress.say(
        f"{self._title}: of rows {part.start} to {part.stop - 1},"
        f" {len(damage)} damaged; computing them again."
      )
    return jobs

  def _remove_partial(self, jobs: Sequence[_Job]) -> None:
    """Removes the last object if it is damaged and not full.

    A write would amend it: the store first reads it, which fails if its index
    is damaged.
    """
    size = self._cache.manifest.rows_per_object
    for job in jobs:
      if jax.process_index() == 0 and len(job.rows) < size:
        self._cache.remove(job.rows)

  def _holes(self) -> list[_Job]:
    """Objects with missing rows."""

    def committed():
      if jax.process_index() == 0:
        return self._cache.committed()
      return np.zeros(len(self._cache), bool)

    done = processes.from_first(processes.all_or_none(committed))
    jobs = []
    for part in self._cache.objects():
      is_there = done[part.start : part.stop]
      if is_there.all():
        continue
      job = _Job(rows=part, wanted=np.array(part)[~is_there])
      if is_there.any():
        there = np.array(part)[is_there]
        job.kept = functools.partial(self._cache.read_stored, there)
      jobs.append(job)
    return jobs

  def _go_through(self, jobs: Sequence[_Job]) -> int | None:
    """Writes the objects; returns the number of rows if the rows end early."""
    if not jobs:
      return None
    self._go_to(jobs[0].rows.start)
    with progress.Activity(f"{self._title}: loading the teacher"):
      self._recorder.load()
    self._failure, self._stop = None, False
    total = len(self._cache)
    done = total - sum(len(job.wanted) for job in jobs)
    with (
      cache_writer.CacheWriter(self._cache, depth=self._write_ahead) as writer,
      progress.Progress(
        self._title, total=total, unit="rows", done=done
      ) as bar,
    ):
      end = self._compute(jobs, writer, bar)
      self._attempt(writer.finish)
      _, failed = self._agree(None)
    if self._failure is not None:
      raise self._failure
    if failed:
      raise processes.FailedElsewhere(failed[0], "cache: ")
    if self._stop:
      raise stopping.Stopped(f"{self._title}: in the middle")
    return end

  def _compute(self, jobs, writer, bar) -> int | None:
    """Computes the objects until the rows end, or it fails or is stopped.

    Every process takes part in every teacher step, with rows of its group's own
    object; a process without rows feeds copies. Computed rows are written even
    after a failure.
    """
    group, B = self._recorder.group, self._recorder.batch_rows
    alone, L = jax.process_count() == 1, self._cache.manifest.sequence_length
    # Dispatched steps whose records are still on the device.
    pending, mine, end = collections.deque(), None, None
    for first in range(0, len(jobs), group.count):
      turn = jobs[first : first + group.count]
      mine = turn[group.index] if group.index < len(turn) else None
      end, failed = self._agree(self._attempt(self._read, mine))
      if end is not None or failed:
        break
      for start in range(0, max(len(job.wanted) for job in turn), B):
        # All processes continue together, or one would wait for another.
        if self._stop or (self._failure is not None and alone):
          break
        part = slice(start, start + B)
        pending.append(self._start(mine, part))
        # The device works on this step while the previous one is stored.
        if len(pending) > 1:
          self._finish(pending.popleft(), writer)
        count = sum(len(job.wanted[part]) for job in turn)
        bar.advance(count, tokens=count * L)
        self._stop |= alone and stopping.asked()
      if self._stop:
        break
    while pending:
      self._finish(pending.popleft(), writer)
    if self._stop and mine is not None:
      self._attempt(self._submit_part, mine, writer)
    return end

  def _finish(self, step, writer) -> None:
    """Takes a teacher step off the device; learns who was asked to stop."""
    *work, shown = step
    self._attempt(self._collect, *work, writer)
    self._stop |= bool(self._board.read(shown).any())

  def _attempt(self, call, *args):
    """Calls; keeps an error until all processes have heard of it."""
    try:
      return call(*args)
    except Exception as error:
      self._failure = self._failure or error
      return None

  def _agree(self, end: int | None) -> tuple[int | None, list[int]]:
    """Exchanges status with all processes, and enters the cost in the ledger.

    `end` is the number of rows, if this process found their end.

    Returns:
      The number of rows if any process found their end; and the processes that
      have failed.
    """
    written = store.bytes_written()
    mine = (
      self._failure is not None,
      -1 if end is None else end,
      self._committed_rows,
      written - self._written,
    )
    self._committed_rows, self._written = 0, written
    failed, ends, rows, written = processes.all_gather(mine).T
    if rows.sum():
      self._ledger.append(
        tokens=int(rows.sum()) * self._cache.manifest.sequence_length,
        flops=int(rows.sum()) * self._flops_per_row,
        teacher_flops=int(rows.sum()) * self._flops_per_row,
        bytes=int(written.sum()),
      )
    ended = [int(end) for end in ends if end >= 0]
    return min(ended, default=None), np.flatnonzero(failed).tolist()

  def _read(self, job: _Job | None) -> int | None:
    """Reads the rows of a job; returns the number of rows if they end."""
    if job is None:
      return None
    wanted = job.wanted
    if not self._rows.random_access:  # Reads forward, all of the object.
      wanted = np.array(job.rows)
    try:
      rows = self._rows.read(wanted)
    except pipeline.EndOfRows as end:
      return end.num_rows
    picked = np.isin(wanted, job.wanted)
    job.read = Rows(*(field[picked] for field in rows))
    if not self._rows.random_access:
      row = job.rows.stop
      job.position = {"row": row, "state": self._rows.state(row)}
    return None

  def _start(self, job: _Job | None, part: slice):
    """Starts a teacher step on a part of a job's rows, or on any rows."""
    if job is not None and job.read is not None and len(job.wanted[part]):
      rows = Rows(*(field[part] for field in job.read))
      count = len(rows.tokens_BL)
    else:
      count, L = 0, self._cache.manifest.sequence_length
      zeros = np.zeros((1, L), np.int32)
      rows = Rows(zeros, zeros, zeros, zeros.astype(np.float32))
    records = self._recorder.record(rows, self._cache.manifest)
    shown = self._board.show([stopping.asked()])
    return job, part, count, records, shown

  def _collect(self, job, part, count, on_device, writer) -> None:
    """Takes records off the device; the last ones of a job start its write."""
    if not count:
      return
    records = processes.fetch_rows(on_device)
    records = jax.tree.map(lambda field: field[:count], records)
    teacher_pass.check_finite(records, job.wanted[part])
    job.pieces.append(records)
    if part.stop >= len(job.wanted) and self._recorder.group.is_leader:
      self._submit(job, writer)

  def _submit_part(self, job: _Job, writer) -> None:
    """Writes the computed rows of an object if they are its next ones."""
    count = sum(len(piece.entropy_BL) for piece in job.pieces)
    left = len(job.wanted)
    is_prefix = left and job.rows.stop - job.wanted[0] == left
    is_leader = self._recorder.group.is_leader
    if not (0 < count < left and is_prefix and is_leader):
      return
    assert job.read is not None
    done = dataclasses.replace(
      job,
      rows=range(job.rows.start, int(job.wanted[count])),
      wanted=job.wanted[:count],
      read=Rows(*(field[:count] for field in job.read)),
      position=None,  # Known only after the whole object.
    )
    self._submit(done, writer)

  def _submit(self, job: _Job, writer) -> None:
    writer.submit(
      job.rows.start,
      lambda: self._assemble(job),
      lambda: self._was_committed(job),
    )

  def _assemble(self, job: _Job) -> logit_cache.Stored:
    """Encodes a whole object; runs in the writer's thread."""
    assert job.read is not None
    records = jax.tree.map(lambda *p: np.concatenate(p), *job.pieces)
    stored = self._cache.encode(job.read, records)
    if job.kept is None:
      return stored
    kept = job.kept()
    is_new = np.isin(np.array(job.rows), job.wanted)
    whole = {}
    for name, new in stored.items():
      whole[name] = np.zeros((len(is_new), *new.shape[1:]), new.dtype)
      whole[name][is_new] = new
      whole[name][~is_new] = kept[name]
    return whole

  def _was_committed(self, job: _Job) -> None:
    self._committed_rows += len(job.wanted)
    if job.position is None or jax.process_index() != 0:
      return
    known = self._read_positions()[-_KEPT_POSITIONS + 1 :]
    loading.write_json(self._positions, {"positions": [*known, job.position]})

  def _cut_short(self, num_rows: int) -> None:
    """The stream ended: cuts the cache to the rows that exist."""
    say_fewer(self._name, num_rows, len(self._cache))

    def cut():
      if jax.process_index() == 0:
        self._cache.resized(num_rows)

    processes.all_or_none(cut)
    self._cache = logit_cache.open_cache(self._cache.location)

  def _go_to(self, row: int) -> None:
    """Restores a stream to the nearest saved position before this row."""
    if self._rows.random_access:
      return
    known = [{"row": 0, "state": self._rows.state(0)}]
    known += [p for p in self._read_positions() if p["row"] <= row]
    best = max(known, key=lambda position: position["row"])
    self._rows.restore(best["row"], best["state"])

  def _read_positions(self) -> list[dict[str, Any]]:
    if not self._positions.exists():
      return []
    return files.read_json(self._positions).get("positions", [])


def say_fewer(name: str, found: int, wanted: int) -> None:
  progress.say(
    f"{name}: the pipeline ends after {found} rows; the config asks for"
    f" {wanted}. Going on with {found}."
  )
