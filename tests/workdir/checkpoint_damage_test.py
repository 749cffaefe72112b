"""Damaged checkpoints: the saved state is loaded, or an older step."""

import gc
import logging
import shutil

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
import numpy as np
import pytest

from analogjax.distributed import sharding
from analogjax.workdir import checkpoints

pytestmark = [
  # Where several reads fail, orbax leaves all but one to the collector.
  pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

DATA = "state/ocdbt.process_0/d/*"
INDEX = "state/d/*"
FACTS = "_CHECKPOINT_METADATA"


@pytest.fixture(scope="module")
def state():
  mesh = sharding.make_mesh(dict(fsdp=8))
  key = jax.random.key(0)
  whole = {"params": {"a": jax.random.normal(key, (256, 32))}, "b": jnp.ones(3)}
  shardings = {
    "params": {"a": NamedSharding(mesh, P("fsdp"))},
    "b": NamedSharding(mesh, P()),
  }
  return jax.device_put(whole, shardings)


@pytest.fixture(scope="module")
def two_steps(state, tmp_path_factory):
  folder = tmp_path_factory.mktemp("good") / "checkpoints"
  saved = checkpoints.Checkpoints(folder, keep=None)
  for step in (1, 2):
    saved.save(step, state, {"position": 1000 + step})
  saved.finish()
  saved.close()
  return folder


@pytest.fixture
def folder(two_steps, tmp_path):
  yield shutil.copytree(two_steps, tmp_path / "checkpoints")
  gc.collect()


def opened(folder):
  return checkpoints.Checkpoints(folder, keep=3)


def restore_latest(saved, state):
  abstract = jax.eval_shape(lambda: state)
  return saved.restore_latest(
    abstract, jax.tree.map(lambda x: x.sharding, state)
  )


def files(folder, pattern):
  return [p for p in folder.glob(pattern) if p.is_file()]


def flip(path, at=None):
  data = bytearray(path.read_bytes())
  data[len(data) // 2 if at is None else at] ^= 1
  path.write_bytes(data)


def flip_position(path):
  flip(path, path.read_bytes().index(b"1002") + 3)


def cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose(path):
  path.unlink()


def assert_step(found, step, state):
  assert found[0] == step and found[2] == {"position": 1000 + step}
  jax.tree.map(np.testing.assert_array_equal, found[1], state)


@pytest.mark.parametrize(
  ("pattern", "damage"),
  [
    (DATA, flip),
    (DATA, cut),
    (DATA, lose),
    (INDEX, flip),
    (INDEX, lose),
    ("state/manifest.ocdbt", flip),
    ("state/manifest.ocdbt", cut),
    ("state/manifest.ocdbt", lose),
    ("state/_METADATA", flip),
    ("state/_METADATA", cut),
    ("state/_METADATA", lose),
    (FACTS, flip),
    (FACTS, flip_position),
    (FACTS, cut),
    (FACTS, lose),
    ("state/d", shutil.rmtree),
    ("state/ocdbt.process_0", shutil.rmtree),
    ("state", shutil.rmtree),
    ("*", None),
  ],
  ids=lambda x: getattr(x, "__name__", x),
)
def test_damage_is_passed_over_and_named(
  folder, state, caplog, pattern, damage
):
  step = folder / "2"
  found = list(step.glob(pattern))
  assert found
  if damage is None:
    shutil.rmtree(step)
    step.mkdir()
  else:
    for path in found:
      damage(path)
  saved = opened(folder)
  with caplog.at_level(logging.WARNING):
    assert_step(restore_latest(saved, state), 1, state)
  (text,) = (
    r.getMessage() for r in caplog.records if "damaged" in r.msg % r.args
  )
  assert f"{folder}: the checkpoint of step 2 is damaged" in text
  assert (folder.with_name("checkpoints_damaged") / "2").is_dir()
  assert saved.steps() == [1]
  saved.save(2, state, {"position": 1002})  # It can be saved again.
  saved.finish()
  saved.close()
  again = opened(folder)
  assert_step(restore_latest(again, state), 2, state)
  again.close()


@pytest.mark.parametrize("damage", [flip, cut, lose])
@pytest.mark.parametrize("pattern", ["commit_success.txt", "state/_sharding"])
def test_files_that_are_not_read_do_no_harm(folder, state, pattern, damage):
  damage(folder / "2" / pattern)
  saved = opened(folder)
  assert_step(restore_latest(saved, state), 2, state)
  saved.close()


def test_values_that_decode_are_compared_with_their_checksums(folder, state):
  """As from a disk that returns another, whole chunk."""
  other = jax.tree.map(lambda x: x + 1, state)
  saved = checkpoints.Checkpoints(folder.with_name("other"), keep=None)
  saved.save(2, other, {"position": 1002})
  saved.finish()
  saved.close()
  shutil.rmtree(folder / "2" / "state")
  shutil.copytree(folder.with_name("other") / "2/state", folder / "2/state")
  saved = opened(folder)
  assert_step(restore_latest(saved, state), 1, state)
  params = jax.tree.map(lambda x: x.sharding, state["params"])
  abstract = jax.eval_shape(lambda: state["params"])
  found = saved.restore_params(1, abstract, params)
  np.testing.assert_array_equal(found["a"], state["params"]["a"])
  saved.close()


def test_a_run_does_not_begin_anew_because_all_are_damaged(folder, state):
  for path in files(folder, f"*/{DATA}"):
    flip(path)
  for _ in range(2):  # The second time they lie elsewhere already.
    saved = opened(folder)
    with pytest.raises(ValueError, match="from the start, delete") as error:
      restore_latest(saved, state)
    assert f"{folder}_damaged" in str(error.value)
    saved.close()
  shutil.rmtree(f"{folder}_damaged")
  saved = opened(folder)
  assert restore_latest(saved, state) is None
  saved.close()
