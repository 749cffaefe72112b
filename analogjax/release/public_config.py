"""The public part of the resolved config, by an allow-list of its fields.

Readers of the bundle should be able to repeat the run on their own teacher and
data. The identity of the frontier model, locations, machines, costs, the
optimizer and the mixture of data stay private to the lab. The schema says of
each field whether it is public or why not; a new field is private until someone
marks it.
"""

from collections.abc import Iterator, Mapping
import functools
from typing import Any

from analogjax.config import schema


@functools.cache
def public_fields() -> tuple[str, ...]:
  """Paths of the published fields; <phase> stands for each phase."""
  return tuple(x.path for x in schema.schema() if x.private is None)


def project(values: Mapping[str, Any]) -> dict[str, Any]:
  """The public part of a resolved config, in the same sections.

  `values` are plain values, as `schema.to_values` returns them or as a
  workdir's config.json has them. Fields missing there are missing here; a value
  that is not a number, a text, a truth value, None or a list of texts is left
  out.

  Returns:
    JSON-like values; tuples are lists.
  """
  public: dict[str, Any] = {}
  for path in public_fields():
    for keys in _expanded(path, values):
      found: Any = values
      for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
      value = _plain(found)
      if value is None:
        continue
      section = public
      for key in keys[:-1]:
        section = section.setdefault(key, {})
      section[keys[-1]] = value
  return public


def _expanded(path: str, values: Mapping[str, Any]) -> Iterator[list[str]]:
  """The keys of a path, once for each phase where it has <phase>."""
  keys = path.split(".")
  if "<phase>" not in keys:
    yield keys
    return
  train = values.get("train")
  phases = train.get("phases") if isinstance(train, Mapping) else None
  for phase in _plain(phases) or []:
    yield [phase if key == "<phase>" else key for key in keys]


def _plain(value: Any) -> Any:
  """A value of a simple type, whose content was decided on; else None."""
  if isinstance(value, bool | int | float | str):
    return value
  if isinstance(value, list | tuple):
    return list(value) if all(isinstance(x, str) for x in value) else None
  return None
