"""What the tests of verify share."""

from bundle_fixtures import made, quick_pages  # noqa: F401
