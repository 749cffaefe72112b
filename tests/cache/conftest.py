"""Small logit caches, and a bucket."""

import caches
import pytest
from s3 import account, bucket, s3_server  # noqa: F401


@pytest.fixture(scope="session")
def kit():
  """Functions that make the objects of the tests of the logit cache."""
  return caches
