"""Table 1 of the paper, with the lines that it lacks: from plan or ledger.

A plan fills the lines from shapes (planning/costs.py), a release from the
ledger (`cost`), as JSON for the lab and a regulator. public_costs.py says what
of it may be published.

Source: "Require Frontier AI Labs To Release Small Analog Models", Table 1.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math
from typing import Any

from analogjax.config.plan import PlanConfig
from analogjax.config.train import TrainConfig
from analogjax.distributed import devices

SCRATCH = "Train analog model from scratch"
DISTIL = "Distill frontier model to analog"
TUNING = "Safety fine-tune/RLHF"
TEACHER = "Teacher inference"
CACHE = "Logit cache: storage and requests"
MEASUREMENT = "Measurement"
SAFETY = "Safety evaluation"
EXPORT = "Export"
OTHERS = "Other stages"
HOSTING = "Weight hosting and bandwidth"
TOTAL = "Total analog cost"
COMPARED = "Phases to compare with"

PAPER_S = (SCRATCH, DISTIL, TUNING, HOSTING, TOTAL)

FIGURES = ("device_hours", "dollars", "kwh", "flops")

# codecarbon reads power meters where there are any (NVML, RAPL), or estimates.
METERED, ESTIMATED = "codecarbon", "device-hours x watts x PUE"

# The stage of ledger entries by whoever tunes the analog with their own tools.
TUNING_STAGE = "safety_tuning"

# Stage -> line; the line of a phase follows from the config.
_LINES = {
  "cache": TEACHER,
  "measure": MEASUREMENT,
  "intervene": MEASUREMENT,
  "safety": SAFETY,
  "export": EXPORT,
  TUNING_STAGE: TUNING,
}

# Lines whose stages may have run the teacher, whatever their entries say.
_OF_TEACHER = (TEACHER, MEASUREMENT, SAFETY, OTHERS)
# Lines that have stages only if there are entries of them.
_SOMETIMES = (TUNING, EXPORT, OTHERS, COMPARED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseLines:
  """Names of phases by their line, in running order."""

  scratch: tuple[str, ...]
  distil: tuple[str, ...]
  compared: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rate:
  """Price and power of one device of a kind, where they are known."""

  dollars_per_hour: float | None
  watts: float | None  # With its share of the host.
  field: str = ""  # The section of the config that sets both.


@dataclasses.dataclass
class Spent:
  """Entries of some stages, or parts of them, added up."""

  device_hours: float = 0.0
  dollars: float = 0.0
  kwh: float = 0.0
  flops: float = 0.0
  metered: int = 0  # Entries, as is the next.
  estimated: int = 0
  # Sections of the config, or what else to look into.
  unpriced: set[str] = dataclasses.field(default_factory=set)
  unpowered: set[str] = dataclasses.field(default_factory=set)
  teacher_ran: bool = False
  stages: set[str] = dataclasses.field(default_factory=set)


def phase_lines(train: TrainConfig, released: str) -> PhaseLines:
  """The lines of the phases that run.

  Phases that lead to the released one are the analog's: with a teacher they
  distil, without one they train from scratch. The others are for comparison.
  """
  chain = train.chain(released)
  taught = {name: train.phase[name].loss.has_teacher for name in chain}
  return PhaseLines(
    scratch=tuple(name for name in chain if not taught[name]),
    distil=tuple(name for name in chain if taught[name]),
    compared=tuple(name for name in train.phases if name not in chain),
  )


def hosting_dollars(plan: PlanConfig, weights_bytes: float) -> float:
  """Storage of the weights for `hosting_months`, and downloads."""
  stored = weights_bytes / 1e9 * plan.dollars_per_gb_month
  egress = plan.hosting_egress_gb * plan.dollars_per_egress_gb
  return stored * plan.hosting_months + egress


def store_dollars(
  plan: PlanConfig, *, size: float, reads: float, writes: float
) -> float:
  """Storage of a cache of `size` bytes for `cache_months`, and requests."""
  dollars = size / 1e9 * plan.dollars_per_gb_month * plan.cache_months
  dollars += reads / 1e6 * plan.dollars_per_million_reads
  return dollars + writes / 1e6 * plan.dollars_per_million_writes


def rates(plan: PlanConfig, kinds: Iterable[str]) -> dict[str, Rate]:
  """Price and power of each kind of device that is known.

  Args:
    plan: of the config; where it sets no watts those of devices.py hold.
    kinds: values of `device_kind` in the ledger.
  """
  found = {}
  for kind in set(kinds):
    name = devices.chip_name(kind)
    if name is None or name not in plan.chip:
      continue
    price = plan.chip[name]
    found[kind] = Rate(
      field=f"plan.{name}",
      dollars_per_hour=price.dollars_per_hour or None,
      watts=price.watts or devices.chip(name).watts,
    )
  return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredCache:
  """The logit cache in its store."""

  bytes: float
  reads: float  # Total requests.
  writes: float


def cost(
  entries: Iterable[Mapping[str, Any]],
  *,
  train: TrainConfig,
  released: str,
  rates: Mapping[str, Rate],
  plan: PlanConfig,
  weights_bytes: float,
  cache: StoredCache,
) -> dict[str, Any]:
  """The lines of the paper's Table 1 and those that it lacks, filled.

  Entries of all runs count, also of steps that a restart repeated: they were
  paid for. Where a teacher ran in the loop, its part of an entry, by FLOPs, is
  in the line of its inference.

  Args:
    released: the phase whose student is released.
    rates: by `device_kind` of the ledger; see `rates`.
    weights_bytes: of the weights that are hosted.
    cache: all caches together.

  Returns:
    JSON values: `rows`, `total`, `compared` (a row or None), `teacher_tokens`
    (that it saw to teach), `energy` and `missing` (facts that are not known,
    and what to do). The FIGURES of a row are None where they are not known.
  """
  lines = phase_lines(train, released)
  entries = list(entries)
  ours: dict[str, list[tuple[Mapping[str, Any], float]]] = {}
  for entry in entries:
    for step, part in shares(entry, lines):
      ours.setdefault(step, []).append((entry, part))

  def spent(step: str) -> Spent:
    return add(ours.get(step, ()), rates, plan.pue)

  wanted = {
    SCRATCH: [f"train/{name}" for name in lines.scratch],
    DISTIL: [f"train/{name}" for name in lines.distil],
    TEACHER: ["cache"],
    MEASUREMENT: ["measure"],
    SAFETY: ["safety"],
  }
  sums = {step: spent(step) for step in (*wanted, *_SOMETIMES)}
  dollars = store_dollars(
    plan, size=cache.bytes, reads=cache.reads, writes=cache.writes
  )
  rows = [
    *(_row(step, sums, wanted) for step in (SCRATCH, DISTIL, TUNING, TEACHER)),
    _store_row(CACHE, dollars),
    *(
      _row(step, sums, wanted)
      for step in (MEASUREMENT, SAFETY, EXPORT, OTHERS)
      if step in wanted or sums[step].stages
    ),
    _store_row(HOSTING, hosting_dollars(plan, weights_bytes)),
  ]
  compared = sums[COMPARED]
  return {
    "rows": rows,
    "total": sum_rows(rows, note=""),
    "compared": (_row(COMPARED, sums, wanted) if compared.stages else None),
    "teacher_tokens": int(teaching_tokens(entries, lines)),
    "energy": _energy(sums.values(), plan.pue),
    "missing": _missing(sums, wanted),
  }


def shares(
  entry: Mapping[str, Any], lines: PhaseLines
) -> list[tuple[str, float]]:
  """(line, part) for each line that an entry of the ledger counts in."""
  stage = str(entry["stage"])
  if not stage.startswith("train/"):
    return [(_LINES.get(stage, OTHERS), 1.0)]
  phase = stage.removeprefix("train/")
  if phase in lines.scratch:
    return [(SCRATCH, 1.0)]
  if phase not in lines.distil:
    return [(COMPARED, 1.0)]
  flops = entry.get("flops", 0)
  part = entry.get("teacher_flops", 0) / flops if flops else 0.0
  of_student = (DISTIL, 1 - part)
  return [of_student, (TEACHER, part)] if part else [of_student]


def add(
  parts: Iterable[tuple[Mapping[str, Any], float]],
  rates: Mapping[str, Rate],
  pue: float,
) -> Spent:
  """Parts of entries, summed.

  Args:
    parts: (entry, its part that counts).
    pue: power of the site over that of its machines; it scales the figures of a
      meter too, which measures one machine.
  """
  found = Spent()
  for entry, part in parts:
    kind = str(entry.get("device_kind", ""))
    rate = rates.get(kind) or Rate(dollars_per_hour=None, watts=None)
    where = rate.field or f"no chip of plan is a {kind!r}"
    hours = part * entry.get("device_seconds", 0) / 3600
    found.teacher_ran |= entry.get("teacher_flops", 0) > 0
    found.stages.add(str(entry["stage"]))
    found.device_hours += hours
    found.flops += part * entry.get("flops", 0)
    if rate.dollars_per_hour is None:
      found.unpriced.add(where)
    else:
      found.dollars += hours * rate.dollars_per_hour
    if entry.get("kwh") is not None:
      found.kwh += part * entry["kwh"] * pue
      found.metered += 1
    elif rate.watts is None:
      found.unpowered.add(where)
    else:
      found.kwh += hours * rate.watts / 1000 * pue
      found.estimated += 1
  return found


def teaching_tokens(
  entries: Sequence[Mapping[str, Any]], lines: PhaseLines
) -> int:
  """Tokens that the teacher saw to teach: for the cache, or in the loop."""
  total = 0
  for entry in entries:
    phase = str(entry["stage"]).removeprefix("train/")
    live = phase in lines.distil and entry.get("teacher_flops", 0) > 0
    if entry["stage"] == "cache" or live:
      total += entry.get("tokens", 0)
  return total


def _row(
  step: str, sums: Mapping[str, Spent], wanted: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
  found = sums[step]
  stages = sorted({*wanted.get(step, ()), *found.stages})
  lacks = [stage for stage in wanted.get(step, ()) if stage not in found.stages]
  notes = [f"not in the ledger: {', '.join(lacks)}"] if lacks else []
  if found.unpriced:
    notes.append("price not known")
  if step == TUNING and not found.stages:
    notes.append("not done")
  if step == TEACHER:
    notes.append("not in the paper's table")
  figures: dict[str, float | None] = {
    "device_hours": rounded(found.device_hours),
    "dollars": None if found.unpriced else rounded(found.dollars),
    "kwh": None if found.unpowered else rounded(found.kwh),
    "flops": rounded(found.flops),
  }
  if lacks:
    figures = dict.fromkeys(FIGURES)
  return {
    "step": step,
    "stages": stages,
    **figures,
    "is_paper_s": step in PAPER_S,
    # Also the student's part of a stage with a live teacher: a part by FLOPs
    # reveals the whole.
    "of_teacher": step in _OF_TEACHER or found.teacher_ran,
    "note": "; ".join(notes),
  }


def _store_row(step: str, dollars: float) -> dict[str, Any]:
  return {
    "step": step,
    "stages": [],
    "device_hours": 0.0,
    "dollars": rounded(dollars),
    "kwh": 0.0,
    "flops": 0.0,
    "is_paper_s": step in PAPER_S,
    "of_teacher": False,
    "note": "by list prices; no compute",
  }


def sum_rows(rows: Sequence[Mapping[str, Any]], *, note: str) -> dict[str, Any]:
  figures = {}
  for name in FIGURES:
    values = [row[name] for row in rows]
    known = [value for value in values if value is not None]
    whole = len(known) == len(values)
    figures[name] = rounded(math.fsum(known)) if whole else None
  return {"step": TOTAL, **figures, "note": note}


def _energy(sums: Iterable[Spent], pue: float) -> dict[str, Any]:
  sums = list(sums)
  methods = [METERED] * any(found.metered for found in sums)
  methods += [ESTIMATED] * any(found.estimated for found in sums)
  return {"method": " and ".join(methods) or "none", "pue": pue}


def _missing(
  sums: Mapping[str, Spent], wanted: Mapping[str, Sequence[str]]
) -> list[str]:
  """Facts that are not known, each with what to do."""
  found = []
  for step, stages in wanted.items():
    for stage in stages:
      if stage not in sums[step].stages:
        command = stage.split("/")[0]
        found.append(f"cost of {stage}: run 'analogjax {command}'")
  for what in ("unpriced", "unpowered"):
    field = "dollars_per_hour" if what == "unpriced" else "watts"
    places = set().union(*(getattr(spent, what) for spent in sums.values()))
    for place in sorted(places):
      known = place.startswith("plan.")
      found.append(f"cost: set {place}.{field}" if known else f"cost: {place}")
  return list(dict.fromkeys(found))


def rounded(value: float) -> float:
  # Six digits: to the dollar up to a million, without noise of sums.
  return float(f"{value:.6g}")
