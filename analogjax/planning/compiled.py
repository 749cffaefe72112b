"""Compiles a step for a topology, and reads the compiler's reports."""

from collections.abc import Iterator
import contextlib
import dataclasses
import importlib.util
import math
import os
from pathlib import Path
import re
import tempfile
import time
from typing import Any

import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache

from analogjax.distributed.devices import CPU
from analogjax.planning import buffers, collectives, hlo, hlo_costs, programs
from analogjax.planning.program_cost import ProgramCost
from analogjax.planning.topologies import Topology

_CACHE = "jax_enable_compilation_cache"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
  """A compiled program, and the compiler's reports."""

  memory: Any  # compiled.memory_analysis(); None: it does not fit.
  text: str  # HLO after all passes.
  live_ranges: str  # Arrays that are alive at the peak.
  usage: str  # Regions of the heap, and their contents over time.
  too_large: str  # The compiler's refusal of a program that does not fit.


def compile_text(
  program: jax.stages.Lowered, platform: str = "tpu"
) -> Compiled:
  """Compiles a program for a platform and keeps the reports of XLA.

  Raises:
    jax.errors.JaxRuntimeError: the compiler refuses it for a reason other than
      size.
  """
  memory, too_large = None, ""
  with tempfile.TemporaryDirectory() as folder, _without_cache():
    # Not compiled.as_text(): jaxlib cannot read every program that a newer
    # libtpu makes.
    options: dict[str, Any] = {
      "xla_dump_to": folder,
      "xla_dump_hlo_as_text": True,
    }
    if platform == "cpu":
      # The machine code is never run, no figure depends on it, and it takes
      # half of the time.
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

    # XLA writes them before it checks whether the program fits.
    return Compiled(
      memory=memory,
      text=dumped(".txt"),
      live_ranges=dumped("-live-range.txt"),
      usage=dumped("-memory-usage-report.txt"),
      too_large=too_large,
    )


def make_program(step: programs.Step, how: str) -> ProgramCost:
  """The cost of a program by its compiler; `how` names the machines."""
  began = time.monotonic()
  compiled = compile_text(step.lower(), step.mesh.devices.flat[0].platform)
  memory, program = compiled.memory, hlo.parse(compiled.text)
  exchanged = collectives.find(program, dict(step.mesh.shape))
  exchanged += collectives.between_slices(program)
  known = programs.bytes_of(step.arguments)
  resident = programs.bytes_of(step.resident)
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
  return ProgramCost(
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
    # The compiler drops arguments that a program does not read, such as a live
    # teacher's unembedding, but they are still on the device.
    resident_bytes=resident + max(known - arguments, 0),
    largest=buffers.largest(step, program, compiled.live_ranges, temporaries),
    exchanges=collectives.by_kind(exchanged),
    too_large=compiled.too_large,
    compile_seconds=time.monotonic() - began,
  )


def _wanted_bytes(too_large: str) -> float:
  """Bytes of temporaries in libtpu's refusal; 0 if it does not say."""
  match = re.search(r"temporaries \(([\d.]+)([KMG])\)", too_large)
  if match is None:
    return 0.0
  return float(match[1]) * 2.0 ** {"K": 10, "M": 20, "G": 30}[match[2]]


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
  """Turns jax's compilation cache off: a cached program writes no reports."""
  before = getattr(jax.config, _CACHE)
  jax.config.update(_CACHE, False)
  compilation_cache.reset_cache()  # jax remembers whether the cache is on.
  try:
    yield
  finally:
    jax.config.update(_CACHE, before)
    compilation_cache.reset_cache()


def devices_of(topology: Topology) -> list[Any]:
  """The devices of a topology in jax's order; TPUs need not be present.

  Raises:
    ValueError: libtpu does not know the topology, or there are fewer CPUs here.
  """
  if topology.chip.name == CPU:
    here = jax.devices(CPU)
    if len(here) < topology.num_devices:
      raise ValueError(
        f"{topology.name}: found {len(here)} CPU devices in this process; set"
        f" JAX_NUM_CPU_DEVICES={topology.num_devices}."
      )
    return list(here[: topology.num_devices])
  assert topology.chip.is_tpu, topology.name
  options: dict[str, Any] = {}
  if topology.num_slices > 1:
    options["num_slices"] = topology.num_slices
  if topology.chip.name == "v4":
    # As in a job: the two cores of a chip are one device.
    options["chip_config_name"] = "megacore"
  if math.prod(topology.shape) == 1:
    options["chips_per_host_bounds"] = (1, 1, 1)  # Otherwise a host has 2 x 2.
  name = topology.name.partition("*")[2] or topology.name
  try:
    found = topologies.get_topology_desc(name, "tpu", **options).devices
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(
      f"{topology.name}: libtpu knows no such topology: {error}"
    ) from None
  if len(found) != topology.num_devices:
    raise ValueError(
      f"{topology.name}: expected {topology.num_devices} devices, libtpu says"
      f" {len(found)}; write the chips along each side, as the vendor does."
    )
  return list(found)


def are_here(topology: Topology) -> bool:
  """Whether this process has that many CPU devices."""
  if topology.chip.name != CPU:
    return False
  try:
    return len(jax.devices(CPU)) >= topology.num_devices
  except RuntimeError:  # JAX_PLATFORMS names only others.
    return False


def find_libtpu() -> str:
  """The libtpu that compiles: its path, size and time of change.

  Raises:
    ValueError: none is installed.
  """
  # TPU_LIBRARY_PATH, which libtpu reads itself, comes before the package.
  path = os.path.expandvars("$TPU_LIBRARY_PATH")
  if path.startswith("$"):
    spec = importlib.util.find_spec("libtpu")
    places = spec.submodule_search_locations if spec else None
    path = os.path.join(list(places)[0], "libtpu.so") if places else ""
  if not Path(path).is_file():
    where = f"there is no file {path}" if path else "none is installed"
    raise ValueError(
      f"libtpu: needed to compile for TPUs, but {where}. Install it (pip"
      " install libtpu), or set TPU_LIBRARY_PATH to its libtpu.so; no TPU is"
      " needed."
    )
  stat = Path(path).stat()
  return f"{path} {stat.st_size} {stat.st_mtime_ns}"
