"""Metrics of a phase: JSON lines, and the same for TensorBoard."""

from collections.abc import Mapping
import json
import math
import os
from pathlib import Path
from typing import Any

import tensorboardX

FILE = "metrics.jsonl"


def read(folder: Path) -> list[dict[str, Any]]:
  """The records of a phase in order of writing; [] where there are none.

  A last line that a kill cut short is left out.
  """
  path = folder / FILE
  if not path.exists():
    return []
  records = []
  for line in path.read_text(encoding="utf-8").splitlines():
    try:
      records.append(json.loads(line))
    except json.JSONDecodeError:
      continue
  return records


class Writer:
  """Appends records; open one per phase and process 0."""

  def __init__(self, folder: Path, *, first_step: int):
    """Opens the files of a run that goes on after `first_step` updates.

    Records of later steps come from a run that was killed after its last
    checkpoint; those steps are done again, so their records are dropped. With
    first_step 0 all are: the measurement before the first step too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = [r for r in read(folder) if 0 < first_step >= r["step"]]
    path = folder / FILE
    temporary = path.with_suffix(".incomplete")
    temporary.write_text(
      "".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8"
    )
    os.replace(temporary, path)
    self._file = open(path, "a", encoding="utf-8")
    self._board = tensorboardX.SummaryWriter(
      str(folder / "tensorboard"), purge_step=first_step + 1
    )

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """One record: `step` updates were done when these were measured.

    What is not finite is null: JSON has no word for it.
    """
    record = {k: v if math.isfinite(v) else None for k, v in values.items()}
    text = json.dumps({"step": step, **record}, allow_nan=False)
    self._file.write(text + "\n")
    self._file.flush()
    for name, value in record.items():
      if value is not None:
        self._board.add_scalar(name, value, step)

  def close(self) -> None:
    self._file.close()
    self._board.close()
