"""libtpu, which compiles for TPUs that need not be there."""

import importlib.util
import os

import pytest


def needs_libtpu() -> None:
  """Skips a test where libtpu is neither installed nor named."""
  named = os.environ.get("TPU_LIBRARY_PATH")
  if not named and importlib.util.find_spec("libtpu") is None:
    pytest.skip("no libtpu to compile with: install the extra dev")
