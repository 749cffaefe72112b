"""A bucket for checkpoints."""

from s3 import account, bucket, s3_server  # noqa: F401
