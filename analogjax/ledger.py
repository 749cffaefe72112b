"""The ledger: what a run has spent, append-only, across restarts."""

from collections import defaultdict
import json
from pathlib import Path
import time
from typing import Any

import jax

FILE = "ledger.jsonl"
_SUMMED = (
  *("seconds", "device_seconds", "tokens"),
  *("flops", "teacher_flops", "bytes"),
)


class Ledger:
  """Appends what was spent since the last entry; killed runs lose little."""

  def __init__(self, workdir: Path, stage: str):
    """Starts the clock of a stage ("cache", "train/distill")."""
    self._path = workdir / FILE
    self._stage = stage
    self._since = time.monotonic()

  def append(
    self,
    *,
    tokens: int = 0,
    flops: float = 0,
    teacher_flops: float = 0,
    bytes: int = 0,
  ) -> None:
    """Adds an entry for the time since the one before.

    Args:
      tokens: positions that went through a model.
      flops: floating-point operations by the formulas of models/sizes.py.
      teacher_flops: of these, what the teacher took.
      bytes: written to disk.
    """
    now = time.monotonic()
    seconds = now - self._since
    self._since = now
    if jax.process_index() != 0:
      return
    entry = {
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
    with open(self._path, "a", encoding="utf-8") as file:
      file.write(json.dumps(entry) + "\n")


def totals(workdir: Path) -> dict[str, dict[str, float]]:
  """What each stage has spent in all, by the fields of `append`."""
  path = workdir / FILE
  sums: dict[str, Any] = defaultdict(lambda: defaultdict(float))
  if path.exists():
    for line in path.read_text(encoding="utf-8").splitlines():
      try:
        entry = json.loads(line)
      except json.JSONDecodeError:
        continue  # Cut short by a kill.
      for field in _SUMMED:
        sums[entry["stage"]][field] += entry.get(field, 0)
  return {stage: dict(fields) for stage, fields in sums.items()}
