"""The leak linter: `lint` finds the private facts that a folder reveals."""

from analogjax.leaks.linter import lint
from analogjax.leaks.secrets import DIMENSIONS, Leak, Secrets, settings_of

__all__ = ["DIMENSIONS", "Leak", "Secrets", "lint", "settings_of"]
