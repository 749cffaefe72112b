"""Devices of a topology, to compile for; they need not be there."""

import dataclasses
import importlib.util
import math
import os
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from analogjax.planning.topologies import Topology

CPU = "cpu"  # A chip's name.

# Chip -> its libtpu configuration, where the usual one is not what jobs have:
# the two cores of a v4 as one device.
_CONFIGURATIONS = {"v4": "megacore"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
  """What a mesh reads of a device; nothing can be compiled for it."""

  id: int
  slice_index: int  # Of those that exchange fast.
  process_index: int
  device_kind: str
  platform: str = "gpu"
  device_type: None = None
  memory_kinds: None = None


def of(topology: Topology) -> list[Any]:
  """The devices in jax's order.

  Raises:
    ValueError: a topology that the compiler does not know, or fewer CPUs here.
  """
  if topology.chip.name == CPU:
    here = jax.devices(CPU)
    if len(here) < topology.num_devices:
      raise ValueError(
        f"{topology.name}: found {len(here)} CPU devices in this process; set"
        f" JAX_NUM_CPU_DEVICES={topology.num_devices}."
      )
    return list(here[: topology.num_devices])
  if is_gpu(topology):
    in_slice = math.prod(topology.shape)
    return [
      Gpu(
        id=i,
        slice_index=i // in_slice,
        process_index=i // topology.chip.per_host,
        device_kind=topology.chip.name,
      )
      for i in range(topology.num_devices)
    ]
  assert topology.chip.is_tpu, topology.name
  options: dict[str, Any] = {}
  if topology.num_slices > 1:
    options["num_slices"] = topology.num_slices
  if topology.chip.name in _CONFIGURATIONS:
    options["chip_config_name"] = _CONFIGURATIONS[topology.chip.name]
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
  """Whether this process has so many CPU devices."""
  if topology.chip.name != CPU:
    return False
  try:
    return len(jax.devices(CPU)) >= topology.num_devices
  except RuntimeError:  # JAX_PLATFORMS names others alone.
    return False


def is_gpu(topology: Topology) -> bool:
  return not topology.chip.is_tpu and topology.chip.name != CPU


def find_libtpu() -> str:
  """Which libtpu there is: its file, size and time.

  Raises:
    ValueError: none.
  """
  # What libtpu itself looks at; jax takes the installed one otherwise.
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
