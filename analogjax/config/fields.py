"""Sections of a config as dataclasses whose annotations hold the rules.

A field is `name: Annotated[type, "meaning, unit", ...] = default`. The type is
int, float, bool, str, `tuple[str, ...]`, another section, `Section | None`,
`FreeForm`, or `Mapping[str, Section]`: all entries that no other field names.
After the meaning come any `Bound` of the value, and either PUBLIC or a
`Private` reason: whether a release publishes it. A field without a default has
to be set. Rules between fields go into `rules`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import copy
import dataclasses
import difflib
import functools
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

FreeForm = Mapping[str, Any]
PUBLIC = "public"


class Private(NamedTuple):
  """The reason why no release publishes a field."""

  why: str


class Bound(NamedTuple):
  """A condition on a value, and its wording in messages."""

  holds: Callable[[Any], bool]
  expected: str  # {} stands for the name of the field.


def between(least: float, most: float) -> Bound:
  return Bound(lambda x: least <= x <= most, f"{least:g} <= {{}} <= {most:g}")


def at_least(least: float) -> Bound:
  return Bound(lambda x: x >= least, f"{least:g} or more")


def choice(*names: str) -> Bound:
  return Bound(lambda x: x in names, " or ".join(map(repr, names)))


def some_of(names: Sequence[str], *, or_none: bool = False) -> Bound:
  """A tuple of `names`."""
  known, all_names = set(names), listed(names)
  if or_none:
    return Bound(lambda x: set(x) <= known, f"some of {all_names}, or none")
  return Bound(
    lambda x: bool(x) and set(x) <= known, f"one of {all_names}, or several"
  )


COUNT = Bound(lambda x: x >= 1, "a positive number")
NOT_NEGATIVE = at_least(0)
ABOVE_0 = Bound(lambda x: x > 0, "> 0")
FRACTION = between(0, 1)
ABOVE_0_TO_1 = Bound(lambda x: 0 < x <= 1, "0 < {} <= 1")
INSIDE_0_1 = Bound(lambda x: 0 < x < 1, "0 < {} < 1")
DECAY = Bound(lambda x: 0 <= x < 1, "0 <= {} < 1")
# Seeds become words of counter-based random numbers.
SEED = Bound(lambda x: 0 <= x < 2**32, "0 <= {} < 2**32")
NOT_EMPTY = Bound(bool, "a text that is not empty")
UNIQUE = Bound(lambda x: len(set(x)) == len(x), "each phase once")


class Section:
  """Base of every section; a subclass is a frozen keyword-only dataclass.

  `class A(Section, private="why")` sets the reason for all of its fields
  without their own.
  """

  private = ""

  def __init_subclass__(cls, private: str = "") -> None:
    cls.private = private

  def __post_init__(self):
    for name, field in own(type(self)).items():
      value = getattr(self, name)
      for bound in field.bounds:
        check(bound.holds(value), name, bound.expected.format(name), value)
    self.rules()

  def rules(self) -> None:
    """Checks conditions between fields.

    Raises:
      ValueError: begins with the name of the field.
    """


class Field(NamedTuple):
  """A field of the schema."""

  path: str  # E.g. train.<phase>.num_steps.
  kind: Any  # The annotated type.
  meaning: str
  bounds: tuple[Bound, ...]
  private: str | None  # The reason; None: it is published.
  default: Any  # dataclasses.MISSING: it has to be set.

  @property
  def type(self) -> str:
    """int, float, bool, str, tuple of str, free-form or a section."""
    return _type_name(self.kind)

  @property
  def section(self) -> Any:
    """The section in Section, Section | None or Mapping[str, Section]."""
    for candidate in (self.kind, *get_args(self.kind)):
      if isinstance(candidate, type) and issubclass(candidate, Section):
        return candidate
    return None

  @property
  def is_open(self) -> bool:
    """Whether it stands for all entries that no other field names."""
    return get_origin(self.kind) is Mapping and self.kind != FreeForm

  @property
  def may_be_none(self) -> bool:
    return get_origin(self.kind) is types.UnionType


@functools.cache
def own(section: type) -> dict[str, Field]:
  """Name -> field, for the direct fields of a section."""
  hints = get_type_hints(section, include_extras=True)
  found = {}
  for field in dataclasses.fields(section):
    hint = hints[field.name]
    annotated = get_origin(hint) is Annotated
    kind, meaning, *notes = get_args(hint) if annotated else (hint, "")
    reasons = [note.why for note in notes if isinstance(note, Private)]
    reason = (reasons or [section.private])[0]
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
      default = field.default_factory()
    found[field.name] = Field(
      field.name,
      kind,
      meaning,
      tuple(note for note in notes if isinstance(note, Bound)),
      None if PUBLIC in notes else reason,
      default,
    )
  return found


def fields(section: type, path: str = "") -> Iterator[Field]:
  """Every field of a section and its subsections, in source order."""
  for name, field in own(section).items():
    if field.section is not None:
      here = f"<{name}>" if field.is_open else name
      yield from fields(field.section, f"{path}{here}.")
    else:
      yield field._replace(path=path + name)


def entry(section: type, name: str) -> Field | None:
  """The field of a section for an entry of that name.

  A name without a field belongs to the open field, such as `phase` of `train`,
  if the section has one.
  """
  known = own(section)
  if name in known and not known[name].is_open:
    return known[name]
  return next((field for field in known.values() if field.is_open), None)


def typed(section: type, node: Any) -> dict[str, Any]:
  """The values of a whole config: types checked, defaults filled in.

  Lists become tuples, and whole numbers in float fields become floats.

  Raises:
    ValueError: names the field, what was expected and what was found.
  """
  missing: list[Field] = []
  values = _typed_section(section, node, "", missing)
  if missing:
    first, *rest = missing
    note = f" ({first.meaning})" if first.meaning else ""
    also = f" Also missing: {listed(x.path for x in rest)}." if rest else ""
    raise ValueError(
      f"{first.path}: missing; expected {first.type}{note}. It has no default:"
      f" set it in the config file.{also}"
    )
  return values


def typed_value(field: Field, value: Any, path: str) -> Any:
  """A value that is not a section, as the type of its field.

  Raises:
    ValueError: it is of another type.
  """
  kind = field.kind
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
    f"{path}: expected {field.type}, found {value!r} of type"
    f" {type(value).__name__}."
  )


def build(section: type, values: Mapping[str, Any], path: str = "") -> Any:
  """The dataclass of a section from the result of `typed`; checks the rules.

  Raises:
    ValueError: names the field, what was expected, what was found, what to do.
  """
  arguments: dict[str, Any] = {
    name: {} for name, field in own(section).items() if field.is_open
  }
  for name, value in values.items():
    field = entry(section, name)
    assert field is not None, name
    if field.section is not None and value is not None:
      value = build(field.section, value, f"{path}{name}.")
    if field.is_open:
      arguments[field.path][name] = value
    else:
      arguments[name] = value
  try:
    return section(**arguments)
  except ValueError as error:
    name = path + str(error).split(":")[0]
    raise ValueError(
      f"{path}{error} Set it in the config file or with --config.{name}=VALUE."
    ) from None


def no_such_field(section: type, name: str, path: str, names: Iterable[str]):
  """The ValueError for an entry that a section does not have.

  Args:
    path: where the section is, with a dot at its end.
    names: the existing entries of the section.
  """
  known = [path + field for field in (*names, *own(section))]
  known += [field.path for field in fields(section, path)]
  known = [name for name in known if "<" not in name]
  near = suggest(path + str(name), list(dict.fromkeys(known)))
  return ValueError(f"{path}{name}: there is no such field. {near}")


def suggest(path: str, known: Sequence[str]) -> str:
  """A sentence that names the nearest of `known`, or its neighbours."""
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


def check_folders(folders: Sequence[str], phases: Sequence[str]) -> None:
  """Checks `folders`: further students, each as NAME=FOLDER.

  Raises:
    ValueError: another form, or a name that is already taken.
  """
  taken = ["teacher", "random", *phases]
  for item in folders:
    name, _, folder = item.partition("=")
    ok = name.isidentifier() and bool(folder) and name not in taken
    expected = "NAME=FOLDER, each name once, none of a phase, nor teacher or"
    check(ok, "folders", f"{expected} random", folders)
    taken.append(name)


def listed(names: Iterable[Any]) -> str:
  """The names in one text, with commas."""
  return ", ".join(str(name) for name in names)


def _typed_section(
  section: type, node: Any, path: str, missing: list[Field]
) -> dict[str, Any]:
  if not isinstance(node, Mapping):
    raise ValueError(
      f"{path.rstrip('.') or 'config'}: expected a section (a dict), found"
      f" {node!r} of type {type(node).__name__}."
    )
  names = [name for name, field in own(section).items() if not field.is_open]
  values = {}
  for name in dict.fromkeys([*names, *node]):
    field, here = entry(section, name), f"{path}{name}"
    if field is None or (field.is_open and not isinstance(node[name], Mapping)):
      raise no_such_field(section, name, path, node)
    default = field.default
    if name not in node and default is not dataclasses.MISSING:
      values[name] = copy.copy(default)
    elif field.section is not None:
      inner = node.get(name, {})
      if inner is not None or not field.may_be_none:
        inner = _typed_section(field.section, inner, f"{here}.", missing)
      values[name] = inner
    elif name in node:
      values[name] = typed_value(field, node[name], here)
    else:
      missing.append(field._replace(path=here))
  return values


def _plain(value: Any, path: str) -> Any:
  """A free-form value in the form of JSON, with tuples for its lists."""
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
  if kind == FreeForm:
    return "free-form"
  if kind == tuple[str, ...]:
    return "tuple of str"
  return kind.__name__ if kind in (int, float, bool, str) else "a section"
