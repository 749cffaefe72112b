"""One process of a benchmark of the training loop; it works on request.

It repeats the loop of `loop.Phase` without evaluation and files: batches read
ahead and put on the mesh, the step, the board, metrics one step late, and the
save.

Shape letters: B rows, L positions, V vocabulary, D width.
"""

import contextlib
import dataclasses
from multiprocessing import connection
from pathlib import Path
import tempfile
import time
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec as P
import students

from analogjax.cache import batches
from analogjax.distributed import cluster, launchers, processes, sharding
from analogjax.models import decoder
from analogjax.training import losses, steps
from analogjax.workdir import checkpoints

KEPT = 2  # Checkpoints, as in the demo.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Student:
  """A student of the demo's form, and the batch it is trained on."""

  V: int
  D: int
  layers: int
  rows: int
  length: int
  chunk: int

  def config(self) -> decoder.DecoderConfig:
    return decoder.DecoderConfig(
      **dict(V=self.V, D=self.D, Y=self.layers, N=4, G=2, H=self.D // 4),
      **dict(F=3 * self.D, max_positions=self.length, rope_theta=1e4),
      **dict(rms_norm_eps=1e-5, tie_embeddings=True),
      **dict(attention_bias=False, mlp_bias=False),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
  """The number of this process, and its devices."""

  student: Student
  num_devices: int  # Of this process.
  axis: str = "fsdp"  # Of the mesh, over all devices.
  num_processes: int = 1
  process: int = 0
  port: int = 0  # Where process 0 listens, if there are several.
  folder: Path | None = None  # For checkpoints, if it saves any.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
  """Steps to take now."""

  steps: int
  with_board: bool = True
  with_save: bool = False  # After the first step.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spent:
  """Duration of a turn, in seconds."""

  seconds: float  # From the first step to the end of all that it began.
  held: float  # Of these, in which a save let no step begin.
  waited: float  # After the last step, for the save to be done.
  loss: float  # Of the last step, nats.


def work(link: connection.Connection, place: Place) -> None:
  """Reports the size of the state in bytes, then takes turns until None comes.

  `link` sends turns and receives times.
  """
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", place.num_devices)
  if place.num_processes > 1:
    cluster.connect(
      launchers.Cluster(
        how="the benchmark",
        coordinator=f"localhost:{place.port}",
        num_processes=place.num_processes,
        process_id=place.process,
      )
    )
  mesh = sharding.make_mesh({place.axis: -1})
  with contextlib.ExitStack() as stack:
    stack.enter_context(jax.set_mesh(mesh))
    saved = None
    if place.folder is not None:
      folder = tempfile.TemporaryDirectory(dir=place.folder)
      where = Path(stack.enter_context(folder))
      saved = checkpoints.Checkpoints(where / "checkpoints", keep=KEPT)
      stack.callback(saved.close)
    loop = Loop(place.student, mesh, saved)
    link.send(loop.state_bytes)
    while (turn := link.recv()) is not None:
      link.send(loop.take(turn))


class Loop:
  """Training that continues from turn to turn."""

  def __init__(self, student: Student, mesh, saved):
    """Makes the state.

    Args:
      student: to train.
      mesh: over all devices.
      saved: `checkpoint.Checkpoints`, if there are saves.
    """
    self._mesh, self._saved = mesh, saved
    self._training = students.training(
      cfg=student.config(),
      mesh=mesh,
      objective=losses.Objective(chunk=student.chunk),
    )
    self._group = processes.group(mesh)
    mine_B = self._group.indices_of(student.rows)
    whole = students.make_batch(
      "threshold", student.rows, student.length, student.V
    )
    self._batch = jax.tree.map(lambda x: x[mine_B], whole)
    self._board = processes.Board(mesh, 2)
    self._all_finite = jax.jit(
      steps.all_finite, out_shardings=NamedSharding(mesh, P())
    )
    self._state, self._step = self._training.start(), 0
    self.state_bytes = sum(x.nbytes for x in jax.tree.leaves(self._state))

  def take(self, turn: Turn) -> Spent:
    held = waited = loss = 0.0
    before = None
    ahead = batches.Prefetch(self._put, range(turn.steps))
    with contextlib.closing(ahead):
      began = time.perf_counter()
      for i, batch in enumerate(ahead):
        self._state, values = self._training.step(self._state, batch, None)
        self._step += 1
        shown = self._board.show((0.0, 0.1)) if turn.with_board else None
        if before is not None:
          loss = self._read(*before)
        before = values, shown
        if turn.with_save and i == 0:
          # As in the trainer: a save waits for the record of its step.
          loss, before = self._read(*before), None
          held = self._save()
      if before is not None:
        loss = self._read(*before)
      since = time.perf_counter()
      if turn.with_save:
        self._saved.finish()
        waited = time.perf_counter() - since
      seconds = time.perf_counter() - began
    return Spent(seconds=seconds, held=held, waited=waited, loss=loss)

  def _put(self, _: int) -> batches.Batch:
    return processes.put_rows(self._batch, self._mesh, self._group)

  def _read(self, values: dict[str, jax.Array], shown: Any) -> float:
    values = {k: float(v) for k, v in jax.device_get(values).items()}
    if shown is not None:
      self._board.read(shown)
    return values["loss_nats"]

  def _save(self) -> float:
    began = time.perf_counter()
    assert bool(self._all_finite(self._state.params))
    self._saved.save(self._step, self._state, {"position": None})
    return time.perf_counter() - began
