"""train: trains the student through its phases.

Letters: B rows of a step, L positions.
"""

import dataclasses
import functools
from pathlib import Path

from ml_collections import ConfigDict

from analogjax.cache import batches, cache_format, logit_cache
from analogjax.config import schema
from analogjax.distributed import processes
from analogjax.run import caches, meshes
from analogjax.run.run import Run
from analogjax.training import live_teacher as live, loop


def run(
  cfg: ConfigDict, workdir: Path, *, profile: range | None = None
) -> None:
  """Trains every phase of the config that is not finished yet.

  `profile` is the steps of each phase that are traced for xprof.
  """
  run = Run(schema.to_sections(cfg), workdir)
  config, (mesh, teacher_mesh), teacher = (
    run.config,
    run.train_meshes,
    run.teacher,
  )
  cache = processes.all_or_none(lambda: _open_cache(run))
  processes.all_or_none(lambda: run.cache(caches.HELD_OUT))
  for name in config.train.phases:
    meshes.check_phase_rows(config, name, mesh, teacher_mesh)

  # The weights are read once, and only if a phase is not complete.
  @functools.cache
  def live_teacher():
    layers = config.cache.gram_layers
    return live.LiveTeacher(teacher, teacher_mesh, mesh, gram_layers=layers)

  for name in config.train.phases:
    phase = config.train.phase[name]
    processes.stop_if_asked(f"train {name}: before it began")
    loop.Phase(
      name,
      run,
      order=_row_order(phase, run, mesh, cache),
      make_teacher=live_teacher if phase.runs_teacher else None,
      profile=profile,
    ).run()


def _open_cache(run: Run) -> logit_cache.LogitCache | None:
  """Opens the cache to train on; it may be missing if no phase reads it."""
  if run.config.reads_cache:
    return run.cache(caches.CACHE)
  where = run.cache_place(caches.CACHE)
  if cache_format.read_group(where) is None:
    return None
  cache = logit_cache.open_cache(where)
  run.check_cache(cache)
  return cache


def _row_order(phase, run: Run, mesh, cache) -> loop.RowOrder:
  config = run.config
  mine = processes.group(mesh).indices_of(phase.batch_rows)

  def make(rows):
    if not phase.runs_teacher:
      return batches.from_rows(rows)
    batch = batches.for_live_teacher(rows)
    if not phase.loss.gram_weight:
      return batch
    drawn = config.cache.gram_positions, config.cache.seed
    return batches.with_positions(batch, rows, *drawn)

  if phase.rows == "pipeline":
    rows = run.open_rows(held_out=False)
    # One run has one pipeline, whether its rows come through the cache or not;
    # but imported rows come from nowhere else.
    if cache is not None and not config.cache.import_path:
      wanted = dataclasses.replace(
        cache.manifest, pipeline_fingerprint=rows.fingerprint
      )
      cache_format.check(cache.location, cache.manifest, wanted)
    order = batches.PipelineOrder(
      rows, batch_rows=phase.batch_rows, seed=phase.seed, mine=mine
    )
    return loop.RowOrder(
      identity={
        "pipeline": config.data.pipeline,
        "pipeline_fingerprint": rows.fingerprint,
      },
      read=lambda step: make(order.read(step)),
      position=order.position,
      restore=order.restore,
    )

  def read(step):
    indices, passes = batches.row_order(
      step,
      batch_rows=phase.batch_rows,
      num_rows=len(cache),
      seed=phase.seed,
    )
    # Every pass over the rows sees its own draw, as long as there are any.
    replicas = passes % cache.manifest.num_replicas
    entries = cache.read(indices[mine], replicas[mine])
    if phase.reads_records:
      batch = batches.from_entries(entries._replace(gram=None))
    else:
      batch = make(entries.rows)
    return batch._replace(gram=entries.gram) if phase.reads_gram else batch

  identity = dataclasses.asdict(cache.manifest)
  del identity["software"]  # Recorded only.
  return loop.RowOrder(
    identity=identity,
    read=read,
    # The order is a function of the step, so nothing has to be saved.
    position=lambda step: None,
    restore=lambda position: None,
  )
