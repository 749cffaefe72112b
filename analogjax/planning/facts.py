"""What the parts of a plan tell each other: machines, and compiled programs."""

from collections.abc import Mapping
import dataclasses
import math


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """One jax device of a kind, by its vendor's data sheet."""

  name: str  # "v5p", "h100".
  is_tpu: bool
  memory_bytes: float  # HBM, as the vendor counts it.
  # Dense matrix products, FLOP/s, by compute dtype ("bfloat16", "float32").
  peak_flops: Mapping[str, float]
  memory_bytes_per_second: float
  # Of one device, into the fast network (ICI, NVLink), one direction, all its
  # links together; and its share of its host's (DCN, InfiniBand).
  fast_bytes_per_second: float
  slow_bytes_per_second: float
  per_host: int  # Devices of one host.
  watts: float  # Under load, with its share of the host.
  source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
  """Chips that are reserved together."""

  name: str  # As the user wrote it: "v5p:8x8x8", "2*v5p:4x4x4", "gpu:h100:64".
  chip: Chip
  shape: tuple[int, ...]  # Of the torus of one slice; (devices,) without one.
  num_slices: int = 1  # Between which the slow network is.

  @property
  def num_devices(self) -> int:
    return self.num_slices * math.prod(self.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exchange:
  """Collectives of one kind along the same axes of the mesh, in one run."""

  kind: str  # As collectives.py names them.
  axes: tuple[str, ...]  # (): between slices; the program says no more.
  runs: int
  sent_bytes: float  # By one device, in all of these runs.
  is_whole: bool  # False: a loop's length is not known; these are fewer.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """What one step takes on each device."""

  stage: str  # "cache", "train.distill".
  how: str  # "compiled for v5p:8x8x8", "counted": who says what is below.
  tokens: int  # Of the global batch.
  flops: float  # Model FLOPs of one device, by the formulas of sizes.py.
  # What the machine has to do, remat included; None: not known.
  executed_flops: float | None
  # Read and written in the device's memory; None: not known.
  accessed_bytes: float | None
  argument_bytes: float
  temporary_bytes: float
  output_bytes: float  # What is not in the place of an argument.
  code_bytes: float
  # The largest first: (what it is, bytes on one device).
  largest: tuple[tuple[str, float], ...]
  exchanges: tuple[Exchange, ...]
  too_large: str = ""  # What the compiler said instead of all that.
  compile_seconds: float = 0.0
  # What lies on the device meanwhile and is no argument: a live teacher beside
  # the student's step, the optimizer's state beside an evaluation.
  resident_bytes: float = 0.0

  @property
  def memory_bytes(self) -> float:
    """The most at one time on one device."""
    return (
      self.resident_bytes
      + self.argument_bytes
      + self.temporary_bytes
      + self.output_bytes
      + self.code_bytes
    )
