"""The config that a file starts from.

Prices are no defaults: they are in a table that a config names (`plan.prices`).
Those of analogjax are in prices/.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from analogjax.config.draft import Draft, read_toml, reading
from analogjax.config.fields import listed
from analogjax.config.schema import Sections

# Saved with every config; raise it when a default of the schema changes.
VERSION = 1

_PRICES = Path(__file__).parent / "prices"


def config(phases: Sequence[str]) -> ConfigDict:
  """A config with every default, typed and locked; the rest is unset.

  `phases` are the names of the training phases, in running order. The last one
  is measured and released, unless the file changes that.
  """
  cfg: Any = Draft(Sections)
  for name in phases:
    cfg.train[name] = {}
  cfg.train.phases = tuple(phases)
  cfg.measure.phases = tuple(phases[-1:])
  cfg.release.phase = phases[-1]
  return cfg


def add_prices(cfg: Any, folder: Path) -> None:
  """Fills in the unset prices of `plan`, from `plan.prices`.

  A relative path of a table is below `folder`.

  Raises:
    ValueError: the table does not exist, or holds something else.
  """
  name = cfg.plan.prices
  if not name:
    return
  path = folder / name if name.endswith(".toml") else _PRICES / f"{name}.toml"
  if not name.endswith(".toml") and not path.is_file():
    ours = listed(sorted(p.stem for p in _PRICES.glob("*.toml")))
    raise ValueError(
      f"plan.prices: expected one of analogjax ({ours}), a TOML file, or ''"
      f" for none, found {name!r}."
    )
  with reading(folder, f"prices {name}"):
    for key, value in read_toml(path).items():
      try:
        _add(cfg.plan, key, value)
      except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _add(section: Any, key: str, value: object) -> None:
  """Sets an entry, or its unset parts."""
  if isinstance(value, dict) and key in section:
    for inner, number in value.items():
      _add(section[key], inner, number)
  elif section.origins().get(f"{section._path}{key}", "default") == "default":
    section[key] = value
