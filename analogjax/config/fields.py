"""Sections of a config as dataclasses: names, types and rules checked by name.

A field is `name: Annotated[type, "meaning, unit"]`, where the type is int,
float, bool, str, `tuple[str, ...]`, another section, `Section | None`,
`FreeForm`, or `Mapping[str, Section]`: all entries that no other field names.
Rules go into `__post_init__`, whose ValueErrors begin with the field's name.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import difflib
import math
import types
from typing import (
  Annotated,
  Any,
  NamedTuple,
  get_args,
  get_origin,
  get_type_hints,
)
import urllib.parse

FreeForm = Mapping[str, Any]


class Field(NamedTuple):
  """One line of the table of all fields."""

  path: str  # E.g. train.<phase>.num_steps.
  type: str  # int, float, bool, str, tuple of str or free-form.
  meaning: str


def fields(section: type, path: str = "") -> Iterator[Field]:
  """Every field of a section and of those in it, in the order of the source."""
  for name, (kind, meaning) in _hints(section).items():
    inner = _section_of(kind)
    if inner is not None:
      here = f"<{name}>" if get_origin(kind) is Mapping else name
      yield from fields(inner, f"{path}{here}.")
    else:
      yield Field(path + name, _type_name(kind), meaning)


def typed(section: type, node: Any, path: str = "") -> dict[str, Any]:
  """The values of a section with names and types checked, rules not yet.

  Lists become tuples, and whole numbers in float fields become floats.

  Raises:
    ValueError: names the field, what was expected and what was found.
  """
  if not isinstance(node, Mapping):
    raise ValueError(
      f"{path.rstrip('.') or 'config'}: expected a section (a dict), found"
      f" {node!r} of type {type(node).__name__}."
    )
  hints = _entries(section, node)
  for name in node:
    if name not in hints:
      known = [path + hint for hint in hints]
      known += [field.path for field in fields(section, path)]
      raise ValueError(
        f"{path}{name}: there is no such field."
        f" {suggest(path + str(name), known)}"
      )
  for name, (kind, meaning) in hints.items():
    if name not in node:
      note = f" ({meaning})" if meaning else ""
      raise ValueError(
        f"{path}{name}: missing; expected {_type_name(kind)}{note}. Write it in"
        " the config file: no field has a default."
      )
  return {
    name: _typed_value(kind, node[name], path + name)
    for name, (kind, _) in hints.items()
  }


def build(section: type, values: Mapping[str, Any], path: str = "") -> Any:
  """The dataclass of a section from what `typed` returned; rules are checked.

  Raises:
    ValueError: names the field, what was expected, what was found, what to do.
  """
  own, rest = {}, {}
  names = _hints(section)
  for name, (kind, _) in _entries(section, values).items():
    value, inner = values[name], _section_of(kind)
    if inner is not None and value is not None:
      value = build(inner, value, f"{path}{name}.")
    (own if name in names else rest)[name] = value
  for name, (kind, _) in names.items():
    if get_origin(kind) is Mapping and kind != FreeForm:
      own[name] = rest
  try:
    return section(**own)
  except ValueError as error:
    field = path + str(error).split(":")[0]
    raise ValueError(
      f"{path}{error} Set it in the config file or with --config.{field}=VALUE."
    ) from None


def suggest(path: str, known: Sequence[str]) -> str:
  """A sentence that names the nearest of `known`, or what lies beside."""
  section, _, leaf = path.rpartition(".")

  def leaf_of(name: str) -> str:
    return name.rpartition(".")[2]

  def likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one.lower(), other.lower()).ratio()

  same_leaf = [name for name in known if leaf_of(name) == leaf]
  same_leaf.sort(key=lambda name: likeness(path, name), reverse=True)
  # A long section in common makes any two paths alike.
  close = difflib.get_close_matches(path, known, n=3)
  close = [name for name in close if likeness(leaf, leaf_of(name)) > 0.6]
  best = list(dict.fromkeys([*same_leaf[:2], *close[:2]]))
  if best:
    return f"Did you mean {listed(best)}?"
  beside = [name for name in known if name.rpartition(".")[0] == section]
  tops = dict.fromkeys(name.split(".")[0] for name in known)
  return f"Known: {listed(beside or tops)}."


def check(ok: bool, field: str, expected: str, found: Any) -> None:
  """A rule of a section; `build` puts the section in front of the field.

  Raises:
    ValueError: it is not `ok`; names the field, expected and found.
  """
  if not ok:
    raise ValueError(f"{field}: expected {expected}, found {found!r}.")


def check_counts(section: Any, *fields: str) -> None:
  for field in fields:
    value = getattr(section, field)
    check(value >= 1, field, "a positive number", value)


def check_choice(section: Any, field: str, *choices: str) -> None:
  value = getattr(section, field)
  expected = " or ".join(repr(choice) for choice in choices)
  check(value in choices, field, expected, value)


def check_seed(section: Any) -> None:
  # Seeds become words of counter-based random numbers.
  ok = 0 <= section.seed < 2**32
  check(ok, "seed", "0 <= seed < 2**32", section.seed)


def check_place(location: str, s3_endpoint: str) -> None:
  """Refuses what is no folder, s3:// or gs:// URL.

  Args:
    location: a path or URL.
    s3_endpoint: of a server that speaks S3; "": Amazon's.

  Raises:
    ValueError: a scheme that is not known, no bucket, or an endpoint without
      s3://.
  """
  if "://" not in location:
    if s3_endpoint:
      raise ValueError(
        "s3_endpoint: expected '', as location does not"
        f" begin with s3://, found {s3_endpoint!r}."
      )
    return
  scheme, _, rest = location.rstrip("/").partition("://")
  if scheme not in ("file", "s3", "gs") or not rest.strip("/"):
    raise ValueError(
      f"location: expected a folder, s3://bucket/prefix or"
      f" gs://bucket/prefix, found {location!r}."
    )
  if s3_endpoint:
    url = urllib.parse.urlsplit(s3_endpoint)
    if scheme != "s3" or url.scheme not in ("http", "https") or not url.netloc:
      raise ValueError(
        f"s3_endpoint: expected http(s)://host:port of the server"
        f" that holds {location!r}, which has to begin with s3://, found"
        f" {s3_endpoint!r}."
      )


def listed(names: Iterable[Any]) -> str:
  """The names in one text, with commas."""
  return ", ".join(str(name) for name in names)


def _hints(section: type) -> dict[str, tuple[Any, str]]:
  """Field -> (type, meaning)."""
  found = {}
  for name, hint in get_type_hints(section, include_extras=True).items():
    annotated = get_origin(hint) is Annotated
    kind, *meaning = get_args(hint) if annotated else (hint,)
    found[name] = (kind, meaning[0] if meaning else "")
  return found


def _entries(
  section: type, node: Mapping[str, Any]
) -> dict[str, tuple[Any, str]]:
  """Like `_hints`, with a Mapping[str, Section] as the entries that it is."""
  found = {}
  hints = _hints(section)
  for name, (kind, meaning) in hints.items():
    if get_origin(kind) is Mapping and kind != FreeForm:
      inner = _section_of(kind)
      found |= {key: (inner, "") for key in node if key not in hints}
    else:
      found[name] = (kind, meaning)
  return found


def _section_of(kind: Any) -> Any:
  """The section in Section, Section | None or Mapping[str, Section]."""
  for candidate in (kind, *get_args(kind)):
    if isinstance(candidate, type) and dataclasses.is_dataclass(candidate):
      return candidate
  return None


def _typed_value(kind: Any, value: Any, path: str) -> Any:
  inner = _section_of(kind)
  if inner is not None:
    if value is None and get_origin(kind) is types.UnionType:
      return None
    return typed(inner, value, f"{path}.")
  if kind == FreeForm:
    if isinstance(value, Mapping):
      return _plain(value, path)
  elif kind == tuple[str, ...]:
    if isinstance(value, tuple | list) and all(type(x) is str for x in value):
      return tuple(value)
  elif kind is float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and math.isfinite(value):
      return float(value)
  elif type(value) is kind:  # Not isinstance: True is an int.
    return value
  raise ValueError(
    f"{path}: expected {_type_name(kind)}, found {value!r} of type"
    f" {type(value).__name__}."
  )


def _plain(value: Any, path: str) -> Any:
  """A free-form value as JSON keeps it, with tuples for its lists."""
  if isinstance(value, Mapping):
    for key in value:
      if type(key) is not str:
        raise ValueError(f"{path}: expected names as keys, found {key!r}.")
    return {key: _plain(value[key], f"{path}.{key}") for key in value}
  if isinstance(value, tuple | list):
    return tuple(_plain(x, f"{path}[{i}]") for i, x in enumerate(value))
  if value is None or type(value) in (bool, int, str):
    return value
  if type(value) is float and math.isfinite(value):
    return value
  raise ValueError(
    f"{path}: expected a str, bool, int, finite float, None, or a tuple or dict"
    f" of these, found {value!r} of type {type(value).__name__}."
  )


def _type_name(kind: Any) -> str:
  if _section_of(kind) is not None:
    return "a section"
  if kind == FreeForm:
    return "free-form"
  if kind == tuple[str, ...]:
    return "tuple of str"
  return kind.__name__
