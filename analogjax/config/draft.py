"""A config while a file fills it in: checked by the schema at every line."""

from collections.abc import Iterator, Mapping
import contextlib
import contextvars
import copy
import dataclasses
from pathlib import Path
import tomllib
from typing import Any, cast

from ml_collections import ConfigDict, FieldReference

from analogjax.config import fields
from analogjax.config.fields import Field

DEFAULT, FILE, FLAG = "default", "file", "--config"

# The folder of relative paths, and the origin of values.
_reading: contextvars.ContextVar[tuple[Path, str]] = contextvars.ContextVar(
  "_reading", default=(Path(), FILE)
)


@contextlib.contextmanager
def reading(folder: Path, origin: str) -> Iterator[None]:
  """Values set inside have this origin; TOML files are relative to `folder`."""
  token = _reading.set((folder, origin))
  try:
    yield
  finally:
    _reading.reset(token)


class Draft(ConfigDict):
  """A section of the schema with its defaults, some of them replaced.

  Fields without a default are absent until they are set. A name or type that is
  not in the schema raises a ValueError where it is set. A section may be set to
  the path of a TOML file that holds it.
  """

  def __init__(self, section: type, path: str = ""):
    """The defaults of `section`, whose fields are named `path` + name."""
    super().__init__(type_safe=False)
    # ConfigDict takes an attribute for a field.
    object.__setattr__(self, "_section", section)
    object.__setattr__(self, "_path", path)
    object.__setattr__(self, "_origin", {})  # Name -> origin, if it was set.
    for name, field in fields.own(section).items():
      if field.is_open:
        continue
      if field.section is not None and not field.may_be_none:
        super().__setitem__(name, Draft(field.section, f"{path}{name}."))
      elif field.default is not dataclasses.MISSING:
        super().__setitem__(name, copy.copy(field.default))

  def __setitem__(self, name: str, value: Any) -> None:
    field, path = self.field(name), f"{self._path}{name}"
    found: Any = value.get() if isinstance(value, FieldReference) else value
    is_dict = isinstance(found, Mapping | ConfigDict)
    if field is None or (field.is_open and not is_dict):
      raise fields.no_such_field(self._section, name, self._path, self)
    nests = field.section is not None or field.kind == fields.FreeForm
    if nests and isinstance(found, str | Path) and str(found).endswith(".toml"):
      found = value = read_toml(_reading.get()[0] / found)
    if field.section is not None:
      if found is not None or not field.may_be_none:
        value = self._inner(field, found, path)
    elif field.kind == fields.FreeForm:
      # The ConfigDict itself, as it may hold references to other fields.
      plain = found.to_dict() if isinstance(found, ConfigDict) else found
      fields.typed_value(field, plain, path)
      value = ConfigDict(cast(Any, found))
    elif value is found:
      value = fields.typed_value(field, found, path)
    else:
      fields.typed_value(field, found, path)
    self._origin[name] = _reading.get()[1]
    super().__setitem__(name, value)

  def __getattr__(self, name: str) -> Any:
    if name in self or name.startswith("__"):
      return super().__getattr__(name)
    field = self.field(name)
    if field is None or field.is_open:
      error = fields.no_such_field(self._section, name, self._path, self)
      raise AttributeError(str(error))
    raise AttributeError(f"{self._path}{name}: not set yet, has no default.")

  def __deepcopy__(self, memo: Any) -> "Draft":
    twin = Draft(self._section, self._path)
    twin._take(self)
    return twin

  def field(self, name: str) -> Field | None:
    """The field of the schema for an entry."""
    return fields.entry(self._section, name)

  def mark(self, name: str) -> None:
    """Notes that something inside a free-form entry was set."""
    self._origin[name] = _reading.get()[1]

  def origins(self) -> dict[str, str]:
    """Dotted path -> origin of the value, for every field."""
    found = {}
    for name, value in self.items():
      if isinstance(value, Draft):
        found |= value.origins()
      else:
        found[f"{self._path}{name}"] = self._origin.get(name, DEFAULT)
    return found

  def _inner(self, field: Field, found: Any, path: str) -> "Draft":
    if not isinstance(found, Mapping | ConfigDict):
      raise ValueError(
        f"{path}: expected a section (a dict, or the path of a TOML file),"
        f" found {found!r} of type {type(found).__name__}."
      )
    inner = Draft(field.section, f"{path}.")
    if isinstance(found, Draft):
      inner._take(found)
    else:
      inner.update(found)
    return inner

  def _take(self, other: "Draft") -> None:
    """Takes the values that were set in another section of the same kind."""
    for name in other:
      value, mine = other[name], self.get(name)
      if isinstance(value, Draft) and isinstance(mine, Draft):
        mine._take(value)
      elif isinstance(value, Draft) or name in other._origin:
        self[name] = value


def read_toml(path: Path) -> dict[str, Any]:
  """The content of a TOML file.

  Raises:
    ValueError: the file does not exist, or is not TOML.
  """
  try:
    return tomllib.loads(path.read_text(encoding="utf-8"))
  except OSError as error:
    raise ValueError(
      f"{path}: expected a TOML file, found none ({error.strerror})."
    ) from None
  except ValueError as error:
    raise ValueError(f"{path}: expected TOML, found {error}.") from None
