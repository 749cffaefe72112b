"""One phase of training: the loop, its checkpoints, and an eye on both.

Letter: B rows of a step.
"""

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
  programs,
  report,
  steps,
  tracer,
)
from analogjax.workdir import ledger

# For rows, once one of several processes is asked to stop: then it cannot save.
_PATIENCE_SECONDS = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowOrder:
  """Where the rows of a phase come from, by step."""

  identity: dict[str, Any]  # Of the data; plain values.
  # The rows that this process feeds of a step's batch, counted from 0.
  read: Callable[[int], batches.Batch]
  position: Callable[[int], dict[str, Any] | None]
  restore: Callable[[dict[str, Any] | None], None]


class Phase:
  """One phase: from its start, or its last checkpoint, to its last step."""

  def __init__(
    self,
    name: str,
    run: Run,
    *,
    order: RowOrder,
    make_teacher: Callable[[], live_teacher.LiveTeacher] | None,
    profile: range | None = None,
  ):
    """Builds what the phase compiles; nothing is read or written.

    Args:
      name: the phase.
      run: with the held-out cache, which the student is evaluated on.
      order: where the rows come from.
      make_teacher: makes the live teacher, if the phase has one.
      profile: steps that are traced for xprof.
    """
    self._name, self._run = name, run
    self._phase = run.config.train.phase[name]
    self._mesh, _ = run.train_meshes
    self._group = processes.group(self._mesh)
    self._order, self._held_out = order, run.cache(caches.HELD_OUT)
    self._make_teacher, self._profile = make_teacher, profile
    self._folder = run.phase_folder(name)
    self._fingerprints = self._make_fingerprints()
    # Tells this training from another one with the same config, for what is
    # made of its checkpoints.
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
    """Trains to the last step, unless that is there already.

    Raises:
      stopping.Stopped: asked to stop; all is saved.
      stopping.Stalled: no batch came for too long, on this process.
      ValueError: what the user can mend.
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
    """What a checkpoint depends on, and a restart has to share."""
    phase = dataclasses.asdict(self._phase)
    # These may change in the middle of a phase.
    for free in (
      "checkpoint_every_steps",
      "keep_checkpoints",
      "keep_best_checkpoints",
      "eval_every_steps",
      "log_every_steps",
    ):
      del phase[free]
    del phase["loss"]["chunk"]
    # Through JSON, as it comes back from a checkpoint.
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
    """From the last checkpoint, else the phase before, else random."""
    found = saved.restore_latest(
      self._training.abstract, self._training.shardings, self._check
    )
    if found is not None:
      step, state, about = found
      self._lineage = about["fingerprints"]["lineage"]
      self._order.restore(about["position"])
      progress.say(f"train {self._name}: going on after step {step}.")
      self._say_other_software(about["software"])
      return step, state
    state = self._training.start()
    if self._phase.init_from:
      # A fresh optimizer: the new phase has a schedule of its own.
      before = self._run.read_phase(self._phase.init_from, self._mesh)
      state = dataclasses.replace(state, params=before.params)
    return 0, state

  def _say_other_software(self, before: Mapping[str, str]) -> None:
    """The same numbers to the bit need the same software."""
    now = identity.software_versions()
    changed = [
      f"{name} {before.get(name)} is now {now.get(name)}"
      for name in sorted({*before, *now})
      if before.get(name) != now.get(name)
    ]
    if changed:
      progress.say(f"train {self._name}: {', '.join(changed)}.")

  def _loop(self, start: int, state: steps.TrainState, saved, spent) -> int:
    """Returns the step it came to: the last one, unless asked to stop."""
    phase, total = self._phase, self._phase.num_steps
    alone = jax.process_count() == 1
    teacher = self._make_teacher and self._make_teacher()

    def make(step):
      batch = self._order.read(step)
      return processes.put_rows(batch, self._mesh, self._group)

    ahead = batches.Prefetch(make, range(start, total))
    stop, failure = False, None
    step, saved_at, done = start, start, None
    with (
      report.Reporter(
        self._name,
        self._run,
        start=start,
        spent=spent,
        teacher=teacher,
      ) as reports,
      contextlib.closing(ahead),
      contextlib.closing(
        tracer.Tracer(self._folder / "profile", self._profile)
      ) as trace,
    ):
      meter = reports.meter
      # A run that was asked to stop left the evaluation of its last step.
      due = start % phase.eval_every_steps == 0
      if due and not reports.was_evaluated(start):
        with meter.during("eval"):
          self._evaluate(start, state, reports)
      reports.spend(start, begins=True)
      while step < total and not stop:
        before, done = done, None
        began = time.monotonic()
        try:
          with meter.during("data"):
            batch = self._next(ahead, step + 1)
        except (ValueError, OSError, stopping.Stalled) as error:
          # Several processes cannot agree in time on where to save.
          if not alone:
            raise
          batch, failure = None, error
        if batch is None:
          stop = True
        else:
          step += 1
          trace.before(step)
          first = step == start + 1
          with meter.during("compile") if first else contextlib.nullcontext():
            hidden = teacher and teacher.hidden(batch)
            state, values = self._train_step(state, batch, hidden)
          busy = 0.0 if first else time.monotonic() - began
          done = reports.dispatched(step, values, batch, busy_seconds=busy)
        # One step late: the device works on this step meanwhile.
        if before is not None:
          stop |= reports.report(before, state)
        stop |= alone and stopping.asked()
        at_end = step == total
        evaluates = at_end or (step % phase.eval_every_steps == 0 and not stop)
        saves = at_end or step % phase.checkpoint_every_steps == 0
        if (evaluates or saves or stop) and done is not None:
          # A restart goes on after this step, so its record must be there; and
          # its time is its own, not that of what follows.
          stop |= reports.report(done, state)
          done = None
        if batch is not None:
          meter.step()
        trace.after(step)
        score = None
        if evaluates:
          with meter.during("eval"):
            score = self._evaluate(step, state, reports)
        if (saves or stop) and step > saved_at:
          self._save(step, state, saved, score, reports)
          saved_at = step
    if failure is None and ahead.hangs:
      failure = stopping.Stalled(
        f"train {self._name}: stopped after step {step}, while rows of a later"
        " one did not come"
      )
    if failure is not None:
      saved.finish()
      raise failure
    return step

  def _next(self, ahead: batches.Prefetch, step: int) -> batches.Batch:
    """The next batch.

    Raises:
      stopping.Stalled: it does not come, and its thread may hang for ever; or
        the process is asked to stop meanwhile.
    """
    limits, began = self._run.config.watch, time.monotonic()
    warn_after, asked_at = limits.stall_seconds, None
    while not ahead.wait(0.5):
      waited = time.monotonic() - began
      if stopping.asked() and asked_at is None:
        asked_at = waited
      # Others may be in the step after this one, so that nobody can save.
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
          " nothing was saved. The same command goes on from the last"
          " checkpoint."
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
    """Held-out losses against the cached teacher; returns the KL, nats."""
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
      # Of the ids that are named and all others as one.
      kl = teacher / weight
      values["kl_lower_bound_nats"] = kl
    elif m.temperature == 1:
      # Unbiased over the sampling; the final measure uses dense logits.
      values["kl_estimate_nats"] = kl
    values["accuracy"] = correct / weight
    if of_gram.rows:
      values["gram"] = float(of_gram.distance / of_gram.rows)
    reports.evaluated(step, values)
    return kl
