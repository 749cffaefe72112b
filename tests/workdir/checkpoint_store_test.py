"""Tests for analogjax/workdir/checkpoint_store.py: checkpoints in a bucket."""

import json
import shutil

import faulty_s3
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from s3 import RETRIES

from analogjax.workdir import checkpoint_store, checkpoints, store

STATE = {"params": {"a": jnp.arange(4000.0)}, "b": jnp.ones(3)}
SHARDINGS = jax.tree.map(lambda x: x.sharding, STATE)
ABSTRACT = jax.eval_shape(lambda: STATE)


@pytest.fixture(autouse=True)
def several_parts(monkeypatch):
  monkeypatch.setattr(checkpoint_store, "PART_BYTES", 4000)


@pytest.fixture
def proxy(s3_server, bucket):
  with faulty_s3.proxy(s3_server, rate=0.0) as proxy:
    yield proxy


@pytest.fixture
def opened(proxy, tmp_path):
  """Opens the checkpoints in the bucket, with a separate staging folder."""
  place = store.place("s3://bucket/run/distill", proxy.url)
  staging = tmp_path / "staging"
  made = []

  def open_(keep=2, **kwargs):
    shutil.rmtree(staging, ignore_errors=True)  # Another machine.
    made.append(
      checkpoints.Checkpoints(place, keep=keep, staging=staging, **kwargs)
    )
    return made[-1]

  yield open_
  for saved in made:
    saved.close()
    assert not [p for p in staging.rglob("*") if p.is_file()]


def save(saved, *steps):
  for step in steps:
    saved.save(step, STATE, {"position": step}, score=1 / step)
  saved.finish()


def keys(bucket, step):
  prefix = f"run/distill/{step}/"
  return [
    o.key.removeprefix(prefix) for o in bucket.objects.filter(Prefix=prefix)
  ]


def assert_step(saved, step):
  found, state, about = saved.restore_latest(ABSTRACT, SHARDINGS)
  assert (found, about) == (step, {"position": step})
  jax.tree.map(np.testing.assert_array_equal, state, STATE)


def test_a_bucket_has_what_a_folder_would_have(opened, bucket):
  saved = opened(keep_best=1)
  assert saved.restore_latest(ABSTRACT, SHARDINGS) is None
  save(saved, 1, 2, 3)
  assert saved.steps() == [2, 3] and saved.best() == 3
  again = opened(keep=None)
  assert again.steps() == [2, 3] and again.best() == 3
  assert_step(again, 3)
  params = again.restore_params(2, ABSTRACT["params"], SHARDINGS["params"])
  np.testing.assert_array_equal(params["a"], STATE["params"]["a"])
  assert not keys(bucket, 1) and "commit.json" in keys(bucket, 2)
  assert any(key.endswith(".00001") for key in keys(bucket, 2))


def test_a_bad_day_of_the_store_changes_nothing(opened, proxy):
  proxy.rate = 0.2
  saved = opened()
  save(saved, 1, 2, 3)
  assert saved.steps() == [2, 3] and saved.failed_saves == 0
  assert_step(opened(keep=None), 3)
  assert sum(proxy.counts.values()) > 9, proxy.counts


def test_a_store_that_is_down_does_not_end_the_run(
  opened, proxy, bucket, caplog, monkeypatch
):
  saved = opened()
  save(saved, 1)
  before, limit = proxy.num_requests, 8  # Goes away in the middle.

  def pick_fault(kind):
    proxy.num_requests += 1
    return "503" if proxy.num_requests > before + limit else None

  monkeypatch.setattr(proxy, "pick_fault", pick_fault)
  with pytest.raises(checkpoints.SaveError, match="step 2.*from step 1"):
    save(saved, 2)
  text = [r.getMessage() for r in caplog.records if "NOT SAVED" in r.msg]
  assert len(text) == 1 and "s3://bucket/run/distill" in text[0]
  # A store that does not answer is not a damaged checkpoint.
  faults = iter(["503"] * (1 + RETRIES["max_retries"]))  # Then it is back.
  monkeypatch.setattr(proxy, "pick_fault", lambda kind: next(faults, None))
  with pytest.raises(store.StoreError, match="cannot be read"):
    saved.restore_latest(ABSTRACT, SHARDINGS)
  assert keys(bucket, 2) and "commit.json" not in keys(bucket, 2)
  assert_step(opened(keep=None), 1)
  saved = opened()
  save(saved, 2, 3)
  assert saved.steps() == [2, 3]
  assert_step(opened(keep=None), 3)


@pytest.mark.parametrize("damage", ["flip", "missing", "facts", "no json"])
def test_a_damaged_object_is_passed_over(opened, bucket, caplog, damage):
  save(opened(), 1, 2)
  name = "commit.json"
  if damage in ("flip", "missing"):
    # One that orbax does not read: only its SHA-256 reveals it.
    name = "state/_sharding.00000"
  found = bucket.Object(f"run/distill/2/{name}")
  data = found.get()["Body"].read()
  if damage == "missing":
    found.delete()
  elif damage == "facts":
    found.put(Body=data.replace(b'"position": 2', b'"position": 3'))
  else:
    found.put(Body=data[:-1] + bytes([data[-1] ^ 1]))
  saved = opened()
  assert_step(saved, 1)
  (text,) = (r.getMessage() for r in caplog.records if "moved" in r.msg)
  assert (
    "the checkpoint of step 2 is damaged" in text and "damaged.json" in text
  )
  assert opened(keep=None).steps() == [1]
  save(saved, 2)
  assert_step(opened(keep=None), 2)


def test_a_commit_of_a_later_version_is_refused(opened, bucket):
  save(opened(), 1)
  commit = bucket.Object("run/distill/1/commit.json")
  value = json.loads(commit.get()["Body"].read())
  commit.put(Body=json.dumps(value | {"version": 2}).encode())
  with pytest.raises(store.StoreError, match="expected version 1, found 2"):
    opened(keep=None)


def test_a_bucket_that_is_not_there(bucket, proxy, tmp_path):
  place = store.place("s3://nobucket/a", proxy.url)
  with pytest.raises(store.StoreError, match="s3://nobucket/a: .*"):
    checkpoints.Checkpoints(place, keep=1, staging=tmp_path)
