"""The cost of a program on each device, from a compiler or from formulas."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exchange:
  """Collectives of one kind along the same axes of the mesh, in one run."""

  kind: str  # As collectives.py names them.
  axes: tuple[str, ...]  # (): between slices; the program says no more.
  runs: int
  sent_bytes: float  # By one device, in all of these runs.
  is_whole: bool  # False: a loop's length is not known; these are fewer.


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramCost:
  """The cost of one step on each device."""

  stage: str  # "cache", "train.distill".
  how: str  # "compiled for v5p:8x8x8" or "counted".
  tokens: int  # Rows of the global batch.
  flops: float  # Model FLOPs of one device, by the formulas of sizes.py.
  # FLOPs that the machine executes, remat included; None: unknown.
  executed_flops: float | None
  # Read and written in the device's memory; None: unknown.
  accessed_bytes: float | None
  argument_bytes: float
  temporary_bytes: float
  output_bytes: float  # Of outputs that do not alias an input.
  code_bytes: float
  # The largest first: (name, bytes on one device).
  largest: tuple[tuple[str, float], ...]
  exchanges: tuple[Exchange, ...]
  too_large: str = ""  # The compiler's refusal, if it gave no figures.
  compile_seconds: float = 0.0
  # Data on the device that is no argument: a live teacher beside the student's
  # step, the optimizer's state beside an evaluation.
  resident_bytes: float = 0.0

  @property
  def memory_bytes(self) -> float:
    """Peak bytes on one device."""
    return (
      self.resident_bytes
      + self.argument_bytes
      + self.temporary_bytes
      + self.output_bytes
      + self.code_bytes
    )


def from_json(value: dict[str, Any]) -> ProgramCost:
  """A program's cost from the values of dataclasses.asdict."""
  exchanges = tuple(
    Exchange(**{**one, "axes": tuple(one["axes"])})
    for one in value["exchanges"]
  )
  largest = tuple((name, size) for name, size in value["largest"])
  return ProgramCost(**{**value, "exchanges": exchanges, "largest": largest})
