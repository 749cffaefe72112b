"""Compiles every program of a config, for machines that need not exist.

The programs are those that the stages run, made from shapes alone: no weight is
read or allocated. libtpu compiles for TPUs without one, jax for CPUs. Programs
that differ only in constants are compiled once, several programs at a time, and
the results are kept on disk.

A process has one set of simulated CPUs and one libtpu, which reads its
environment when it is loaded. So programs for absent devices are compiled in
separate processes: python -m MODULE JOB RESULT.
"""

from collections.abc import Callable, Iterator
from concurrent import futures
import dataclasses
import hashlib
import importlib.metadata
import json
from pathlib import Path
import pickle
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

import jax

import analogjax
from analogjax.config import loading, schema
from analogjax.distributed.devices import CPU
from analogjax.models import decoder
from analogjax.planning import compiled, program_cost, programs
from analogjax.planning.program_cost import ProgramCost
from analogjax.planning.topologies import Topology

FORMAT_VERSION = 1

# A program depends on them; XLA comes with jaxlib.
_SOFTWARE = ("jax", "jaxlib", "flax", "optax", "numpy")
_ENVIRONMENT = (
  "JAX_PLATFORMS=cpu",
  # libtpu would look for a TPU's own machine, and wait for it.
  "TPU_SKIP_MDS_QUERY=1",
  # Several may compile at the same time: none of them drives a TPU.
  "ALLOW_MULTIPLE_LIBTPU_LOAD=1",
)


class Job(NamedTuple):
  """One program to compile; pickled for another process as a plain tuple."""

  request: programs.Request
  sections: schema.Sections
  teacher: decoder.DecoderConfig
  topology: Topology


def make_programs(
  sections: schema.Sections,
  teacher: decoder.DecoderConfig,
  topology: Topology,
  *,
  folder: Path | None = None,
  processes: int = 2,
  say: Callable[[str], None] = lambda text: None,
) -> list[ProgramCost]:
  """The costs of all programs of a run; see `programs.requests`.

  Args:
    folder: where results are kept; None: nowhere.
    say: called with a line for each program that is compiled.

  Raises:
    ValueError: the topology does not exist or the mesh does not match it; the
      mesh does not divide a dimension or the rows; libtpu is not installed.
  """
  assert not topology.is_gpu, topology.name  # Only if there is one.
  teacher = dataclasses.replace(
    teacher, dtype=sections.teacher.dtype, attention=sections.teacher.attention
  )
  compiler = compiled.find_libtpu() if topology.chip.is_tpu else ""
  machine = {
    "chip": topology.chip.name,
    "shape": list(topology.shape),
    "slices": topology.num_slices,
  }
  requests = programs.requests(sections)
  keys = []
  done: dict[str, ProgramCost] = {}
  jobs: dict[str, Job] = {}
  for request in requests:
    identity = programs.identity(request, sections, teacher)
    keys.append(result_key({"program": identity, **machine}, compiler))
    found = read_result(folder, keys[-1])
    if found is not None:
      done[keys[-1]] = found
    else:
      jobs.setdefault(keys[-1], Job(request, sections, teacher, topology))
  for key, cost in _run(jobs, topology, processes):
    done[key] = cost
    write_result(folder, key, cost)
    say(f"{cost.stage}: {cost.compile_seconds:.0f} s")
  return [
    dataclasses.replace(done[key], stage=request.stage)
    for key, request in zip(keys, requests, strict=True)
  ]


def _run(
  jobs: dict[str, Job], topology: Topology, processes: int
) -> Iterator[tuple[str, ProgramCost]]:
  if compiled.are_here(topology):
    for key, job in jobs.items():
      yield key, compile_job(*job)
    return
  # Training takes longest to compile, so it begins first.
  order = sorted(jobs, key=lambda key: jobs[key].request.kind != "train")
  running: list[subprocess.Popen] = []
  with futures.ThreadPoolExecutor(processes) as pool:
    results = {
      pool.submit(_compile_elsewhere, jobs[key], running): key for key in order
    }
    try:
      for result in futures.as_completed(results):
        yield results[result], result.result()
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      for process in running:
        process.kill()
      raise


def _compile_elsewhere(
  job: Job, running: list[subprocess.Popen]
) -> ProgramCost:
  """Compiles a job in a process, which is appended to `running`."""
  with tempfile.TemporaryDirectory(prefix="analogjax-plan-") as folder:
    path, result, log = (Path(folder, n) for n in ("job", "result", "log"))
    path.write_bytes(pickle.dumps(tuple(job)))
    # `env`, because only main and the stages may read the environment.
    command = ["env", *_ENVIRONMENT, sys.executable, "-m", __name__]
    with log.open("wb") as output:
      process = subprocess.Popen(
        [*command, path, result], stdout=output, stderr=output
      )
      running.append(process)
      code = process.wait()
    if code or not result.exists():
      said = log.read_text(encoding="utf-8", errors="replace")
      raise RuntimeError(
        f"{job.request.stage}: the process that compiles it ended with code"
        f" {code}:\n{said[-4000:]}"
      )
    value = json.loads(result.read_text(encoding="utf-8"))
  if "error" in value:
    raise ValueError(value["error"])
  return program_cost.from_json(value["program"])


def compile_job(
  request: programs.Request,
  sections: schema.Sections,
  teacher: decoder.DecoderConfig,
  topology: Topology,
) -> ProgramCost:
  """Compiles one program in this process.

  Raises:
    ValueError: the topology, mesh or rows are impossible, or the compiler
      fails.
  """
  meshes = programs.meshes(request, sections, compiled.devices_of(topology))
  step = programs.prepare(request, sections, teacher, *meshes)
  name = topology.name
  try:
    return compiled.make_program(step, f"compiled for {name}")
  except jax.errors.JaxRuntimeError as error:
    # docs/experiments.md describes one that libtpu cannot lay out.
    raise ValueError(
      f"{step.request.stage}: the compiler for {name} gives up, not for want of"
      f" memory: {str(error)[:500]} Another mesh, batch or chunk may do."
    ) from error


def result_key(identity: dict[str, Any], compiler: str) -> str:
  """The name under which a result is kept.

  Any change of our code gives another name, because it may change the program
  or how its text is read.

  Args:
    identity: of the program and of the devices; JSON values.
    compiler: identifies libtpu; "": the compiler is jaxlib's.
  """
  digest = hashlib.sha256()
  root = Path(analogjax.__file__).parent
  for path in sorted(root.rglob("*.py")):
    digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
  depends_on = {
    "identity": identity,
    "compiler": compiler,
    "software": {name: importlib.metadata.version(name) for name in _SOFTWARE},
    "source": digest.hexdigest(),
  }
  text = json.dumps(depends_on, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def read_result(folder: Path | None, key: str) -> ProgramCost | None:
  """A kept result; None if it is missing or its file is damaged."""
  if folder is None:
    return None
  try:
    value = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
    return program_cost.from_json(value["program"])
  except (OSError, ValueError, KeyError, TypeError):
    return None  # It is compiled again.


def write_result(folder: Path | None, key: str, cost: ProgramCost) -> None:
  if folder is None:
    return
  folder.mkdir(parents=True, exist_ok=True)
  value = {
    "format": "analogjax.program",
    "format_version": FORMAT_VERSION,
    "program": dataclasses.asdict(cost),
  }
  loading.write_json(folder / f"{key}.json", value)


def main(argv: list[str]) -> int:
  """Compiles the pickled job at argv[0]; its cost or error goes to argv[1]."""
  job = Job(*pickle.loads(Path(argv[0]).read_bytes()))
  if job.topology.chip.name == CPU:
    jax.config.update("jax_num_cpu_devices", job.topology.num_devices)
  value: dict[str, Any]
  try:
    value = {"program": dataclasses.asdict(compile_job(*job))}
  except ValueError as error:
    value = {"error": str(error)}
  Path(argv[1]).write_text(json.dumps(value), encoding="utf-8")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
