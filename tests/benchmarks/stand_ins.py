"""Imports a module although packages that it does not need here are missing.

The pure steps are in one package with modules that read data, so importing them
imports grain and tensorstore, which a benchmark on random rows does not use.
"""

import importlib
import sys
import types

# Without these there is nothing to measure.
NEEDED = ("jax", "jaxlib", "numpy", "flax", "optax")


class _StandIn(types.ModuleType):
  """A module whose every attribute is a class that cannot be made."""

  def __getattr__(self, name: str) -> type:
    if name.startswith("__"):
      raise AttributeError(name)
    package = self.__name__

    def refuse(*args, **kwargs):
      raise ModuleNotFoundError(f"{package}.{name}: {package} is not installed")

    return type(name, (), {"__new__": refuse})


def import_all(names: tuple[str, ...]) -> list[str]:
  """Imports modules, with a stand-in for each missing package.

  Returns:
    Names of the missing packages.

  Raises:
    ModuleNotFoundError: one of NEEDED is missing, or a part of this project.
  """
  missing = []
  for name in names:
    while True:
      try:
        importlib.import_module(name)
        break
      except ModuleNotFoundError as error:
        absent = error.name or ""
        root = absent.split(".")[0]
        if root in (*NEEDED, "analogjax", "") or absent in missing:
          raise
        missing.append(absent)
        sys.modules[absent] = _StandIn(absent)
  return missing
