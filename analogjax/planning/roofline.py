"""The least time of a step on given machines, and the resource that limits it.

Four resources are treated separately: arithmetic, the device's memory, the fast
network within a slice and the slow one between slices. The bound assumes that
they overlap completely, so a step is as long as the slowest; `serial_seconds`
assumes that the networks do not overlap at all.

Source: Williams et al. 2009, "Roofline: an insightful visual performance model
for multicore architectures".
"""

from collections.abc import Iterable, Mapping
import dataclasses
import itertools
import math

from analogjax.distributed.devices import Chip
from analogjax.planning.program_cost import Exchange, ProgramCost
from analogjax.planning.topologies import Topology

RESOURCES = ("compute", "memory", "fast", "slow")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bound:
  """Seconds of one step, by resource; none of them can be shorter."""

  stage: str
  compute: float  # Arithmetic at the chip's peak.
  memory: float | None  # None: the traffic is unknown.
  fast: float
  slow: float
  mfu: float  # Model FLOPs over those of the peak in the bound's time.
  is_whole: bool  # False: some of the communication is not counted.

  @property
  def parts(self) -> dict[str, float]:
    """Seconds by name, unknown ones left out."""
    values = {name: getattr(self, name) for name in RESOURCES}
    return {name: s for name, s in values.items() if s is not None}

  @property
  def seconds(self) -> float:
    """Seconds if all overlap: the slowest resource."""
    return max(self.parts.values())

  @property
  def serial_seconds(self) -> float:
    """Seconds if no exchange overlaps; memory and arithmetic do."""
    return max(self.compute, self.memory or 0.0) + self.fast + self.slow

  @property
  def binds(self) -> str:
    """The resource that the step waits for."""
    return max(self.parts, key=self.parts.__getitem__)


def bound(
  program: ProgramCost, topology: Topology, mesh: Mapping[str, int], dtype: str
) -> Bound:
  """The bound of one step.

  Arithmetic counts what the machine executes (remat included), and at least the
  model's FLOPs.

  Args:
    mesh: devices along each axis, in the order of the mesh, all positive.
    dtype: of matrix products, "bfloat16" or "float32".
  """
  assert not program.too_large, program.stage
  chip = topology.chip
  fast = slow = 0.0
  for exchange in program.exchanges:
    within, between = _sent(exchange, topology, mesh)
    fast += within / fast_bandwidth(exchange.axes, topology, mesh)
    slow += between / chip.slow_bytes_per_second
  # Some of the executed FLOPs may be unknown, as the inside of a kernel.
  flops = max(program.executed_flops or 0.0, program.flops)
  accessed = program.accessed_bytes
  found = Bound(
    stage=program.stage,
    compute=flops / chip.peak_flops[dtype],
    memory=None
    if accessed is None
    else accessed / chip.memory_bytes_per_second,
    fast=fast,
    slow=slow,
    mfu=0.0,
    is_whole=all(exchange.is_whole for exchange in program.exchanges),
  )
  mfu = program.flops / (chip.peak_flops[dtype] * found.seconds)
  return dataclasses.replace(found, mfu=mfu)


def _sent(
  exchange: Exchange, topology: Topology, mesh: Mapping[str, int]
) -> tuple[float, float]:
  """Bytes of one device over the fast and over the slow network.

  With n devices in h slices, a ring that goes around the slices last hands each
  shard to h - 1 other slices and to the n - h other places within: of n - 1
  parts sent, h - 1 are slow. An all-to-all sends a part to each device, and
  those of other slices are slow. A group whose axes are unknown is taken to go
  between slices.
  """
  if topology.num_slices == 1:
    return exchange.sent_bytes, 0.0
  if not exchange.axes:
    return 0.0, exchange.sent_bytes
  over = slices_by_axis(mesh, topology.num_slices)
  n = math.prod(mesh[axis] for axis in exchange.axes)
  h = math.prod(over[axis] for axis in exchange.axes)
  if n == 1:
    return exchange.sent_bytes, 0.0
  slow = (n - n // h if "all-to-all" in exchange.kind else h - 1) / (n - 1)
  return exchange.sent_bytes * (1 - slow), exchange.sent_bytes * slow


def slices_by_axis(mesh: Mapping[str, int], num_slices: int) -> dict[str, int]:
  """Number of slices of each axis, as sharding.make_mesh lays them out."""
  data = math.gcd(mesh["data"], num_slices)
  over = dict.fromkeys(mesh, 1) | {"data": data, "fsdp": num_slices // data}
  return over


def fast_bandwidth(
  axes: Iterable[str], topology: Topology, mesh: Mapping[str, int]
) -> float:
  """Bytes/s that one device can send along axes within its slice.

  A switch (NVLink) gives all of a device's links to any group. Along one
  dimension of a torus there are the two links of a ring, or one if the ends are
  not joined: dimensions that are no multiple of 4, and on v5e and v6e those
  below 16 (Google Cloud, "TPU v5e": a torus from 16 x 16 up; the cubes of v4,
  v5p and TPU7x join their ends). An axis that shares a dimension has one link.
  """
  chip = topology.chip
  if not chip.is_tpu:
    return chip.fast_bytes_per_second
  over = slices_by_axis(mesh, topology.num_slices)
  within = {axis: size // over[axis] for axis, size in mesh.items()}
  placed = _places(within, topology.shape)
  dims = [place for axis in axes for place in placed[axis]]
  link = _link(chip, topology.shape)
  joined = 4 if len(topology.shape) > 2 else 16
  links = sum(
    2 if whole and topology.shape[dim] % joined == 0 else 1
    for dim, whole in dims
  )
  return link * max(links, 1)


def _link(chip: Chip, shape: tuple[int, ...]) -> float:
  """Bytes/s of one link: there are two for each dimension of the torus.

  The two devices of a TPU7x chip are a fourth dimension, whose link is assumed
  to be as fast.
  """
  return chip.fast_bytes_per_second / (2 * min(len(shape), 3))


def _places(
  sizes: Mapping[str, int], shape: tuple[int, ...]
) -> dict[str, list[tuple[int, bool]]]:
  """Torus dimensions of each axis, and whether the axis fills them.

  As jax.make_mesh does: the last axis first, over as many dimensions as have
  its size together; if none have, over parts of the rest.
  """
  left = list(shape)
  placed: dict[str, list[tuple[int, bool]]] = {axis: [] for axis in sizes}
  for axis in reversed(list(sizes)):
    size = sizes[axis]
    if size == 1:
      continue
    dims = next(
      (
        found
        for count in range(len(shape), 0, -1)
        for found in itertools.combinations(range(len(shape)), count)
        if math.prod(left[dim] for dim in found) == size
        and all(left[dim] > 1 for dim in found)
      ),
      None,
    )
    if dims is not None:
      placed[axis] = [(dim, left[dim] == shape[dim]) for dim in dims]
      for dim in dims:
        left[dim] = 1
      continue
    for dim in sorted(
      range(len(shape)), key=lambda i: -math.gcd(left[i], size)
    ):
      part = math.gcd(left[dim], size)
      if part > 1:
        placed[axis].append((dim, part == shape[dim]))
        left[dim] //= part
        size //= part
    assert size == 1, (sizes, shape)
  return placed
