"""Storage of caches: local files, s3:// and gs://, by one code path.

A place is a URL and, for an S3 other than Amazon's, the address of its server.
Everything is read and written through TensorStore, which retries when an object
store answers "try again" and commits an object as a whole or not at all.
"""

from collections.abc import Callable
import dataclasses
import functools
import json
import os
from pathlib import Path
import re
from typing import Any

import numpy as np
import tensorstore as ts

from analogjax.config import places

# Raised by TensorStore if a disk or a server refuses, or for bad bytes.
ERRORS = (ValueError, OSError)

_DRIVERS = {"s3": "s3", "gs": "gcs"}


class StoreError(ValueError):
  """A place that cannot be used."""


@dataclasses.dataclass(frozen=True)
class Place:
  """A folder of a file system or a prefix of a bucket."""

  url: str  # file:///absolute/path, s3://bucket/prefix or gs://bucket/prefix.
  s3_endpoint: str = ""  # Server that speaks S3; "": Amazon's.

  def __str__(self) -> str:
    return self.url

  def __truediv__(self, name: str) -> "Place":
    return dataclasses.replace(self, url=f"{self.url}/{name}")

  @property
  def name(self) -> str:
    return self.url.rsplit("/", 1)[-1]

  def kvstore(self, path: str = "") -> dict[str, Any]:
    """The specification of a TensorStore key-value store of this place."""
    scheme, _, rest = self.url.partition("://")
    # As URLs, a folder named "100%" or "a#b" would be refused or misread.
    if scheme == "file":
      return {"driver": "file", "path": f"{rest}/{path}"}
    bucket, _, prefix = rest.partition("/")
    prefix = f"{prefix}/" if prefix else ""
    spec = {
      "driver": _DRIVERS[scheme],
      "bucket": bucket,
      "path": prefix + path,
    }
    if self.s3_endpoint:
      spec["endpoint"] = self.s3_endpoint
    return spec

  def open(self) -> ts.KvStore:
    return ts.KvStore.open(self.kvstore(), context=context()).result()


def place(
  location: str | Path, s3_endpoint: str = "", *, section: str = "cache"
) -> Place:
  """The place that a path or URL names.

  Args:
    s3_endpoint: of a server that speaks S3; "": Amazon's.
    section: the config section of `location` and `s3_endpoint`, for messages.

  Raises:
    StoreError: the scheme is unknown, there is no bucket, or an endpoint
      without s3://.
  """
  text = str(location)
  try:
    places.check_place(text, s3_endpoint)
  except ValueError as error:
    raise StoreError(f"{section}.{error}") from None
  if "://" not in text:
    return Place(f"file://{os.path.abspath(text)}")
  return Place(text.rstrip("/"), s3_endpoint)


@functools.cache
def context() -> ts.Context:
  """The context shared by all arrays: a cache for indexes of sharded objects.

  Reading one row takes the object's index and the row's bytes. Without the
  cache every read would fetch the index anew.
  """
  return ts.Context({"cache_pool": {"total_bytes_limit": 256 * 2**20}})


def open_array(
  where: Place, name: str, spec: dict[str, Any], *, create: bool = False
) -> Any:
  """Opens the Zarr array `name` at this place, or makes it.

  Raises:
    StoreError: it is missing or damaged, or the store refuses.
  """
  spec = {"driver": "zarr3", "kvstore": where.kvstore(f"{name}/"), **spec}
  try:
    # A killed creation leaves some arrays behind; they are the same.
    return ts.open(spec, open=True, create=create, context=context()).result()
  except ERRORS as error:
    raise StoreError(
      f"{where}: array {name!r} of the logit cache cannot be opened:"
      f" {reason(error)}."
    ) from error


def read_json(where: Place, key: str) -> Any | None:
  """Reads a JSON document; None if it does not exist.

  Raises:
    StoreError: it is not JSON, or the store refuses.
  """
  try:
    found = where.open().read(key).result()
  except ERRORS as error:
    raise StoreError(f"{where}: cannot be read: {reason(error)}.") from error
  if found.state == "missing":
    return None
  try:
    return json.loads(found.value)
  except ValueError as error:
    raise StoreError(f"{where}/{key}: not JSON: {error}.") from error


def check(where: Place) -> None:
  """Refuses an S3 bucket that does not exist.

  TensorStore takes it for a missing key, and a write to it for one that another
  writer won, which it retries forever.

  Raises:
    StoreError: the bucket does not exist, or the store refuses.
  """
  if not where.url.startswith("s3://"):
    return
  keys = ts.KvStore.KeyRange("zarr.json", "zarr.json0")
  call = lambda: where.open().list(keys).result()  # noqa: E731
  translated(call, f"{where}: cannot be listed")


def write_json(where: Place, key: str, value: Any) -> None:
  """Writes a JSON document atomically."""
  data = json.dumps(value, indent=1, allow_nan=False).encode()
  where.open().write(key, data).result()


def object_bytes(where: Place, keys: list[str], chunks: int) -> int:
  """Bytes of sharded objects, from their indexes alone; 0 if missing.

  Args:
    keys: of the objects, e.g. "ids/c/0/0/0".
    chunks: inner chunks of one object.
  """
  store = where.open()
  size = 16 * chunks + 4  # (offset, length) in 64 bits each, and a crc32c.
  ends = [store.read(key, byte_range=slice(-size, None)) for key in keys]
  total = 0
  for end in ends:
    try:
      found = end.result()
    except ERRORS:
      continue  # Shorter than its index: truncated. `verify` names it.
    if found.state != "missing":
      index = np.frombuffer(found.value[:-4], "<u8").reshape(-1, 2)
      empty = index[:, 0] == 2**64 - 1  # Chunks that are not stored.
      total += int(index[~empty, 1].sum()) + size
  return total


def bytes_written() -> int:
  """Bytes that this process has written to any store so far."""
  metrics = ts.experimental_collect_matching_metrics("/tensorstore/kvstore/")
  total = 0
  for metric in metrics:
    if metric["name"].endswith("/bytes_written"):
      total += sum(int(v.get("value", 0)) for v in metric["values"])
  return total


def reason(error: BaseException) -> str:
  """A readable reason of an error."""
  # TensorStore appends the spec as JSON, and its own source lines.
  text = str(error).split(" [tensorstore_spec", 1)[0]
  return re.sub(r" \[source locations=.*", "", text, flags=re.S).rstrip(".")


def translated(call: Callable[[], Any], what: str) -> Any:
  """Returns call(); turns the store's exceptions into a StoreError."""
  try:
    return call()
  except ERRORS as error:
    raise StoreError(f"{what}: {reason(error)}.") from error
