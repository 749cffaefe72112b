"""Estimates for a whole run: time, device-hours, dollars, energy, its store.

Times are only those of the steps. Starting, compiling, evaluations in the
middle of a phase, checkpoints and restarts come on top; `efficiency` of the
config's plan has to make up for them.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from pathlib import Path

import jax.numpy as jnp

from analogjax.cache import cache_format
from analogjax.config import schema
from analogjax.models import decoder, sizes, teacher as teacher_lib
from analogjax.planning import closed_form
from analogjax.planning.roofline import Bound
from analogjax.planning.topologies import Topology
from analogjax.run import caches, identity
from analogjax.workdir import costs as costs_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageCost:
  """The cost of one stage on all devices together."""

  stage: str
  tokens: int
  step_seconds: float | None  # None: it has no uniform step (measure).
  tokens_per_second: float
  mfu: float  # Model FLOPs over the peak at the expected speed.
  seconds: float
  device_hours: float
  dollars: float | None  # None: the price is unknown.
  kwh: float

  @property
  def days(self) -> float:
    return self.seconds / 86_400


def stage_costs(
  sections: schema.Sections,
  teacher: decoder.DecoderConfig,
  topology: Topology,
  bounds: Mapping[str, Bound],
) -> list[StageCost]:
  """Costs of every stage with a known bound, and of measuring.

  A step is expected to take its bound over `plan.efficiency`. Measuring runs
  forward passes only, so it is taken to be as efficient as the cache step.

  `bounds` are those of a step, by stage.
  """
  cache, L = sections.cache, sections.data.L
  efficiency = sections.plan.efficiency
  steps = {}
  if "cache" in bounds:
    rows = closed_form.cached_rows(sections)
    steps["cache"] = (math.ceil(rows / cache.batch_rows), rows * L)
  for name in sections.train.phases:
    phase = sections.train.phase[name]
    tokens = phase.num_steps * phase.batch_rows * L
    steps[f"train.{name}"] = (phase.num_steps, tokens)
  found = []
  for stage, (number, tokens) in steps.items():
    if stage not in bounds:
      continue
    # A live teacher's step comes before each of the student's.
    parts = [bounds[s] for s in (stage, f"{stage}.teacher") if s in bounds]
    least = sum(part.seconds for part in parts)
    step = least / efficiency
    mfu = efficiency * sum(part.mfu * part.seconds for part in parts) / least
    cost = _cost(sections, topology, stage, tokens, number * step, mfu)
    found.append(dataclasses.replace(cost, step_seconds=step))
  if "cache" in bounds:
    tokens = cache.held_out_rows * L
    flops = closed_form.measure_flops(sections, teacher)
    mfu = bounds["cache"].mfu * efficiency
    peak = topology.chip.peak_flops[sections.teacher.dtype]
    seconds = flops / (topology.num_devices * peak * mfu)
    found.append(_cost(sections, topology, "measure", tokens, seconds, mfu))
  return found


def total(costs: Sequence[StageCost]) -> StageCost | None:
  """All stages one after another; None if there is none."""
  if not costs:
    return None
  seconds = sum(cost.seconds for cost in costs)
  tokens = sum(cost.tokens for cost in costs)
  dollars = [cost.dollars for cost in costs if cost.dollars is not None]
  return StageCost(
    stage="total",
    tokens=tokens,
    step_seconds=None,
    tokens_per_second=tokens / seconds,
    mfu=sum(cost.mfu * cost.seconds for cost in costs) / seconds,
    seconds=seconds,
    device_hours=sum(cost.device_hours for cost in costs),
    dollars=sum(dollars) if len(dollars) == len(costs) else None,
    kwh=sum(cost.kwh for cost in costs),
  )


def _cost(
  sections: schema.Sections,
  topology: Topology,
  stage: str,
  tokens: int,
  seconds: float,
  mfu: float,
) -> StageCost:
  plan, chip = sections.plan, topology.chip
  price = plan.chip.get(chip.name)
  watts = price.watts if price and price.watts else chip.watts
  hours = seconds / 3600 * topology.num_devices
  dollars = price.dollars_per_hour if price else 0.0
  return StageCost(
    stage=stage,
    tokens=tokens,
    step_seconds=None,
    tokens_per_second=tokens / seconds,
    mfu=mfu,
    seconds=seconds,
    device_hours=hours,
    dollars=hours * dollars if dollars else None,
    kwh=hours * watts * plan.pue / 1000,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheTraffic:
  """Size of and load on the cache's store."""

  bytes: float  # An estimate, see sizes.expected_record_bytes.
  objects: int
  bytes_per_object: float
  dollars: float  # Storage for plan.cache_months, and all requests.
  # While it is filled; None: the bound of the cache step is unknown.
  write_bytes_per_second: float | None
  write_requests_per_second: float | None
  # By phase that reads it, over all processes.
  read_bytes_per_second: Mapping[str, float]
  read_requests_per_second: Mapping[str, float]


def cache_traffic(
  sections: schema.Sections, costs: Sequence[StageCost]
) -> CacheTraffic:
  """The load on the cache's store.

  A write is an object of one array: `cache.rows_per_object` rows. A read is
  one row of one array, and each object's index once (docs/cache_format.md).
  """
  cache, plan, L = sections.cache, sections.plan, sections.data.L
  arrays = len(_array_names(sections))
  rows = closed_form.cached_rows(sections)
  per_row = L * closed_form.cached_token_bytes(sections)
  parts = [cache.held_out_rows, cache.num_rows * sections.reads_cache]
  groups = sum(math.ceil(part / cache.rows_per_object) for part in parts)
  by_stage = {cost.stage: cost for cost in costs}
  filling = by_stage.get("cache")
  read_rows = {
    name: phase.num_steps * phase.batch_rows
    for name in sections.train.phases
    if (phase := sections.train.phase[name]).rows == "cache"
  }
  speeds = {
    name: by_stage[f"train.{name}"].tokens_per_second / L
    for name in read_rows
    if f"train.{name}" in by_stage
  }
  writes = groups * arrays
  reads = sum(read_rows.values()) * arrays + writes * len(read_rows)
  size = rows * per_row
  dollars = costs_lib.store_dollars(plan, size=size, reads=reads, writes=writes)
  return CacheTraffic(
    bytes=size,
    objects=writes,
    bytes_per_object=size / writes,
    dollars=dollars,
    write_bytes_per_second=filling and size / filling.seconds,
    write_requests_per_second=filling and writes / filling.seconds,
    read_bytes_per_second={n: speed * per_row for n, speed in speeds.items()},
    read_requests_per_second={n: speed * arrays for n, speed in speeds.items()},
  )


def _array_names(sections: schema.Sections) -> list[str]:
  """Arrays of the cache that have an object for the same rows."""
  # Their names do not depend on the teacher.
  teacher = teacher_lib.Teacher(
    folder=Path(),
    cfg=identity.student_config(sections),
    digest="",
    tokenizer_digest="",
  )
  rows = sections.cache.num_rows
  manifest = caches.manifest(sections, teacher, "", rows, held_out=False)
  return list(cache_format.array_specs(manifest))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CostRow:
  """A row of the paper's table 1, or an additional one."""

  step: str
  stages: tuple[str, ...]
  device_hours: float | None  # None: no compute.
  dollars: float | None  # None: unknown.
  is_paper_s: bool
  note: str = ""


def table_1(
  sections: schema.Sections,
  costs: Sequence[StageCost],
  traffic: CacheTraffic,
) -> list[CostRow]:
  """The rows of the paper's table 1, and additional ones.

  Phases that the released one begins from are the analog's; those with a
  teacher distil, the others train it from scratch. A total is the analog's
  alone: phases for comparison have their own row.

  Source: "Require Frontier AI Labs To Release Small Analog Models", table 1.
  """
  train = sections.train
  lines = costs_lib.phase_lines(train, sections.release.phase)
  by_stage = {cost.stage: cost for cost in costs}

  def row(step, stages, note=""):
    found = [by_stage[stage] for stage in stages if stage in by_stage]
    dollars = [cost.dollars for cost in found if cost.dollars is not None]
    whole = len(dollars) == len(stages)
    hours = sum((cost.device_hours for cost in found), 0.0)
    return _cost_row(
      step,
      stages,
      hours if len(found) == len(stages) else None,
      math.fsum(dollars) if whole else None,
      note,
    )

  def stages(names):
    return [f"train.{name}" for name in names]

  size = sizes.count_parameters(sections.student).total
  size *= jnp.dtype(sections.release.dtype).itemsize
  hosting = costs_lib.hosting_dollars(sections.plan, size)
  rows = [
    row(costs_lib.SCRATCH, stages(lines.scratch)),
    row(costs_lib.DISTIL, stages(lines.distil)),
    row(costs_lib.TUNING, [], "not built"),
    row(costs_lib.TEACHER, ["cache"]),
    _cost_row(costs_lib.CACHE, ["cache"], None, traffic.dollars),
    row(costs_lib.MEASUREMENT, ["measure"]),
    _cost_row(costs_lib.HOSTING, ["export"], None, hosting),
  ]
  dollars = [r.dollars for r in rows if r.dollars is not None]
  hours = sum(r.device_hours or 0.0 for r in rows)
  whole = sum(dollars) if len(dollars) == len(rows) else None
  total_row = _cost_row(costs_lib.TOTAL, [], hours, whole)
  compared = row(costs_lib.COMPARED, stages(lines.compared))
  return [*rows, total_row, *([compared] if lines.compared else [])]


def _cost_row(
  step: str,
  stages: Sequence[str],
  hours: float | None,
  dollars: float | None,
  note: str = "",
) -> CostRow:
  return CostRow(
    step=step,
    stages=tuple(stages),
    device_hours=hours,
    dollars=dollars,
    is_paper_s=step in costs_lib.PAPER_S,
    note=note,
  )
