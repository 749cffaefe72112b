"""Small logit caches, and a bucket."""

import caches
import pytest
from s3 import account, bucket, s3_server  # noqa: F401


@pytest.fixture(scope="session")
def kit():
  """What tests of the logit cache are made of, as functions."""
  return caches
