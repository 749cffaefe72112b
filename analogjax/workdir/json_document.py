"""Documents that are JSON of a named format and version: how one is read."""

from collections.abc import Callable
import json
from pathlib import Path
from typing import Any


def read(
  path: Path,
  *,
  format: str,
  version: int,
  problem: Callable[[Any], str],
  command: str,
) -> dict[str, Any]:
  """A document from a file.

  Args:
    path: of the file.
    format: that its `format` has to be.
    version: that its `format_version` has to be.
    problem: what is wrong with a value; "" if nothing is.
    command: of analogjax that writes it, for messages.

  Raises:
    ValueError: it is missing, damaged, or of another version.
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
