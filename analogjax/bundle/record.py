"""record.json: the facts of a release, as one reader may see them.

Everything that a document says comes from here. Facts are gathered once,
private ones too; `project` keeps what record_table.py lets a reader see, and
nothing else. record_schema.json is that table as a JSON Schema, for others;
`python -m analogjax.bundle.record` prints it.
"""

from collections.abc import Iterator, Mapping
import functools
import json
from pathlib import Path
import re
from typing import Any

import jsonschema
import jsonschema.exceptions

from analogjax.bundle import record_table
from analogjax.bundle.record_table import PUBLIC, REGULATOR, Fact
from analogjax.workdir import json_document

FORMAT = "analogjax.record"
FORMAT_VERSION = 1
VIEWS = (PUBLIC, REGULATOR)


class _Absent:
  """What is found where there is nothing, not even null."""


class _Node:
  """A place in a record: its own line of the table, and what is below it."""

  def __init__(self) -> None:
    self.fact: Fact | None = None
    self.below: dict[str, _Node] = {}


def _visible(view: str) -> list[Fact]:
  found = record_table.facts()
  return [fact for fact in found if view == REGULATOR or fact.view == PUBLIC]


def _steps(path: str) -> list[str]:
  return path.replace("[]", ".[]").split(".")


@functools.cache
def _tree(view: str) -> _Node:
  root = _Node()
  for fact in _visible(view):
    node = root
    for step in _steps(fact.path):
      node = node.below.setdefault(step, _Node())
    node.fact = fact
  return root


def project(facts: Mapping[str, Any], view: str) -> dict[str, Any]:
  """The record that a reader gets.

  Args:
    facts: all of them, or the regulator's record.
    view: "public" or "regulator".

  Raises:
    ValueError: a fact is missing or is not of the form that the table wants.
  """
  assert view in VIEWS, view
  if found := missing(facts, view):
    raise ValueError("the release lacks facts:\n  " + "\n  ".join(found))
  head = {"format": FORMAT, "format_version": FORMAT_VERSION, "view": view}
  record = {**head, **_projected(facts, _tree(view))}
  if wrong := problem(record):
    raise ValueError(f"facts: {wrong}.")
  return record


def _projected(value: Any, node: _Node) -> Any:
  """What the table names; the schema finds what is of another form."""
  below = node.below
  if "[]" in below and isinstance(value, list | tuple):
    return [_projected(item, below["[]"]) for item in value]
  if "*" in below and isinstance(value, Mapping):
    return {name: _projected(value[name], below["*"]) for name in value}
  if below and isinstance(value, Mapping):
    kept = [
      k for k in below if k in value and not _says_nothing(value, k, node)
    ]
    return {k: _projected(value[k], below[k]) for k in kept}
  return list(value) if isinstance(value, list | tuple) else value


def _says_nothing(value: Mapping[str, Any], name: str, node: _Node) -> bool:
  """Whether a fact is null that need not be there."""
  fact = node.below[name].fact
  if fact is None or fact.needed is True or value[name] is not None:
    return False
  return not _allows(fact.form, None)


def missing(facts: Mapping[str, Any], view: str = REGULATOR) -> list[str]:
  """What a view still lacks: "path: what to do" each."""
  found = []
  for fact in _visible(view):
    needed = fact.needed
    if isinstance(needed, tuple):
      path, wanted = needed
      needed = any(value == wanted for _, value in _found(facts, path))
    for path, value in _found(facts, fact.path) if needed else ():
      held = None if value is _Absent else value
      if held in (None, "", [], {}) and not _allows(fact.form, held):
        found.append(f"{path}: {fact.remedy}")
  return found


def _found(facts: Any, path: str) -> Iterator[tuple[str, Any]]:
  """(path, value) of all that a line of the table stands for."""
  yield from _walk(facts, _tree(REGULATOR), _steps(path), "")


def _walk(
  value: Any, node: _Node, steps: list[str], path: str
) -> Iterator[tuple[str, Any]]:
  if not steps:
    yield path, value
    return
  if value is None and node.fact and _allows(node.fact.form, None):
    return  # It may be null, and then has nothing below.
  step, *rest = steps
  below = node.below[step]
  if step == "[]":
    for i, item in enumerate(value if isinstance(value, list | tuple) else ()):
      yield from _walk(item, below, rest, f"{path}[{i}]")
  elif step == "*":
    for name, item in value.items() if isinstance(value, Mapping) else ():
      yield from _walk(item, below, rest, f"{path}.{name}")
  else:
    inner = value.get(step, _Absent) if isinstance(value, Mapping) else _Absent
    yield from _walk(inner, below, rest, f"{path}.{step}" if path else step)


@functools.cache
def schema() -> dict[str, Any]:
  """The JSON Schema of both views, made of the table."""
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
  made = _node_schema(_tree(view))
  head = {"format": FORMAT, "format_version": FORMAT_VERSION, "view": view}
  constants = {name: {"const": value} for name, value in head.items()}
  made["properties"] = {**constants, **made["properties"]}
  made["required"] = [*head, *made["required"]]
  return made


def _node_schema(node: _Node) -> dict[str, Any]:
  form = dict(node.fact.form) if node.fact else {}
  if node.fact:
    form["description"] = _origin(node.fact)
  if not node.below:
    return form
  if "[]" in node.below:
    items = _node_schema(node.below["[]"])
    return {"type": "array", **form, "items": items}
  made = {"type": "object", **form}
  if "*" in node.below:
    return {**made, "additionalProperties": _node_schema(node.below["*"])}
  return {
    **made,
    "additionalProperties": False,
    "required": [k for k, child in node.below.items() if _always(child)],
    "properties": {k: _node_schema(v) for k, v in node.below.items()},
  }


def _always(node: _Node) -> bool:
  """Whether every record has this place."""
  if node.fact is not None:
    return node.fact.needed is True
  return any(_always(child) for child in node.below.values())


def _origin(fact: Fact) -> str:
  if "." in fact.source:
    return f"from the config: {fact.source}"
  return f"from `analogjax {fact.source}`"


@functools.cache
def _view_validator(view: str) -> jsonschema.Draft202012Validator:
  return jsonschema.Draft202012Validator(schema()["$defs"][view])


def _allows(form: Mapping[str, Any], value: Any) -> bool:
  return jsonschema.Draft202012Validator(form).is_valid(value)


def problem(value: Any) -> str:
  """What is wrong with a record: where, and what; "" if nothing is."""
  try:
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode("utf-8")
  except (TypeError, ValueError, RecursionError) as error:
    return f"not JSON in UTF-8: {error}"
  if not isinstance(value, Mapping):
    return f"expected an object, found {type(value).__name__}"
  view = value.get("view")
  if view not in VIEWS:
    return f"$.view: expected one of {', '.join(VIEWS)}, found {view!r:.80}"
  errors = _view_validator(view).iter_errors(value)
  error = jsonschema.exceptions.best_match(errors)
  if error is not None:
    return f"{error.json_path}: {error.message}"
  # What is needed under a condition, which the schema does not know.
  return "".join(missing(value, view)[:1])


def to_text(record: Mapping[str, Any]) -> str:
  """The text of record.json: one form for the same facts."""
  text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
  return text + "\n"


def read(path: Path) -> dict[str, Any]:
  """A record from a file.

  Raises:
    ValueError: it is missing, damaged, or of another version.
  """
  return json_document.read(
    path,
    format=FORMAT,
    version=FORMAT_VERSION,
    problem=problem,
    command="release",
  )


def schema_text() -> str:
  """The text of record_schema.json: what is small stands on one line."""

  def joined(match: re.Match[str]) -> str:
    words = re.sub(r"\s*\n\s*", " ", match[0])
    return words if len(words) <= 100 else match[0]

  text = json.dumps(schema(), indent=1)
  for _ in range(3):  # The innermost first.
    text = re.sub(r"(?:\{[^{}\n]*\n[^{}]*\}|\[[^][{}]*\])", joined, text)
  return text + "\n"


if __name__ == "__main__":
  print(schema_text(), end="")
