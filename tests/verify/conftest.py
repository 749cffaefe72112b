"""Shared fixtures of the tests of verify."""

from bundle_fixtures import made, quick_pages  # noqa: F401
