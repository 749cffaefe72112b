"""Every program that a config runs, compiled for machines that may not exist.

  make_programs(sections, teacher, topology) -> list[facts.Program]

What is compiled is what the stages run (jitted.py), from shapes alone: no
weight is read or allocated, of a teacher its config is enough. For TPUs libtpu
compiles, without one of them; for CPUs jax does. Programs that differ in
constants alone are compiled once, several at a time, and kept.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import json
from pathlib import Path
import pickle
import subprocess
import sys
import tempfile
import time

from analogjax.config import schema
from analogjax.models import decoder
from analogjax.planning import devices, facts, kept, shapes, topologies, worker

# Until a result is looked for again, seconds.
_POLL = 0.1
_ENVIRONMENT = (
  "JAX_PLATFORMS=cpu",
  # libtpu would look for a TPU's own machine, and wait for it.
  "TPU_SKIP_MDS_QUERY=1",
  # Several may compile at the same time: none of them drives a TPU.
  "ALLOW_MULTIPLE_LIBTPU_LOAD=1",
)


def make_programs(
  sections: schema.Sections,
  teacher: decoder.DecoderConfig,
  topology: topologies.Topology,
  *,
  folder: Path | None = None,
  processes: int = 2,
  say: Callable[[str], None] = lambda text: None,
) -> list[facts.Program]:
  """The cache step and every phase, in the order in which they run.

  A phase with a live teacher has a program of the teacher before it, a phase
  whose step is in parts one of its evaluation after it.

  Args:
    sections: the config.
    teacher: its shape; dtype and attention are the config's.
    topology: for which they are compiled.
    folder: where compiled ones are kept; None: nowhere.
    processes: that compile at the same time.
    say: hears of each program that is compiled.

  Raises:
    ValueError: no such topology; a mesh that does not match it; a dimension or
      rows that the mesh does not divide; libtpu is not there.
  """
  teacher = dataclasses.replace(
    teacher, dtype=sections.teacher.dtype, attention=sections.teacher.attention
  )
  compiler = devices.find_libtpu() if topology.chip.is_tpu else ""
  machine = {
    "chip": topology.chip.name,
    "shape": list(topology.shape),
    "slices": topology.num_slices,
  }
  wanted = shapes.requests(sections)
  names = [
    kept.key(
      {"program": shapes.identity(one, sections, teacher), **machine},
      compiler,
    )
    for one in wanted
  ]
  done: dict[str, facts.Program] = {}
  jobs: dict[str, worker.Job] = {}
  for name, request in zip(names, wanted, strict=True):
    if name in done or name in jobs:
      continue
    found = kept.read(folder, name)
    if found is not None:
      done[name] = found
      continue
    jobs[name] = worker.Job(
      request=request, sections=sections, teacher=teacher, topology=topology
    )
  for name, program in _run(jobs, topology, processes):
    done[name] = program
    kept.write(folder, name, program)
    say(f"{program.stage}: {program.compile_seconds:.0f} s")
  return [
    dataclasses.replace(done[name], stage=request.stage)
    for name, request in zip(names, wanted, strict=True)
  ]


def _run(
  jobs: dict[str, worker.Job], topology: topologies.Topology, processes: int
) -> Iterator[tuple[str, facts.Program]]:
  if devices.is_gpu(topology) or devices.are_here(topology):
    for name, job in jobs.items():
      yield name, worker.run(job)
    return
  yield from _in_processes(jobs, processes)


def _in_processes(
  jobs: dict[str, worker.Job], processes: int
) -> Iterator[tuple[str, facts.Program]]:
  # Training takes longest to compile, so it begins first.
  order = sorted(jobs, key=lambda name: jobs[name].request.kind != "train")
  waiting = collections.deque(order)
  running: dict[str, _Process] = {}
  with (
    tempfile.TemporaryDirectory(prefix="analogjax-plan-") as folder,
    contextlib.ExitStack() as stack,
  ):
    while waiting or running:
      while waiting and len(running) < processes:
        name = waiting.popleft()
        running[name] = _Process(Path(folder, name), jobs[name])
        stack.callback(running[name].stop)
      ended = [name for name, one in running.items() if one.has_ended()]
      if not ended:
        time.sleep(_POLL)
      for name in ended:
        yield name, running.pop(name).result()


class _Process:
  """A worker at work."""

  def __init__(self, folder: Path, job: worker.Job):
    folder.mkdir()
    self._result, self._log = folder / "result.json", folder / "log"
    self._stage = job.request.stage
    path = folder / "job"
    path.write_bytes(pickle.dumps(job))
    # `env`, as only main and the stages know our own environment.
    command: Sequence[str | Path] = (
      *("env", *_ENVIRONMENT, sys.executable, "-m", worker.__name__),
      *(path, self._result),
    )
    with self._log.open("wb") as log:
      self._process = subprocess.Popen(command, stdout=log, stderr=log)

  def has_ended(self) -> bool:
    return self._process.poll() is not None

  def stop(self) -> None:
    if self._process.poll() is None:
      self._process.kill()
    self._process.wait()

  def result(self) -> facts.Program:
    if self._process.returncode or not self._result.exists():
      log = self._log.read_text(encoding="utf-8", errors="replace")
      raise RuntimeError(
        f"{self._stage}: the process that compiles it ended with code"
        f" {self._process.returncode}:\n{log[-4000:]}"
      )
    value = json.loads(self._result.read_text(encoding="utf-8"))
    if "error" in value:
      raise ValueError(value["error"])
    return kept.from_json(value["program"])
