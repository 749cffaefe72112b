"""Speed of writing and reading the cache on one core, and delays it causes.

Shape letters: R rows, B rows of a batch, L position, M replicas, K slots.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import functools
import multiprocessing
import os
from pathlib import Path
import shutil
import statistics
import time
from typing import Any

from cache_table import Stored, Table, manifest, take, write_cache
from cache_teacher import Draw, Text, draw_all
import grain
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
import numpy as np

from analogjax.cache import (
  batches,
  fill,
  grain_source,
  logit_cache,
  sampling,
  teacher_pass,
  teacher_step,
)
from analogjax.config import schema
from analogjax.data import rows as rows_lib
from analogjax.distributed import sharding
from analogjax.models import decoder
from analogjax.run import caches, identity
from analogjax.run.run import Run
from analogjax.training import objective, optimizer, steps
from analogjax.workdir import ledger, store

WAYS = ("write", "read", "grain", "grain by batch")

_BATCH = 32  # Rows of a read, in random order.
_ROWS = 64  # Rows of a timed cache; a text's rows are repeated up to that.


def throughput(
  table: Table, text: Text, order_V: np.ndarray, folder: Path, repeats: int
) -> None:
  """Fills in the speeds of every line that our store wrote.

  It runs in a separate process that may use one core and has no threads yet.
  """
  rows = rows_lib.Rows(*map(np.asarray, text.rows))
  arguments = (table.stored, rows, order_V, folder, repeats)
  with _one_core():
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
      speeds = pool.apply(time_store, arguments)
  for line in table.lines:
    line.speed = speeds.get(line.name, {})


@contextlib.contextmanager
def _one_core():
  """Restricts this process and those started meanwhile to one core."""
  allowed = os.sched_getaffinity(0)
  os.sched_setaffinity(0, {max(allowed)})
  try:
    yield
  finally:
    os.sched_setaffinity(0, allowed)


def time_store(
  kinds: dict[str, Stored],
  rows: rows_lib.Rows,
  order_V: np.ndarray,
  folder: Path,
  repeats: int,
) -> dict[str, dict[str, float]]:
  """Tokens per second by kind: of the processor's time, and of the clock's.

  Medians over `repeats`; each repeat runs every kind.
  """
  times: dict[str, dict[str, list[float]]] = {name: {} for name in kinds}
  tokens = _ROWS * rows.tokens_BL.shape[1]
  for i in range(repeats + 1):
    for name, kind in kinds.items():
      for what, spent in _time_once(kind, rows, order_V, folder, i).items():
        if i:  # The first round fills caches.
          times[name].setdefault(what, []).append(spent)
  return {
    name: {what: tokens / statistics.median(s) for what, s in by.items()}
    for name, by in times.items()
  }


def _time_once(kind: Stored, rows, order_V, folder: Path, seed: int):
  place = np.arange(_ROWS) % len(rows.tokens_BL)
  many = type(rows)(*(field[place] for field in rows))
  records = take(kind.records, place)
  where = folder / "timed"
  shutil.rmtree(where, ignore_errors=True)
  m = manifest_of(kind, _ROWS)
  cache = logit_cache.create(where, m, lambda: order_V)
  spent: dict[str, float] = {}

  def timed(name, call):
    began, clock = time.process_time(), time.perf_counter()
    call()
    spent[f"{name} cpu"] = time.process_time() - began
    spent[f"{name} clock"] = time.perf_counter() - clock

  def write():
    for part in cache.objects():
      cut = slice(part.start, part.stop)
      piece = type(many)(*(field[cut] for field in many))
      cache.write(part.start, piece, take(records, cut))

  timed("write", write)
  cache = logit_cache.open_cache(where)
  order = np.random.default_rng(seed).permutation(_ROWS)

  def read():
    for start in range(0, _ROWS, _BATCH):
      cache.read(order[start : start + _BATCH])

  timed("read", read)
  source = grain.MapDataset.source(grain_source.CacheSource(cache))
  source = source.shuffle(seed=seed).batch(_BATCH)
  timed("grain", lambda: [source[i] for i in range(len(source))])
  # Grain 0.2 reads a source row by row, whatever the source could do.
  by_batch = grain_source.BatchSource(
    cache, batch_rows=_BATCH, num_batches=_ROWS // _BATCH, seed=seed
  )
  by_batch = grain.MapDataset.source(by_batch)
  timed("grain by batch", lambda: [by_batch[i] for i in range(len(by_batch))])
  shutil.rmtree(where)
  return spent


def manifest_of(kind: Stored, R: int):
  rows = min(_BATCH, R)
  return dataclasses.replace(kind.manifest, num_rows=R, rows_per_object=rows)


def alternate(
  first: Callable[[], Any], second: Callable[[], Any], pairs: int
) -> tuple[float, list[float]]:
  """Median of time(second) / time(first), and all of them; after one of each.

  The two take turns at going first.
  """
  first()
  second()
  ratios = []
  for i in range(pairs):
    spent = {}
    for call in (first, second) if i % 2 else (second, first):
      began = time.perf_counter()
      call()
      spent[call] = time.perf_counter() - began
    ratios.append(spent[second] / spent[first])
    print(f"pair {i + 1}: {ratios[-1]:.4f}", flush=True)
  return statistics.median(ratios), ratios


def training(
  text: Text,
  order_V: np.ndarray,
  sections: schema.Sections,
  folder: Path,
  *,
  pairs: int,
  num_steps: int,
) -> tuple[float, list[float]]:
  """Time with the same batches in memory / time reading from the cache."""
  phase = sections.train.phase["distill"]
  draw = Draw(sampling.Threshold(tau=sections.cache.tau), num_replicas=1)
  records = draw_all(text, {"": draw})[""].records
  L = min(sections.data.L, text.rows.tokens_BL.shape[1])
  rows, records = shorter(text.rows, records, L)
  R = len(rows.tokens_BL)
  shutil.rmtree(folder, ignore_errors=True)
  V = len(order_V)
  m = manifest(draw, R=R, L=L, V=V, rows_per_object=min(_BATCH, R))
  cache = write_cache(folder, m, rows, records, order_V)

  mesh = Run(sections, folder).mesh
  cfg = identity.student_config(sections)
  tx = optimizer.make_optimizer(phase.optimizer, phase.num_steps)

  def init():
    params = decoder.init_parameters(cfg, sections.student.seed)
    return steps.TrainState(
      step=jnp.zeros((), "int32"), params=params, opt_state=tx.init(params)
    )

  shardings = sharding.state_shardings(jax.eval_shape(init), mesh)
  step = jax.jit(
    functools.partial(
      steps.train_step,
      graphdef=decoder.graphdef(cfg),
      tx=tx,
      objective=objective.make_objective(phase.loss),
      alpha=objective.make_alpha(phase.loss, phase.optimizer, phase.num_steps),
    ),
    donate_argnums=0,
    out_shardings=(shardings, NamedSharding(mesh, P())),
  )

  def make(i):
    order = dict(batch_rows=phase.batch_rows, num_rows=R, seed=phase.seed)
    entries = cache.read(batches.row_order(i, **order)[0])
    return sharding.put_rows(batches.from_entries(entries), mesh)

  with jax.set_mesh(mesh):
    state = jax.jit(init, out_shardings=shardings)()
    resident = [make(i) for i in range(num_steps)]

    def go(read):
      """The stage's loop: batches ahead, values one step late."""
      nonlocal state
      pending = None
      for batch in batches.Prefetch(read, range(num_steps)):
        state, values = step(state, batch)
        if pending is not None:
          jax.device_get(pending)
        pending = values
      jax.device_get(pending)

    return alternate(lambda: go(make), lambda: go(resident.__getitem__), pairs)


def shorter(rows: rows_lib.Rows, records: sampling.Records, L: int):
  """The same tokens and records in rows of L; positions are kept."""

  def cut(a, axis):
    shape = *a.shape[:axis], a.shape[axis] // L, L, *a.shape[axis + 1 :]
    a = np.moveaxis(a.reshape(shape), axis, 1)
    return a.reshape(-1, *a.shape[2:])

  of_record = (
    None if a is None else cut(a, 2 if a.ndim == 4 else 1) for a in records
  )
  return (
    type(rows)(*(cut(field, 1) for field in rows)),
    sampling.Records(*of_record),
  )


class _InMemory:
  """Rows that are already read, as a pipeline's row source."""

  fingerprint = "0" * 64
  random_access = True

  def __init__(self, rows: rows_lib.Rows):
    self._rows, self.num_rows = rows, len(rows.tokens_BL)

  def read(self, indices: Sequence[int] | np.ndarray) -> rows_lib.Rows:
    index = np.asarray(indices)
    return rows_lib.Rows(*(field[index] for field in self._rows))


def caching(
  sections: schema.Sections, folder: Path, *, num_rows: int, pairs: int
) -> tuple[float, list[float]]:
  """Time of the teacher's bare forward pass / time of `analogjax cache`.

  The forward pass gives hidden states and logits, a chunk at a time, of which
  the largest is kept. The other side is the stage's own loop: teacher step,
  fetch, encoding, and writing behind it.
  """
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir(parents=True)
  run = Run(sections, folder)
  mesh, teacher = run.mesh, run.teacher
  teaching = teacher_pass.Recorder(sections.cache, mesh, teacher)
  source = run.open_rows(held_out=False)
  rows = _InMemory(source.read(range(num_rows)))
  B = teaching.batch_rows
  order_V = teaching.id_order(rows.read(range(min(B, num_rows))))
  wanted = caches.manifest(
    sections, teacher, rows.fingerprint, num_rows, held_out=False
  )
  bare = jax.jit(
    functools.partial(
      _bare_step,
      graphdef=decoder.graphdef(teacher.cfg),
      chunk=sections.cache.chunk,
    ),
    out_shardings=NamedSharding(mesh, P()),
  )
  count = 0

  def full():
    nonlocal count
    count += 1
    where = store.place(folder / f"cache_{count}")
    spent = ledger.Ledger(folder, "cache")
    cache = logit_cache.create(where, wanted, lambda: order_V)
    ahead = sections.cache.write_ahead
    fill.Filler(folder, ahead, teaching, rows, cache, spent).fill()
    shutil.rmtree(folder / f"cache_{count}")

  def forward():
    found = []
    with jax.set_mesh(mesh):
      for start in range(0, num_rows, B):
        batch = batches.from_rows(rows.read(range(start, start + B)))
        on_mesh = sharding.put_rows(batch, mesh)
        found.append(bare(teaching._params, on_mesh))
      jax.block_until_ready(found)

  return alternate(full, forward, pairs)


def _bare_step(params, batch, *, graphdef, chunk):
  """The largest logit of each batch, from every logit of it."""
  x_BLD, head_VD = teacher_step.hidden(params, batch, graphdef)
  L = x_BLD.shape[1]
  chunk = min(chunk, L)

  def body(most, start):
    x_BSD = jax.lax.dynamic_slice_in_dim(x_BLD, start, chunk, axis=1)
    logits_BSV = teacher_step.logits(x_BSD, head_VD, params, graphdef)
    return jnp.maximum(most, jnp.max(logits_BSV)), None

  return jax.lax.scan(body, -jnp.inf, jnp.arange(0, L, chunk))[0]
