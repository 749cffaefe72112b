"""Tests for analogjax/training/optimizer.py."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from models import adamw, by_name, tiny
import numpy as np
import pytest

from analogjax.models import decoder
from analogjax.training import optimizer

CONFIG = adamw(
  **dict(learning_rate=0.8, warmup_steps=3, schedule="wsd", decay_steps=4),
  final_fraction=0.25,
)


def rates(num_steps, at, **changes):
  schedule = optimizer.make_schedule(
    dataclasses.replace(CONFIG, **changes), num_steps
  )
  return [float(schedule(jnp.asarray(step, jnp.int32))) for step in at]


def test_wsd_by_hand():
  """20 steps: rise over 3, flat from 3 to 16, down to a quarter at 20."""
  at = [0, 1, 2, 3, 10, 16, 17, 18, 19, 20, 25]
  wanted = [0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.65, 0.5, 0.35, 0.2, 0.2]
  np.testing.assert_allclose(rates(20, at), wanted, rtol=1e-6)


def test_wsd_without_warmup_or_decay():
  wanted = [0.8, 0.8, 0.8, 0.65, 0.5]
  got = rates(8, [0, 1, 4, 5, 6], warmup_steps=0)
  np.testing.assert_allclose(got, wanted, rtol=1e-6)
  got = rates(8, [0, 7], warmup_steps=0, decay_steps=0)
  np.testing.assert_allclose(got, [0.8, 0.8], rtol=1e-6)


def test_wsd_that_falls_from_the_peak_on():
  """Warm-up and decay fill the phase."""
  wanted = [0.2, 0.4, 0.6, 0.8, 0.65, 0.5, 0.35, 0.2]
  np.testing.assert_allclose(rates(7, range(8)), wanted, rtol=1e-6)


def test_cosine_by_hand():
  """From step 3 to 19: half way at 11, where the cosine is 0."""
  at = [0, 2, 3, 7, 11, 19, 30]
  quarter = 0.2 + 0.6 * (1 + np.sqrt(0.5)) / 2
  wanted = [0.2, 0.6, 0.8, quarter, 0.5, 0.2, 0.2]
  got = rates(19, at, schedule="cosine", decay_steps=0)
  np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_constant_by_hand():
  got = rates(20, [0, 1, 2, 3, 19], schedule="constant", decay_steps=0)
  np.testing.assert_allclose(got, [0.2, 0.4, 0.6, 0.8, 0.8], rtol=1e-6)
  got = rates(20, [0, 19], schedule="constant", decay_steps=0, warmup_steps=0)
  np.testing.assert_allclose(got, [0.8, 0.8], rtol=1e-6)


@pytest.mark.parametrize(
  "field, value",
  [
    ("name", "sgd"),
    ("schedule", "linear"),
    ("learning_rate", 0.0),
    ("learning_rate", float("nan")),
    ("warmup_steps", -1),
    ("decay_steps", -1),
    ("final_fraction", 1.5),
    ("b1", 1.0),
    ("b2", -0.1),
    ("eps", 0.0),
    ("muon_momentum", 1.0),
    ("muon_momentum", -0.1),
    ("momentum_dtype", "float16"),
    ("weight_decay", -1.0),
    ("clip_norm", -1.0),
  ],
)
def test_a_value_out_of_bounds_is_refused(field, value):
  with pytest.raises(
    ValueError, match=f"^{field}: expected .* found {value!r}"
  ):
    dataclasses.replace(CONFIG, **{field: value})


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_decay_that_the_schedule_would_ignore_is_refused(schedule):
  with pytest.raises(
    ValueError, match=f"decay_steps: expected 0, .*{schedule}"
  ):
    dataclasses.replace(CONFIG, schedule=schedule)


STUDENT = tiny(
  **dict(V=11, D=4, N=2, G=1, H=2, F=6, tie_embeddings=False),
  **dict(attention_bias=True, mlp_bias=True),
)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_weight_decay_moves_matrices_and_embeddings_alone(name):
  """One step without a gradient: the remaining fraction of each parameter."""
  params = jax.tree.map(
    lambda leaf: np.ones(leaf.shape, leaf.dtype),
    decoder.abstract_parameters(STUDENT),
  )
  config = dataclasses.replace(CONFIG, name=name, warmup_steps=0)
  tx = optimizer.make_optimizer(config, 20)

  @jax.jit
  def update(params):
    grads = jax.tree.map(jnp.zeros_like, params)
    return tx.update(grads, tx.init(params), params)[0]

  updates = update(params)
  moved = {
    name: set(np.ravel(u).tolist()) for name, u in by_name(updates).items()
  }
  decayed = {name for name, values in moved.items() if values != {0.0}}
  # Decoupled: learning rate x weight decay x parameter.
  for name in decayed:
    np.testing.assert_allclose(list(moved[name]), [-0.08], rtol=1e-6)
  layer = "blocks_Y/"
  assert decayed == {
    "embed_VD",
    "unembed_VD",
    *(
      layer + f"attention/{w}" for w in ("wq_DNH", "wk_DGH", "wv_DGH", "wo_NHD")
    ),
    *(layer + f"mlp/{w}" for w in ("wgate_DF", "wup_DF", "wdown_FD")),
  }
  assert set(moved) - decayed == {
    "final_norm/scale_D",
    layer + "attention_norm/scale_D",
    layer + "mlp_norm/scale_D",
    *(layer + f"attention/{b}" for b in ("bq_NH", "bk_GH", "bv_GH", "bo_D")),
    *(layer + f"mlp/{b}" for b in ("bgate_F", "bup_F", "bdown_D")),
  }


def adamw_by_hand(config, grads, param):
  """Three lines of Adam (arXiv:1412.6980, algorithm 1), decoupled decay."""
  m = v = 0.0
  for t, g in enumerate(grads, 1):
    m = config.b1 * m + (1 - config.b1) * g
    v = config.b2 * v + (1 - config.b2) * g * g
    adam = (
      m / (1 - config.b1**t) / (np.sqrt(v / (1 - config.b2**t)) + config.eps)
    )
    rate = config.learning_rate * min(t / (config.warmup_steps + 1), 1)
    param = param - rate * (adam + config.weight_decay * param)
  return param


def run(config, grads, param):
  tx = optimizer.make_optimizer(config, 100)
  params = {"w_D": jnp.asarray([param], jnp.float32)}
  state = tx.init(params)
  for g in grads:
    updates, state = tx.update({"w_D": jnp.asarray([g])}, state, params)
    params = {"w_D": params["w_D"] + updates["w_D"]}
  return float(params["w_D"][0])


def test_adamw_by_hand():
  grads = [0.3, -0.2, 0.5, 0.1, -0.7]
  got = run(CONFIG, grads, 2.0)
  np.testing.assert_allclose(got, adamw_by_hand(CONFIG, grads, 2.0), rtol=1e-5)


def test_clipping_bounds_the_global_norm():
  """(3, 4) has norm 5: clipped to 1 it is (0.6, 0.8), (0.03, 0.04) is kept."""
  config = dataclasses.replace(CONFIG, clip_norm=1.0, b1=0.0, warmup_steps=0)
  params = {"w_D": jnp.zeros((1,)), "scale_D": jnp.zeros((1,))}
  for clip, grads, wanted in (
    (1.0, (3.0, 4.0), (0.6, 0.8)),
    (1.0, (0.03, 0.04), (0.03, 0.04)),
    (0.0, (3.0, 4.0), (3.0, 4.0)),
  ):
    config = dataclasses.replace(config, clip_norm=clip)
    tx = optimizer.make_optimizer(config, 10)
    g = {"w_D": jnp.asarray(grads[:1]), "scale_D": jnp.asarray(grads[1:])}
    _, state = tx.update(g, tx.init(params), params)
    moments = by_name(state)
    first = {k: v for k, v in moments.items() if "/mu/" in f"/{k}"}
    # With b1 = 0 the first moment is the gradient that Adam saw.
    seen = [float(v[0]) for k, v in sorted(first.items(), reverse=True)]
    np.testing.assert_allclose(seen, wanted, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_moments_are_named_after_their_weights(dtype):
  params = decoder.abstract_parameters(STUDENT)
  config = dataclasses.replace(CONFIG, momentum_dtype=dtype)
  state = jax.eval_shape(optimizer.make_optimizer(config, 20).init, params)
  names = list(by_name(params))
  moments = by_name(state)
  for moment, wanted in (("mu", dtype), ("nu", "float32")):
    for name in names:
      found = [v for k, v in moments.items() if k.endswith(f"{moment}/{name}")]
      assert len(found) == 1 and found[0].dtype == wanted


def test_bytes_of_the_moments_by_hand():
  """Parameters of STUDENT, counted: two layers, two embeddings, five norms.

  q, k, v and o are 4 x 4, 4 x 2, 4 x 2 and 4 x 4; gate, up and down 4 x 6; the
  biases 4 + 2 + 2 + 4 and 6 + 6 + 4.
  """
  blocks = 2 * (16 + 8 + 8 + 16 + 3 * 24)
  others = 2 * 44 + 5 * 4 + 2 * (12 + 16)
  params = decoder.abstract_parameters(STUDENT)
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == blocks + others
  for name, dtype, wanted in (
    ("adamw", "float32", 8 * blocks + 8 * others),
    ("adamw", "bfloat16", 6 * blocks + 6 * others),
    ("muon", "float32", 4 * blocks + 8 * others),
    ("muon", "bfloat16", 2 * blocks + 6 * others),
  ):
    config = dataclasses.replace(CONFIG, name=name, momentum_dtype=dtype)
    state = jax.eval_shape(optimizer.make_optimizer(config, 20).init, params)
    arrays = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    found = sum(leaf.size * leaf.dtype.itemsize for leaf in arrays)
    assert found == wanted, (name, dtype)


@functools.cache
def losses(config):
  """The loss after 200 steps of a regression with noisy gradients."""
  tx = optimizer.make_optimizer(config, 200)
  rng = np.random.default_rng(0)
  shapes = {"embed_VD": (12, 8), "blocks_Y": {"wup_DF": (2, 8, 10)}}

  def draw(shape):
    return jnp.asarray(rng.normal(size=shape) / 3, jnp.float32)

  def is_shape(node):
    return isinstance(node, tuple)

  wanted = jax.tree.map(draw, shapes, is_leaf=is_shape)
  params = jax.tree.map(draw, shapes, is_leaf=is_shape)

  def apply(params, x_BV):
    x_BD = x_BV @ params["embed_VD"]
    return jnp.einsum("BD,YDF->YBF", x_BD, params["blocks_Y"]["wup_DF"])

  def step(carry, key):
    params, state = carry
    x_BV = jax.random.normal(key, (16, 12))

    def loss_of(params):
      return jnp.mean((apply(params, x_BV) - apply(wanted, x_BV)) ** 2)

    loss, grads = jax.value_and_grad(loss_of)(params)
    updates, state = tx.update(grads, state, params)
    return (jax.tree.map(jnp.add, params, updates), state), loss

  keys = jax.random.split(jax.random.key(0), 200)
  run = jax.jit(lambda carry: jax.lax.scan(step, carry, keys)[1])
  return np.array(run((params, tx.init(params))))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_training_with_bfloat16_momenta_follows_float32(name):
  config = dataclasses.replace(CONFIG, name=name, learning_rate=0.01)
  wanted = losses(config)
  assert wanted[-1] < 0.05 * wanted[0]
  found = losses(dataclasses.replace(config, momentum_dtype="bfloat16"))
  assert np.any(found != wanted)
  # With a momentum of 0.99 this would be 0.007 to 0.017.
  assert np.abs(found - wanted).max() < 0.005 * wanted[0]


@pytest.mark.parametrize("field", ["b1", "muon_momentum"])
def test_a_momentum_that_bfloat16_would_hold_still_is_refused(field):
  config = dataclasses.replace(CONFIG, name="muon", momentum_dtype="bfloat16")
  dataclasses.replace(config, **{field: 0.98})
  with pytest.raises(
    ValueError, match=f"^{field}: expected .*0.98.*bfloat16.* found 0.99"
  ):
    dataclasses.replace(config, **{field: 0.99})
  dataclasses.replace(config, momentum_dtype="float32", **{field: 0.999})


def test_the_momentum_of_another_rule_is_not_asked():
  dataclasses.replace(CONFIG, momentum_dtype="bfloat16", muon_momentum=0.99)
