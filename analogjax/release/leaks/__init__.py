"""The leak linter: `lint` reads a folder and finds what must stay private."""

from analogjax.release.leaks.facts import DIMENSIONS, Leak, Secrets, settings_of
from analogjax.release.leaks.linter import lint

__all__ = ["DIMENSIONS", "Leak", "Secrets", "lint", "settings_of"]
