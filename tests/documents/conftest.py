"""What the tests of documents share."""

from bundle_fixtures import fidelity, quick_pages, rendered  # noqa: F401
