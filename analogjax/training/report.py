"""What a phase of training says about itself, step by step.

Letter: B rows of a step.
"""

from collections.abc import Mapping
import functools
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec as P
import numpy as np

from analogjax.cache import batches
from analogjax.cli import progress
from analogjax.data.rows import Rows, rows_digests
from analogjax.distributed import devices, processes, sharding, stopping
from analogjax.models import decoder, sizes
from analogjax.run.run import Run
from analogjax.training import live_teacher, meter, steps, watch
from analogjax.workdir import ledger, metrics

# How many rows of a step that was skipped are named.
_NAMED_ROWS = 4
# Steps over which a host has to be slow to be called so.
_BUSY_STEPS = 10


class Dispatched(NamedTuple):
  """A step that the devices may still be working on."""

  step: int
  values: dict[str, jax.Array]  # Its metrics.
  batch: batches.Batch
  shown: Any  # Of the board.


class Reporter:
  """Reads each step one step late: metrics, warnings, the ledger.

  All processes call every method at the same point, and find the same.
  """

  def __init__(
    self,
    name: str,
    run: Run,
    *,
    start: int,
    spent: ledger.Ledger,
    teacher: live_teacher.LiveTeacher | None,
  ):
    """Starts the clocks of a loop that goes on after step `start`.

    Args:
      name: the phase.
      run: of the phase.
      start: updates done before.
      spent: its clock began with the phase.
      teacher: the live teacher, if there is one.
    """
    config, cfg, (mesh, _) = run.config, run.student, run.train_meshes
    self._title, self._folder = f"train {name}", run.phase_folder(name)
    self._phase = config.train.phase[name]
    self._teacher, self._spent = teacher, spent
    L = config.data.L
    self._tokens = self._phase.batch_rows * L
    self._flops = self._tokens * sizes.training_flops_per_token(cfg, L)
    self._teacher_flops, num_devices = 0, mesh.size
    if teacher is not None:
      self._teacher_flops = self._tokens * teacher.flops_per_token(L)
      num_devices += teacher.num_own_devices
    self.meter = meter.Meter(
      tokens_per_step=self._tokens,
      student_flops=self._flops,
      teacher_flops=self._teacher_flops,
      num_devices=num_devices,
      peak=devices.peak_flops(jax.devices()[0].device_kind, cfg.dtype),
    )
    self._finite_rows = jax.jit(
      functools.partial(steps.finite_rows_step, graphdef=decoder.graphdef(cfg)),
      out_shardings=NamedSharding(mesh, sharding.ROWS),
    )
    self._all_finite = jax.jit(
      steps.all_finite, out_shardings=NamedSharding(mesh, P())
    )
    self._board = processes.Board(mesh, 2)
    self._loss_watch = watch.LossWatch(config.watch)
    self._bad_rows: list[tuple[int, list[str]]] = []  # Of the last steps.
    self._good_step = False  # Whether any was finite since the start.
    self._spent_at = start
    self._busy_P, self._busy_steps = np.zeros(jax.process_count()), 0
    self._slow: list[int] = []
    self._writer = None
    if jax.process_index() == 0:
      self._writer = metrics.Writer(self._folder, first_step=start)
    self._bar = progress.Progress(
      self._title, total=self._phase.num_steps, unit="steps", done=start
    )

  def __enter__(self) -> "Reporter":
    self._bar.__enter__()
    return self

  def __exit__(self, *error) -> None:
    self._bar.__exit__(*error)
    if self._writer is not None:
      self._writer.close()

  def dispatched(
    self,
    step: int,
    values: dict[str, jax.Array],
    batch: batches.Batch,
    *,
    busy_seconds: float,
  ) -> Dispatched:
    """Takes note of a step, and shows the other processes how this one is.

    Args:
      step: that was dispatched.
      values: its metrics.
      batch: of it.
      busy_seconds: that this host took to have it dispatched, waiting for data
        included; 0 if it compiled.
    """
    shown = self._board.show((stopping.asked(), busy_seconds))
    return Dispatched(step, values, batch, shown)

  def report(self, done: Dispatched, state: steps.TrainState) -> bool:
    """Waits for a step, looks at it; returns whether to stop."""
    values = {k: float(v) for k, v in jax.device_get(done.values).items()}
    told = self._board.read(done.shown)
    skipped, loss = bool(values["skipped"]), values["loss_nats"]
    if warning := self._loss_watch.see(loss, skipped):
      self.warn(f"step {done.step}: {warning}.")
    if skipped:
      self._look_into(done, state)
    else:
      self._good_step, self._bad_rows = True, []
    self._bar.advance(1, tokens=self._tokens, values={"loss": loss})
    self._busy_P += told[:, 1]
    self._busy_steps += 1
    if done.step % self._phase.log_every_steps == 0:
      self._log(done.step, values)
    return bool(told[:, 0].any())

  def _log(self, step: int, values: Mapping[str, float]) -> None:
    speed = self.meter.read()
    speed["skipped_steps"] = self._loss_watch.skipped
    speed["loss_spikes"] = self._loss_watch.spikes
    self._look_for_slow_hosts(step, speed)
    self._write(step, {f"train/{k}": v for k, v in values.items()})
    # A record of its own: no two runs have the same.
    self._write(step, {f"speed/{k}": v for k, v in speed.items()})
    self.spend(step)

  def _look_for_slow_hosts(self, step: int, speed: dict[str, float]) -> None:
    if self._busy_steps < _BUSY_STEPS:
      return
    busy_P = self._busy_P / self._busy_steps
    speed["host_busy_seconds"] = float(busy_P.max())
    step_seconds = self._tokens / max(speed["tokens_per_second"], 1e-9)
    slow = watch.slow_hosts(busy_P.tolist(), step_seconds)
    for process in set(slow) - set(self._slow):
      self.warn(
        f"step {step}: all wait for process {process}: its host takes"
        f" {busy_P[process]:.2f} s of {step_seconds:.2f} s a step before it"
        " can begin; its rows come slowly, or other work runs there."
      )
    self._slow = slow
    self._busy_P, self._busy_steps = np.zeros_like(self._busy_P), 0

  def evaluated(self, step: int, values: Mapping[str, float]) -> None:
    """Adds the record of an evaluation to the metrics."""
    self._write(step, {f"held_out/{k}": v for k, v in values.items()})

  def was_evaluated(self, step: int) -> bool:
    """Whether the metrics have an evaluation of this step."""

    def look():
      records = metrics.read(self._folder)
      return any("held_out/accuracy" in r for r in records if r["step"] == step)

    return bool(processes.first_decides(look))

  def _write(self, step: int, values: Mapping[str, float]) -> None:
    if self._writer is not None:
      self._writer.write(step, values)

  def all_finite(self, state: steps.TrainState) -> bool:
    """Whether the parameters hold no NaN and no infinity."""
    return bool(self._all_finite(state.params))

  def warn(self, text: str) -> None:
    """One line about what all processes see alike."""
    if jax.process_index() == 0:
      progress.warn(f"{self._title}: {text}")

  def spend(self, step: int, *, begins: bool = False) -> None:
    """Enters what was spent since the last time in the ledger.

    Args:
      step: updates done by now.
      begins: the loop begins, after this step.
    """
    if begins:
      self.meter.begin()
    new = step - self._spent_at
    self._spent_at = step
    self._spent.append(
      tokens=new * self._tokens,
      flops=new * (self._flops + self._teacher_flops),
      teacher_flops=new * self._teacher_flops,
      step=step,
      activities=self.meter.spent(),
      begins=begins,
    )

  def _look_into(self, done: Dispatched, state: steps.TrainState) -> None:
    """Names the rows of a step that was skipped; stops after too many."""
    hidden = self._teacher and self._teacher.hidden(done.batch)
    x_BLW = hidden and hidden.x_BLW
    finite_B = self._finite_rows(state.params, done.batch, x_BLW)
    inputs = (
      done.batch.tokens_BL,
      done.batch.segments_BL,
      done.batch.positions_BL,
    )
    finite_B, *inputs = processes.fetch_rows((finite_B, *inputs))
    tokens, segments, positions = inputs
    weights = np.zeros(tokens.shape, np.float32)  # No part of a digest.
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
      # Updates were finite when they were made: the memory was not.
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
