"""Tests for analogjax/workdir/store.py: a cache on disk and in buckets."""

import http.server
import json
from pathlib import Path
import re
import socket
import threading
import urllib.parse

import faulty_s3
import numpy as np
import pytest
from s3 import BUCKET, RETRIES, use_retries

from analogjax import main
from analogjax.cache import logit_cache
from analogjax.config import loading
from analogjax.workdir import store

ROOT = Path(__file__).parents[2]


@pytest.fixture
def proxied(s3_server, bucket):
  """Makes a place behind a proxy that spoils a fraction of all requests."""
  with faulty_s3.proxy(s3_server, rate=0.0) as proxy:

    def place(rate):
      proxy.rate = rate
      return store.place(f"s3://{BUCKET}/a/cache", proxy.url), proxy

    yield place


@pytest.fixture(scope="session")
def cached(kit, tmp_path_factory):
  """A whole cache on disk of two objects, two replicas: (folder, manifest)."""
  folder = tmp_path_factory.mktemp("local") / "cache"
  manifest = kit.manifest(num_replicas=2)
  fill(kit, logit_cache.create(folder, manifest))
  return folder, manifest


def fill(kit, cache):
  m = cache.manifest
  kit.write_all(cache, kit.rows(m), kit.records(m))


def in_folder(folder):
  paths = [path for path in folder.rglob("*") if path.is_file()]
  return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def in_bucket(bucket, prefix="a/cache/"):
  return {
    summary.key.removeprefix(prefix): summary.get()["Body"].read()
    for summary in bucket.objects.filter(Prefix=prefix)
  }


def assert_same_entries(kit, one, other):
  kit.assert_equal(one.read([5, 0, 3]), other.read([5, 0, 3]))
  kit.assert_equal(one.read([1, 4], 1), other.read([1, 4], 1))


# Places.


@pytest.mark.parametrize(
  ("location", "driver", "path"),
  [
    ("/a/b", "file", "/a/b/x"),
    ("/a/100% #b?", "file", "/a/100% #b?/x"),
    ("file:///a/b/", "file", "/a/b/x"),
    ("s3://bucket/a/b/", "s3", "a/b/x"),
    ("s3://bucket", "s3", "x"),
    ("gs://bucket/a", "gcs", "a/x"),
  ],
)
def test_places(location, driver, path):
  spec = store.place(location).kvstore("x")
  assert (spec["driver"], spec["path"]) == (driver, path)
  assert spec.get("bucket", "bucket") == "bucket" and "endpoint" not in spec


def test_a_relative_folder_is_made_absolute(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for location in ("a", Path("a")):
    assert store.place(location).url == f"file://{tmp_path}/a"
  place = store.place("s3://bucket/a") / "cache"
  assert (place.url, place.name) == ("s3://bucket/a/cache", "cache")
  place = store.place("s3://bucket/a", "http://localhost:9") / "cache"
  assert place.kvstore()["endpoint"] == "http://localhost:9"


@pytest.mark.parametrize(
  ("location", "endpoint", "says"),
  [
    ("ftp://a/b", "", ["cache.location", "s3://bucket/prefix", "ftp://a/b"]),
    ("s3://", "", ["cache.location", "expected a folder", "'s3://'"]),
    ("gs:///", "", ["cache.location", "expected a folder", "'gs:///'"]),
    ("/a", "http://h:1", ["cache.s3_endpoint", "s3://", "http://h:1"]),
    ("gs://b/a", "http://h:1", ["cache.s3_endpoint", "s3://", "http://h:1"]),
    ("s3://b/a", "h:1", ["cache.s3_endpoint", "host:port", "'h:1'"]),
    ("s3://b/a", "http://", ["cache.s3_endpoint", "host:port", "'http://'"]),
  ],
)
def test_places_that_are_none(location, endpoint, says):
  with pytest.raises(store.StoreError) as error:
    store.place(location, endpoint)
  for part in says:
    assert part in str(error.value)


# Sizes.


def test_bytes_of_objects_are_those_of_the_files(cached, tmp_path):
  folder, manifest = cached
  cache = logit_cache.open_cache(folder)
  objects = cache.objects()
  assert len(objects) == 2
  for part in (objects, objects[1:], []):
    found = cache.bytes_by_array(part)
    for name, size in found.items():
      files = [
        path
        for path in (folder / name / "c").rglob("*")
        if path.is_file()
        and int(path.relative_to(folder / name / "c").parts[0])
        in [o.start // manifest.rows_per_object for o in part]
      ]
      assert size == sum(path.stat().st_size for path in files), name
  # Not there, and too short for an index.
  (tmp_path / "short").write_bytes(b"short")
  place = store.place(tmp_path)
  assert store.object_bytes(place, ["lost", "short"], 4) == 0


def test_bytes_written_counts_what_goes_to_the_disk(kit, tmp_path):
  before = store.bytes_written()
  store.write_json(store.place(tmp_path), "a.json", {"a": 1})
  size = (tmp_path / "a.json").stat().st_size
  assert store.bytes_written() - before == size
  before = store.bytes_written()
  fill(kit, logit_cache.create(tmp_path / "cache", kit.manifest()))
  size = sum(len(data) for data in in_folder(tmp_path / "cache").values())
  assert store.bytes_written() - before == size


def test_json_that_is_damaged(tmp_path):
  (tmp_path / "a.json").write_text("{")
  place = store.place(tmp_path)
  assert store.read_json(place, "b.json") is None
  with pytest.raises(store.StoreError, match=r"a\.json: not JSON"):
    store.read_json(place, "a.json")


# S3.


def test_a_cache_in_s3_holds_the_bytes_of_one_on_disk(
  kit, cached, proxied, bucket
):
  folder, manifest = cached
  place, _ = proxied(rate=0.0)
  before = store.bytes_written()
  cache = logit_cache.create(place, manifest)
  assert cache.holes() == [range(0, 4), range(4, 6)]
  fill(kit, cache)
  found = in_bucket(bucket)
  assert found == in_folder(folder)
  assert store.bytes_written() - before == sum(map(len, found.values()))
  again = logit_cache.open_cache(place)
  local = logit_cache.open_cache(folder)
  assert_same_entries(kit, again, local)
  assert again.bytes_by_array(again.objects()) == local.bytes_by_array(
    local.objects()
  )
  grown = again.resized(9)
  assert grown.committed().tolist() == [True] * 6 + [False] * 3


def test_a_bad_day_of_the_store_changes_nothing(kit, cached, proxied, bucket):
  folder, manifest = cached
  place, proxy = proxied(rate=0.3)
  cache = logit_cache.create(place, manifest)
  fill(kit, cache)
  assert in_bucket(bucket) == in_folder(folder)
  for _ in range(2):
    again = logit_cache.open_cache(place)
    assert_same_entries(kit, again, logit_cache.open_cache(folder))
    assert again.committed().all()
  sizes = again.bytes_by_array(again.objects())
  local = logit_cache.open_cache(folder)
  assert sizes == local.bytes_by_array(local.objects())
  assert all(proxy.counts.values()), proxy.counts
  share = sum(proxy.counts.values()) / proxy.num_requests
  assert 0.2 < share < 0.4, proxy.counts


def test_a_server_that_goes_away_half_way(
  kit, cached, proxied, bucket, monkeypatch
):
  folder, manifest = cached
  place, proxy = proxied(rate=0.0)
  use_retries(monkeypatch, **RETRIES | {"max_retries": 2})
  cache = logit_cache.create(place, manifest)
  answered = proxy.num_requests

  def pick_fault(kind):
    # Some arrays of the second object arrive.
    proxy.num_requests += 1
    arrays = len(manifest.layout.arrays()) + 9
    return "closed" if proxy.num_requests > answered + 2 * arrays else None

  monkeypatch.setattr(proxy, "pick_fault", pick_fault)
  with pytest.raises(logit_cache.CacheError) as error:
    fill(kit, cache)
  assert re.search(
    rf"{place}: writing rows \d to \d of the logit cache failed: .*retry"
    r".*The rows before are safe",
    str(error.value),
  )
  assert "\n" not in str(error.value)
  monkeypatch.setattr(proxy, "pick_fault", lambda kind: None)
  use_retries(monkeypatch, **RETRIES)
  cache = logit_cache.open_cache(place)
  done = cache.committed()
  assert not done.all()
  if done.any():
    cache.read(np.flatnonzero(done))
  fill(kit, cache)
  assert in_bucket(bucket) == in_folder(folder)


def test_a_server_that_is_down(cached, account, monkeypatch, tmp_path, capfd):
  folder, manifest = cached
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{s.getsockname()[1]}"
  use_retries(monkeypatch, **RETRIES | {"max_retries": 2})
  place = store.place("s3://bucket/a/cache", url)
  for call in (
    lambda: logit_cache.open_cache(place),
    lambda: logit_cache.create(place, manifest),
    lambda: store.write_json(place, "a.json", {}),
  ):
    with pytest.raises(ValueError, match="Could not connect") as error:
      call()
    assert "source locations" not in str(error.value)

  overrides = [("cache.location", "s3://bucket/a"), ("cache.s3_endpoint", url)]
  cfg = loading.load(ROOT / "configs" / "demo.py", overrides)
  loading.save_resolved(cfg, tmp_path)
  capfd.readouterr()
  assert main.main(["cache", "--inspect", f"--workdir={tmp_path}"]) == 2
  (line,) = capfd.readouterr().err.splitlines()
  assert line.startswith("analogjax cache: error: s3://bucket/a/cache: ")
  assert "Could not connect to server" in line


def test_a_bucket_that_is_not_there(cached, bucket, s3_server):
  _, manifest = cached
  place = store.place("s3://nobucket/a", "http://{}:{}".format(*s3_server))
  with pytest.raises(ValueError, match="s3://nobucket/a: .*") as error:
    logit_cache.create(place, manifest)
  assert "\n" not in str(error.value)


# Google's.


class _Gcs(http.server.BaseHTTPRequestHandler):
  """The part of Google Cloud Storage's JSON API that a cache needs."""

  protocol_version = "HTTP/1.1"
  objects = {}  # Name -> (generation, bytes).

  def log_message(self, *_):
    pass

  def _name(self):
    path = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(path.query))
    name = query.get("name") or path.path.rsplit("/o/", 1)[-1]
    return urllib.parse.unquote(name), query

  def _answer(self, status, data=b"", generation=None):
    self.send_response_only(status)
    if generation is not None:
      self.send_header("x-goog-generation", str(generation))
    self.send_header("Content-Length", str(len(data)))
    self.end_headers()
    self.wfile.write(data)

  def do_GET(self):
    name, query = self._name()
    generation, data = self.objects.get(name, (0, b""))
    if not generation:
      return self._answer(404)
    if query.get("ifGenerationNotMatch") == str(generation):
      return self._answer(304)
    wanted = self.headers.get("Range")
    if not wanted:
      return self._answer(200, data, generation)
    first, last = wanted.removeprefix("bytes=").split("-")
    start = int(first) if first else len(data) - int(last)
    stop = int(last) + 1 if first and last else len(data)
    self.send_response_only(206)
    self.send_header("x-goog-generation", str(generation))
    end = min(stop, len(data))
    self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
    self.send_header("Content-Length", str(end - start))
    self.end_headers()
    self.wfile.write(data[start:end])
    return None

  def do_POST(self):
    name, query = self._name()
    data = self.rfile.read(int(self.headers["Content-Length"]))
    generation, _ = self.objects.get(name, (0, b""))
    if query.get("ifGenerationMatch", str(generation)) != str(generation):
      return self._answer(412)
    self.objects[name] = generation + 1, data
    about = {"name": name, "generation": str(generation + 1)}
    about["size"] = str(len(data))
    return self._answer(200, json.dumps(about).encode())

  def do_DELETE(self):
    name, query = self._name()
    generation, _ = self.objects.get(name, (0, b""))
    if query.get("ifGenerationMatch", str(generation)) != str(generation):
      return self._answer(412)
    return self._answer(204 if self.objects.pop(name, None) else 404)


def test_a_cache_in_google_cloud_storage(kit, cached, account, monkeypatch):
  folder, manifest = cached
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Gcs)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  url = f"http://127.0.0.1:{server.server_port}"
  monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
  monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "a token")
  _Gcs.objects.clear()
  place = store.place("gs://bucket/a/cache")
  fill(kit, logit_cache.create(place, manifest))
  found = {
    name.removeprefix("a/cache/"): data
    for name, (_, data) in _Gcs.objects.items()
  }
  assert found == in_folder(folder)
  cache = logit_cache.open_cache(place)
  assert_same_entries(kit, cache, logit_cache.open_cache(folder))
  server.shutdown()
  server.server_close()
