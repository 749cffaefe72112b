"""The cheapest mesh, remat and number of microbatches that fit on machines.

All that the config's dimensions allow are ranked in closed form. The first few
are then made as the stages would, until one fits.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
from typing import Any

from analogjax.config import schema
from analogjax.models import decoder
from analogjax.planning import closed_form, costs, memory, roofline, topologies
from analogjax.planning.program_cost import ProgramCost
from analogjax.planning.topologies import Topology

_PARTS = (1, 2, 4, 8, 16, 32)  # Of a batch.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
  """One config that was evaluated."""

  changes: memory.Changes
  how: str  # Origin of the programs: "counted", "compiled for ...".
  fits: bool
  memory_bytes: float | None  # Of the largest program; None: unknown.
  seconds: float | None  # Of all stages; None: it does not fit.
  said: str  # Why it does not fit.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
  """The trials and the result."""

  counted: int  # Number of configs evaluated in closed form.
  fit: int  # How many of them fit.
  trials: tuple[Trial, ...]  # That were made, in order.
  best: Trial | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Choice:
  """A mesh and a remat, with as few microbatches as fit in closed form.

  If none do, it has those that take least.
  """

  changes: memory.Changes
  sections: schema.Sections
  parts: int
  memory_bytes: float  # Of the largest program, counted.
  seconds: float
  fits: bool


def search(
  sections: schema.Sections,
  teacher: decoder.DecoderConfig,
  topology: Topology,
  *,
  count: memory.Make,
  make: memory.Make | None,
  most: int = 4,
) -> Search:
  """Finds the config whose stages take the least time together.

  On one topology the least time is the least cost. After a trial that does not
  fit, configs that the closed form takes for as large, corrected by its error,
  are skipped, and the one that failed is tried in more parts. Those that do not
  fit in closed form come last, the smallest first, because the closed form may
  also be too high.

  Args:
    sections: the config; its mesh, remat and microbatches are replaced.
    make: programs as they will run; None: only the counted ones are used.

  Raises:
    ValueError: no mesh of these machines can divide the config.
  """
  seeker = _Seeker(sections, teacher, topology, count)
  waiting = [
    found
    for mesh, remat in itertools.product(seeker.meshes(), memory.REMAT)
    if (found := seeker.choose(mesh, remat, 1, 1.0)) is not None
  ]
  fit = sum(one.fits for one in waiting)
  trials, best, factor = [], None, 1.0
  while waiting and len(trials) < most:
    waiting.sort(key=_order)
    one = waiting.pop(0)
    if make is None and not one.fits:
      break
    if not one.fits or one.memory_bytes * factor <= seeker.limit:
      trial = seeker.attempt(one, (make or count)(one.sections))
      trials.append(trial)
      if trial.fits:
        best = trial
        break
      # By an unknown amount: assume a tenth, so that the next is smaller.
      factor = max(factor * 1.1, (trial.memory_bytes or 0.0) / one.memory_bytes)
    more = seeker.in_more_parts(one, factor)
    if more is not None:
      waiting.append(more)
  return Search(
    counted=seeker.counted, fit=fit, trials=tuple(trials), best=best
  )


def _order(one: _Choice) -> tuple[bool, float, float]:
  if one.fits:
    return False, one.seconds, one.memory_bytes
  return True, one.memory_bytes, one.seconds


class _Seeker:
  """Evaluates configs that differ in mesh, remat and microbatches."""

  def __init__(
    self,
    sections: schema.Sections,
    teacher: decoder.DecoderConfig,
    topology: Topology,
    count: memory.Make,
  ):
    self._sections, self._teacher = sections, teacher
    self._topology, self._count = topology, count
    self.limit = memory.limit_bytes(sections, topology)
    self.counted = 0

  def meshes(self) -> list[dict[str, int]]:
    """Meshes that the config's dimensions and batches allow."""
    found, refused = [], []
    for mesh in topologies.meshes(self._topology):
      whole = _changes(self._sections, mesh, self._sections.student.remat, 1)
      changed = memory.with_changes(self._sections, whole)
      problems = closed_form.problems(changed, self._teacher, mesh)
      if problems:
        refused.append(problems)
      else:
        found.append(mesh)
    if not found:
      least = min(refused, key=len)
      raise ValueError(
        f"{' '.join(least)} No mesh of {self._topology.name} can share this"
        " config out; that is what is in the way of the nearest."
      )
    return found

  def choose(
    self, mesh: Mapping[str, int], remat: str, parts: int, factor: float
  ) -> _Choice | None:
    """The choice with the fewest parts that fit, at least `parts`.

    None: there is no such number of parts.
    """
    least = None
    for number in (n for n in _PARTS if n >= parts):
      changes = _changes(self._sections, mesh, remat, number)
      try:
        changed = memory.with_changes(self._sections, changes)
      except ValueError:
        continue  # Parts that do not divide a batch.
      if closed_form.problems(changed, self._teacher, mesh):
        continue
      programs = self._count(changed)
      self.counted += 1
      largest = max(p.memory_bytes for p in programs)
      choice = _Choice(
        changes=changes,
        sections=changed,
        parts=number,
        memory_bytes=largest,
        seconds=self._seconds(changed, programs),
        fits=largest * factor <= self.limit,
      )
      if choice.fits:
        return choice
      if least is None or largest < least.memory_bytes:
        least = choice
    return least

  def in_more_parts(self, one: _Choice, factor: float) -> _Choice | None:
    """The same mesh and remat with more microbatches."""
    mesh = dataclasses.asdict(one.sections.mesh)
    remat = one.sections.student.remat
    return self.choose(mesh, remat, one.parts + 1, factor)

  def attempt(self, one: _Choice, programs: Sequence[ProgramCost]) -> Trial:
    """The trial of a choice that was made."""
    fits = [memory.check(program, self.limit) for program in programs]
    whole = all(fit.fits for fit in fits)
    known = [f.memory_bytes for f in fits if f.memory_bytes is not None]
    return Trial(
      changes=one.changes,
      how=programs[0].how,
      fits=whole,
      memory_bytes=max(known) if len(known) == len(fits) else None,
      seconds=self._seconds(one.sections, programs) if whole else None,
      said="; ".join(f"{f.stage}: {_why(f)}" for f in fits if not f.fits),
    )

  def _seconds(
    self, sections: schema.Sections, programs: Sequence[ProgramCost]
  ) -> float:
    return run_seconds(sections, self._teacher, self._topology, programs)


def _changes(
  sections: schema.Sections, mesh: Mapping[str, int], remat: str, parts: int
) -> dict[str, Any]:
  changes: dict[str, Any] = {f"mesh.{axis}": n for axis, n in mesh.items()}
  changes["student.remat"] = remat
  for name in sections.train.phases:
    changes[f"train.{name}.microbatches"] = parts
  return changes


def _why(fit: memory.Fit) -> str:
  if fit.memory_bytes is None:
    return fit.said.splitlines()[0]
  return f"{fit.memory_bytes / 1e9:.1f} of {fit.limit_bytes / 1e9:.1f} GB"


def run_seconds(
  sections: schema.Sections,
  teacher: decoder.DecoderConfig,
  topology: Topology,
  programs: Sequence[ProgramCost],
) -> float:
  """Seconds of all stages at the expected speed."""
  bounds = stage_bounds(sections, topology, programs)
  found = costs.stage_costs(sections, teacher, topology, bounds)
  return sum(cost.seconds for cost in found)


def stage_bounds(
  sections: schema.Sections,
  topology: Topology,
  programs: Sequence[ProgramCost],
) -> dict[str, roofline.Bound]:
  """The bound of each stage whose program could be made."""
  mesh = dataclasses.asdict(sections.mesh)
  found = {}
  for program in programs:
    if not program.too_large:
      of_teacher = program.stage == "cache" or program.stage.endswith(
        ".teacher"
      )
      dtype = (sections.teacher if of_teacher else sections.student).dtype
      found[program.stage] = roofline.bound(program, topology, mesh, dtype)
  return found
