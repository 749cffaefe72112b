"""Tests for analogjax/workdir/checkpoints.py."""

import functools
import re
import resource
import shutil

import jax
import jax.numpy as jnp
from models import tiny
import numpy as np
import optax
import pytest

from analogjax.distributed import sharding
from analogjax.models import decoder
from analogjax.training import steps
from analogjax.workdir import checkpoints

CFG = tiny(tie_embeddings=False)
TX = optax.adamw(1e-3)


def init(seed=0):
  params = decoder.init_parameters(CFG, seed)
  step = jnp.zeros((), jnp.int32)
  return steps.TrainState(step=step, params=params, opt_state=TX.init(params))


ABSTRACT = jax.eval_shape(init)


@functools.cache
def on_mesh(**axes):
  """A state with parameters and moments that are not zero, on a mesh."""
  mesh = sharding.make_mesh(axes)
  shardings = sharding.state_shardings(ABSTRACT, mesh)
  with jax.set_mesh(mesh):
    state = jax.jit(init, out_shardings=shardings)()
    state = jax.tree.map(lambda x: x + jnp.asarray(1, x.dtype), state)
  return jax.device_put(state, shardings), shardings


def assert_equal(found, expected):
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)),
    found,
    expected,
  )


def opened(folder, keep=3, keep_best=0):
  return checkpoints.Checkpoints(folder, keep=keep, keep_best=keep_best)


@pytest.mark.parametrize(
  ("num_devices", "axes"),
  [
    (8, dict(fsdp=8)),
    (8, dict(data=4, tensor=2)),
    (8, dict(data=2, fsdp=2, tensor=2)),
    (4, dict(fsdp=2, tensor=2)),
    (1, dict()),
  ],
)
def test_a_state_comes_back_on_any_mesh(tmp_path, num_devices, axes):
  state, _ = on_mesh(fsdp=8)
  saved = opened(tmp_path)
  saved.save(7, state, {"fingerprints": {"a": 1}, "position": None})
  saved.close()
  mesh = sharding.make_mesh(axes, jax.devices()[:num_devices])
  shardings = sharding.state_shardings(ABSTRACT, mesh)
  again = opened(tmp_path)
  step, found, about = again.restore_latest(ABSTRACT, shardings)
  again.close()
  assert (step, about) == (7, {"fingerprints": {"a": 1}, "position": None})
  assert_equal(found, state)
  jax.tree.map(
    lambda x, s: (
      (x.sharding.is_equivalent_to(s, x.ndim)) or pytest.fail(str(s))
    ),
    found,
    shardings,
  )


def test_a_save_holds_what_was_there_when_it_began(tmp_path):
  """The step after a save reuses the saved buffers (donation)."""
  state, shardings = on_mesh(fsdp=8)
  state = jax.tree.map(jnp.copy, state)
  expected = jax.device_get(state)
  overwrite = jax.jit(
    lambda s: jax.tree.map(lambda x: x * 0 - jnp.asarray(5, x.dtype), s),
    donate_argnums=0,
    out_shardings=shardings,
  )
  saved = opened(tmp_path)
  saved.save(1, state, {})
  jax.block_until_ready(overwrite(state))
  saved.close()
  again = opened(tmp_path)
  assert_equal(again.restore(1, ABSTRACT, shardings), expected)
  again.close()


def test_the_parameters_are_read_without_the_moments(tmp_path):
  state, shardings = on_mesh(fsdp=8)
  saved = opened(tmp_path)
  saved.save(3, state, {})
  saved.close()
  again = opened(tmp_path, keep=None)
  params = again.restore_params(3, ABSTRACT.params, shardings.params)
  again.close()
  assert_equal(params, state.params)


def test_the_newest_are_kept(tmp_path):
  state, _ = on_mesh(fsdp=8)
  saved = opened(tmp_path, keep=2)
  for step in (1, 2, 3, 4):
    saved.save(step, state, {})
  saved.close()
  again = opened(tmp_path, keep=None)
  assert again.steps() == [3, 4]
  again.close()


def test_the_best_are_kept_beside_the_newest(tmp_path):
  state = {"a": jnp.arange(8.0)}
  scores = {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: float("nan"), 6: 9.0}
  saved = opened(tmp_path, keep=2, keep_best=2)
  assert saved.best() is None
  for step in (1, 2, 3):
    saved.save(step, state, {}, scores[step])
  saved.close()
  saved = opened(tmp_path, keep=2, keep_best=2)  # What a restart knows of them.
  assert saved.best() == 2
  for step in (4, 5, 6):
    saved.save(step, state, {}, scores[step])
  saved.finish()
  assert saved.steps() == [2, 3, 5, 6] and saved.best() == 2
  saved.close()
  again = opened(tmp_path, keep=None)
  assert again.steps() == [2, 3, 5, 6] and again.best() == 2
  again.close()


def test_a_step_is_saved_once(tmp_path):
  saved = opened(tmp_path)
  saved.save(1, {"a": jnp.ones(8)}, {"position": 1})
  saved.save(1, {"a": jnp.zeros(8)}, {"position": 2})
  saved.finish()
  assert saved.about(1) == {"position": 1}
  saved.close()


# Saves that fail. orbax drops what it began on the other files of that step.


@pytest.fixture
def full_disk():
  """A disk that refuses, while set, more than some bytes of a file."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

  def fill(full):
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000 if full else soft, hard))

  yield fill
  fill(False)


def no_folder(folder):
  """Makes new folders in it impossible, for root too, and possible again."""
  aside = folder.with_name("aside")

  def refuse(full):
    if full:
      folder.rename(aside)
      folder.write_text("")
    elif aside.exists():
      folder.unlink()
      aside.rename(folder)

  return refuse


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("fault", ["full disk", "no folder"])
def test_a_save_that_fails_does_not_end_the_run(
  tmp_path, full_disk, caplog, fault
):
  folder = tmp_path / "checkpoints"
  refuse = full_disk if fault == "full disk" else no_folder(folder)
  noise = np.random.default_rng(0).integers(0, 2**32, 10**5, np.uint32)
  state = {"a": jax.device_put(noise)}
  saved = opened(folder, keep=2)
  saved.save(1, state, {"position": 1})
  saved.finish()
  refuse(True)
  saved.save(2, state, {"position": 2})  # Returns; fails later, or at once.
  with pytest.raises(checkpoints.SaveError) as error:
    saved.finish()
  refuse(False)
  assert "step 2" in str(error.value) and "from step 1" in str(error.value)
  assert str(folder) in str(error.value) and "\n" not in str(error.value)
  (warning,) = (r.getMessage() for r in caplog.records if "NOT" in r.msg)
  assert re.search("STEP 2 .*(too large|Not a directory).*step 1", warning)
  assert saved.failed_saves == 1 and saved.steps() == [1]
  assert [p.name for p in folder.iterdir()] == ["1"]
  saved.save(2, state, {"position": 2})  # The same step, once there is room.
  saved.save(3, state, {"position": 3})
  saved.finish()
  assert saved.failed_saves == 1 and saved.steps() == [2, 3]
  saved.close()


def test_a_mistake_of_the_program_ends_the_run(tmp_path, monkeypatch):
  saved = opened(tmp_path)
  with pytest.raises(TypeError):
    saved.save(1, {"a": jnp.ones(8)}, {"position": object()})

  def publish(self, step, facts):
    raise ValueError("a mistake")

  monkeypatch.setattr(type(saved._home), "publish", publish)
  saved.save(1, {"a": jnp.ones(8)}, {})
  with pytest.raises(ValueError, match="a mistake"):
    saved.save(2, {"a": jnp.ones(8)}, {})
  saved.close()


def test_what_a_killed_save_left_is_no_checkpoint(tmp_path):
  saved = opened(tmp_path)
  saved.save(1, {"a": jnp.ones(8)}, {})
  saved.close()
  for name in ("2.orbax-checkpoint-tmp", "1.removed"):
    shutil.copytree(tmp_path / "1", tmp_path / name)
  assert opened(tmp_path, keep=None).steps() == [1]
  assert len(list(tmp_path.iterdir())) == 3  # A reader removes nothing.
  assert opened(tmp_path).steps() == [1]
  assert [p.name for p in tmp_path.iterdir()] == ["1"]


def test_nothing_saved_is_nothing_restored(tmp_path):
  _, shardings = on_mesh(fsdp=8)
  saved = opened(tmp_path)
  assert saved.restore_latest(ABSTRACT, shardings) is None
  saved.close()
