"""record.json: the facts of a release that one kind of reader may see.

Everything that a document says comes from here. Facts are gathered once,
including private ones; `project` keeps only what record_fields.py lets a reader
see. `python -m analogjax.bundle.record` prints the fields as a JSON Schema, for
other programs.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import functools
import json
from typing import Any

import jsonschema
import jsonschema.exceptions

from analogjax.bundle import record_fields
from analogjax.bundle.record_fields import ALWAYS, CACHED, IF_CACHED, Field

FORMAT = "analogjax.record"
FORMAT_VERSION = 1
PUBLIC, REGULATOR = "public", "regulator"
VIEWS = (PUBLIC, REGULATOR)


@functools.cache
def _fields(view: str) -> Field:
  """The fields that a reader may see."""
  everything = record_fields.record()
  return everything if view == REGULATOR else _published(everything)


def _published(field: Field) -> Field:
  """The field without private parts, and without objects left empty."""
  kept = {
    name: _published(inner)
    for name, inner in field.fields.items()
    if not inner.is_private
  }
  fields = {n: x for n, x in kept.items() if x.source or x.fields}
  each = field.each and _published(field.each)
  return dataclasses.replace(field, fields=fields, each=each)


def project(facts: Mapping[str, Any], view: str) -> dict[str, Any]:
  """The record that a reader gets.

  Args:
    facts: all of them, or the regulator's record.
    view: PUBLIC or REGULATOR.

  Raises:
    ValueError: a fact is missing or does not have the form of its field.
  """
  assert view in VIEWS, view
  if found := missing(facts, view):
    raise ValueError("the release lacks facts:\n  " + "\n  ".join(found))
  record = {**_head(view), **_projected(facts, _fields(view))}
  if wrong := problem(record):
    raise ValueError(
      f"facts: {wrong}. A config or a file of the workdir holds it; change it"
      " there and release again."
    )
  return record


def _head(view: str) -> dict[str, Any]:
  return {"format": FORMAT, "format_version": FORMAT_VERSION, "view": view}


def _projected(value: Any, field: Field) -> Any:
  """The parts of a value that have a field; the schema checks the forms."""
  if field.fields and isinstance(value, Mapping):
    return {
      name: _projected(value[name], inner)
      for name, inner in field.fields.items()
      if name in value and not _says_nothing(value[name], inner)
    }
  if field.each and isinstance(value, Mapping):
    return {name: _projected(x, field.each) for name, x in value.items()}
  if isinstance(value, list | tuple):
    return [_projected(x, field.each) if field.each else x for x in value]
  return value


def _says_nothing(value: Any, field: Field) -> bool:
  """Whether a fact is null and optional."""
  return value is None and field.needed != ALWAYS and not _allows(field, None)


def missing(facts: Mapping[str, Any], view: str = REGULATOR) -> list[str]:
  """Facts that a view still lacks, each as "path: what to do"."""
  phases = facts.get("training", {}).get("phases") or ()
  cached = any(phase.get("teaches") == CACHED for phase in phases)
  needed = (ALWAYS, IF_CACHED) if cached else (ALWAYS,)
  return list(_missing(facts, _fields(view), "", needed))


def _missing(
  value: Any, field: Field, path: str, needed: tuple[str, ...]
) -> Iterator[str]:
  if field.source and field.needed in needed:
    if value in (None, "", [], {}) and not _allows(field, value):
      yield f"{path}: {field.remedy}"
  if value is None and field.source and _allows(field, None):
    return  # It may be null, and then has no fields below it.
  found = value if isinstance(value, Mapping) else {}
  inner: list[tuple[str, Any, Field]] = [
    (f"{path}.{name}" if path else name, found.get(name), below)
    for name, below in field.fields.items()
  ]
  if field.each:
    inner += [(f"{path}.{name}", x, field.each) for name, x in found.items()]
    if isinstance(value, list | tuple):
      inner += [(f"{path}[{i}]", x, field.each) for i, x in enumerate(value)]
  for where, x, below in inner:
    yield from _missing(x, below, where, needed)


def _allows(field: Field, value: Any) -> bool:
  return jsonschema.Draft202012Validator(field.form).is_valid(value)


@functools.cache
def schema() -> dict[str, Any]:
  """The JSON Schema of both views."""
  return {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": f"record.json of analogjax, format version {FORMAT_VERSION}",
    "type": "object",
    "required": ["view"],
    "properties": {"view": {"enum": list(VIEWS)}},
    "if": {"properties": {"view": {"const": PUBLIC}}},
    "then": {"$ref": f"#/$defs/{PUBLIC}"},
    "else": {"$ref": f"#/$defs/{REGULATOR}"},
    "$defs": {view: _view_schema(view) for view in VIEWS},
  }


def _view_schema(view: str) -> dict[str, Any]:
  made = _field_schema(_fields(view))
  constants = {name: {"const": value} for name, value in _head(view).items()}
  made["properties"] = {**constants, **made["properties"]}
  made["required"] = [*constants, *made["required"]]
  return made


def _field_schema(field: Field) -> dict[str, Any]:
  made = dict(field.form)
  if "." in field.source:
    made["description"] = f"from the config: {field.source}"
  elif field.source:
    made["description"] = f"from `analogjax {field.source}`"
  if field.fields:
    made["additionalProperties"] = False
    made["required"] = [n for n, x in field.fields.items() if _always(x)]
    made["properties"] = {n: _field_schema(x) for n, x in field.fields.items()}
  if field.each:
    is_list = field.form["type"] == "array"
    name = "items" if is_list else "additionalProperties"
    made[name] = _field_schema(field.each)
  return made


def _always(field: Field) -> bool:
  """Whether every record has this field."""
  if field.source:
    return field.needed == ALWAYS
  return any(map(_always, field.fields.values()))


@functools.cache
def _validator(view: str) -> jsonschema.Draft202012Validator:
  return jsonschema.Draft202012Validator(schema()["$defs"][view])


def problem(value: Any) -> str:
  """The place and kind of a problem in a record; "" if there is none."""
  try:
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode("utf-8")
  except (TypeError, ValueError, RecursionError) as error:
    return f"not JSON in UTF-8: {error}"
  if not isinstance(value, Mapping):
    return f"expected an object, found {type(value).__name__}"
  view = value.get("view")
  if view not in VIEWS:
    return f"$.view: expected one of {', '.join(VIEWS)}, found {view!r:.80}"
  errors = _validator(view).iter_errors(value)
  error = jsonschema.exceptions.best_match(errors)
  if error is not None:
    return f"{error.json_path}: {error.message}"
  # Conditional requirements, which the schema does not express.
  return "".join(missing(value, view)[:1])


def to_text(value: Mapping[str, Any]) -> str:
  """The text of record.json and of documents in JSON: one form for each."""
  text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
  return text + "\n"


if __name__ == "__main__":
  print(json.dumps(schema(), indent=1))
