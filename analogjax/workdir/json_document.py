"""Checks and reads JSON documents of a named format and version."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jsonschema
import jsonschema.exceptions


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of document, defined by a JSON schema in a file."""

  format: str  # Expected value of `format`.
  version: int  # Expected value of `format_version`.
  schema: Path
  command: str  # The analogjax command that writes it, for messages.

  def problem(self, value: Any) -> str:
    """The place and kind of a schema violation; "" if there is none."""
    try:
      json.dumps(value, allow_nan=False)
    except ValueError as error:
      return f"a number that is not finite: {error}"
    validator = jsonschema.Draft202012Validator(_schema(self.schema))
    error = jsonschema.exceptions.best_match(validator.iter_errors(value))
    return "" if error is None else f"{error.json_path}: {error.message}"

  def read(
    self, path: Path, problem: Callable[[Any], str] | None = None
  ) -> dict[str, Any]:
    """Reads a document; `problem` checks more than the schema.

    Raises:
      ValueError: the file is missing, damaged, or of another version.
    """
    return read(
      path,
      format=self.format,
      version=self.version,
      problem=problem or self.problem,
      command=self.command,
    )


@functools.cache
def _schema(path: Path) -> Mapping[str, Any]:
  return json.loads(path.read_text(encoding="utf-8"))


def read(
  path: Path,
  *,
  format: str,
  version: int,
  problem: Callable[[Any], str],
  command: str,
) -> dict[str, Any]:
  """Reads a document.

  `problem` describes what is wrong with a value; "" if nothing is.

  Raises:
    ValueError: the file is missing, damaged, or of another version.
  """
  again = f"`analogjax {command}` writes it anew"
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise ValueError(
      f"{path}: there is no such file; `analogjax {command}` writes it."
    ) from None
  except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
    raise ValueError(f"{path}: not readable as JSON: {error}.") from None
  found = value.get("format_version") if isinstance(value, dict) else None
  if found != version or value.get("format") != format:
    raise ValueError(
      f"{path}: expected format {format!r} of version {version}, found version"
      f" {found!r:.80}; {again}."
    )
  if wrong := problem(value):
    raise ValueError(f"{path}: {wrong}; {again}.")
  return value
