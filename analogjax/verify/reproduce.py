"""Reads from a bundle what a toy of its run needs, and collects the results.

The bundle's config is untrusted. Only the fields in a table are used, each is
checked, and nothing that the config names (a pipeline, a file or a folder) is
opened.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
from pathlib import Path
import re
from typing import Any

from analogjax.bundle import folder as folder_lib
from analogjax.config import fields, loading, schema
from analogjax.workdir import metrics

CONFIG, RECORD = "repro/config.json", "record.json"
MOST_PHASES = 8
_MOST_VALUES = 100_000  # In a JSON file; hundreds of times what a bundle has.
_MOST_NUMBER = 1e12

# The commands of a record that a toy run repeats, in running order.
STAGES = ("cache", "train", "measure", "export")

_NAME = r"[a-z][a-z0-9_]{0,63}"
_FAMILIES = ("llama",)
_BY_TEACHER = ("cached teacher", "live teacher")
# Fields of a published config. Sizes only have to be plausible.
_TAKEN = tuple(
  """
  student.V student.D student.Y student.N student.G student.H student.F
  student.seed student.rope_theta student.rms_norm_eps student.tie_embeddings
  student.attention_bias student.mlp_bias student.dtype
  data.L
  cache.kind cache.temperature cache.num_rows cache.held_out_rows
  train.<phase>.init_from train.<phase>.rows train.<phase>.num_steps
  train.<phase>.seed train.<phase>.loss.teacher
  release.phase release.dtype
  """.split()
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """The checked parts of a bundle that a toy run uses.

  Attributes:
    config: fields of the published config, nested.
    stages: which run, in order.
    taught: phase -> whether it learns from a teacher.
    not_taken: fields of the published config without use for a toy.
    not_repeated: commands of the record that are not for STAGES.
    other_software: versions that differ from the recorded ones.
  """

  config: dict[str, Any]
  stages: list[str]
  taught: dict[str, bool]
  not_taken: list[str]
  not_repeated: list[str]
  other_software: list[str]


def read_recipe(bundle: Path, software: Mapping[str, str]) -> Recipe:
  """Reads and checks what a toy run uses from a bundle.

  `software` has the versions that are installed here, by package.

  Raises:
    ValueError: names file and field.
  """
  tree = folder_lib.open_tree(bundle)
  record = tree.read_json(RECORD, most_values=_MOST_VALUES)
  check_family(record)
  public, not_taken = check_config(
    tree.read_json(CONFIG, most_values=_MOST_VALUES)
  )
  stages, others = commands_of(record)
  if not stages:
    raise ValueError(
      f"{RECORD}: repro.commands: expected commands of analogjax"
      f" ({', '.join(STAGES)} or run), found none."
    )
  return Recipe(
    config=public,
    stages=stages,
    taught=taught_phases(record, public),
    not_taken=not_taken,
    not_repeated=others,
    other_software=other_software(record, software),
  )


def check_config(
  found: Mapping[str, Any],
) -> tuple[dict[str, Any], list[str]]:
  """Returns the checked fields of a toy run, nested, and the names of others.

  Raises:
    ValueError: a field is missing or out of range; names file and field.
  """
  names = _phase_names(found)
  known = {field.path: field for field in fields.fields(schema.Sections)}
  table = {
    path.replace("<phase>", name): known[path]
    for path in _TAKEN
    for name in (names if "<phase>" in path else ("",))
  }
  taken: dict[str, Any] = {"train": {"phases": names}}
  for path, field in table.items():
    section = taken
    *sections, leaf = path.split(".")
    for name in sections:
      section = section.setdefault(name, {})
    section[leaf] = _checked(field, path, _at(found, path))
  _check_phases(taken)
  not_taken = set(loading.leaves(found)) - {*table, "train.phases"}
  return taken, sorted(not_taken)


def _checked(field: fields.Field, path: str, found: Any) -> Any:
  """A value, by the type and bounds of the schema and within reason."""
  expected = [field.type, *(x.expected.format(path) for x in field.bounds)]
  try:
    value = fields.typed_value(field, found, path)
    ok = all(bound.holds(value) for bound in field.bounds)
  except (ValueError, OverflowError):
    value, ok = None, False
  if isinstance(value, int | float) and abs(value) > _MOST_NUMBER:
    ok = False
    expected.append(f"at most {_MOST_NUMBER:g}")
  if not ok:
    raise ValueError(
      f"{CONFIG}: {path}: expected {', '.join(expected)}, found"
      f" {_shown(found)}."
    )
  return value


def commands_of(record: Mapping[str, Any]) -> tuple[list[str], list[str]]:
  """Returns the stages that recorded commands run, and the other commands.

  Only the name of the stage is read from a command, and none is executed.
  """
  commands = _at(record, "repro.commands")
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
  """Maps each phase to whether, by the record, it learns from a teacher."""
  listed = _at(record, "training.phases")
  taught = [
    phase.get("name")
    for phase in (listed if isinstance(listed, list) else [])
    if isinstance(phase, dict) and phase.get("teaches") in _BY_TEACHER
  ]
  train = config["train"]
  return {
    # Cached targets come only with the rows of the cache.
    name: name in taught
    and (
      train[name]["rows"] == "cache" or train[name]["loss"]["teacher"] == "live"
    )
    for name in train["phases"]
  }


def check_family(record: Mapping[str, Any]) -> None:
  """Checks that a toy can be made of this family of models.

  Raises:
    ValueError: it cannot.
  """
  found = _at(record, "model.family")
  if found not in _FAMILIES:
    raise ValueError(
      f"{RECORD}: model.family: expected one of {', '.join(_FAMILIES)}, found"
      f" {_shown(found)}; this version of analogjax has no other."
    )


def other_software(
  record: Mapping[str, Any], here: Mapping[str, str]
) -> list[str]:
  """Lists the versions that differ from the recorded ones."""
  there = _at(record, "repro.software")
  there = there if isinstance(there, dict) else {}
  return [
    f"{name} is {here[name]} here and {_shown(there.get(name))} in the record"
    for name in sorted(here)
    if there.get(name) != here[name]
  ]


def results(workdir: Path, phases: Sequence[str]) -> dict[str, Any]:
  """Collects the values that two runs must share, by name in the report."""
  found: dict[str, Any] = {}
  for phase in phases:
    records = [
      record
      for record in metrics.read(workdir / "train" / phase)
      # Speeds differ between any two runs.
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
  """An untrusted value on one short line."""
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
    # Other fields of the section `train`.
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
