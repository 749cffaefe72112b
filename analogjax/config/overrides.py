"""Single fields set from the command line: --config.a.b=VALUE."""

from collections.abc import Mapping
import json
import math
import re
from typing import Any

from ml_collections import ConfigDict

from analogjax.config import fields, schema
from analogjax.config.draft import Draft
from analogjax.config.fields import Field, FreeForm

_WHOLE = "a whole number (1000, 1_000 and 1e3 are the same)"


def apply(cfg: Draft, path: str, text: str) -> None:
  """Sets one field of a config from a text.

  The schema gives the type: a str takes the text unchanged; an int takes 1000,
  1_000 or 1e3; a bool true, false, 1 or 0; a tuple a,b,c; a section or a
  free-form field the path of a TOML file; a free-form field also a JSON object.
  Inside a free-form field only existing entries can be set, as their present
  type.

  Raises:
    ValueError: the field does not exist, or the text has another form.
  """
  flag = f"--config.{path}"
  *parents, leaf = path.split(".")
  node: Any = cfg
  owner: Draft = cfg  # The innermost section of the schema, and
  name = leaf  # the entry of it that the path leads to.
  for part in parents:
    if isinstance(node, Draft):
      owner, name = node, part
      field = node.field(part)
      if field and field.may_be_none and node[part] is None:
        node[part] = {}  # A section that was off; its fields follow.
    node = node.get(part) if part in node else None
    if not isinstance(node, ConfigDict):
      raise _unknown(cfg, path, flag)
  if isinstance(node, Draft):
    field = node.field(leaf)
    if field is None or (field.is_open and leaf not in node):
      raise _unknown(cfg, path, flag)
    node[leaf] = _of_field(field, node, leaf, text, flag)
  elif leaf in node:
    with node.ignore_type():
      node[leaf] = _like(node[leaf], text, flag)
    owner.mark(name)
  else:
    raise _unknown(cfg, path, flag)


def _unknown(cfg: Draft, path: str, flag: str) -> ValueError:
  names = [field.path for field in fields.fields(schema.Sections)]
  known = [*_paths(cfg.to_dict()), *(n for n in names if "<" not in n)]
  near = fields.suggest(path, list(dict.fromkeys(known)))
  return ValueError(f"{flag}: there is no such field. {near}")


def _paths(values: Mapping[str, Any], path: str = "") -> list[str]:
  found = []
  for name, value in values.items():
    inner = isinstance(value, Mapping) and value
    found += _paths(value, f"{path}{name}.") if inner else [path + name]
  return found


def _of_field(
  field: Field, node: Draft, leaf: str, text: str, flag: str
) -> Any:
  """The value of a schema's field for a text."""
  if field.section is None and field.kind != FreeForm:
    return parse(text, field.kind, flag)
  if text.endswith(".toml"):
    return text
  if field.may_be_none and text.lower() == "none":
    return None
  if field.kind == FreeForm and text.startswith("{"):
    return _json(text, flag)
  present: Any = node.get(leaf)
  inside = present.keys() if isinstance(present, ConfigDict) else ()
  forms = ["the path of a TOML file"]
  if inside:
    forms.insert(0, f"{flag}.NAME=VALUE for one of {fields.listed(inside)}")
  if field.kind == FreeForm:
    forms.append('a JSON object such as {"name": "value"}')
  if field.may_be_none:
    forms.append("none")
  raise ValueError(
    f"{flag}: is a section; expected {', or '.join(forms)}, found {text!r}."
  )


def _like(present: Any, text: str, flag: str) -> Any:
  """The value of a free-form entry, of the type of the present one."""
  if isinstance(present, bool | int | float | str):
    return parse(text, type(present), flag)
  if isinstance(present, tuple | list):
    kinds = {type(item) for item in present} or {str}
    if len(kinds) == 1 and kinds <= {str, int, float, bool}:
      kind = kinds.pop()
      return tuple(parse(item, kind, flag) for item in _items(text, flag))
  return _json(text, flag)


def parse(text: str, kind: Any, flag: str) -> Any:
  """Parses a text as a type of the schema.

  Raises:
    ValueError: the text has another form; names `flag`.
  """
  if kind is str:
    return text
  if kind == tuple[str, ...]:
    return _items(text, flag)
  if kind is bool:
    named = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() in named:
      return named[text.lower()]
    expected = "true, false, 1 or 0"
  elif kind is int:
    expected = _WHOLE
    if re.fullmatch(r"[+-]?[0-9]+(_[0-9]+)*", text):
      return int(text)
    # Sweep tools write 1e3; a fraction is a mistake, also 1000.0.
    if re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?[eE]\+?[0-9]{1,2}", text):
      number = float(text)
      if number.is_integer() and abs(number) <= 2**53:
        return int(number)
  else:
    assert kind is float, kind
    expected = "a finite number"
    try:
      number = float(text)
    except ValueError:
      number = math.nan
    if math.isfinite(number):
      return number
  raise ValueError(f"{flag}: expected {expected}, found {text!r}.")


def _items(text: str, flag: str) -> tuple[str, ...]:
  """The items of a,b,c, separated only by commas."""
  if text[:1] in ("(", "["):
    names = re.findall(r"[^\s,'\"()\[\]]+", text)
    raise ValueError(
      f"{flag}: expected names with commas between them, as in"
      f" {flag}={','.join(names)}, found {text!r}."
    )
  return tuple(text.removesuffix(",").split(",")) if text else ()


def _json(text: str, flag: str) -> Any:
  try:
    return json.loads(text)
  except ValueError:
    raise ValueError(f"{flag}: expected JSON, found {text!r}.") from None
