"""Reads config files with overrides, and the resolved config of a workdir.

A config is a Python file with `get_config()`, which returns the result of
`defaults.config`, or any ml_collections ConfigDict with fields of the schema.
config.json in a workdir holds every value, and beside them `origin`, which
gives the source of each field's value, and `defaults`, the version of the
defaults.
"""

from collections.abc import Mapping, Sequence
import difflib
import json
import os
from pathlib import Path
import sys
import traceback
import types
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from analogjax.config import defaults, draft as draft_lib, overrides, schema
from analogjax.config.draft import DEFAULT, FILE, FLAG, Draft
from analogjax.config.fields import listed

FILE_NAME = "config.json"
_BESIDE = ("origin", "defaults")


class Resolved(NamedTuple):
  """A config with every value."""

  cfg: ConfigDict  # Checked and locked.
  origin: dict[str, str]  # Field -> default, file, --config or prices NAME.
  kept: list[str]  # A line for each default that differs from today's.


def load(file: str | Path, changes: Sequence[tuple[str, str]]) -> ConfigDict:
  """The config of a file with overrides applied: checked and locked.

  See `resolve`.
  """
  return resolve(file, changes).cfg


def resolve(
  file: str | Path,
  changes: Sequence[tuple[str, str]] = (),
  workdir: Path | None = None,
) -> Resolved:
  """The config of a file with overrides applied: checked and locked.

  Args:
    file: Python file with `get_config()`. It may import its neighbours.
    changes: (dotted path, text) pairs, the last one of a path wins; see
      `overrides.apply`. Fields that are references to others in the file follow
      them.
    workdir: where a run may have saved its config. A field that neither that
      run nor this one set keeps the saved default.

  Raises:
    ValueError: names file and field, what was expected and what was found.
  """
  file = Path(file)
  cfg = _read_draft(file)
  # The table of prices brings the sections of the chips, whose fields may be
  # set like any others: so it is chosen and read before them.
  tables = [change for change in changes if change[0] == "plan.prices"]
  others = [change for change in changes if change[0] != "plan.prices"]
  with draft_lib.reading(Path(), FLAG):
    for path, text in tables:
      overrides.apply(cfg, path, text)
  defaults.add_prices(cfg, file.parent)
  with draft_lib.reading(Path(), FLAG):
    for path, text in others:
      overrides.apply(cfg, path, text)
  kept = [] if workdir is None else _keep_defaults(cfg, workdir / FILE_NAME)
  try:
    values = schema.to_values(cfg)
  except ValueError as error:
    raise ValueError(f"{file}: {error}") from None
  schema.check_values(values)
  return Resolved(ConfigDict(values).lock(), cfg.origins(), kept)


def read_resolved(workdir: Path) -> ConfigDict:
  """The config that `save_resolved` wrote to a workdir.

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
  return ConfigDict(_values_of(saved, path)).lock()


def save_resolved(
  cfg: ConfigDict, workdir: Path, origin: Mapping[str, str] | None = None
) -> None:
  """Writes workdir/config.json; a different old one becomes config.<n>.json.

  It does not refuse: each stage compares the fields it depends on with the
  manifests of the stages before it. It prints the changed fields, one per line.

  Args:
    workdir: created if missing.
    origin: as returned by `resolve`; None: all is from a file.
  """
  path = workdir / FILE_NAME
  values = cfg.to_dict()
  origin = origin or dict.fromkeys(leaves(values), FILE)
  beside = {"origin": dict(origin), "defaults": defaults.VERSION}
  new = json.loads(json.dumps({**values, **beside}))
  saved = _read_saved(path)
  if saved == new:
    return
  workdir.mkdir(parents=True, exist_ok=True)
  if saved is not None:
    old = _values_of(saved, path)
    changed = differences(old, values)
    if changed:
      numbers = (p.name.split(".")[1] for p in workdir.glob("config.*.json"))
      last = max((int(n) for n in numbers if n.isdecimal()), default=0)
      kept = workdir / f"config.{last + 1}.json"
      write_json(kept, saved)
      lines = [f"{path}: changed (before: {kept.name})", *changed]
      print("\n  ".join(lines), file=sys.stderr)
  write_json(path, new)


def saved_origin(workdir: Path) -> dict[str, str]:
  """Field -> origin of its value in a workdir's config.json."""
  return (_read_saved(workdir / FILE_NAME) or {}).get("origin", {})


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """One line for each field with a different value: the name, old -> new."""
  before, after = leaves(_listed(old)), leaves(_listed(new))

  def shown(values, key):
    return json.dumps(values[key]) if key in values else "(none)"

  return [
    f"{key} {shown(before, key)} -> {shown(after, key)}"
    for key in {**before, **after}
    if key not in before or key not in after or before[key] != after[key]
  ]


def leaves(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
  """Dotted path -> value, for everything that is not a section."""
  found = {}
  for name, value in values.items():
    if isinstance(value, Mapping) and value:
      found |= leaves(value, f"{path}{name}.")
    else:
      found[path + name] = value
  return found


def write_json(path: Path, value: Any) -> None:
  """Writes a JSON file atomically, also when killed."""
  write_text(path, to_json(value))


def to_json(value: Any) -> str:
  """The text of a JSON file; NaN is refused."""
  return json.dumps(value, indent=2, allow_nan=False) + "\n"


def write_text(path: Path, text: str) -> None:
  """Writes a text file atomically, also when killed."""
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
  """Removes leftovers of killed `write_text`; no process may be writing."""
  for kind in ("json", "html"):
    for path in folder.glob(f".*.{kind}.*.tmp"):
      path.unlink(missing_ok=True)


def _read_draft(file: Path) -> Draft:
  """The result of a file's `get_config()`, as a draft of the whole config."""
  with draft_lib.reading(file.parent, FILE):
    cfg = _call_get_config(file)
    if isinstance(cfg, Draft):
      return cfg
    whole = Draft(schema.Sections)
    try:
      whole.update(cfg)
    except ValueError as error:
      raise ValueError(f"{file}: {error}") from None
    return whole


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
    # The schema's own errors need no addition.
    kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
    raise ValueError(
      f"{file}, line {_line(error, file)}: {kind}{what}"
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
  """The line of `file` where `error` was raised."""
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


def _values_of(saved: Mapping[str, Any], path: Path) -> dict[str, Any]:
  """The values of a saved config; fields added since then have defaults."""
  values = {name: x for name, x in saved.items() if name not in _BESIDE}
  try:
    return schema.to_values(values)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None


def _keep_defaults(cfg: Draft, path: Path) -> list[str]:
  """Sets unset fields to their values in a saved config.

  Returns:
    A line for each value that differed.
  """
  saved = _read_saved(path) or {}
  before, now = saved.get("origin", {}), cfg.origins()

  def is_unset(origin):
    return origin is not None and origin not in (FILE, FLAG)

  lines = []
  for name, origin in now.items():
    if not (is_unset(origin) and is_unset(before.get(name))):
      continue
    section, _, leaf = name.rpartition(".")
    node: Any = cfg
    value: Any = saved
    for part in section.split("."):
      node, value = node[part], value[part]
    old, new = json.dumps(value[leaf]), json.dumps(_listed(node[leaf]))
    if old != new:
      lines.append(
        f"{path}: {name} stays {old}, the default when this run began; today's"
        f" is {new}."
      )
      with draft_lib.reading(Path(), DEFAULT):
        node[leaf] = value[leaf]
  return lines


def _listed(value: Any) -> Any:
  """A value as JSON has it: lists instead of tuples."""
  if isinstance(value, ConfigDict):
    value = value.to_dict()
  return json.loads(json.dumps(value))
