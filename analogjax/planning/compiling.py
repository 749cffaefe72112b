"""Compiles a step, and reads what the compiler says of it."""

from collections.abc import Iterator
import contextlib
import dataclasses
from pathlib import Path
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

  memory: Any  # As compiled.memory_analysis() gives it.
  text: str  # HLO after all passes.
  live_ranges: str  # What is alive at the worst moment.
  usage: str  # Regions of the heap, and what lies in each over time.


def compile_text(program: jax.stages.Lowered) -> Compiled:
  """Compiles a program and keeps what XLA writes about it.

  Raises:
    jax.errors.JaxRuntimeError: the compiler refuses it; RESOURCE_EXHAUSTED,
      where it does not fit.
  """
  with tempfile.TemporaryDirectory() as folder, _without_cache():
    # Not compiled.as_text(): jaxlib cannot read each program that a newer
    # libtpu makes.
    compiled = program.compile(
      compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
    )

    def dumped(end):
      (path,) = Path(folder).glob(f"*after_optimizations{end}")
      return path.read_text(encoding="utf-8")

    return Compiled(
      memory=compiled.memory_analysis(),
      text=dumped(".txt"),
      live_ranges=dumped("-live-range.txt"),
      usage=dumped("-memory-usage-report.txt"),
    )


def make_program(step: shapes.Step, how: str) -> facts.Program:
  """What a program takes on each device, by its compiler.

  Args:
    step: the program.
    how: what it was compiled for.
  """
  began = time.monotonic()
  number = step.mesh.size
  resident = sum(map(shapes.bytes_of, step.resident.values()))
  common: dict[str, Any] = dict(
    stage=step.request.stage,
    how=how,
    tokens=step.tokens,
    flops=step.flops / number,
    resident_bytes=resident,
  )
  try:
    compiled = compile_text(step.lower())
  except jax.errors.JaxRuntimeError as error:
    # The compiler refuses what does not fit, and says what is largest.
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    arguments = sum(map(shapes.bytes_of, step.arguments.values()))
    return facts.Program(
      **common,
      executed_flops=None,
      accessed_bytes=None,
      argument_bytes=arguments,
      temporary_bytes=0.0,
      output_bytes=0.0,
      code_bytes=0.0,
      largest=buffers.ranked(dict(buffers.known(step))),
      exchanges=(),
      too_large=str(error)[:4000],
      compile_seconds=time.monotonic() - began,
    )
  memory, program = compiled.memory, hlo.parse(compiled.text)
  return facts.Program(
    **common,
    executed_flops=hlo_costs.matrix_flops(program),
    accessed_bytes=hlo_costs.accessed_bytes(program),
    argument_bytes=memory.argument_size_in_bytes,
    temporary_bytes=memory.temp_size_in_bytes,
    output_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
    code_bytes=memory.generated_code_size_in_bytes,
    largest=buffers.largest(step, compiled.text, compiled.live_ranges),
    exchanges=exchanges(compiled.text, step),
    compile_seconds=time.monotonic() - began,
  )


def exchanges(text: str, step: shapes.Step) -> tuple[facts.Exchange, ...]:
  """What the devices of a compiled program exchange."""
  found = collectives.find(text, dict(step.mesh.shape))
  return tuple(
    facts.Exchange(
      kind=kind,
      axes=tuple(axes.split(" x ")),
      runs=runs,
      sent_bytes=sent,
      is_whole=known,
    )
    for (kind, axes), (runs, sent, known) in collectives.by_kind(found).items()
  )


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
