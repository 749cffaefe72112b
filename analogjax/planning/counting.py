"""Programs in closed form for any machines, TPUs too: nothing is compiled.

A search ranks with it, and remedies are worked out by it. counted.py has the
formulas; here are devices to lay a mesh over that need not be there.
"""

import dataclasses
import itertools
import math
from typing import Any

from analogjax.config import schema
from analogjax.models import decoder
from analogjax.planning import counted, shapes
from analogjax.planning.facts import Program
from analogjax.planning.topologies import Topology


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Device:
  """What a mesh reads of a device."""

  id: int
  slice_index: int
  process_index: int
  device_kind: str
  platform: str
  coords: tuple[int, ...]
  core_on_chip: int
  num_cores: int = 1
  device_type: None = None
  memory_kinds: None = None


def count_programs(
  sections: schema.Sections,
  teacher: decoder.DecoderConfig,
  topology: Topology,
) -> list[Program]:
  """The cache step and every phase, counted; see programs.make_programs.

  Raises:
    ValueError: a mesh that does not match the topology; a dimension or rows
      that the mesh does not divide.
  """
  teacher = dataclasses.replace(
    teacher, dtype=sections.teacher.dtype, attention=sections.teacher.attention
  )
  devices = _devices(topology)
  found: dict[str, Program] = {}
  programs = []
  for request in shapes.requests(sections):
    same = repr(shapes.identity(request, sections, teacher))
    if same not in found:
      step = shapes.prepare(request, sections, teacher, devices)
      found[same] = counted.make_program(step)
    programs.append(dataclasses.replace(found[same], stage=request.stage))
  return programs


def _devices(topology: Topology) -> list[Any]:
  """Devices of every slice, the chips of each in the order of their places.

  Two devices of a chip are the last dimension of the shape.
  """
  chip, shape = topology.chip, topology.shape
  places = list(itertools.product(*map(range, shape)))
  platform = "tpu" if chip.is_tpu else "cpu" if chip.name == "cpu" else "gpu"
  found = []
  for number in range(topology.num_slices):
    for place in places:
      i = len(found)
      coords = (*place, 0, 0, 0)[:3] if chip.is_tpu else (i, 0, 0)
      found.append(
        _Device(
          id=i,
          slice_index=number,
          process_index=i // min(chip.per_host, math.prod(shape)),
          # A chip of two devices has a place for the second.
          device_kind="TPU7x" if len(shape) == 4 else chip.name,
          platform=platform,
          coords=coords,
          core_on_chip=place[3] if len(place) == 4 else 0,
        )
      )
  return found
