"""Reports on a phase of training: metrics, log, warnings, ledger.

Letter: B rows of a step.
"""

from collections.abc import Mapping
import contextlib
import functools
import time
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec as P
import numpy as np

from analogjax.cache import batches
from analogjax.cli import progress
from analogjax.data.rows import Rows, rows_digests
from analogjax.distributed import devices, processes, sharding, stopping
from analogjax.models import decoder
from analogjax.run.run import Run
from analogjax.training import live_teacher, meter, optimizer, steps, watch
from analogjax.workdir import ledger, metrics

# Most rows of a skipped step that are named.
_NAMED_ROWS = 4


class Dispatched(NamedTuple):
  """A step that the devices may still be working on."""

  step: int
  values: dict[str, jax.Array]  # Its metrics.
  batch: batches.Batch
  shown: Any  # On the board.


class Reporter:
  """Reads each step one step late; writes metrics, log, warnings and ledger.

  All processes call every method at the same point, and get the same results.
  """

  def __init__(
    self,
    name: str,
    run: Run,
    *,
    start: int,
    updates: int,
    spent: ledger.Ledger,
    teacher: live_teacher.LiveTeacher | None,
  ):
    """Starts the clocks of a loop that begins after step `start`.

    Args:
      start: number of steps done before.
      updates: how many of these changed the parameters.
      spent: the ledger; its clock began with the phase.
    """
    config, (mesh, _) = run.config, run.train_meshes
    self._title, self._folder = f"train {name}", run.phase_folder(name)
    self._phase, self._start = config.train.phase[name], start
    self._teacher, self._spent, self._spent_at = teacher, spent, start
    self._work = meter.step_work(run, name)
    dtype, kind = run.student.dtype, jax.devices()[0].device_kind
    self.meter = meter.Meter(
      work=self._work,
      num_devices=mesh.size + (teacher.num_own_devices if teacher else 0),
      peak=devices.peak_flops(kind, dtype),
    )
    graphdef = decoder.graphdef(run.student)
    self._finite_rows = jax.jit(
      functools.partial(steps.finite_rows_step, graphdef=graphdef),
      out_shardings=NamedSharding(mesh, sharding.ROWS),
    )
    self._all_finite = jax.jit(
      steps.all_finite, out_shardings=NamedSharding(mesh, P())
    )
    self._board = processes.Board(mesh, 2)
    self._loss_watch = watch.LossWatch(config.watch)
    self._host_watch = watch.HostWatch(jax.process_count())
    self._bad_rows: list[tuple[int, list[str]]] = []  # Of the last steps.
    self._good_step = False  # Whether any was finite since the start.
    self._updates = updates
    # As a table: a value computed on the device would wait for its steps.
    num_steps = self._phase.num_steps
    schedule = optimizer.make_schedule(self._phase.optimizer, num_steps)
    rates = np.asarray(schedule(np.arange(num_steps)))
    self._learning_rates = np.broadcast_to(rates, num_steps)
    self._writers: list[metrics.Writer] = []
    if jax.process_index() == 0:
      self._writers = metrics.open_writers(
        self._folder, first_step=start, wandb=config.train.wandb
      )
    later = config.train.phases[config.train.phases.index(name) + 1 :]
    flops = [
      meter.step_work(run, n).flops * config.train.phase[n].num_steps
      for n in later
    ]
    self._bar = progress.Progress(
      self._title,
      total=num_steps,
      unit="steps",
      done=start,
      later=sum(flops) / self._work.flops,
    )

  def __enter__(self) -> "Reporter":
    self._bar.__enter__()
    return self

  def __exit__(self, *error) -> None:
    self._bar.__exit__(*error)
    for writer in self._writers:
      writer.close()

  def compiling(self, step: int) -> contextlib.AbstractContextManager[None]:
    """Books the dispatch of the first step as compilation."""
    if step == self._start + 1:
      return self.meter.during("compile")
    return contextlib.nullcontext()

  def dispatched(
    self,
    step: int,
    values: dict[str, jax.Array],
    batch: batches.Batch,
    *,
    began: float,
  ) -> Dispatched:
    """Takes a step, and shows the other processes the state of this one.

    `began` is time.monotonic() when the host began to wait for its rows.
    """
    compiled = step == self._start + 1
    busy_seconds = 0.0 if compiled else time.monotonic() - began
    shown = self._board.show((stopping.asked(), busy_seconds))
    return Dispatched(step, values, batch, shown)

  def report(self, done: Dispatched, state: steps.TrainState) -> bool:
    """Waits for a step and reports it; returns whether to stop."""
    values = {k: float(v) for k, v in jax.device_get(done.values).items()}
    told = self._board.read(done.shown)
    skipped, loss = bool(values["skipped"]), values["loss_nats"]
    at = min(self._updates, self._phase.num_steps - 1)
    values["learning_rate"] = float(self._learning_rates[at])
    if warning := self._loss_watch.see(loss, skipped):
      self.warn(f"step {done.step}: {warning}.")
    if skipped:
      self._look_into(done, state)
    else:
      self._good_step, self._bad_rows = True, []
      self._updates += 1
    shown = {"loss": loss, "lr": values["learning_rate"]}
    self._bar.advance(1, tokens=self._work.tokens, values=shown)
    self._host_watch.add(told[:, 1])
    if done.step % self._phase.log_every_steps == 0:
      self._log(done.step, values)
    return bool(told[:, 0].any())

  def _log(self, step: int, values: Mapping[str, float]) -> None:
    speed = self.meter.read()
    speed["skipped_steps"] = self._loss_watch.skipped
    speed["loss_spikes"] = self._loss_watch.spikes
    step_seconds = self._work.tokens / max(speed["tokens_per_second"], 1e-9)
    busiest, warnings = self._host_watch.read(step_seconds)
    if busiest is not None:
      speed["host_busy_seconds"] = busiest
    for text in warnings:
      self.warn(f"step {step}: {text}")
    self._write(step, {f"train/{k}": v for k, v in values.items()})
    # A separate record, since it differs from run to run.
    self._write(step, {f"speed/{k}": v for k, v in speed.items()})
    self.spend(step)

  def evaluated(self, step: int, values: Mapping[str, float]) -> None:
    """Writes an evaluation to the metrics and to the log."""
    self._write(step, {f"held_out/{k}": v for k, v in values.items()})
    listed = ", ".join(f"{name} {v:.4f}" for name, v in values.items())
    progress.log(f"{self._title}: step {step}, held out: {listed}")

  def was_evaluated(self, step: int) -> bool:
    """Whether the metrics have an evaluation of this step."""

    def look():
      records = metrics.read(self._folder)
      return any("held_out/accuracy" in r for r in records if r["step"] == step)

    return bool(processes.first_decides(look))

  def _write(self, step: int, values: Mapping[str, float]) -> None:
    for writer in self._writers:
      writer.write_scalars(step, values)

  def all_finite(self, state: steps.TrainState) -> bool:
    """Whether the parameters hold no NaN and no infinity."""
    return bool(self._all_finite(state.params))

  def warn(self, text: str) -> None:
    """Warns once about something that all processes see alike."""
    if jax.process_index() == 0:
      progress.warn(f"{self._title}: {text}")

  def spend(self, step: int, *, begins: bool = False) -> None:
    """Enters in the ledger what was spent since the last entry.

    Args:
      step: number of completed steps.
      begins: whether the loop begins after this step.
    """
    if begins:
      self.meter.begin()
    new, self._spent_at = step - self._spent_at, step
    self._spent.append(
      tokens=new * self._work.tokens,
      flops=new * self._work.flops,
      teacher_flops=new * self._work.teacher_flops,
      step=step,
      activities=self.meter.spent(),
      begins=begins,
    )

  def _look_into(self, done: Dispatched, state: steps.TrainState) -> None:
    """Names the rows of a step that was skipped; stops after too many."""
    hidden = self._teacher and self._teacher.hidden(done.batch)
    x_BLW = hidden and hidden.x_BLW
    finite_B = self._finite_rows(state.params, done.batch, x_BLW)
    batch = done.batch
    finite_B, tokens, segments, positions = processes.fetch_rows(
      (finite_B, batch.tokens_BL, batch.segments_BL, batch.positions_BL)
    )
    weights = np.zeros(tokens.shape, np.float32)  # Not part of a digest.
    digests = rows_digests(Rows(tokens, segments, positions, weights))
    bad = [digest.tobytes() for digest in digests[~finite_B]]
    names = [digest.hex() for digest in processes.some_of(bad, _NAMED_ROWS)]
    which = ", ".join(names) if names else "all rows by themselves are finite"
    self.warn(f"step {done.step}: rows: {which}.")
    self._bad_rows.append((done.step, names))
    if self._loss_watch.gives_up:
      self._give_up(state)

  def _give_up(self, state: steps.TrainState) -> None:
    count = self._loss_watch.skipped_in_a_row
    where = f"{self._title}: {count} steps in a row were not finite"
    if self._good_step and not self.all_finite(state):
      # Updates were finite when they were made, so the memory is at fault.
      raise stopping.Stopped(
        f"{where}, and parameters hold NaN that no update brought: memory may"
        " be at fault. Nothing of it was saved"
      )
    rows = "; ".join(
      f"step {step}: {', '.join(names) or 'none by itself'}"
      for step, names in self._bad_rows
    )
    raise ValueError(
      f"{where} (watch.skipped_steps={count}). Digests of rows that are not"
      f" finite: {rows}. Look at these rows, lower the learning rate"
      f" ({self._title.replace(' ', '.')}.optimizer), or begin from an older"
      f" checkpoint by moving newer ones out of {self._folder / 'checkpoints'}."
    )
