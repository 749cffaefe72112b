"""What an analog has cost, from the ledger; and what of it may be told.

`cost` is the whole, for the lab and a regulator. `public` leaves out every
figure of a stage in which the teacher ran: its device-hours, FLOPs, dollars and
energy all grow with the frontier model, and each would tell its size to anyone
who knows how many tokens it saw. In their place stands the range that follows
from what is public anyway: an analog of N parameters has a frontier model of
20 N to 200 N.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math
from typing import Any

from analogjax.config.window import TIMES
from analogjax.workdir import cost_rows, spending
from analogjax.workdir.cost_rows import Phase, StorePrices
from analogjax.workdir.spending import Rate, Spent

# codecarbon asks counters where there are any (NVML, RAPL), else it estimates.
METERED, ESTIMATED = "codecarbon", "device-hours x watts x PUE"

_FIGURES = ("device_hours", "dollars", "kwh", "flops")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredCache:
  """The logit cache as it lay in its store."""

  bytes: float
  reads: float  # Requests, in all.
  writes: float


def cost(
  entries: Iterable[Mapping[str, Any]],
  *,
  names: Sequence[str],
  phases: Mapping[str, Phase],
  released: str,
  rates: Mapping[str, Rate],
  prices: StorePrices,
  weights_bytes: float,
  cache: StoredCache,
) -> dict[str, Any]:
  """The lines of the paper's Table 1 and those that it lacks, filled.

  Entries of all runs count, those of steps that a restart did again too: they
  were paid for. Where a teacher ran in the loop its part of an entry, by FLOPs,
  is in the line of its inference.

  Args:
    entries: of the ledger.
    names: of the phases, in running order.
    phases: by name.
    released: the phase whose student goes out.
    rates: by `device_kind` of the ledger.
    prices: the section `plan` of the config.
    weights_bytes: of what is hosted.
    cache: what was stored.

  Returns:
    JSON values: `rows`, `total`, `compared` (a row or None), `teacher_tokens`
    (that it saw to teach), `energy` and `missing`: what is not known, and what
    to do. `device_hours`, `dollars`, `kwh` and `flops` of a row are None where
    they are not known.
  """
  lines = cost_rows.phase_lines(names, phases, released)
  entries = list(entries)
  ours: dict[str, list[tuple[Mapping[str, Any], float]]] = {}
  for entry in entries:
    for step, part in spending.shares(entry, lines):
      ours.setdefault(step, []).append((entry, part))

  def add(step: str) -> Spent:
    return spending.add(ours.get(step, ()), rates, prices.pue)

  wanted = {
    cost_rows.SCRATCH: [f"train/{name}" for name in lines.scratch],
    cost_rows.DISTIL: [f"train/{name}" for name in lines.distil],
    cost_rows.TEACHER: ["cache"],
    cost_rows.MEASUREMENT: ["measure"],
    cost_rows.SAFETY: ["safety"],
  }
  sums = {step: add(step) for step in (*wanted, *_SOMETIMES)}
  rows = [
    _row(cost_rows.SCRATCH, sums, wanted),
    _row(cost_rows.DISTIL, sums, wanted),
    _row(cost_rows.TUNING, sums, wanted),
    _row(cost_rows.TEACHER, sums, wanted),
    _store_row(cost_rows.CACHE, _cache_dollars(prices, cache)),
    _row(cost_rows.MEASUREMENT, sums, wanted),
    _row(cost_rows.SAFETY, sums, wanted),
    *(
      _row(step, sums, wanted)
      for step in (cost_rows.EXPORT, cost_rows.OTHERS)
      if sums[step].stages
    ),
    _store_row(
      cost_rows.HOSTING, cost_rows.hosting_dollars(prices, weights_bytes)
    ),
  ]
  compared = sums[cost_rows.COMPARED]
  return {
    "rows": rows,
    "total": _total(rows, note=""),
    "compared": (
      _row(cost_rows.COMPARED, sums, wanted) if compared.stages else None
    ),
    "teacher_tokens": int(spending.teaching_tokens(entries, lines)),
    "energy": _energy(sums.values(), prices.pue),
    "missing": _missing(sums, wanted),
  }


def public(cost: Mapping[str, Any], parameters: int | None) -> dict[str, Any]:
  """The same without what tells the frontier model's size.

  What is returned does not depend on that size at all: of a stage in which the
  teacher ran no figure is used, not even in a sum. Where it taught, `flops` is
  the range {low, high} that the window implies, 2 x 20 N x tokens to 2 x 200 N
  x tokens (attention left out), and `dollars` that at what a FLOP of the
  analog's own training cost.

  Args:
    cost: of `cost`.
    parameters: of the analog, N; None: it is not known to be within the window
      of sizes, so no range follows from them.
  """
  rows = [_public_row(row) for row in cost["rows"]]
  compared = cost["compared"] and _public_row(cost["compared"])
  tokens = cost["teacher_tokens"]
  for row in rows:
    if row["step"] == cost_rows.TEACHER and tokens and parameters is not None:
      row |= _teacher_range(rows, tokens, parameters)
  told = [row for row in rows if not row["of_teacher"]]
  note = "" if len(told) == len(rows) else "without what the teacher took"
  return {
    "rows": rows,
    "total": _total(told, note=note),
    "compared": compared,
    "teacher_tokens": tokens,
    "energy": cost["energy"],
    "missing": [],
  }


def problem(cost: Mapping[str, Any], parameters: int) -> str:
  """What is wrong with a public cost, by its own figures; "" if nothing is.

  Args:
    cost: as a bundle's record has it, of the record's schema and else anything.
    parameters: of the analog, counted from its weights.
  """
  try:
    return _problem(cost, parameters)
  except OverflowError:
    return "cost: its figures make one that no float64 holds."


def _problem(cost: Mapping[str, Any], parameters: int) -> str:
  if parameters < 1:
    return "cost: expected an analog with parameters, found none."
  # What a record leaves out is not known.
  nothing: dict[str, Any] = dict.fromkeys(_FIGURES)
  rows = [nothing | dict(row) for row in cost["rows"]]
  for row in rows:
    spans = {name: row[name] for name in _FIGURES if row[name] is not None}
    if not row["of_teacher"]:
      if any(isinstance(span, Mapping) for span in spans.values()):
        return f"cost: {row['step']!r} is not the teacher's, yet a range."
      continue
    if not spans:
      continue
    wanted = {}
    flops = spans.get("flops")
    if row["step"] == cost_rows.TEACHER and isinstance(flops, Mapping):
      tokens = round(flops["low"] / (2 * TIMES[0] * parameters))
      wanted = _teacher_range(rows, tokens, parameters)
      wanted = {k: span for k, span in wanted.items() if span is not None}
    if not _agree(spans, wanted):
      return (
        f"cost: {row['step']!r} tells more of the teacher than the window:"
        f" {spans}; {parameters:,} parameters make {wanted or 'nothing'}."
      )
  total = _total([row for row in rows if not row["of_teacher"]], note="")
  said = nothing | dict(cost.get("total", {}))
  for name in _FIGURES:
    if said[name] != total[name]:
      return (
        f"cost: the total of {name} is {said[name]}; the rows that are not the"
        f" teacher's make {total[name]}."
      )
  return ""


def _agree(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
  """Whether ranges are the same, but for what was rounded."""
  return found.keys() == wanted.keys() and all(
    isinstance(span, Mapping)
    and all(
      math.isclose(span[end], wanted[name][end], rel_tol=1e-4)
      for end in ("low", "high")
    )
    for name, span in found.items()
  )


# Whatever their entries say: what is not sure to be without the teacher.
_OF_TEACHER = (
  *(cost_rows.TEACHER, cost_rows.MEASUREMENT, cost_rows.SAFETY),
  cost_rows.OTHERS,
)
# Lines that have stages only where there are entries of them.
_SOMETIMES = (
  *(cost_rows.TUNING, cost_rows.EXPORT, cost_rows.OTHERS),
  cost_rows.COMPARED,
)


def _cache_dollars(prices: StorePrices, cache: StoredCache) -> float:
  return cost_rows.store_dollars(
    prices, size=cache.bytes, reads=cache.reads, writes=cache.writes
  )


def _row(
  step: str, sums: Mapping[str, Spent], wanted: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
  found = sums[step]
  stages = sorted({*wanted.get(step, ()), *found.stages})
  lacks = [stage for stage in wanted.get(step, ()) if stage not in found.stages]
  notes = [f"not in the ledger: {', '.join(lacks)}"] if lacks else []
  if found.unpriced:
    notes.append("price not known")
  if step == cost_rows.TUNING and not found.stages:
    notes.append("not done")
  if step == cost_rows.TEACHER:
    notes.append("not in the paper's table")
  figures: dict[str, float | None] = {
    "device_hours": _rounded(found.device_hours),
    "dollars": None if found.unpriced else _rounded(found.dollars),
    "kwh": None if found.unpowered else _rounded(found.kwh),
    "flops": _rounded(found.flops),
  }
  if lacks:
    figures = dict.fromkeys(_FIGURES)
  return {
    "step": step,
    "stages": stages,
    **figures,
    "is_paper_s": step in cost_rows.PAPER_S,
    # The student's part of a stage with a teacher in the loop, too: a part by
    # FLOPs tells the whole.
    "of_teacher": step in _OF_TEACHER or found.teacher_ran,
    "note": "; ".join(notes),
  }


def _store_row(step: str, dollars: float) -> dict[str, Any]:
  return {
    "step": step,
    "stages": [],
    "device_hours": 0.0,
    "dollars": _rounded(dollars),
    "kwh": 0.0,
    "flops": 0.0,
    "is_paper_s": step in cost_rows.PAPER_S,
    "of_teacher": False,
    "note": "by list prices; no compute",
  }


def _total(rows: Sequence[Mapping[str, Any]], *, note: str) -> dict[str, Any]:
  figures = {}
  for name in _FIGURES:
    values = [row[name] for row in rows]
    known = [value for value in values if value is not None]
    whole = len(known) == len(values)
    figures[name] = _rounded(math.fsum(known)) if whole else None
  return {"step": cost_rows.TOTAL, **figures, "note": note}


def _teacher_range(
  rows: Sequence[Mapping[str, Any]], tokens: int, parameters: int
) -> dict[str, Any]:
  """FLOPs and dollars of inference by a frontier model inside the window."""
  flops = [2 * n * parameters * tokens for n in TIMES]
  # Of a stranger's rows some may be ranges.
  trained = [
    row
    for row in rows
    if row["step"] in (cost_rows.SCRATCH, cost_rows.DISTIL)
    and not row["of_teacher"]
    and isinstance(row["dollars"], int | float)
    and isinstance(row["flops"], int | float)
    and row["flops"] > 0
  ]
  dollars = None
  if trained:
    price = math.fsum(row["dollars"] for row in trained)
    price /= math.fsum(row["flops"] for row in trained)
    dollars = _span(price * number for number in flops)
  return {"flops": _span(flops), "dollars": dollars}


def _span(ends: Iterable[float]) -> dict[str, float]:
  low, high = ends
  return {"low": _rounded(low), "high": _rounded(high)}


def _public_row(row: Mapping[str, Any]) -> dict[str, Any]:
  if not row["of_teacher"]:
    return dict(row)
  notes = [row["note"]] if row["note"] else []
  notes.append("withheld: it grows with the frontier model")
  nothing = dict.fromkeys(_FIGURES)
  return {**row, **nothing, "note": "; ".join(notes)}


def _energy(sums: Iterable[Spent], pue: float) -> dict[str, Any]:
  metered, estimated = 0, 0
  for found in sums:
    metered += found.metered
    estimated += found.estimated
  methods = [METERED] * bool(metered) + [ESTIMATED] * bool(estimated)
  return {"method": " and ".join(methods) or "none", "pue": pue}


def _missing(
  sums: Mapping[str, Spent], wanted: Mapping[str, Sequence[str]]
) -> list[str]:
  """What is not known, and what to do about it."""
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


def _rounded(value: float) -> float:
  # Six digits: to the dollar up to a million, and no noise of sums.
  return float(f"{value:.6g}")
