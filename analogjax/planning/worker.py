"""Compiles one program in a process of its own: python -m ... JOB RESULT.

A process has one set of simulated CPUs and one libtpu, which reads its
environment when it is loaded; so what a plan compiles for devices that are not
here is compiled beside it, several programs at a time.
"""

import dataclasses
import json
from pathlib import Path
import pickle
import sys
from typing import Any

import jax

from analogjax.config import schema
from analogjax.models import decoder
from analogjax.planning import (
  compiled,
  counted,
  devices,
  facts,
  shapes,
  topologies,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """What a worker gets, pickled."""

  request: shapes.Request
  sections: schema.Sections
  teacher: decoder.DecoderConfig
  topology: topologies.Topology


def run(job: Job) -> facts.Program:
  """Compiles it; for GPUs, which need to be there for that, it is counted.

  Raises:
    ValueError: what `shapes.prepare` raises, or the compiler gives up.
  """
  step = shapes.prepare(
    job.request, job.sections, job.teacher, devices.of(job.topology)
  )
  if devices.is_gpu(job.topology):
    return counted.make_program(step)
  name = job.topology.name
  try:
    return compiled.make_program(step, f"compiled for {name}")
  except jax.errors.JaxRuntimeError as error:
    # docs/experiments.md has one that libtpu does not place.
    raise ValueError(
      f"{step.request.stage}: the compiler for {name} gives up, not for want of"
      f" memory: {str(error)[:500]} Another mesh, batch or chunk may do."
    ) from error


def main(argv: list[str]) -> int:
  job: Job = pickle.loads(Path(argv[0]).read_bytes())
  if job.topology.chip.name == devices.CPU:
    jax.config.update("jax_num_cpu_devices", job.topology.num_devices)
  value: dict[str, Any]
  try:
    value = {"program": dataclasses.asdict(run(job))}
  except ValueError as error:
    value = {"error": str(error)}
  Path(argv[1]).write_text(json.dumps(value), encoding="utf-8")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
