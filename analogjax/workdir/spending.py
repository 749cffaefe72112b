"""What the ledger's entries add up to, by the lines of the cost table."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
from typing import Any

from analogjax.workdir import cost_rows

# Of an entry in the ledger by whoever tunes the analog with tools of their own.
TUNING_STAGE = "safety_tuning"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rate:
  """What one device of a kind takes, where that is known."""

  dollars_per_hour: float | None
  watts: float | None  # With its share of the host.
  field: str = ""  # The section where both are set.


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


# Stage -> line; phases have theirs from the config.
_LINES = {
  "cache": cost_rows.TEACHER,
  "measure": cost_rows.MEASUREMENT,
  "intervene": cost_rows.MEASUREMENT,
  "safety": cost_rows.SAFETY,
  "export": cost_rows.EXPORT,
  TUNING_STAGE: cost_rows.TUNING,
}


def shares(
  entry: Mapping[str, Any], lines: cost_rows.PhaseLines
) -> list[tuple[str, float]]:
  """The lines that an entry of the ledger belongs to, and its part in each."""
  stage = str(entry["stage"])
  if not stage.startswith("train/"):
    return [(_LINES.get(stage, cost_rows.OTHERS), 1.0)]
  phase = stage.removeprefix("train/")
  if phase in lines.scratch:
    return [(cost_rows.SCRATCH, 1.0)]
  if phase not in lines.distil:
    return [(cost_rows.COMPARED, 1.0)]
  flops = entry.get("flops", 0)
  part = entry.get("teacher_flops", 0) / flops if flops else 0.0
  of_student = (cost_rows.DISTIL, 1 - part)
  return [of_student, (cost_rows.TEACHER, part)] if part else [of_student]


def add(
  parts: Iterable[tuple[Mapping[str, Any], float]],
  rates: Mapping[str, Rate],
  pue: float,
) -> Spent:
  """Parts of entries, summed.

  Args:
    parts: (entry, its part that counts).
    rates: by `device_kind`.
    pue: power of the site over that of its machines; for a meter's figures too,
      which are of one machine.
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
  entries: Sequence[Mapping[str, Any]], lines: cost_rows.PhaseLines
) -> int:
  """Tokens that the teacher saw to teach: for the cache, or in the loop."""
  total = 0
  for entry in entries:
    phase = str(entry["stage"]).removeprefix("train/")
    live = phase in lines.distil and entry.get("teacher_flops", 0) > 0
    if entry["stage"] == "cache" or live:
      total += entry.get("tokens", 0)
  return total
