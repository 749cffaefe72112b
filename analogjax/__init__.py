"""Small open analogs of a frontier model, distilled, measured and released.

The names below are the public face, for notebooks and scripts. Each is
imported when it is first used, so that `import analogjax` loads nothing. All
other modules are private by convention: docs/api.md.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from analogjax.api.caches import Cache, Rows, open_cache
  from analogjax.api.models import Model, Steered, load_model, steer
  from analogjax.api.records import Records, distillation_loss, draw_records
  from analogjax.api.representations import Similarity, similarity
  from analogjax.api.results import read_fidelity, verify_bundle

__version__ = "0.2.0"

__all__ = (
  "Cache",
  "Model",
  "Records",
  "Rows",
  "Similarity",
  "Steered",
  "distillation_loss",
  "draw_records",
  "load_model",
  "open_cache",
  "read_fidelity",
  "similarity",
  "steer",
  "verify_bundle",
)

# Module of `api` -> what it holds for users.
_FACE = {
  "caches": ("Cache", "Rows", "open_cache"),
  "models": ("Model", "Steered", "load_model", "steer"),
  "records": ("Records", "distillation_loss", "draw_records"),
  "representations": ("Similarity", "similarity"),
  "results": ("read_fidelity", "verify_bundle"),
}


def __getattr__(name: str):
  """Imports a public name when it is asked for."""
  import importlib

  for module, names in _FACE.items():
    if name in names:
      value = getattr(importlib.import_module(f"analogjax.api.{module}"), name)
      globals()[name] = value
      return value
  raise AttributeError(f"module 'analogjax' has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
