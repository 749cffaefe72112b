"""Tests for Muon in analogjax/training/optimizer.py."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from models import adamw, by_name, make_mesh, tiny
import numpy as np

from analogjax.distributed import sharding
from analogjax.models import decoder
from analogjax.training import optimizer, steps
from analogjax.workdir import checkpoints

CONFIG = adamw(
  **dict(name="muon", learning_rate=0.5, muon_momentum=0.8, weight_decay=0.0)
)
# No two sides of a matrix are equal.
STUDENT = tiny(
  **dict(V=14, D=8, Y=3, H=6, F=10, tie_embeddings=False),
  **dict(attention_bias=True, mlp_bias=True),
)
# Rows and columns of each layer's matrix, by hand.
MATRICES = {
  "blocks_Y/attention/wq_DNH": (8, 24),
  "blocks_Y/attention/wk_DGH": (8, 12),
  "blocks_Y/attention/wv_DGH": (8, 12),
  "blocks_Y/attention/wo_NHD": (24, 8),
  "blocks_Y/mlp/wgate_DF": (8, 10),
  "blocks_Y/mlp/wup_DF": (8, 10),
  "blocks_Y/mlp/wdown_FD": (10, 8),
}
NUM_STEPS = 3
RATES = (0.25, 0.5, 0.5)  # One for each step, by CONFIG.


def draw(seed):
  """Random arrays in the form of the parameters, all different."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype),
    decoder.abstract_parameters(STUDENT),
  )


@functools.cache
def updates_of(config):
  """The updates of every step, and the last state, on one device."""
  tx = optimizer.make_optimizer(config, NUM_STEPS)
  update, params = jax.jit(tx.update), draw(0)
  state, updates = tx.init(params), []
  for step in range(NUM_STEPS):
    values, state = update(draw(step + 1), state, params)
    updates.append(by_name(values))
  return updates, state


def momentum_by_hand(grads, beta):
  """Nesterov's, with averages corrected for their start at 0."""
  m, t = 0.0, len(grads)
  for g in grads:
    m = beta * m + (1 - beta) * g
  ahead = beta * m / (1 - beta ** (t + 1))
  return ahead + (1 - beta) * grads[-1] / (1 - beta**t)


def orthogonalised_by_hand(matrix):
  """The iteration acts only on singular values (float64, by SVD)."""
  u, s, vt = np.linalg.svd(matrix, full_matrices=False)
  s = s / np.sqrt(np.sum(s * s))
  for _ in range(5):
    s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
  return (u * s) @ vt


def test_every_layer_has_its_own_orthogonalised_update():
  updates, _ = updates_of(CONFIG)
  grads = [by_name(draw(step + 1)) for step in range(NUM_STEPS)]
  for name, (rows, columns) in MATRICES.items():
    for layer in range(STUDENT.Y):
      seen = [np.float64(g[name][layer]).reshape(rows, columns) for g in grads]
      for step in range(NUM_STEPS):
        momentum = momentum_by_hand(seen[: step + 1], CONFIG.muon_momentum)
        scale = RATES[step] * 0.2 * np.sqrt(max(rows, columns))
        wanted = -scale * orthogonalised_by_hand(momentum)
        found = updates[step][name][layer].reshape(rows, columns)
        np.testing.assert_allclose(found, wanted, atol=2e-5, err_msg=name)


def test_singular_values_come_near_1_and_the_rms_near_that_of_adamw():
  """Five iterations leave singular values between 0.68 and 1.2, not at 1."""
  updates, _ = updates_of(CONFIG)
  for name, (rows, columns) in MATRICES.items():
    for layer in range(STUDENT.Y):
      update = np.float64(updates[1][name][layer]).reshape(rows, columns)
      update /= RATES[1]
      assert 0.2 * 0.68 < np.sqrt(np.mean(update**2)) < 0.2 * 1.21, name
      s = np.linalg.svd(
        update / (0.2 * np.sqrt(max(rows, columns))), compute_uv=False
      )
      assert 0.68 < s.min() and s.max() < 1.21, (name, layer, s)


def test_all_that_is_no_matrix_of_a_block_has_adamw():
  config = dataclasses.replace(CONFIG, weight_decay=0.1, clip_norm=5.0)
  muon, _ = updates_of(config)
  adamw, _ = updates_of(dataclasses.replace(config, name="adamw"))
  others = set(muon[0]) - set(MATRICES)
  assert {"embed_VD", "unembed_VD", "final_norm/scale_D"} < others
  assert set(MATRICES) < set(muon[0]) and len(others) == 3 + 2 + 4 + 3
  for step in range(NUM_STEPS):
    for name in others:
      np.testing.assert_allclose(
        muon[step][name], adamw[step][name], rtol=1e-6, err_msg=name
      )
    for name in MATRICES:
      assert np.abs(muon[step][name] - adamw[step][name]).max() > 0.01


def test_the_second_moment_is_adamws_alone():
  tx = optimizer.make_optimizer(CONFIG, NUM_STEPS)
  params = decoder.abstract_parameters(STUDENT)
  moments = by_name(jax.eval_shape(tx.init, params))
  for name in by_name(params):
    for moment in ("mu", "nu"):
      found = [k for k in moments if k.endswith(f"/{moment}/{name}")]
      assert len(found) == (moment == "mu" or name not in MATRICES), name
  # The rest are counters; anything else would have no place on a mesh.
  rest = [
    v for k, v in moments.items() if not k.endswith(tuple(by_name(params)))
  ]
  assert rest and all(x.shape == () and x.dtype == jnp.int32 for x in rest)


def new_state(config):
  tx = optimizer.make_optimizer(config, NUM_STEPS)

  def init():
    params = jax.tree.map(jnp.asarray, draw(0))
    step = jnp.zeros((), jnp.int32)
    return steps.TrainState(step=step, params=params, opt_state=tx.init(params))

  return tx, init


def placed(config, **axes):
  """A mesh, and the sharding of the state on it."""
  mesh = make_mesh(axes)
  abstract = jax.eval_shape(new_state(config)[1])
  return mesh, sharding.state_shardings(abstract, mesh)


@functools.cache
def train(config, **axes):
  """The state after NUM_STEPS on a mesh, and its shardings."""
  tx, init = new_state(config)
  mesh, shardings = placed(config, **axes)

  def step(state, grads):
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = jax.tree.map(jnp.add, state.params, updates)
    return steps.TrainState(
      step=state.step + 1, params=params, opt_state=opt_state
    )

  with jax.set_mesh(mesh):
    state = jax.jit(init, out_shardings=shardings)()
    step = jax.jit(step, donate_argnums=0, out_shardings=shardings)
    for n in range(NUM_STEPS):
      state = step(state, jax.device_put(draw(n + 1), shardings.params))
  return state, shardings


def test_a_mesh_changes_where_arrays_live_and_nothing_else():
  config = dataclasses.replace(CONFIG, weight_decay=0.1)
  alone, _ = train(config, data=1)
  split, shardings = train(config, fsdp=2, tensor=2)
  wanted = by_name(shardings.params)
  for name, leaf in by_name(split).items():
    if leaf.ndim:
      weight = next(w for w in wanted if name.endswith(f"/{w}"))
      assert leaf.sharding.is_equivalent_to(wanted[weight], leaf.ndim), name
      axes_used = {a for a in leaf.sharding.spec if a is not None}
      assert axes_used, name  # Nothing that has a D, N, G, F or V is copied.
  compare = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5)
  jax.tree.map(compare, jax.device_get(alone), jax.device_get(split))


def test_a_state_comes_back_on_another_mesh(tmp_path):
  config = dataclasses.replace(CONFIG, momentum_dtype="bfloat16")
  state, _ = train(config, data=2, fsdp=2, tensor=2)
  saved = checkpoints.Checkpoints(tmp_path, keep=2)
  saved.save(3, state, {"position": None})
  saved.close()
  _, shardings = placed(config, fsdp=2, tensor=2)
  abstract = jax.eval_shape(new_state(config)[1])
  again = checkpoints.Checkpoints(tmp_path, keep=2)
  found = again.restore_latest(abstract, shardings)
  params = again.restore_params(3, abstract.params, shardings.params)
  again.close()
  assert found is not None and found[0] == 3
  assert jax.tree.structure(found[1]) == jax.tree.structure(state)
  for want, got in ((state, found[1]), (state.params, params)):
    for name, leaf in by_name(want).items():
      assert by_name(got)[name].dtype == leaf.dtype
      np.testing.assert_array_equal(by_name(got)[name], leaf, err_msg=name)
  momenta = [v for k, v in by_name(found[1]).items() if "/mu/" in k]
  assert len(momenta) == len(by_name(params))
  assert all(m.dtype == jnp.bfloat16 and np.any(np.float32(m)) for m in momenta)
