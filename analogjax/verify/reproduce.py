"""What of a bundle's run can be repeated at toy size, and whether it was alike.

A bundle's config comes from strangers: it is read as walk.py reads, only fields
of a table are looked at, each of them checked, and nothing that it names (a
pipeline, a file, a folder) is opened.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
from pathlib import Path
import re
from typing import Any

from analogjax.config import loading
from analogjax.workdir import metrics

CONFIG, RECORD = "repro/config.json", "record.json"
MOST_PHASES = 8

# Commands of a record that a toy run repeats, in running order.
STAGES = ("cache", "train", "measure", "export")


@dataclasses.dataclass(frozen=True)
class _Rule:
  """What a field of a published config may be."""

  kind: type
  least: float = 0
  most: float = 0
  among: tuple[str, ...] = ()
  pattern: str = ""

  def allows(self, value: Any) -> bool:
    # Not isinstance: True would be a whole number. One may stand for a float.
    kinds = (int, float) if self.kind is float else (self.kind,)
    if type(value) not in kinds:
      return False
    if self.kind in (int, float):
      return self.least <= value <= self.most  # Of a NaN neither is true.
    if self.kind is bool:
      return True
    return value in self.among or bool(
      self.pattern and re.fullmatch(self.pattern, value)
    )

  def __str__(self) -> str:
    if self.kind is bool:
      return "true or false"
    if self.kind is str:
      words = [word or "''" for word in self.among]
      return " or ".join([*words, *(["a name"] if self.pattern else [])])
    noun = "a whole number" if self.kind is int else "a number"
    return f"{noun} from {self.least:g} to {self.most:g}"


_NAME = r"[a-z][a-z0-9_]{0,63}"
_FAMILIES = ("llama",)
_SIZE = _Rule(int, 1, 1e9)
_SEED = _Rule(int, 0, 2**32 - 1)
_FLAG = _Rule(bool)
_DTYPE = _Rule(str, among=("float32", "bfloat16"))

# Sizes are checked, not taken: a field that is absurd is not one of a run.
_TAKEN: Mapping[str, _Rule] = {
  **{f"student.{letter}": _SIZE for letter in "VDYNGHF"},
  "student.seed": _SEED,
  "student.rope_theta": _Rule(float, 1.0, 1e12),
  "student.rms_norm_eps": _Rule(float, 1e-12, 0.1),
  "student.tie_embeddings": _FLAG,
  "student.attention_bias": _FLAG,
  "student.mlp_bias": _FLAG,
  "student.dtype": _DTYPE,
  "data.L": _Rule(int, 2, 1e9),
  "cache.kind": _Rule(str, among=("threshold", "random", "topk")),
  "cache.temperature": _Rule(float, 1e-3, 1e3),
  "cache.num_rows": _Rule(int, 1, 1e15),
  "cache.held_out_rows": _Rule(int, 1, 1e15),
  "train.<phase>.init_from": _Rule(str, among=("",), pattern=_NAME),
  "train.<phase>.rows": _Rule(str, among=("cache", "pipeline")),
  "train.<phase>.num_steps": _Rule(int, 1, 1e12),
  "train.<phase>.seed": _SEED,
  "train.<phase>.loss.teacher": _Rule(str, among=("cache", "live")),
  "release.phase": _Rule(str, pattern=_NAME),
  "release.dtype": _DTYPE,
}


def check_config(
  found: Mapping[str, Any],
) -> tuple[dict[str, Any], list[str]]:
  """The fields of a published config that a toy run takes, each checked.

  Args:
    found: of the bundle's CONFIG.

  Returns:
    The fields, as a nested dict, and the names of those that it does not take,
    which are not looked at.

  Raises:
    ValueError: a field is missing or out of range; names file and field.
  """
  names = _phase_names(found)
  table = {
    field.replace("<phase>", name): rule
    for field, rule in _TAKEN.items()
    for name in (names if "<phase>" in field else ("",))
  }
  taken: dict[str, Any] = {"train": {"phases": names}}
  for field, rule in table.items():
    value = _at(found, field)
    if not rule.allows(value):
      raise ValueError(
        f"{CONFIG}: {field}: expected {rule}, found {_shown(value)}."
      )
    section = taken
    *sections, leaf = field.split(".")
    for name in sections:
      section = section.setdefault(name, {})
    section[leaf] = value
  _check_phases(taken)
  known = {*table, "train.phases"}
  return taken, sorted(set(loading.leaves(found)) - known)


def commands_of(record: Mapping[str, Any]) -> tuple[list[str], list[str]]:
  """Stages that the recorded commands run, in order; and other commands.

  The commands are read for the name of their stage alone, and never executed.
  """
  repro = record.get("repro")
  commands = repro.get("commands") if isinstance(repro, dict) else None
  stages, others = set(), []
  for command in commands if isinstance(commands, list) else []:
    words = command.split() if isinstance(command, str) else []
    if words[1:3] == ["-m", "analogjax.main"]:
      words = ["analogjax", *words[3:]]
    name = words[1] if len(words) > 1 and words[0] == "analogjax" else ""
    if name == "run":
      stages |= set(STAGES)
    elif name in STAGES:
      stages.add(name)
    else:
      others.append(_shown(command))
  return [stage for stage in STAGES if stage in stages], others


def taught_phases(
  record: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, bool]:
  """Phase -> whether it learns from a teacher, as the record has it."""
  training = record.get("training")
  listed = training.get("phases") if isinstance(training, dict) else None
  teaches = {
    phase.get("name"): phase.get("teaches")
    for phase in (listed if isinstance(listed, list) else [])
    if isinstance(phase, dict) and isinstance(phase.get("name"), str)
  }
  found = {}
  for name in config["train"]["phases"]:
    phase = config["train"][name]
    is_live = phase["loss"]["teacher"] == "live"
    # A record that is learned from has to come with its row.
    can = phase["rows"] == "cache" or is_live
    found[name] = can and teaches.get(name) in (
      "cached teacher",
      "live teacher",
    )
  return found


def check_family(record: Mapping[str, Any]) -> None:
  """Refuses a family of models that no toy can be made of here.

  Raises:
    ValueError: another one.
  """
  model = record.get("model")
  found = model.get("family") if isinstance(model, dict) else None
  if found not in _FAMILIES:
    raise ValueError(
      f"{RECORD}: model.family: expected one of {', '.join(_FAMILIES)}, found"
      f" {_shown(found)}; this version of analogjax has no other."
    )


def other_software(
  record: Mapping[str, Any], here: Mapping[str, str]
) -> list[str]:
  """Versions that differ from those that the record has, one line each."""
  repro = record.get("repro")
  there = repro.get("software") if isinstance(repro, dict) else None
  there = there if isinstance(there, dict) else {}
  return [
    f"{name} is {here[name]} here and {_shown(there.get(name))} in the record"
    for name in sorted(here)
    if there.get(name) != here[name]
  ]


def results(workdir: Path, phases: Sequence[str]) -> dict[str, Any]:
  """What must be the same of two runs, by what it is called in a report."""
  found: dict[str, Any] = {}
  for phase in phases:
    records = [
      record
      for record in metrics.read(workdir / "train" / phase)
      # Speeds, which no two runs share.
      if not any(name.startswith("speed/") for name in record)
    ]
    if records:
      found[f"loss trace of {phase}, {len(records)} records"] = records
  receipt = workdir / "export.json"
  if receipt.is_file():
    files = json.loads(receipt.read_text(encoding="utf-8"))["files"]
    for name, digest in sorted(files.items()):
      found[f"bytes of {name}"] = digest
  fidelity = workdir / "fidelity.json"
  if fidelity.is_file():
    value = json.loads(fidelity.read_text(encoding="utf-8"))
    found["measurement"] = {"output": value["output"], "of": value["claims"]}
  return found


def _shown(value: Any) -> str:
  # What a stranger wrote, on one line and not longer than it.
  return ascii(value)[:60]


def _at(values: Any, field: str) -> Any:
  for name in field.split("."):
    values = values.get(name) if isinstance(values, dict) else None
  return values


def _phase_names(found: Mapping[str, Any]) -> list[str]:
  names = _at(found, "train.phases")
  if (
    isinstance(names, list)
    and 1 <= len(names) <= MOST_PHASES
    and all(isinstance(n, str) and re.fullmatch(_NAME, n) for n in names)
    and len(set(names)) == len(names)
    # Fields of the section `train` that are no phases.
    and not {"phases", "location", "s3_endpoint"} & set(names)
  ):
    return names
  raise ValueError(
    f"{CONFIG}: train.phases: expected 1 to {MOST_PHASES} names of letters a-z,"
    f" digits and _, each once, found {_shown(names)}."
  )


def _check_phases(taken: Mapping[str, Any]) -> None:
  train = taken["train"]
  names = train["phases"]
  for i, name in enumerate(names):
    source = train[name]["init_from"]
    if source and source not in names[:i]:
      raise ValueError(
        f"{CONFIG}: train.{name}.init_from: expected '' or a phase before it,"
        f" found {_shown(source)}."
      )
  phase = taken["release"]["phase"]
  if phase not in names:
    raise ValueError(
      f"{CONFIG}: release.phase: expected one of train.phases, found"
      f" {_shown(phase)}."
    )
