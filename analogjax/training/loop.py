"""One phase of training: the loop, its evaluations and its checkpoints."""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import json
import operator
import secrets
import time
from typing import Any

import jax

from analogjax.cache import batches, gram
from analogjax.cli import progress
from analogjax.distributed import processes, stopping
from analogjax.run import caches, identity
from analogjax.run.run import Run
from analogjax.training import (
  live_teacher,
  losses,
  optimizer,
  programs,
  report,
  steps,
  tracer,
)
from analogjax.workdir import ledger

# Raised in one of several processes that is asked to stop while it waits for
# rows.
_PATIENCE_SECONDS = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowOrder:
  """Supplies the rows of a phase, by step.

  Attributes:
    identity: JSON values that identify the data.
    read: step, counted from 0 -> the rows of its batch that this process feeds.
    position: step -> the state of a stream after it, to be saved; or None.
    restore: takes the result of `position`.
  """

  identity: dict[str, Any]
  read: Callable[[int], batches.Batch]
  position: Callable[[int], dict[str, Any] | None]
  restore: Callable[[dict[str, Any] | None], None]


class Phase:
  """Trains one phase from its last checkpoint, or its start, to its end."""

  def __init__(
    self,
    name: str,
    run: Run,
    *,
    order: RowOrder,
    make_teacher: Callable[[], live_teacher.LiveTeacher] | None,
    profile: range | None = None,
  ):
    """Prepares the programs of the phase; reads and writes nothing.

    Args:
      run: with the held-out cache, for evaluation of the student.
      profile: steps that are traced for xprof.
    """
    self._name, self._run = name, run
    self._phase = run.config.train.phase[name]
    self._mesh, _ = run.train_meshes
    self._group = processes.group(self._mesh)
    self._order, self._held_out = order, run.cache(caches.HELD_OUT)
    self._make_teacher, self._profile = make_teacher, profile
    self._failure: Exception | None = None  # Raised after the last save.
    self._folder = run.phase_folder(name)
    self._fingerprints = self._make_fingerprints()
    # Distinguishes this training from another one with the same config.
    self._lineage = secrets.token_hex(8)
    self._compile_steps()

  def _compile_steps(self) -> None:
    run = self._run
    self._training = programs.make_training(
      self._phase,
      run.student,
      self._mesh,
      seed=run.config.student.seed,
      teacher_softcap=run.teacher.cfg.logit_softcap,
    )
    self._train_step = self._training.step
    self._eval_step = programs.make_eval_step(
      run.student,
      self._mesh,
      temperature=self._held_out.manifest.temperature,
      chunk=self._phase.loss.chunk,
    )

  def run(self) -> None:
    """Trains to the last step, unless a checkpoint has it.

    Raises:
      stopping.Stopped: asked to stop; everything is saved.
      stopping.Stalled: no batch came for too long on this process.
      ValueError: an error of the user.
    """
    num_steps = self._phase.num_steps
    spent = ledger.Ledger(self._run.workdir, f"train/{self._name}")
    saved = self._run.open_checkpoints(self._name, writes=True)
    try:
      with jax.set_mesh(self._mesh):
        step, state = self._start(saved)
        if step >= num_steps:
          progress.say(f"train {self._name}: complete, {step} steps.")
          return
        step = self._loop(step, state, saved, spent)
        saved.finish()
      if step < num_steps:
        raise stopping.Stopped(f"train {self._name}: after step {step}")
    finally:
      saved.close()

  def _make_fingerprints(self) -> dict[str, Any]:
    """Values that a checkpoint depends on and that a restart must share."""
    phase = dataclasses.asdict(self._phase)
    # These may change between two runs of a phase.
    for free in (
      "checkpoint_every_steps",
      "keep_checkpoints",
      "keep_best_checkpoints",
      "eval_every_steps",
      "log_every_steps",
    ):
      del phase[free]
    del phase["loss"]["chunk"]
    # Through JSON, because tuples become lists in a checkpoint.
    parts = {
      "student": identity.student_identity(self._run.config),
      f"train.{self._name}": phase,
      "data": self._order.identity,
    }
    if self._phase.runs_teacher:
      teacher = self._run.teacher
      parts["teacher"] = {"digest": teacher.digest, "dtype": teacher.cfg.dtype}
      if self._phase.loss.gram_weight:
        cache = self._run.config.cache
        for field in ("gram_positions", "gram_layers", "seed"):
          parts["teacher"][field] = getattr(cache, field)
    return json.loads(json.dumps(parts))

  def _check(self, about: Mapping[str, Any]) -> None:
    found = about["fingerprints"]
    identity.check_identity(self._folder, found, self._fingerprints)

  def _start(self, saved) -> tuple[int, steps.TrainState]:
    """The last checkpoint, or the phase before, or random parameters."""
    found = saved.restore_latest(
      self._training.abstract, self._training.shardings, self._check
    )
    if found is not None:
      step, state, about = found
      self._lineage = about["fingerprints"]["lineage"]
      self._order.restore(about["position"])
      progress.say(f"train {self._name}: continuing after step {step}.")
      self._say_other_software(about["software"])
      return step, state
    state = self._training.start()
    if self._phase.init_from:
      # With a new optimizer state, because the phase has its own schedule.
      before = self._run.read_phase(self._phase.init_from, self._mesh)
      state = dataclasses.replace(state, params=before.params)
    return 0, state

  def _say_other_software(self, before: Mapping[str, str]) -> None:
    """Reports changed versions: only equal versions give equal bits."""
    now = identity.software_versions()
    changed = [
      f"{name} {before.get(name)} is now {now.get(name)}"
      for name in sorted({*before, *now})
      if before.get(name) != now.get(name)
    ]
    if changed:
      progress.say(f"train {self._name}: {', '.join(changed)}.")

  def _loop(self, start: int, state: steps.TrainState, saved, spent) -> int:
    """Returns the last completed step: the end, unless asked to stop."""
    total = self._phase.num_steps
    alone = jax.process_count() == 1
    teacher = self._make_teacher and self._make_teacher()
    ahead = batches.Prefetch(self._read, range(start, total))
    step, saved_at, done, stop = start, start, None, False
    with (
      report.Reporter(
        self._name,
        self._run,
        start=start,
        updates=optimizer.num_updates(state.opt_state),
        spent=spent,
        teacher=teacher,
      ) as reports,
      contextlib.closing(ahead),
      contextlib.closing(
        tracer.Tracer(self._folder / "profile", self._profile)
      ) as trace,
    ):
      # A run that was asked to stop left the evaluation of its last step.
      if self._evaluates(start) and not reports.was_evaluated(start):
        self._evaluate(start, state, reports)
      reports.spend(start, begins=True)
      while step < total and not stop:
        before, done, began = done, None, time.monotonic()
        batch = self._take(ahead, step + 1, reports)
        if batch is not None:
          step += 1
          trace.before(step)
          with reports.compiling(step):
            hidden = teacher and teacher.hidden(batch)
            state, values = self._train_step(state, batch, hidden)
          done = reports.dispatched(step, values, batch, began=began)
        # One step late: the device works on this step meanwhile.
        if before is not None:
          stop |= reports.report(before, state)
        stop |= batch is None or (alone and stopping.asked())
        at_end = step == total
        evaluates = at_end or (self._evaluates(step) and not stop)
        saves = at_end or step % self._phase.checkpoint_every_steps == 0
        if done is not None and (evaluates or saves or stop):
          # A restart continues after this step, so its record must exist; and
          # its time must not be booked on later steps.
          stop |= reports.report(done, state)
          done = None
        if batch is not None:
          reports.meter.step()
        trace.after(step)
        score = self._evaluate(step, state, reports) if evaluates else None
        if (saves or stop) and step > saved_at:
          self._save(step, state, saved, score, reports)
          saved_at = step
    if self._failure is None and ahead.hangs:
      self._failure = stopping.Stalled(
        f"train {self._name}: stopped after step {step}, while rows of a later"
        " one did not come"
      )
    if self._failure is not None:
      saved.finish()
      raise self._failure
    return step

  def _evaluates(self, step: int) -> bool:
    return step % self._phase.eval_every_steps == 0

  def _read(self, step: int) -> batches.Batch:
    """The batch of a step, counted from 0, on the mesh."""
    return processes.put_rows(self._order.read(step), self._mesh, self._group)

  def _take(self, ahead, step: int, reports) -> batches.Batch | None:
    """The next batch; None if it failed and the steps before can be saved."""
    try:
      with reports.meter.during("data"):
        return self._next(ahead, step)
    except (ValueError, OSError, stopping.Stalled) as error:
      # Several processes cannot agree in time on where to save.
      if jax.process_count() > 1:
        raise
      self._failure = error
      return None

  def _next(self, ahead: batches.Prefetch, step: int) -> batches.Batch:
    """Waits for the next batch.

    Raises:
      stopping.Stalled: it does not come, and its thread may hang forever; or
        the process is asked to stop meanwhile.
    """
    limits, began = self._run.config.watch, time.monotonic()
    warn_after, asked_at = limits.stall_seconds, None
    while not ahead.wait(0.5):
      waited = time.monotonic() - began
      if stopping.asked() and asked_at is None:
        asked_at = waited
      # Others may be in the step after this one, so nobody can save.
      patience = 0 if jax.process_count() == 1 else _PATIENCE_SECONDS
      if asked_at is not None and waited - asked_at >= patience:
        ahead.close(seconds=0)
        raise stopping.Stalled(
          f"train {self._name}: stopped while it waited for the rows of step"
          f" {step}"
        )
      if waited > warn_after:
        progress.warn(
          f"train {self._name}: waiting {waited:.0f} s for the rows of step"
          f" {step}; the pipeline or the store is slow."
        )
        warn_after *= 2
      if 0 < limits.give_up_seconds < waited:
        ahead.close(seconds=0)
        raise stopping.Stalled(
          f"train {self._name}: no rows for step {step} in {waited:.0f} s"
          f" (watch.give_up_seconds={limits.give_up_seconds:g})"
        )
    return next(ahead)

  def _save(self, step, state, saved, score, reports) -> None:
    if not reports.all_finite(state):
      if step == self._phase.num_steps:
        raise ValueError(
          f"train {self._name}: parameters hold NaN after the last step;"
          " nothing was saved. Run the same command again to continue from the"
          " last checkpoint."
        )
      reports.warn(f"step {step}: parameters hold NaN; not saved.")
      return
    about = {
      "fingerprints": {**self._fingerprints, "lineage": self._lineage},
      "position": self._order.position(step),
      "software": identity.software_versions(),
    }
    with reports.meter.during("checkpoint"):
      saved.save(step, state, about, score)
    reports.spend(step)

  def _evaluate(self, step, state, reports) -> float:
    """Measures the held-out losses; returns the KL to the teacher, nats."""
    with reports.meter.during("eval"):
      values, kl = self._held_out_losses(state)
    reports.evaluated(step, values)
    return kl

  def _held_out_losses(self, state) -> tuple[dict[str, float], float]:
    """Losses against the labels and the cached teacher, and the KL, nats."""
    sums, entropy = losses.LossSums(0.0, 0.0, 0.0, 0.0), 0.0
    of_gram = gram.Sums(0.0, 0.0)
    rows = self._phase.batch_rows
    for batch, entries in batches.in_order(self._held_out, rows, self._group):
      on_mesh = processes.put_rows(batch, self._mesh, self._group)
      out = jax.device_get(self._eval_step(state.params, on_mesh))
      sums = losses.LossSums(*map(operator.add, sums, map(float, out.losses)))
      if out.gram is not None:
        of_gram = gram.Sums(*map(operator.add, of_gram, map(float, out.gram)))
      if self._group.is_leader:
        weights_BL = batch.targets.weights_BL
        entropy += float((entries.entropy_BL * weights_BL).sum())
    entropy = processes.total(entropy)
    hard, teacher, correct, weight = map(float, sums)
    values = {"hard_label_nats": hard / weight}
    m = self._held_out.manifest
    kl = (teacher - entropy) / weight
    if m.temperature == 1 and m.kind == "topk":
      # The divergence treats all ids outside the record as one.
      kl = teacher / weight
      values["kl_lower_bound_nats"] = kl
    elif m.temperature == 1:
      # Unbiased over the sampling; `measure` uses dense logits.
      values["kl_estimate_nats"] = kl
    values["accuracy"] = correct / weight
    if of_gram.rows:
      values["gram"] = float(of_gram.distance / of_gram.rows)
    return values, kl
