"""train: the student through its phases.

Letters: B rows of a step, L positions.
"""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import functools
import json
import operator
from pathlib import Path
import secrets
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from ml_collections import ConfigDict

from analogjax import (
  assemble,
  checkpoint,
  config,
  ledger,
  live,
  losses,
  metrics,
  objectives,
  optim,
  progress,
  sharding,
  steps,
  throughput,
)
from analogjax.data import batches, cache_format, logit_cache
from analogjax.models import decoder, sizes


def run(cfg: ConfigDict, workdir: Path) -> None:
  """Trains every phase of the config that is not finished yet."""
  sections = config.to_sections(cfg)
  mesh, teacher_mesh = assemble.make_train_meshes(sections)
  teacher = assemble.open_teacher(sections, workdir)
  cache = _open_cache(sections, teacher, workdir)
  held_out = assemble.open_cache(sections, teacher, workdir, assemble.HELD_OUT)
  for name in sections.train.phases:
    phase = sections.train.phase[name]
    field = f"train.{name}.batch_rows"
    rows = phase.batch_rows // phase.microbatches
    if phase.microbatches > 1:
      field += f" / train.{name}.microbatches"
    sharding.check_batch_rows(rows, mesh, field)
    if phase.runs_teacher:
      sharding.check_batch_rows(
        phase.batch_rows, teacher_mesh, f"train.{name}.batch_rows"
      )

  # The weights are read once, and only where a phase is not complete.
  @functools.cache
  def live_teacher():
    return live.LiveTeacher(teacher, teacher_mesh, mesh)

  for name in sections.train.phases:
    phase = sections.train.phase[name]
    order = _row_order(phase, sections, teacher, workdir, cache)
    make_teacher = live_teacher if phase.runs_teacher else None
    _Phase(
      name, sections, teacher, workdir, mesh, order, held_out, make_teacher
    ).run()


def _open_cache(sections, teacher, workdir) -> logit_cache.LogitCache | None:
  """The cache to train on; one that no phase reads need not be there."""
  if sections.reads_cache:
    return assemble.open_cache(sections, teacher, workdir, assemble.CACHE)
  where = assemble.cache_place(sections, workdir, assemble.CACHE)
  if cache_format.read_group(where) is None:
    return None
  cache = logit_cache.open_cache(where)
  assemble.check_cache(sections, teacher, cache)
  return cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class _RowOrder:
  """Where the rows of a phase come from, by step."""

  identity: dict[str, Any]  # Of the data; plain values.
  read: Callable[[int], batches.Batch]
  position: Callable[[int], dict[str, Any] | None]
  restore: Callable[[dict[str, Any] | None], None]


def _row_order(phase, sections, teacher, workdir, cache) -> _RowOrder:
  make = batches.for_live_teacher if phase.runs_teacher else batches.from_rows
  if phase.rows == "pipeline":
    rows = assemble.open_rows(sections, teacher, workdir, held_out=False)
    # One run has one pipeline, whether its rows come through the cache or not;
    # but rows that were imported come from nowhere else.
    if cache is not None and not sections.cache.import_path:
      wanted = dataclasses.replace(
        cache.manifest, pipeline_fingerprint=rows.fingerprint
      )
      cache_format.check(cache.location, cache.manifest, wanted)
    order = batches.PipelineOrder(
      rows, batch_rows=phase.batch_rows, seed=phase.seed
    )
    return _RowOrder(
      identity={
        "pipeline": sections.data.pipeline,
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
    # Every pass over the rows sees a draw of its own, while there are any.
    entries = cache.read(indices, passes % cache.manifest.num_replicas)
    if phase.reads_records:
      return batches.from_entries(entries)
    return make(entries.rows)

  identity = dataclasses.asdict(cache.manifest)
  del identity["software"]  # Recorded only.
  return _RowOrder(
    identity=identity,
    read=read,
    # The order is a function of the step: there is nothing to save.
    position=lambda step: None,
    restore=lambda position: None,
  )


class _Phase:
  """One phase: from its start, or its last checkpoint, to its last step."""

  def __init__(
    self, name, sections, teacher, workdir, mesh, order, held_out, make_teacher
  ):
    self._name: str = name
    self._sections: config.Sections = sections
    self._phase: config.PhaseConfig = sections.train.phase[name]
    self._mesh: Mesh = mesh
    self._order: _RowOrder = order
    self._held_out: logit_cache.LogitCache = held_out
    self._make_teacher: Callable[[], live.LiveTeacher] | None = make_teacher
    self._workdir = workdir
    self._folder = assemble.phase_folder(workdir, name)
    self._cfg = assemble.student_config(sections)
    self._seed = sections.student.seed
    self._L = sections.data.L
    self._tx = optim.make_optimizer(
      self._phase.optimizer, self._phase.num_steps
    )
    self._fingerprints = self._make_fingerprints(sections, teacher)
    # Tells this training from another one with the same config, for what is
    # made of its checkpoints.
    self._lineage = secrets.token_hex(8)
    abstract = jax.eval_shape(self._init)
    self._abstract = abstract
    self._shardings = sharding.state_shardings(abstract, mesh)
    graphdef = decoder.graphdef(self._cfg)
    loss = self._phase.loss
    objective = objectives.make_objective(
      loss, teacher_softcap=teacher.cfg.logit_softcap
    )
    self._train_step = jax.jit(
      functools.partial(
        steps.train_step,
        graphdef=graphdef,
        tx=self._tx,
        objective=objective,
        alpha=objectives.make_alpha(
          loss, self._phase.optimizer, self._phase.num_steps
        ),
        microbatches=self._phase.microbatches,
      ),
      donate_argnums=0,
      out_shardings=(self._shardings, NamedSharding(mesh, P())),
    )
    # On the held-out cache every phase is measured alike.
    measured = losses.Objective(
      temperature=held_out.manifest.temperature, chunk=loss.chunk
    )
    self._eval_step = jax.jit(
      functools.partial(steps.eval_step, graphdef=graphdef, objective=measured),
      out_shardings=NamedSharding(mesh, P()),
    )

  def run(self) -> None:
    num_steps = self._phase.num_steps
    saved = checkpoint.Checkpoints(
      self._folder / "checkpoints", keep=self._phase.keep_checkpoints
    )
    try:
      with jax.set_mesh(self._mesh):
        step, state = self._start(saved)
        if step >= num_steps:
          progress.say(f"train {self._name}: complete, {step} steps.")
          return
        self._loop(step, state, saved)
        saved.finish()
    finally:
      saved.close()

  def _make_fingerprints(self, sections, teacher) -> dict[str, Any]:
    """What a checkpoint depends on, and a restart has to share."""
    phase = dataclasses.asdict(self._phase)
    # These may change in the middle of a phase.
    for free in (
      "checkpoint_every_steps",
      "keep_checkpoints",
      "eval_every_steps",
      "log_every_steps",
    ):
      del phase[free]
    del phase["loss"]["chunk"]
    student = assemble.student_identity(sections)
    # Through JSON, as it comes back from a checkpoint.
    parts = {
      "student": student,
      f"train.{self._name}": phase,
      "data": self._order.identity,
    }
    if self._phase.runs_teacher:
      parts["teacher"] = {"digest": teacher.digest, "dtype": teacher.cfg.dtype}
    return json.loads(json.dumps(parts))

  def _check(self, about: Mapping[str, Any]) -> None:
    found = about["fingerprints"]
    assemble.check_identity(self._folder, found, self._fingerprints)

  def _init(self) -> steps.TrainState:
    params = decoder.init_parameters(self._cfg, self._seed)
    return steps.TrainState(
      step=jax.numpy.zeros((), "int32"),
      params=params,
      opt_state=self._tx.init(params),
    )

  def _start(self, saved) -> tuple[int, steps.TrainState]:
    """From the last checkpoint, else the phase before, else random."""
    found = saved.restore_latest(self._abstract, self._shardings, self._check)
    if found is not None:
      step, state, about = found
      self._lineage = about["fingerprints"]["lineage"]
      self._order.restore(about["position"])
      progress.say(f"train {self._name}: going on after step {step}.")
      return step, state
    state = jax.jit(self._init, out_shardings=self._shardings)()
    if self._phase.init_from:
      # A fresh optimizer: the new phase has a schedule of its own.
      _, params, _ = assemble.read_phase(
        self._sections, self._workdir, self._phase.init_from, self._mesh
      )
      state = state.replace(params=params)
    return 0, state

  def _loop(self, start: int, state: steps.TrainState, saved) -> None:
    phase = self._phase
    tokens = phase.batch_rows * self._L
    flops = tokens * sizes.training_flops_per_token(self._cfg, self._L)
    teacher, teacher_flops, devices = None, 0, self._mesh.size
    if self._make_teacher is not None:
      teacher = self._make_teacher()
      teacher_flops = tokens * teacher.flops_per_token(self._L)
      devices += teacher.num_own_devices
    meter = throughput.Meter(
      tokens_per_step=tokens,
      student_flops=flops,
      teacher_flops=teacher_flops,
      num_devices=devices,
      peak=throughput.peak_flops(jax.devices()[0].device_kind, self._cfg.dtype),
    )
    spent = ledger.Ledger(self._workdir, f"train/{self._name}")
    writer = _on_process_0(metrics.Writer, self._folder, first_step=start)
    unsaved = 0

    def make(step):
      return sharding.put_rows(self._order.read(step), self._mesh)

    def report(step, values):
      values = {k: float(v) for k, v in jax.device_get(values).items()}
      bar.advance(1, tokens=tokens, values={"loss": values["loss_nats"]})
      if step % phase.log_every_steps == 0 and writer is not None:
        writer.write(step, {f"train/{k}": v for k, v in values.items()})
        # A record of its own: no two runs have the same.
        speed = {f"speed/{k}": v for k, v in meter.read().items()}
        writer.write(step, speed)

    title = f"train {self._name}"
    total = phase.num_steps
    with progress.Progress(title, total=total, unit="steps", done=start) as bar:
      if start == 0:
        self._evaluate(0, state, writer)
      pending = None
      ahead = batches.prefetch(make, range(start, total))
      for step in range(start + 1, total + 1):
        with meter.during("data"):
          batch = next(ahead)
        first = step == start + 1
        with meter.during("compile") if first else contextlib.nullcontext():
          hidden = None if teacher is None else teacher.hidden(batch)
          state, values = self._train_step(state, batch, hidden)
        # One step late: the device works on this step meanwhile.
        if pending is not None:
          report(*pending)
        pending = (step, values)
        unsaved += 1
        evaluates = step % phase.eval_every_steps == 0 or step == total
        saves = step % phase.checkpoint_every_steps == 0 or step == total
        if evaluates or saves:
          # A restart goes on after this step, so its record must be there; and
          # its time is its own, not that of what follows.
          report(*pending)
          pending = None
        meter.step()
        if evaluates:
          with meter.during("eval"):
            self._evaluate(step, state, writer)
        if saves:
          about = {
            "fingerprints": {**self._fingerprints, "lineage": self._lineage},
            "position": self._order.position(step),
          }
          with meter.during("checkpoint"):
            saved.save(step, state, about)
          spent.append(
            tokens=unsaved * tokens,
            flops=unsaved * (flops + teacher_flops),
            teacher_flops=unsaved * teacher_flops,
          )
          unsaved = 0
    if writer is not None:
      writer.close()

  def _evaluate(self, step: int, state: steps.TrainState, writer) -> None:
    """Held-out losses against the cached teacher; writes one record."""
    sums, entropy = losses.LossSums(0.0, 0.0, 0.0, 0.0), 0.0
    rows = self._phase.batch_rows
    for batch, entries in batches.in_order(self._held_out, rows):
      on_mesh = sharding.put_rows(batch, self._mesh)
      out = jax.device_get(self._eval_step(state.params, on_mesh))
      sums = losses.LossSums(*map(operator.add, sums, map(float, out)))
      weights_BL = batch.targets.weights_BL
      entropy += float((entries.entropy_BL * weights_BL).sum())
    if writer is not None:
      values = {"held_out/hard_label_nats": sums.hard / sums.weight}
      m = self._held_out.manifest
      if m.temperature == 1 and m.kind == "topk":
        # Of the ids that are named and all others as one.
        kl = sums.teacher / sums.weight
        values["held_out/kl_lower_bound_nats"] = kl
      elif m.temperature == 1:
        # Unbiased over the sampling; the final measure uses dense logits.
        kl = (sums.teacher - entropy) / sums.weight
        values["held_out/kl_estimate_nats"] = kl
      values["held_out/accuracy"] = sums.correct / sums.weight
      writer.write(step, values)


def _on_process_0(make, *args, **kwargs):
  return make(*args, **kwargs) if jax.process_index() == 0 else None
