"""The ledger: costs of a run, append-only, across restarts."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
import json
import os
from pathlib import Path
import time
from typing import Any

import jax

from analogjax.workdir import energy

FILE = "ledger.jsonl"
_SUMMED = (
  *("seconds", "device_seconds", "tokens"),
  *("flops", "teacher_flops", "bytes"),
)
# Keys of `goodput`.
ACTIVITIES = (
  *("productive", "lost", "data", "compile", "eval", "checkpoint"),
  *("start", "other", "down"),
)


class Ledger:
  """Appends the costs since the last entry; killed runs lose little.

  An entry has `kwh` of this machine if energy.py can meter it.
  """

  def __init__(self, workdir: Path, stage: str):
    """Starts the clock of a stage ("cache", "train/distill")."""
    self._path = workdir / FILE
    self._stage = stage
    self._since = time.monotonic()
    self._meter = energy.open_meter()
    self._kwh = self._meter() if self._meter else 0.0

  def append(
    self,
    *,
    tokens: int = 0,
    flops: float = 0,
    teacher_flops: float = 0,
    bytes: int = 0,
    step: int | None = None,
    activities: Mapping[str, float] | None = None,
    begins: bool = False,
  ) -> None:
    """Adds an entry for the time since the previous one.

    Args:
      tokens: positions that went through a model.
      flops: floating-point operations by the formulas of models/sizes.py.
      teacher_flops: the teacher's part of these.
      bytes: written to disk.
      step: of a training phase, the number of updates done.
      activities: seconds of this time by activity, as in `Meter.spent`; the
        rest is "other".
      begins: a run begins or continues after this `step`.
    """
    now = time.monotonic()
    seconds = now - self._since
    self._since = now
    if jax.process_index() != 0:
      return
    entry: dict[str, Any] = {
      "stage": self._stage,
      "unix_time": round(time.time(), 3),
      "seconds": round(seconds, 3),
      "devices": jax.device_count(),
      "device_kind": jax.devices()[0].device_kind,
      "device_seconds": round(seconds * jax.device_count(), 3),
      "tokens": tokens,
      "flops": float(flops),
      "teacher_flops": float(teacher_flops),
      "bytes": bytes,
    }
    if step is not None:
      entry |= {"step": step, "begins": begins}
    if self._meter is not None:
      before, self._kwh = self._kwh, self._meter()
      entry["kwh"] = round(self._kwh - before, 9)
    if activities is not None:
      rounded = {what: round(s, 4) for what, s in activities.items()}
      entry["activities"] = rounded
    # A line cut short by a kill must not swallow the next one.
    with open(self._path, "ab+") as file:
      if file.tell():
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
          file.write(b"\n")
      file.write(json.dumps(entry).encode() + b"\n")


def totals(workdir: Path) -> dict[str, dict[str, float]]:
  """Totals of each stage, by the fields of `append`."""
  sums: dict[str, Any] = defaultdict(lambda: defaultdict(float))
  for entry in entries(workdir):
    for field in _SUMMED:
      sums[entry["stage"]][field] += entry.get(field, 0)
  return {stage: dict(fields) for stage, fields in sums.items()}


def goodput(workdir: Path) -> dict[str, dict[str, float]]:
  """Time of each training phase by activity, in seconds, over all restarts.

  Returns:
    By phase ("train/distill"): `productive`, in steps whose result counts;
      `lost`, in steps that a restart repeated; `data`, `compile`, `eval` and
      `checkpoint`, while the loop waited for them; `start`, before the first
      step of each run; `down`, from the last entry of a run to the start of the
      next, which is not in the sum of seconds; `other`.
  """
  phases = defaultdict(list)
  for entry in entries(workdir):
    if "step" in entry:
      phases[entry["stage"]].append(entry)
  return {stage: _goodput(found) for stage, found in phases.items()}


def _goodput(entries: list[dict[str, Any]]) -> dict[str, float]:
  sums = dict.fromkeys(ACTIVITIES, 0.0)
  counted: list[tuple[int, int, float]] = []  # Step before, step, productive.
  before = None
  for entry in entries:
    step, activities = entry["step"], dict(entry.get("activities", {}))
    productive = activities.pop("productive", 0.0)
    if entry["begins"]:
      rest = entry["seconds"] - sum(activities.values())
      activities["start"] = max(rest, 0.0)
      if before is not None:
        began = entry["unix_time"] - entry["seconds"]
        # The clock may have been set back meanwhile.
        sums["down"] += max(began - before["unix_time"], 0.0)
      kept = []
      for first, last, seconds in counted:
        # An entry without a new step has the end of the step before it.
        part = 1.0
        if last > step:
          part = max(step - first, 0) / max(last - first, 1)
        sums["lost"] += (1 - part) * seconds
        kept.append((min(first, step), min(last, step), part * seconds))
      counted = kept
    else:
      first = before["step"] if before is not None else 0
      counted.append((min(first, step), step, productive))
    for what, seconds in activities.items():
      sums[what] += seconds
    # Below zero if a step's end is booked one entry late: single entries are
    # not exact, their sum is.
    sums["other"] += entry["seconds"] - productive - sum(activities.values())
    before = entry
  sums["other"] = max(sums["other"], 0.0)
  sums["productive"] = sum(seconds for *_, seconds in counted)
  return sums


def entries(workdir: Path) -> Iterator[dict[str, Any]]:
  """Yields what `append` wrote, in order, of all runs; none without a file."""
  path = workdir / FILE
  if not path.exists():
    return
  for line in path.read_text(encoding="utf-8").splitlines():
    try:
      entry = json.loads(line)
    except json.JSONDecodeError:
      continue  # Cut short by a kill.
    if isinstance(entry, dict) and "stage" in entry:
      yield entry
