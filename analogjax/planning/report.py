"""A plan: everything that a config takes on one topology."""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

from analogjax.config import schema
from analogjax.distributed import devices
from analogjax.models import decoder
from analogjax.planning import (
  closed_form,
  costs,
  formulas,
  memory,
  search,
  topologies,
)
from analogjax.planning.costs import CacheTraffic, CostRow, StageCost
from analogjax.planning.memory import Fit
from analogjax.planning.program_cost import ProgramCost
from analogjax.planning.roofline import Bound
from analogjax.planning.search import Search
from analogjax.planning.topologies import Topology

# (config, teacher, topology) -> the programs of a run.
Maker = Callable[
  [schema.Sections, decoder.DecoderConfig, Topology], list[ProgramCost]
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """A config on one topology."""

  topology: Topology
  mesh: dict[str, int]
  price: float | None  # Dollars for a device-hour.
  programs: list[ProgramCost]
  bounds: dict[str, Bound]  # By stage, of programs that could be made.
  fits: list[Fit]
  costs: list[StageCost]
  total: StageCost | None  # None: no stage could be made.
  cache: CacheTraffic
  table_1: list[CostRow]
  search: Search | None
  sections: schema.Sections  # With the mesh and the changes of the search.

  @property
  def is_whole(self) -> bool:
    """Whether every program fits, so that the total is that of a run."""
    return all(fit.fits for fit in self.fits)


def make_report(
  sections: schema.Sections,
  teacher: decoder.DecoderConfig,
  topology: Topology,
  *,
  count: Maker,
  make: Maker,
  searches: bool = False,
) -> Report:
  """Plans a config on one topology.

  Args:
    count: makes programs by formulas: ranks a search, and finds remedies.
    make: makes the programs that the plan shows.
    searches: looks for mesh, remat and microbatches instead of using those of
      the config; if nothing fits, the config's own are reported.

  Raises:
    ValueError: the mesh does not match the topology, or does not divide
      dimensions or rows; names the field.
  """

  def counted(sections):
    return count(sections, teacher, topology)

  def made(sections):
    return make(sections, teacher, topology)

  found = None
  if searches:
    found = search.search(
      sections,
      teacher,
      topology,
      count=counted,
      make=None if make is count else made,
    )
    if found.best is not None:
      sections = memory.with_changes(sections, found.best.changes)
  sections = on_topology(sections, teacher, topology)
  programs = made(sections)
  limit = memory.limit_bytes(sections, topology)
  fits = []
  for program in programs:
    fit = memory.check(program, limit)
    if not fit.fits:
      helps = memory.remedies(sections, teacher, topology, program, counted)
      fit = dataclasses.replace(fit, remedies=helps)
    fits.append(fit)
  bounds = search.stage_bounds(sections, topology, programs)
  stages = costs.stage_costs(sections, teacher, topology, bounds)
  traffic = costs.cache_traffic(sections, stages)
  price = sections.plan.chip.get(topology.chip.name)
  return Report(
    topology=topology,
    mesh=dataclasses.asdict(sections.mesh),
    price=price.dollars_per_hour if price and price.dollars_per_hour else None,
    programs=programs,
    bounds=bounds,
    fits=fits,
    costs=stages,
    total=costs.total(stages),
    cache=traffic,
    table_1=costs.table_1(sections, stages, traffic),
    search=found,
    sections=sections,
  )


def on_mesh(
  sections: schema.Sections,
  teacher: decoder.DecoderConfig,
  mesh: dict[str, int],
) -> tuple[dict[str, Any], list[ProgramCost]]:
  """A plan for the config's mesh, whatever its devices are.

  Attention is counted as on a GPU: with a kernel in bfloat16, else without.

  Returns:
    (JSON values, programs by formulas; none if the mesh will be refused).
  """
  number = math.prod(mesh.values())
  problems, programs = closed_form.problems(sections, teacher, mesh), []
  if not problems:
    changes: dict[str, Any] = {f"mesh.{axis}": n for axis, n in mesh.items()}
    changes |= {"student.attention": "auto", "teacher.attention": "auto"}
    try:
      programs = formulas.count_programs(
        memory.with_changes(sections, changes),
        teacher,
        Topology(name="", chip=devices.chip("h100"), shape=(number,)),
      )
    except ValueError as error:  # Axes of teacher.mesh.
      problems.append(str(error))
  values = {
    "problems": problems,
    "mesh": {**mesh, "devices": number},
    "memory_bytes_per_device": {
      program.stage: {**dict(program.largest), "total": program.memory_bytes}
      for program in programs
    },
  }
  return values, programs


def on_topology(
  sections: schema.Sections,
  teacher: decoder.DecoderConfig,
  topology: Topology,
) -> schema.Sections:
  """The config with its mesh filled in.

  Raises:
    ValueError: see `make_report`.
  """
  phases = [sections.train.phase[name] for name in sections.train.phases]
  if sections.teacher.mesh and any(phase.runs_teacher for phase in phases):
    raise ValueError(
      "teacher.mesh: a plan for a topology cannot give a live teacher devices"
      " of its own; set teacher.mesh=None, and the teacher shares those of the"
      " student."
    )
  axes = dataclasses.asdict(sections.mesh)
  mesh = topologies.mesh_axes(axes, topology)
  if found := closed_form.problems(sections, teacher, mesh):
    shown = ", ".join(f"{axis}={size}" for axis, size in mesh.items())
    of_mesh = any(problem.startswith("mesh.") for problem in found)
    more = ", or give --search" if of_mesh else ""
    raise ValueError(
      f"{' '.join(found)} (On {topology.name}, mesh {shown}.) Choose other"
      f" sizes{more}."
    )
  changes = {f"mesh.{axis}": size for axis, size in mesh.items()}
  return memory.with_changes(sections, changes)


def check_prices(plan: schema.PlanConfig) -> None:
  """Refuses prices of unknown chips.

  Raises:
    ValueError: names the section.
  """
  for name in plan.chip:
    if name not in devices.CHIPS:
      raise ValueError(
        f"plan.{name}: there is no such chip or field; chips are"
        f" {', '.join(devices.CHIPS)}."
      )


def to_json(report: Report) -> dict[str, Any]:
  """A report as JSON keeps it, in seconds, bytes and FLOPs."""
  topology, chip = report.topology, report.topology.chip
  return {
    "topology": {
      "name": topology.name,
      "devices": topology.num_devices,
      "shape": list(topology.shape),
      "slices": topology.num_slices,
      "chip": dataclasses.asdict(chip),
      "dollars_per_device_hour": report.price,
    },
    "mesh": report.mesh,
    "student": {"remat": report.sections.student.remat},
    "microbatches": {
      name: report.sections.train.phase[name].microbatches
      for name in report.sections.train.phases
    },
    "fits": report.is_whole,
    "stages": [_stage(report, program) for program in report.programs],
    "costs": [
      {**dataclasses.asdict(cost), "days": cost.days} for cost in report.costs
    ],
    "total": report.total
    and {**dataclasses.asdict(report.total), "days": report.total.days},
    "cache": dataclasses.asdict(report.cache),
    "table_1": [dataclasses.asdict(row) for row in report.table_1],
    "search": report.search and dataclasses.asdict(report.search),
  }


def _stage(report: Report, program: ProgramCost) -> dict[str, Any]:
  fit = next(fit for fit in report.fits if fit.stage == program.stage)
  bound = report.bounds.get(program.stage)
  return {
    **dataclasses.asdict(program),
    "memory_bytes": fit.memory_bytes,
    "memory_limit_bytes": fit.limit_bytes,
    "fits": fit.fits,
    "remedies": [dataclasses.asdict(remedy) for remedy in fit.remedies],
    "bound": bound
    and {
      "seconds": bound.parts,
      "binds": bound.binds,
      "step_seconds": bound.seconds,
      "serial_step_seconds": bound.serial_seconds,
      "mfu": bound.mfu,
      "is_whole": bound.is_whole,
    },
  }


def gates(
  sections: schema.Sections, teacher: decoder.DecoderConfig
) -> list[dict[str, Any]]:
  """The gates of a release that a config already answers.

  `passes` is None if only the run itself, or people, can tell.

  Source: "Require Frontier AI Labs To Release Small Analog Models": the size
  window, a matching family, the same data, distilled from the frontier model.
  """
  student = sections.student
  phase = sections.train.phase[sections.release.phase]
  same = {
    "norm, activation, rotary embedding": True,  # There is one decoder.
    "vocabulary": student.V == teacher.V,
    "attention biases": student.attention_bias == teacher.attention_bias,
    "MLP biases": student.mlp_bias == teacher.mlp_bias,
    "grouped key/value heads": (student.N > student.G)
    == (teacher.N > teacher.G),
    "tied head": student.tie_embeddings == teacher.tie_embeddings,
  }
  differ = [name for name, is_same in same.items() if not is_same]
  window = closed_form.size_window(sections, teacher)
  return [
    {
      "gate": "size window",
      "passes": window.inside,
      "because": str(window),
    },
    {
      "gate": "family",
      "passes": "vocabulary" not in differ,
      "because": "both are decoders of the Llama family"
      + (f"; they differ in {', '.join(differ)}" if differ else ""),
    },
    {
      "gate": "same data",
      "passes": None,
      "because": f"rows are those of {sections.data.pipeline}; that it is the"
      " frontier run's has to be shown",
    },
    {
      "gate": "distilled",
      "passes": phase.loss.has_teacher,
      "because": f"release.phase {sections.release.phase!r} learns from"
      + (" the teacher" if phase.loss.has_teacher else " hard labels alone"),
    },
  ]
