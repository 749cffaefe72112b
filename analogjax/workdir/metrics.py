"""Metrics of a phase: JSON lines, TensorBoard, Weights & Biases.

`Writer` is the interface of clu's metric writers, so that another one can be
added to `open_writers`.
"""

from collections.abc import Mapping
import importlib
import json
import math
import os
from pathlib import Path
from typing import Any, Protocol

import tensorboardX

FILE = "metrics.jsonl"


class Writer(Protocol):
  """Takes the metrics of process 0."""

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes values that were measured after `step` steps."""
    ...

  def close(self) -> None: ...


def open_writers(
  folder: Path, *, first_step: int, wandb: str = ""
) -> list[Writer]:
  """Opens the writers of a phase that continues after `first_step` steps.

  Records of later steps come from a run that was killed after its last
  checkpoint. These steps are done again, so their records are dropped. With
  first_step 0 all are dropped, including the evaluation before the first step.

  `wandb` is a project of Weights & Biases; "": none.
  """
  folder.mkdir(parents=True, exist_ok=True)
  writers: list[Writer] = []
  if wandb:
    writers.append(WeightsAndBiases(wandb, folder, first_step))
  writers.append(JsonLines(folder / FILE, first_step))
  writers.append(TensorBoard(folder / "tensorboard", first_step))
  return writers


def read(folder: Path) -> list[dict[str, Any]]:
  """Reads the records of a phase in order of writing; [] if there are none.

  A last line that a kill cut short is left out.
  """
  return _records(folder / FILE)


def _records(path: Path) -> list[dict[str, Any]]:
  if not path.exists():
    return []
  records = []
  for line in path.read_text(encoding="utf-8").splitlines():
    try:
      records.append(json.loads(line))
    except json.JSONDecodeError:
      continue
  return records


class JsonLines:
  """Appends a line for each call; values that are not finite become null."""

  def __init__(self, path: Path, first_step: int):
    kept = [r for r in _records(path) if 0 < first_step >= r["step"]]
    temporary = path.with_suffix(".incomplete")
    lines = "".join(json.dumps(record) + "\n" for record in kept)
    temporary.write_text(lines, encoding="utf-8")
    os.replace(temporary, path)
    self._file = open(path, "a", encoding="utf-8")

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    record = {k: v if math.isfinite(v) else None for k, v in scalars.items()}
    text = json.dumps({"step": step, **record}, allow_nan=False)
    self._file.write(text + "\n")
    self._file.flush()

  def close(self) -> None:
    self._file.close()


class TensorBoard:
  """Writes event files."""

  def __init__(self, folder: Path, first_step: int):
    self._board = tensorboardX.SummaryWriter(
      str(folder), purge_step=first_step + 1
    )

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    for name, value in scalars.items():
      if math.isfinite(value):
        self._board.add_scalar(name, value, step)

  def close(self) -> None:
    self._board.close()


class WeightsAndBiases:
  """Writes to a run of Weights & Biases; restarts continue the same run."""

  def __init__(self, project: str, folder: Path, first_step: int):
    """Starts or resumes the run, whose id is kept in the phase's folder.

    Args:
      project: name of the project, or ENTITY/PROJECT.
      folder: folder of the phase; its last parts name the run.

    Raises:
      ValueError: the package wandb is not installed.
    """
    try:
      wandb = importlib.import_module("wandb")
    except ImportError:
      raise ValueError(
        f"train.wandb={project!r}: the package wandb is not installed; run"
        " pip install 'analogjax[wandb]', or set train.wandb=''."
      ) from None
    kept = folder / "wandb_id.txt"
    known = kept.read_text("utf-8") if first_step and kept.exists() else None
    entity, _, name = project.rpartition("/")
    self._run = wandb.init(
      project=name,
      entity=entity or None,
      id=known,
      name=f"{folder.parents[1].name}/{folder.name}",
      resume="allow",
      dir=str(folder),
    )
    # wandb drops a step that is below the last one it saw. With a custom axis
    # it does not, so steps that a restart repeats are written again.
    self._run.define_metric("step")
    self._run.define_metric("*", step_metric="step")
    kept.write_text(self._run.id, "utf-8")

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    self._run.log({"step": step, **scalars})

  def close(self) -> None:
    self._run.finish()
