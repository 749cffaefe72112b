"""Tests for analogjax/checkpoint.py."""

import functools
import gc
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from analogjax import checkpoint, sharding, steps
from analogjax.models import decoder

CFG = decoder.DecoderConfig(
  V=64,
  D=16,
  Y=2,
  N=4,
  G=2,
  H=4,
  F=32,
  max_positions=64,
  rope_theta=1e4,
  rms_norm_eps=1e-5,
  tie_embeddings=False,
  attention_bias=False,
  mlp_bias=False,
)
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


def opened(folder, keep=3):
  return checkpoint.Checkpoints(folder, keep=keep)


@pytest.mark.parametrize(
  "axes", [dict(fsdp=8), dict(data=2, fsdp=2, tensor=2), dict(tensor=2, data=4)]
)
def test_a_state_comes_back_on_any_mesh(tmp_path, axes):
  state, _ = on_mesh(data=2, fsdp=2, tensor=2)
  saved = opened(tmp_path)
  saved.save(7, state, {"fingerprints": {"a": 1}, "position": None})
  saved.close()
  _, shardings = on_mesh(**axes)
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
  """The step after a save takes the saved buffers over (donation)."""
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


# Of several reads that fail, orbax leaves all but one to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, caplog):
  state, shardings = on_mesh(fsdp=8)
  saved = opened(tmp_path)
  for step in (1, 2):
    saved.save(step, state, {"position": step})
  saved.close()
  data = [p for p in (tmp_path / "2").rglob("*") if p.stat().st_size > 1000]
  assert data
  for path in data:
    if path.is_file():
      path.write_bytes(path.read_bytes()[:-200])
  again = opened(tmp_path)
  with caplog.at_level(logging.WARNING):
    step, found, about = again.restore_latest(ABSTRACT, shardings)
  assert (step, about["position"]) == (1, 1)
  assert_equal(found, state)
  text = " ".join(r.getMessage() for r in caplog.records)
  assert str(tmp_path) in text and "2" in text and "damaged" in text
  again.save(2, state, {"position": 2})  # That step can be saved again.
  again.close()
  last = opened(tmp_path)
  assert last.steps() == [1, 2]
  last.close()
  gc.collect()


def test_nothing_saved_is_nothing_restored(tmp_path):
  _, shardings = on_mesh(fsdp=8)
  saved = opened(tmp_path)
  assert saved.restore_latest(ABSTRACT, shardings) is None
  saved.close()
