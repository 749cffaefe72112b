"""Fixtures for S3 on this machine: moto's server, credentials and a bucket."""

import logging

import boto3
from moto import server as moto_server
import pytest
import tensorstore as ts

from analogjax.workdir import store

BUCKET = "bucket"
RETRIES = {"max_retries": 20, "initial_delay": "2ms", "max_delay": "20ms"}


@pytest.fixture(scope="session")
def s3_server():
  """A server that speaks S3, on loopback; its (host, port)."""
  logging.getLogger("werkzeug").setLevel(logging.ERROR)
  server = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
  server.start()
  yield server.get_host_and_port()
  server.stop()


def use_retries(monkeypatch, **retries):
  spec = {"s3_request_retries": retries, "gcs_request_retries": retries}
  # Only from the environment; otherwise each store reports what it did not
  # find.
  spec["aws_credentials"] = {"type": "environment"}
  context = ts.Context(spec)
  monkeypatch.setattr(store, "context", lambda: context)


@pytest.fixture
def account(monkeypatch, tmp_path):
  """Credentials without a home folder; retries that wait milliseconds."""
  monkeypatch.setenv("AWS_ACCESS_KEY_ID", "an id")
  monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret")
  monkeypatch.setenv("AWS_REGION", "us-east-1")
  monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
  for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
    monkeypatch.setenv(name, str(tmp_path / name))
  use_retries(monkeypatch, **RETRIES)


@pytest.fixture
def bucket(s3_server, account):
  """An empty bucket, accessed without TensorStore or a proxy."""
  url = "http://{}:{}".format(*s3_server)
  bucket = boto3.resource("s3", endpoint_url=url).create_bucket(Bucket=BUCKET)
  yield bucket
  bucket.objects.all().delete()
