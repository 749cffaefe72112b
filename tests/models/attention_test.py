"""Tests for analogjax/models/attention.py."""

import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analogjax.distributed import sharding
from analogjax.models import attention, decoder, splash

D, H, L = 10, 6, 9
SEGMENTS = [1, 1, 1, 2, 2, 2, 2, 0, 0]
POSITIONS = [0, 1, 2, 0, 1, 2, 3, 0, 0]


CFG = decoder.DecoderConfig(
  **dict(V=1, D=D, Y=1, N=4, G=2, H=H, F=1, max_positions=16),
  **dict(rope_theta=100.0, rms_norm_eps=1e-5, tie_embeddings=True),
  **dict(attention_bias=False, mlp_bias=False),
)


def _config(**changes):
  return dataclasses.replace(CFG, **changes)


def _layer(cfg):
  """An attention layer whose every parameter is random, biases too."""
  make = lambda: attention.Attention(cfg, rngs=nnx.Rngs(0))  # noqa: E731
  graphdef, abstract = nnx.split(nnx.eval_shape(make))
  rng = np.random.default_rng(0)

  def fill(leaf):
    return jnp.asarray(rng.normal(size=leaf.shape) * D**-0.5, jnp.float32)

  return nnx.merge(graphdef, jax.tree.map(fill, abstract))


def _x(seed=0):
  return np.random.default_rng(seed).normal(size=(L, D))


def _apply(layer, x_LD, segments_L=SEGMENTS, positions_L=POSITIONS):
  return _call(
    *nnx.split(layer),
    jnp.asarray(x_LD, jnp.float32)[None],
    jnp.asarray([segments_L]),
    jnp.asarray([positions_L]),
  )[0]


@functools.partial(jax.jit, static_argnums=0)
def _call(graphdef, state, *args):
  return nnx.merge(graphdef, state)(*args)


def _rotated(x_H, position):
  """The rotary embedding of one vector, as complex multiplication."""
  planes = x_H[: H // 2] + 1j * x_H[H // 2 :]
  angles = position * 100.0 ** -(np.arange(0, H, 2) / H)
  planes = planes * np.exp(1j * angles)
  return np.concatenate([planes.real, planes.imag])


def _reference(layer, cfg, x_LD):
  """The layer's output in float64, one head and one query at a time."""
  w = {
    path[-1]: np.float64(leaf.get_value())
    for path, leaf in nnx.to_flat_state(nnx.state(layer))
  }
  y_LD = np.zeros((L, D))
  for head in range(cfg.N):
    g = head // (cfg.N // cfg.G)
    q_LH = x_LD @ w["wq_DNH"][:, head] + w.get("bq_NH", np.zeros((9, H)))[head]
    k_LH = x_LD @ w["wk_DGH"][:, g] + w.get("bk_GH", np.zeros((9, H)))[g]
    v_LH = x_LD @ w["wv_DGH"][:, g] + w.get("bv_GH", np.zeros((9, H)))[g]
    for t in range(L):
      seen = [s for s in range(t + 1) if SEGMENTS[s] == SEGMENTS[t]]
      q_H = _rotated(q_LH[t], POSITIONS[t])
      scores = [q_H @ _rotated(k_LH[s], POSITIONS[s]) for s in seen]
      p = np.exp(np.asarray(scores) / np.sqrt(H))
      p /= p.sum()
      y_LD[t] += (p @ v_LH[seen]) @ w["wo_NHD"][head]
  return y_LD + w.get("bo_D", np.zeros(D))


@pytest.mark.parametrize(
  ("N", "G", "bias"), [(4, 2, True), (6, 1, False), (3, 3, True)]
)
def test_attention_is_its_equation(N, G, bias):
  cfg = _config(N=N, G=G, attention_bias=bias)
  layer, x_LD = _layer(cfg), _x()
  expected = _reference(layer, cfg, x_LD)
  np.testing.assert_allclose(_apply(layer, x_LD), expected, atol=2e-5)


def test_positions_are_those_that_are_passed():
  layer, x_LD = _layer(_config()), _x()
  before = _apply(layer, x_LD)
  # Rotary scores know distances only, so where a document starts is free ...
  shifted = np.asarray(POSITIONS) + 7
  moved = _apply(layer, x_LD, positions_L=shifted)
  np.testing.assert_allclose(moved, before, atol=1e-5)
  # ... and how far its tokens are apart is not.
  stretched = np.asarray(POSITIONS) * 2
  moved = _apply(layer, x_LD, positions_L=stretched)
  later = np.asarray([1, 2, 4, 5, 6])
  assert np.abs(moved - before)[later].max(-1).min() > 1e-3
  first = np.asarray([0, 3])  # Alone so far, with nobody to be far from.
  np.testing.assert_allclose(moved[first], before[first], atol=1e-6)


def test_bfloat16_softmax_is_in_float32():
  layer16 = _layer(_config(dtype="bfloat16"))
  x_BLD = jnp.asarray(_x()[None], jnp.bfloat16)
  args = (jnp.asarray([SEGMENTS]), jnp.asarray([POSITIONS]))
  jaxpr = jax.make_jaxpr(lambda x: layer16(x, *args))(x_BLD)
  exps = [line for line in str(jaxpr).splitlines() if " = exp " in line]
  assert exps and all(":f32" in line for line in exps), exps
  y_BLD = layer16(x_BLD, *args)
  assert y_BLD.dtype == jnp.bfloat16
  exact = _layer(_config())(x_BLD.astype(jnp.float32), *args)
  error = np.abs(np.float32(y_BLD) - exact).max() / np.abs(exact).max()
  assert error < 0.02


# Which implementation runs.

MESHES = {
  platform: jax.sharding.AbstractMesh(
    (1, 1, 1, 1),
    sharding.MESH_AXES,
    axis_types=(jax.sharding.AxisType.Auto,) * 4,
    abstract_device=jax.sharding.AbstractDevice(
      device_kind=kind, num_cores=None, platform=platform
    ),
  )
  for platform, kind in (
    ("cpu", "cpu"),
    ("gpu", "NVIDIA H200"),
    ("tpu", "TPU v5 lite"),
  )
}


def _chosen(platform, choice, **changes):
  sizes = dict(dtype="bfloat16", L=256, G=2, H=64) | changes
  with jax.sharding.use_abstract_mesh(MESHES[platform]):
    return attention.implementation(choice, **sizes)


@pytest.mark.parametrize(
  ("platform", "changes", "expected"),
  [
    ("cpu", {}, "xla"),
    ("gpu", {}, "cudnn"),
    ("tpu", {}, "splash"),
    ("gpu", dict(dtype="float32"), "xla"),
    ("gpu", dict(H=6), "xla"),
    ("gpu", dict(H=264), "xla"),
    ("gpu", dict(L=255), "xla"),
    ("gpu", dict(L=100), "cudnn"),
    ("tpu", dict(dtype="float32"), "splash"),
    ("tpu", dict(L=100), "xla"),
    ("tpu", dict(H=6), "xla"),
  ],
)
def test_auto_is_what_the_devices_and_shapes_allow(platform, changes, expected):
  assert _chosen(platform, "auto", **changes) == expected
  assert _chosen(platform, "xla", **changes) == "xla"
  if expected != "xla":
    assert _chosen(platform, expected, **changes) == expected


@pytest.mark.parametrize(
  ("platform", "choice", "changes", "message"),
  [
    ("cpu", "splash", {}, r"a TPU \(found cpu\);"),
    ("gpu", "splash", {}, r"a TPU \(found gpu\);"),
    ("tpu", "splash", dict(L=200), r"L a multiple of 128 \(found 200\);"),
    (
      *("cpu", "cudnn", dict(dtype="float32")),
      r"a GPU \(found cpu\) and dtype bfloat16 \(found float32\);",
    ),
    ("tpu", "cudnn", {}, r"a GPU \(found tpu\);"),
    ("gpu", "cudnn", dict(H=12), r"H a multiple of 8 \(found 12\);"),
    ("gpu", "cudnn", dict(H=512), r"H of 256 at most \(found 512\);"),
    ("gpu", "cudnn", dict(L=9), r"L even \(found 9\);"),
  ],
)
def test_a_choice_that_cannot_run_says_what_it_needs(
  platform, choice, changes, message
):
  message = f"^attention: '{choice}' needs {message} use 'auto' or 'xla'"
  with pytest.raises(ValueError, match=message):
    _chosen(platform, choice, **changes)


def test_the_devices_are_those_of_the_mesh_or_the_default_ones():
  shapes = dict(dtype="bfloat16", L=256, G=2, H=64)
  # These tests run on a CPU, and so does what has no mesh.
  assert attention.implementation("auto", **shapes) == "xla"
  with jax.set_mesh(sharding.make_mesh({}, jax.devices()[:1])):
    assert attention.implementation("auto", **shapes) == "xla"
  with jax.sharding.use_abstract_mesh(
    MESHES["tpu"].update(abstract_device=None)
  ):
    assert attention.implementation("auto", **shapes) == "xla"


def test_an_unknown_choice_is_refused():
  message = "^attention: expected 'auto', .* found 'flash'"
  with pytest.raises(ValueError, match=message):
    _config(attention="flash")


def test_the_choice_reaches_the_layer():
  layer = _layer(_config(attention="splash"))
  with pytest.raises(ValueError, match="^attention: 'splash' needs a TPU"):
    _apply(layer, _x())
  plain = _apply(_layer(_config()), _x())
  chosen = _apply(_layer(_config(attention="xla")), _x())
  np.testing.assert_array_equal(chosen, plain)


def test_splash_in_the_layer(monkeypatch):
  """The layer for a TPU, whose kernel runs in the interpreter."""
  length = 128
  cfg = _config(H=64)
  layer = _layer(cfg)
  rng = np.random.default_rng(0)
  x_BLD = jnp.asarray(rng.normal(size=(2, length, D)), jnp.float32)
  segments_BL = np.repeat([[1, 2, 0], [3, 1, 2]], [50, 60, 18], axis=1)
  positions_BL = np.tile(np.arange(length), (2, 1)) % 50

  def run():
    args = x_BLD, jnp.asarray(segments_BL), jnp.asarray(positions_BL)
    return jax.jit(lambda *a: nnx.merge(*nnx.split(layer))(*a))(*args)

  expected = run()
  interpreted = functools.partial(splash.attend, interpret=True)
  monkeypatch.setattr(splash, "attend", interpreted)
  monkeypatch.setattr(attention, "implementation", lambda *_, **__: "splash")
  np.testing.assert_allclose(run(), expected, atol=2e-5)
