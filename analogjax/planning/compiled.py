"""Compiles a step, and reads what the compiler says of it."""

from collections.abc import Iterator
import contextlib
import dataclasses
from pathlib import Path
import re
import tempfile
import time
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from analogjax.planning import (
  buffers,
  collectives,
  facts,
  hlo,
  hlo_costs,
  shapes,
)

_CACHE = "jax_enable_compilation_cache"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
  """What the compiler makes of a program, and its reports."""

  # As compiled.memory_analysis() gives it; None: it does not fit.
  memory: Any
  text: str  # HLO after all passes.
  live_ranges: str  # What is alive at the worst moment.
  usage: str  # Regions of the heap, and what lies in each over time.
  too_large: str  # What the compiler says of one that does not fit.


def compile_text(
  program: jax.stages.Lowered, platform: str = "tpu"
) -> Compiled:
  """Compiles a program and keeps what XLA writes about it.

  Args:
    program: lowered.
    platform: of its devices.

  Raises:
    jax.errors.JaxRuntimeError: the compiler refuses it, but not as too large.
  """
  memory, too_large = None, ""
  with tempfile.TemporaryDirectory() as folder, _without_cache():
    # Not compiled.as_text(): jaxlib cannot read each program that a newer
    # libtpu makes.
    options: dict[str, Any] = {
      "xla_dump_to": folder,
      "xla_dump_hlo_as_text": True,
    }
    if platform == "cpu":
      # Of the code that is made of the program, which nobody runs: no figure
      # hangs on it, and half of the time goes there.
      options["xla_backend_optimization_level"] = 0
    try:
      compiled = program.compile(compiler_options=options)
      memory = compiled.memory_analysis()
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      too_large = str(error)

    def dumped(end):
      (path,) = Path(folder).glob(f"*after_optimizations{end}")
      return path.read_text(encoding="utf-8")

    # It has written them before it looks whether they fit.
    return Compiled(
      memory=memory,
      text=dumped(".txt"),
      live_ranges=dumped("-live-range.txt"),
      usage=dumped("-memory-usage-report.txt"),
      too_large=too_large,
    )


def make_program(step: shapes.Step, how: str) -> facts.Program:
  """What a program takes on each device, by its compiler.

  Args:
    step: the program.
    how: what it was compiled for.
  """
  began = time.monotonic()
  compiled = compile_text(step.lower(), step.mesh.devices.flat[0].platform)
  memory, program = compiled.memory, hlo.parse(compiled.text)
  known = sum(map(shapes.bytes_of, step.arguments.values()))
  resident = sum(map(shapes.bytes_of, step.resident.values()))
  if memory is None:
    arguments, outputs, code = known, 0, 0
    temporaries = _wanted_bytes(compiled.too_large)
  else:
    arguments, code = (
      memory.argument_size_in_bytes,
      memory.generated_code_size_in_bytes,
    )
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporaries = memory.temp_size_in_bytes
  return facts.Program(
    stage=step.request.stage,
    how=how,
    tokens=step.tokens,
    flops=step.flops / step.mesh.size,
    executed_flops=hlo_costs.matrix_flops(program),
    accessed_bytes=hlo_costs.accessed_bytes(program),
    argument_bytes=arguments,
    temporary_bytes=temporaries,
    output_bytes=outputs,
    code_bytes=code,
    # An argument that a program does not look at is none of it, and is there
    # all the same: a live teacher's unembedding.
    resident_bytes=resident + max(known - arguments, 0),
    largest=buffers.largest(
      step, compiled.text, compiled.live_ranges, temporaries
    ),
    exchanges=exchanges(compiled.text, step),
    too_large=compiled.too_large,
    compile_seconds=time.monotonic() - began,
  )


def exchanges(text: str, step: shapes.Step) -> tuple[facts.Exchange, ...]:
  """What the devices of a compiled program exchange."""
  found = collectives.find(text, dict(step.mesh.shape))
  by_axes = {
    (kind, tuple(axes.split(" x "))): counts
    for (kind, axes), counts in collectives.by_kind(found).items()
  }
  # Between slices; along which axes is not said.
  for kind, counts in collectives.between_slices(text).items():
    by_axes[kind, ()] = counts
  return tuple(
    facts.Exchange(
      kind=kind, axes=axes, runs=runs, sent_bytes=sent, is_whole=known
    )
    for (kind, axes), (runs, sent, known) in by_axes.items()
  )


def _wanted_bytes(too_large: str) -> float:
  """What libtpu says that the temporaries would take; 0: it does not say."""
  match = re.search(r"temporaries \(([\d.]+)([KMG])\)", too_large)
  if match is None:
    return 0.0
  return float(match[1]) * 2.0 ** {"K": 10, "M": 20, "G": 30}[match[2]]


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
  """A program that is found compiled writes no reports."""
  before = getattr(jax.config, _CACHE)
  jax.config.update(_CACHE, False)
  compilation_cache.reset_cache()  # It remembers whether it is used.
  try:
    yield
  finally:
    jax.config.update(_CACHE, before)
    compilation_cache.reset_cache()
