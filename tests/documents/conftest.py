"""Shared fixtures of the tests of documents."""

from bundle_fixtures import fidelity, quick_pages, rendered  # noqa: F401
