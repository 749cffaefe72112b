"""The leak linter: `lint` reads a folder and finds what must stay private."""

from analogjax.leaks.linter import lint
from analogjax.leaks.secrets import DIMENSIONS, Leak, Secrets, settings_of

__all__ = ["DIMENSIONS", "Leak", "Secrets", "lint", "settings_of"]
