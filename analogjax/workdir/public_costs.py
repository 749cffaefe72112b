"""Publishes the cost of an analog without what tells the frontier's size.

All figures of a stage in which the teacher ran are left out: device-hours,
FLOPs, dollars and energy grow with the frontier model, and each would tell its
size to anyone who knows how many tokens it saw. In their place stands the range
that follows from what is public anyway: an analog of N parameters has a
frontier model of 20 N to 200 N.
"""

from collections.abc import Iterable, Mapping, Sequence
import math
from typing import Any

from analogjax.config.window import TIMES
from analogjax.workdir.costs import (
  DISTIL,
  FIGURES,
  SCRATCH,
  TEACHER,
  rounded,
  sum_rows,
)


def public(cost: Mapping[str, Any], parameters: int | None) -> dict[str, Any]:
  """The cost of `costs.cost` without what tells the frontier model's size.

  The result does not depend on that size at all: no figure of a stage in which
  the teacher ran is used, not even in a sum. Where it taught, `flops` is the
  range {low, high} that the window implies, 2 x 20 N x tokens to 2 x 200 N x
  tokens (attention left out), and `dollars` is that range times what a FLOP of
  the analog's own training cost.

  Args:
    parameters: of the analog, N; None: no range is given, because the analog
      is not known to be inside the window of sizes.
  """
  rows = [_public_row(row) for row in cost["rows"]]
  compared = cost["compared"] and _public_row(cost["compared"])
  tokens = cost["teacher_tokens"]
  for row in rows:
    if row["step"] == TEACHER and tokens and parameters is not None:
      row |= _teacher_range(rows, tokens, parameters)
  told = [row for row in rows if not row["of_teacher"]]
  note = "" if len(told) == len(rows) else "without what the teacher took"
  return {
    "rows": rows,
    "total": sum_rows(told, note=note),
    "compared": compared,
    "teacher_tokens": tokens,
    "energy": cost["energy"],
    "missing": [],
  }


def problem(cost: Mapping[str, Any], parameters: int) -> str:
  """Checks a public cost by its own figures; "" if nothing is wrong.

  Args:
    cost: of a bundle's record; it has the schema of the record, no more is
      known of it.
    parameters: of the analog, counted from its weights.
  """
  try:
    return _problem(cost, parameters)
  except OverflowError:
    return "cost: its figures make one that no float64 holds."


def _problem(cost: Mapping[str, Any], parameters: int) -> str:
  if parameters < 1:
    return "cost: expected an analog with parameters, found none."
  # A record leaves out figures that are not known.
  nothing: dict[str, Any] = dict.fromkeys(FIGURES)
  rows = [nothing | dict(row) for row in cost["rows"]]
  for row in rows:
    spans = {name: row[name] for name in FIGURES if row[name] is not None}
    if not row["of_teacher"]:
      if any(isinstance(span, Mapping) for span in spans.values()):
        return f"cost: {row['step']!r} is not the teacher's, yet a range."
      continue
    if not spans:
      continue
    wanted = {}
    flops = spans.get("flops")
    if row["step"] == TEACHER and isinstance(flops, Mapping):
      tokens = round(flops["low"] / (2 * TIMES[0] * parameters))
      wanted = _teacher_range(rows, tokens, parameters)
      wanted = {k: span for k, span in wanted.items() if span is not None}
    if not _agree(spans, wanted):
      return (
        f"cost: {row['step']!r} tells more of the teacher than the window:"
        f" {spans}; {parameters:,} parameters make {wanted or 'nothing'}."
      )
  total = sum_rows([row for row in rows if not row["of_teacher"]], note="")
  said = nothing | dict(cost.get("total", {}))
  for name in FIGURES:
    if said[name] != total[name]:
      return (
        f"cost: the total of {name} is {said[name]}; the rows that are not the"
        f" teacher's make {total[name]}."
      )
  return ""


def _agree(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
  """Whether ranges are equal up to rounding."""
  return found.keys() == wanted.keys() and all(
    isinstance(span, Mapping)
    and all(
      math.isclose(span[end], wanted[name][end], rel_tol=1e-4)
      for end in ("low", "high")
    )
    for name, span in found.items()
  )


def _teacher_range(
  rows: Sequence[Mapping[str, Any]], tokens: int, parameters: int
) -> dict[str, Any]:
  """FLOPs and dollars of inference by a frontier model inside the window."""
  flops = [2 * n * parameters * tokens for n in TIMES]
  # In the record of a stranger some may be ranges.
  trained = [
    row
    for row in rows
    if row["step"] in (SCRATCH, DISTIL)
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
  return {"low": rounded(low), "high": rounded(high)}


def _public_row(row: Mapping[str, Any]) -> dict[str, Any]:
  if not row["of_teacher"]:
    return dict(row)
  notes = [row["note"]] if row["note"] else []
  notes.append("withheld: it grows with the frontier model")
  nothing = dict.fromkeys(FIGURES)
  return {**row, **nothing, "note": "; ".join(notes)}
