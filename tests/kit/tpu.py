"""libtpu, which compiles for absent TPUs."""

import importlib.util
import os

import pytest


def needs_libtpu() -> None:
  """Skips a test if libtpu is neither installed nor named."""
  named = os.environ.get("TPU_LIBRARY_PATH")
  if not named and importlib.util.find_spec("libtpu") is None:
    pytest.skip("no libtpu to compile with: install the extra dev")
