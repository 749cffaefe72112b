"""Descriptions of the fields of a config, from the schema."""

import dataclasses
import json

from analogjax.config import fields, schema
from analogjax.config.fields import Field

_PHASE, _CHIP = "train.<phase>.", "plan.<chip>."


def find(path: str) -> list[Field]:
  """The field at that path, or every field of the section at that path.

  A phase or a chip may be written by its name, as in a config, or as <phase>.

  Raises:
    ValueError: there is neither.
  """
  known = schema.schema()
  wanted = {path, *_general(path)}
  found = [x for x in known if x.path in wanted]
  found = found or [
    x for x in known if any(x.path.startswith(f"{w}.") for w in wanted)
  ]
  if not found:
    near = fields.suggest(path, [x.path for x in known])
    raise ValueError(f"{path}: there is no such field. {near}")
  return found


def explain(field: Field) -> str:
  """Everything that the schema says about a field, a few lines."""
  lines = [field.path, f"  {field.meaning}", f"  type: {field.type}"]
  if field.bounds:
    lines.append(f"  expected: {bounds(field)}")
  lines.append(f"  default: {default(field)}")
  why = field.private
  published = "yes" if why is None else f"no: {why}"
  lines.append(f"  published with a release: {published}")
  return "\n".join(lines)


def bounds(field: Field) -> str:
  name = field.path.rpartition(".")[2]
  return ", ".join(bound.expected.format(name) for bound in field.bounds)


def default(field: Field) -> str:
  if field.default is dataclasses.MISSING:
    return "none, has to be set"
  if isinstance(field.default, tuple):
    return ",".join(field.default) or "()"
  return json.dumps(field.default)


def _general(path: str) -> list[str]:
  """The path with <phase> or <chip> instead of a name."""
  section, _, rest = path.partition(".")
  inner = rest.partition(".")[2]
  general = {"train": _PHASE, "plan": _CHIP}.get(section)
  return [(general + inner).rstrip(".")] if general else []
