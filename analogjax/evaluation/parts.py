"""Parts of a measurement: each is measured, kept in a file and accounted for.

A run that was stopped continues with the first part that has no file. A part is
kept with the inputs that its numbers depend on, and measured again if they have
changed.
"""

from collections.abc import Callable, Collection, Mapping
import dataclasses
import functools
from pathlib import Path
import time
from typing import Any

from analogjax.cli import progress
from analogjax.config import loading
from analogjax.distributed import processes
from analogjax.evaluation.study import Measurement
from analogjax.models import sizes
from analogjax.workdir import files, ledger


def check_names(only: Collection[str], known: Collection[str], what: str):
  """Refuses a name of --only that is not one of `known`."""
  for name in only:
    if name not in known:
      raise ValueError(
        f"--only: expected one of {what} ({', '.join(known)}), or several with"
        f" commas, found {name!r}."
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
  """The parts of a stage, each a JSON file in a folder.

  Attributes:
    stage: name of the stage, for the ledger and for messages.
    workdir: of the run, with the ledger.
    folder: where the files are.
    inputs: everything that the numbers depend on, as JSON values.
    table: name of a part -> its function, in the order of measuring.
  """

  stage: str
  workdir: Path
  folder: Path
  inputs: Mapping[str, Any]
  table: Mapping[str, Callable[[Any], dict[str, Any]]]

  def missing(self, wanted: Collection[str]) -> list[str]:
    """Names of the wanted parts that are not kept, for all processes."""
    return [
      name
      for name in self.table
      if name in wanted
      and processes.first_decides(lambda name=name: not self._is_kept(name))
    ]

  def kept(self) -> dict[str, dict[str, Any]]:
    """Every kept part: its `result`, and its `cost`."""
    return {
      name: files.read_json(self._path(name))
      for name in self.table
      if self._is_kept(name)
    }

  def measure(self, names: Collection[str], study: Measurement, L: int) -> None:
    """Measures parts and keeps each as soon as it is done.

    Args:
      names: the parts, from `missing`.
      study: the argument of the functions in the table.
    """
    for name in names:
      spent = ledger.Ledger(self.workdir, self.stage)
      before, began = dict(study.tokens), time.monotonic()
      used = sum(before.values())
      with progress.Activity(
        f"{self.stage} {name}",
        lambda n=used: f"{sum(study.tokens.values()) - n:,} tokens",
      ):
        found = self.table[name](study)
      seconds = time.monotonic() - began
      tokens = {
        model: number - before.get(model, 0)
        for model, number in study.tokens.items()
      }
      cost = {
        "seconds": seconds,
        "device_seconds": seconds * study.mesh.size,
        "tokens": sum(tokens.values()),
      }
      value = {"inputs": self.inputs, "result": found, "cost": cost}
      processes.on_first(
        functools.partial(self._keep, name, value, spent, study, tokens, L)
      )
      progress.say(
        f"{self.stage} {name}: {cost['tokens']:,} tokens in {seconds:.0f} s."
      )

  def _keep(self, name, value, spent, study, tokens, L) -> None:
    self.folder.mkdir(exist_ok=True)
    loading.write_json(self._path(name), value)
    account(spent, study, tokens, L)

  def _path(self, name: str) -> Path:
    return self.folder / f"{name}.json"

  def _is_kept(self, name: str) -> bool:
    path = self._path(name)
    return path.exists() and files.read_json(path)["inputs"] == self.inputs


def account(
  spent: ledger.Ledger, study: Measurement, tokens: Mapping[str, int], L: int
) -> None:
  """Enters tokens by model, and their FLOPs, in the ledger."""
  models = dict(study.students)
  if study.teacher is not None:
    models[study.teacher.name] = study.teacher
  flops = {
    name: number * sizes.forward_flops_per_token(models[name].cfg, L)
    for name, number in tokens.items()
  }
  teacher = study.teacher.name if study.teacher else ""
  spent.append(
    tokens=sum(tokens.values()),
    flops=sum(flops.values()),
    teacher_flops=flops.get(teacher, 0),
  )


def renew(path: Path, text: str) -> None:
  """Writes a file unless it holds this text already."""
  if not path.exists() or path.read_bytes() != text.encode():
    loading.write_text(path, text)
