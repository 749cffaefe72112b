"""Config files: read with overrides, and the resolved config in a workdir.

A config is a python file with `get_config()`, which returns an ml_collections
ConfigDict with the fields of config.py.
"""

from collections.abc import Mapping, Sequence
import difflib
import json
import math
import os
from pathlib import Path
import re
import sys
import traceback
import types
from typing import Any

from ml_collections import ConfigDict

from analogjax.config import schema
from analogjax.config.fields import listed, suggest

FILE_NAME = "config.json"


def load(file: str | Path, overrides: Sequence[tuple[str, str]]) -> ConfigDict:
  """The config of a file with overrides applied: checked and locked.

  Args:
    file: python file with `get_config()`. It may import its neighbours.
    overrides: (dotted path, text) pairs, the last one of a path wins. The text
      is read as the type of the field: a str takes it as it is; an int takes
      1000, 1_000 or 1e3; a bool true, false, 1 or 0; a tuple a,b,c. Fields that
      are references to others in the file follow them.

  Raises:
    ValueError: names file and field, what was expected and what was found.
  """
  file = Path(file)
  raw = _call_get_config(file)
  try:
    values = schema.to_values(raw)
  except ValueError as error:
    raise ValueError(f"{file}: {error}") from None
  for path, text in overrides:
    _override(raw, values, path, text)
    values = schema.to_values(raw)
  schema.check_values(values)
  return ConfigDict(values).lock()


def read_resolved(workdir: Path) -> ConfigDict:
  """The config that `save_resolved` left in a workdir.

  Raises:
    ValueError: there is none, or it was damaged or edited.
  """
  path = workdir / FILE_NAME
  saved = _read_saved(path)
  if saved is None:
    raise ValueError(
      f"{path}: expected the config of an earlier stage, found no file; run"
      " that stage with this --workdir first."
    )
  try:
    return ConfigDict(schema.to_values(saved)).lock()
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None


def save_resolved(cfg: ConfigDict, workdir: Path) -> None:
  """Writes workdir/config.json; one that differs stays as config.<n>.json.

  Does not refuse: each stage compares what it depends on with the manifests of
  the stages before it. A line says which fields changed.
  """
  path = workdir / FILE_NAME
  new = json.loads(json.dumps(cfg.to_dict()))
  old = _read_saved(path)
  if old == new:
    return
  workdir.mkdir(parents=True, exist_ok=True)
  if old is not None:
    numbers = (p.name.split(".")[1] for p in workdir.glob("config.*.json"))
    last = max((int(n) for n in numbers if n.isdecimal()), default=0)
    kept = workdir / f"config.{last + 1}.json"
    write_json(kept, old)
    before, after = leaves(old), leaves(new)
    changed = [
      f"{key} {_shown(before, key)} -> {_shown(after, key)}"
      for key in {**before, **after}
      if key not in before or key not in after or before[key] != after[key]
    ]
    print(
      f"{path}: changed {'; '.join(changed)} (before: {kept.name})",
      file=sys.stderr,
    )
  write_json(path, new)


def write_json(path: Path, value: Any) -> None:
  """Writes a JSON file whole or not at all, also when killed."""
  write_text(path, to_json(value))


def to_json(value: Any) -> str:
  """The text of a JSON file, which has no NaN in it."""
  return json.dumps(value, indent=2, allow_nan=False) + "\n"


def write_text(path: Path, text: str) -> None:
  """Writes a text file whole or not at all, also when killed."""
  # The process id: hosts that share a file system may write at the same time.
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    with open(temporary, "w", encoding="utf-8") as out:
      out.write(text)
      out.flush()
      os.fsync(out.fileno())
    os.replace(temporary, path)
  except OSError as error:
    # The system names no file when a write, not an open, fails.
    raise OSError(error.errno, error.strerror, str(path)) from error
  finally:
    temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
  """Removes what killed runs left of `write_text`; nobody may be writing."""
  for kind in ("json", "html"):
    for path in folder.glob(f".*.{kind}.*.tmp"):
      path.unlink(missing_ok=True)


def _call_get_config(file: Path) -> ConfigDict:
  if not file.is_file():
    raise ValueError(f"{file}: no such config file. {_similar_files(file)}")
  module = types.ModuleType("analogjax_config")
  module.__file__ = str(file)
  folder = str(file.parent.resolve())
  before = set(sys.modules)
  # Last, so that a config cannot hide a package by having its name.
  sys.path.append(folder)
  try:
    source = file.read_text(encoding="utf-8")
    # Not importlib: its bytecode cache takes two edits within a second for one.
    exec(compile(source, str(file), "exec"), module.__dict__)
    get_config = getattr(module, "get_config", None)
    cfg = get_config() if callable(get_config) else None
  except Exception as error:
    what = (str(error).splitlines() or [""])[0]
    raise ValueError(
      f"{file}, line {_line(error, file)}: {type(error).__name__}: {what}"
    ) from error
  finally:
    sys.path.remove(folder)
    for name in set(sys.modules) - before:
      origin = getattr(sys.modules[name], "__file__", None) or ""
      if os.path.dirname(os.path.realpath(origin)) == folder:
        del sys.modules[name]  # A neighbour of the file: read afresh each time.
  if not callable(get_config):
    raise ValueError(
      f"{file}: has no get_config(); expected a function of that name which"
      " returns an ml_collections.ConfigDict, as in configs/demo.py."
    )
  if not isinstance(cfg, ConfigDict):
    raise ValueError(
      f"{file}: get_config() must return an ml_collections.ConfigDict, found"
      f" {type(cfg).__name__}."
    )
  return cfg


def _line(error: Exception, file: Path) -> int:
  """The line of `file` at which `error` came up."""
  if isinstance(error, SyntaxError) and error.filename == str(file):
    return error.lineno or 0
  frames = traceback.extract_tb(error.__traceback__)
  lines = [f.lineno for f in frames if f.filename == str(file)]
  return (lines or [0])[-1] or 0


def _similar_files(file: Path) -> str:
  if not file.parent.is_dir():
    near = [p / file.name for p in sorted(file.parent.parent.glob("*/"))]
    near = [str(path) for path in near if path.is_file()]
    close = difflib.get_close_matches(str(file), near, n=1)
    meant = f"; did you mean {close[0]}?" if close else "."
    return f"There is no folder {file.parent} either{meant}"
  names = sorted(path.name for path in file.parent.glob("*.py"))
  close = difflib.get_close_matches(file.name, names, n=3)
  if close:
    return f"Did you mean {listed(file.parent / n for n in close)}?"
  return f"Configs in {file.parent}: {listed(names) or 'none'}."


def _override(
  raw: ConfigDict, values: Mapping[str, Any], path: str, text: str
) -> None:
  """Sets one field of `raw`; `values` are its present values, typed."""
  flag = f"--config.{path}"
  *parents, leaf = path.split(".")
  node: Any = values
  target: Any = raw
  for name in parents:
    node = node.get(name) if isinstance(node, Mapping) else None
    target = target[name] if node is not None else target
  if not isinstance(node, Mapping) or leaf not in node:
    raise ValueError(
      f"{flag}: there is no such field. {suggest(path, list(leaves(values)))}"
    )
  if isinstance(node[leaf], Mapping):
    fields = [f"{path}.{name}" for name in node[leaf]]
    raise ValueError(
      f"{flag}: is a section, it cannot be set as a whole; set one of its"
      f" fields ({listed(fields)})."
    )
  value = _parse(text, node[leaf], flag)
  with raw.ignore_type(), raw.unlocked():
    target[leaf] = value


def _parse(text: str, present: Any, flag: str) -> Any:
  """`text` as a value of the type of `present`."""
  if isinstance(present, tuple):
    # The type of an empty tuple is unknown; all in the schema are of str.
    kinds = {type(item) for item in present} or {str}
    if len(kinds) > 1 or not kinds <= {str, int, float, bool}:
      raise ValueError(
        f"{flag}: holds {present!r}, which cannot be written as a,b,c. Set it"
        " in the config file."
      )
    items = text.removesuffix(",").split(",") if text else []
    kind = kinds.pop()
    return tuple(_parse(item, kind(), flag) for item in items)
  if isinstance(present, str):
    return text
  if isinstance(present, bool):
    named = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() in named:
      return named[text.lower()]
    expected = "true, false, 1 or 0"
  elif isinstance(present, int):
    expected = "a whole number (1000, 1_000 and 1e3 are the same)"
    if re.fullmatch(r"[+-]?[0-9]+(_[0-9]+)*", text):
      return int(text)
    # 1e3 is written by sweep tools; a fraction is a mistake, also 1000.0.
    if re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?[eE]\+?[0-9]{1,2}", text):
      number = float(text)
      if number.is_integer() and abs(number) <= 2**53:
        return int(number)
  elif isinstance(present, float):
    expected = "a finite number"
    try:
      number = float(text)
    except ValueError:
      number = math.nan
    if math.isfinite(number):
      return number
  else:
    raise ValueError(
      f"{flag}: is None in the config file, so its type is not known. Set it"
      " there."
    )
  raise ValueError(f"{flag}: expected {expected}, found {text!r}.")


def _read_saved(path: Path) -> dict[str, Any] | None:
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    return None
  except ValueError as error:
    raise ValueError(
      f"{path}: expected the JSON of a config, found something else"
      f" ({error}). Move the file away and run again."
    ) from None


def leaves(values: Any, path: str = "") -> dict[str, Any]:
  """Dotted path -> value, for everything that is not a section."""
  found = {}
  for name, value in values.items():
    if isinstance(value, Mapping) and value:
      found |= leaves(value, f"{path}{name}.")
    else:
      found[path + name] = value
  return found


def _shown(leaves: Mapping[str, Any], key: str) -> str:
  return json.dumps(leaves[key]) if key in leaves else "(none)"
