"""Tests for analogjax/models/decoder.py."""

import dataclasses
import functools
import re

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
import numpy as np
import pytest
import torch

from analogjax.distributed import sharding
from analogjax.models import decoder, hf_import

# Sizes that the meshes below divide and that are all different.
CFG = decoder.DecoderConfig(
  **dict(V=40, D=24, Y=3, N=4, G=2, H=6, F=32, max_positions=64),
  **dict(rope_theta=100.0, rms_norm_eps=1e-5, tie_embeddings=False),
  **dict(attention_bias=True, mlp_bias=True),
)
B, L = 8, 12
# Two documents and padding, within it a hole that nobody may look through.
SEGMENTS = [1, 1, 1, 1, 0, 2, 2, 2, 2, 2, 0, 0]
POSITIONS = [0, 1, 2, 3, 0, 0, 1, 2, 3, 4, 0, 0]


@functools.cache
def _params(cfg):
  """Random numbers for every parameter, biases and norms too; on the host."""
  rng = np.random.default_rng(0)

  def fill(path, leaf):
    name = jax.tree_util.keystr(path)
    scale = 1.0 if "scale_D" in name or "embed_VD" in name else 0.3
    x = rng.normal(size=leaf.shape, scale=scale)
    return np.float32(np.abs(x) + 0.5 if "scale_D" in name else x)

  return jax.tree_util.tree_map_with_path(
    fill, decoder.abstract_parameters(cfg)
  )


def _batch(cfg=CFG):
  tokens_BL = np.random.default_rng(1).integers(0, cfg.V, (B, L))
  rows = (tokens_BL, [SEGMENTS] * B, [POSITIONS] * B)
  return tuple(np.asarray(x, np.int32) for x in rows)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(cfg, probe, params, *rows):
  return nnx.merge(decoder.graphdef(cfg), params)(*rows, probe=probe)


def _hidden(cfg, params, *rows):
  return _run(cfg, None, params, *rows)[0]


def _loss(cfg, params, *rows):
  """A scalar with a different gradient for every hidden state."""
  x_BLD = nnx.merge(decoder.graphdef(cfg), params)(*rows)[0]
  w_LD = np.random.default_rng(2).normal(size=x_BLD.shape[1:])
  loss = jnp.sum(x_BLD.astype(jnp.float32) * np.float32(w_LD)[None])
  return loss / x_BLD.shape[0]


# Which positions see which.


def test_a_token_sees_its_own_document_up_to_itself_and_nothing_else():
  # Each position has its own token, so the gradient with respect to a row of
  # the embedding is that with respect to the input at that position.
  tokens_L = np.random.default_rng(3).permutation(CFG.V)[:L]
  rows = [np.asarray([x], np.int32) for x in (tokens_L, SEGMENTS, POSITIONS)]
  w_D = np.float32(np.random.default_rng(4).normal(size=CFG.D))

  @jax.jit
  @jax.jacrev
  def jacobian(params):
    return nnx.merge(decoder.graphdef(CFG), params)(*rows)[0][0] @ w_D

  jacobian_LVD = jacobian(_params(CFG))["embed_VD"].get_value()
  effect_LM = np.abs(jacobian_LVD).max(-1)[:, tokens_L]
  segments_L = np.asarray(SEGMENTS)
  same_LM = segments_L[:, None] == segments_L[None]
  sees_LM = same_LM & np.tri(L, dtype=bool)
  assert (effect_LM[~sees_LM] == 0).all()  # Not small: none at all.
  assert effect_LM[sees_LM].min() > 1e-4


def test_packed_documents_are_what_they_are_alone():
  tokens_BL, segments_BL, positions_BL = (x[:1] for x in _batch())
  packed_LD = _hidden(CFG, _params(CFG), tokens_BL, segments_BL, positions_BL)[
    0
  ]
  assert np.isfinite(packed_LD).all()
  for document in (1, 2):
    here_L = segments_BL[0] == document
    length = here_L.sum()
    alone = [np.zeros((1, L), np.int32) for _ in range(3)]
    alone[0][0, :length] = tokens_BL[0, here_L]
    alone[1][0, :length] = 1
    # Packing restarts positions, so alone they count from 0, too.
    alone[2][0, :length] = np.arange(length)
    np.testing.assert_array_equal(positions_BL[0, here_L], np.arange(length))
    alone_LD = _hidden(CFG, _params(CFG), *alone)[0]
    np.testing.assert_allclose(
      packed_LD[here_L], alone_LD[:length], rtol=1e-5, atol=1e-5
    )


def test_positions_are_those_of_the_row():
  tokens_BL, segments_BL, positions_BL = (x[:1] for x in _batch())
  before = _hidden(CFG, _params(CFG), tokens_BL, segments_BL, positions_BL)
  after = _hidden(CFG, _params(CFG), tokens_BL, segments_BL, 2 * positions_BL)
  assert np.abs(after - before)[0, 6:10].max(-1).min() > 1e-3


# Meshes.


def _on_mesh(sizes, fn, cfg):
  count = int(np.prod(list(sizes.values()))) if sizes else 1
  mesh = sharding.make_mesh(sizes, jax.devices()[:count])
  shardings = sharding.state_shardings(decoder.abstract_parameters(cfg), mesh)
  with jax.set_mesh(mesh):
    params = jax.device_put(_params(cfg), shardings)
    return fn(params, *sharding.put_rows(_batch(cfg), mesh))


@pytest.fixture(scope="module")
def on_one_device():
  return np.asarray(_on_mesh({}, functools.partial(_hidden, CFG), CFG))


@pytest.mark.parametrize(
  "sizes",
  [
    dict(data=8),
    dict(fsdp=8),
    dict(data=2, fsdp=2, tensor=2),
    dict(expert=2, tensor=2, fsdp=2),
  ],
)
def test_a_mesh_changes_where_arrays_live_and_nothing_else(
  sizes, on_one_device
):
  found = _on_mesh(sizes, functools.partial(_hidden, CFG), CFG)
  rows = {shard.data.shape[0] for shard in found.addressable_shards}
  assert rows == {B * sizes.get("tensor", 1) // 8}
  scale = np.abs(on_one_device).max()
  np.testing.assert_allclose(found, on_one_device, rtol=0, atol=1e-5 * scale)


def test_the_partitioner_copies_no_whole_array(capfd):
  cfg = dataclasses.replace(CFG, tie_embeddings=True)

  # Through the head too, whose gradient meets that of the lookup.
  @jax.jit
  def step(params, *rows):
    def loss(params):
      model = nnx.merge(decoder.graphdef(cfg), params)
      x_BLD, _ = model(*rows)
      logits_BLV = jnp.einsum("BLD,VD->BLV", x_BLD, model.head_VD)
      return jnp.mean(jax.nn.logsumexp(logits_BLV, axis=-1))

    return jax.value_and_grad(loss)(params)

  value, _ = _on_mesh(dict(data=2, fsdp=2, tensor=2), step, cfg)
  assert np.isfinite(value)
  # XLA says so on the process's own stderr, and nowhere else.
  assert "Involuntary full remat" not in capfd.readouterr().err


# Tokens, and how often each of the ids 0 to 4 is among them.
LOOKUP_TOKENS = np.where(np.arange(B * 64) % 2, 3, np.arange(B * 64) % 5)


@pytest.mark.parametrize("rows", [B, B - 1])
@pytest.mark.parametrize(
  "sizes",
  [
    {},
    dict(fsdp=8),
    dict(tensor=8),
    dict(data=2, fsdp=2, tensor=2),
    dict(expert=2, fsdp=2, tensor=2),
  ],
)
def test_a_lookup_and_its_gradient(sizes, rows):
  """Unchanged rows, rounded; a gradient accumulated in float32."""
  mesh = sharding.make_mesh(sizes, jax.devices()[: 8 if sizes else 1])
  embed_VD = np.random.default_rng(5).normal(size=(CFG.V, CFG.D))
  embed_VD = embed_VD.astype(np.float32)
  tokens_BL = LOOKUP_TOKENS.reshape(B, -1)[:rows].astype(np.int32)

  @jax.jit
  def lookup(embed_VD):
    x_BLD, back = jax.vjp(
      lambda e: decoder._look_up(e, tokens_BL, "bfloat16"), embed_VD
    )
    return x_BLD, *back(jnp.ones_like(x_BLD))

  spec = sharding.weight_spec("VD")
  with jax.set_mesh(mesh):
    embed_VD = jax.device_put(embed_VD, NamedSharding(mesh, spec))
    x_BLD, gradient_VD = lookup(embed_VD)
  expected = np.asarray(embed_VD)[tokens_BL].astype(x_BLD.dtype)
  np.testing.assert_array_equal(x_BLD, expected)
  # Counts beyond 256 are lost where bfloat16 adds them up.
  counts_V = np.bincount(tokens_BL.ravel(), minlength=CFG.V)
  assert counts_V.max() > 256
  expected = np.broadcast_to(counts_V[:, None], embed_VD.shape)
  np.testing.assert_array_equal(gradient_VD, expected)


def test_a_lookup_moves_tokens_and_not_the_table():
  mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))

  def loss(embed_VD, tokens_BL):
    return jnp.sum(decoder._look_up(embed_VD, tokens_BL, "float32") ** 2)

  shape, where = jax.ShapeDtypeStruct, functools.partial(NamedSharding, mesh)
  with jax.set_mesh(mesh):
    program = jax.jit(jax.grad(loss)).lower(
      shape((CFG.V, CFG.D), "float32", sharding=where(P("tensor", "fsdp"))),
      shape((B, L), "int32", sharding=where(sharding.ROWS)),
    )
  text = program.compile().as_text()
  # Where nothing is exchanged, the next line would find nothing either.
  assert re.search(r"s32\[\d+,12\]\S* all-gather", text)
  assert not re.search(r"f32\S* (all-gather|reduce-scatter)", text)
  # Over `data` only the gradient is summed, of the part that a device has.
  gradients = re.findall(r"= f32\[(\d+,\d+)\]\S* all-reduce", text)
  assert gradients == ["20,12"]


@pytest.mark.parametrize("sizes", [{}, dict(fsdp=2, tensor=2)])
@pytest.mark.parametrize("token", [-CFG.V - 1, CFG.V])
def test_what_is_no_id_is_not_a_number(sizes, token):
  mesh = sharding.make_mesh(sizes, jax.devices()[: 4 if sizes else 1])
  tokens_BL = np.zeros((B, L), np.int32)
  tokens_BL[1, 2] = token
  with jax.set_mesh(mesh):
    embed_VD = jnp.ones((CFG.V, CFG.D))
    x_BLD = jax.jit(decoder._look_up, static_argnums=2)(
      embed_VD, tokens_BL, "float32"
    )
  bad_BL = np.isnan(x_BLD).all(-1)
  assert bad_BL[1, 2] and bad_BL.sum() == np.isnan(x_BLD).any(-1).sum() == 1


def test_parameters_start_out_the_same_on_any_mesh():
  mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
  abstract = decoder.abstract_parameters(CFG)
  shardings = sharding.state_shardings(abstract, mesh)

  def two(params):  # The compiler leaves out the others.
    attention = params["blocks_Y"]["attention"]
    return [attention[name].get_value() for name in ("wq_DNH", "wo_NHD")]

  def init():
    return two(decoder.init_parameters(CFG, 7))

  split = jax.jit(init, out_shardings=two(shardings))()
  assert [x.sharding for x in split] == two(shardings)
  wq_YDNH, wo_YNHD = jax.jit(init)()
  # Not bit for bit: the compiler may fuse the scaling otherwise.
  for one, other in zip(split, (wq_YDNH, wo_YNHD), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-6)
  # Layers start out different from each other, and at the scale they need.
  assert np.abs(wq_YDNH[0] - wq_YDNH[1]).min() > 0
  assert wq_YDNH.std() == pytest.approx(CFG.D**-0.5, rel=0.1)
  fan_in, branches = CFG.N * CFG.H, 2 * CFG.Y
  assert wo_YNHD.std() == pytest.approx((fan_in * branches) ** -0.5, rel=0.1)


# Compute dtype, rematerialisation, scan.


def test_bfloat16_compute_is_near_float32(on_one_device):
  cfg = dataclasses.replace(CFG, dtype="bfloat16")
  found = _hidden(cfg, _params(CFG), *_batch())
  assert found.dtype == jnp.bfloat16
  error = np.abs(np.float32(found) - on_one_device)
  # 8 bits of mantissa, three layers; it must not be float32 in disguise.
  assert error.mean() < 0.02 * np.abs(on_one_device).mean()
  assert error.mean() > 1e-4 * np.abs(on_one_device).mean()


def _compiled_gradient(cfg):
  gradient = jax.jit(jax.grad(functools.partial(_loss, cfg)))
  return gradient.lower(_params(cfg), *_batch()).compile()


def test_rematerialisation_saves_memory_and_changes_no_gradient():
  deep = dataclasses.replace(CFG, Y=8, attention_bias=False, mlp_bias=False)
  gradients, temporary = {}, {}
  for remat in ("none", "dots", "full"):
    compiled = _compiled_gradient(dataclasses.replace(deep, remat=remat))
    gradients[remat] = compiled(_params(deep), *_batch())
    temporary[remat] = compiled.memory_analysis().temp_size_in_bytes
  assert temporary["full"] < temporary["dots"] < temporary["none"]
  for remat in ("dots", "full"):
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
      gradients[remat],
      gradients["none"],
    )


def _program(cfg, probe=None):
  def run(params, *rows):
    return nnx.merge(decoder.graphdef(cfg), params)(*rows, probe=probe)

  return str(jax.make_jaxpr(run)(_params(cfg), *_batch()))


def test_the_program_does_not_grow_with_the_layers():
  programs = [
    _program(dataclasses.replace(CFG, Y=Y)).splitlines() for Y in (2, 9)
  ]
  assert len(programs[0]) == len(programs[1]) > 50


# Activations: read, and changed.


@pytest.fixture(scope="module")
def theirs(make_llama, tmp_path_factory):
  """A Llama of transformers, its decoder here, and its inner activations."""
  model = make_llama(num_hidden_layers=3, mlp_bias=True)
  folder = tmp_path_factory.mktemp("llama")
  model.save_pretrained(folder)
  cfg = hf_import.read_config(folder)
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  params = hf_import.read_parameters(folder, cfg, mesh)

  tokens_BL = np.random.default_rng(5).integers(0, cfg.V, (2, L))
  inside = {}

  def keep(site):
    def hook(module, args, out):
      inside[site] = (out[0] if isinstance(out, tuple) else out).numpy()

    return hook

  for i, layer in enumerate(model.model.layers):
    layer.self_attn.register_forward_hook(keep(f"block{i:02}.attn_out"))
    layer.mlp.register_forward_hook(keep(f"block{i:02}.mlp_out"))
  model.model.norm.register_forward_hook(
    lambda module, args, out: inside.update(last=args[0].numpy())
  )
  with torch.no_grad():
    out = model(torch.as_tensor(tokens_BL), output_hidden_states=True)
  hidden = [x.numpy() for x in out.hidden_states]
  for i in range(cfg.Y):
    inside[f"block{i:02}.resid_pre"] = hidden[i]
  # The last of transformers' hidden states is normalised already.
  for i, x in enumerate([*hidden[1:-1], inside.pop("last")]):
    inside[f"block{i:02}.resid_post"] = x
  return cfg, params, tokens_BL, inside, hidden[-1]


def test_activations_are_those_of_transformers(theirs):
  cfg, params, tokens_BL, inside, last_BLD = theirs
  assert len(inside) == 3 * len(decoder.SITE_POINTS)
  ones_BL = np.ones((2, L), np.int32)
  positions_BL = np.tile(np.arange(L, dtype=np.int32), (2, 1))
  rows = (np.int32(tokens_BL), ones_BL, positions_BL)
  x_BLD, found = _run(cfg, lambda out: out, params, *rows)
  for site, expected_BLD in inside.items():
    block, point = decoder.parse_site(site, cfg.Y)
    np.testing.assert_allclose(found[point][block], expected_BLD, atol=1e-4)
  np.testing.assert_allclose(x_BLD, last_BLD, atol=1e-4)
  # Asking changes nothing.
  np.testing.assert_allclose(
    x_BLD, _hidden(cfg, params, *rows), rtol=1e-5, atol=1e-5
  )


def test_only_what_the_probe_keeps_is_stacked():
  def probe(out):
    return out["resid_post"][:, 2:4]

  _, kept = jax.eval_shape(
    functools.partial(_run, CFG, probe), _params(CFG), *_batch()
  )
  assert kept.shape == (CFG.Y, B, 2, CFG.D)
  stacked = re.compile(rf"\[{CFG.Y},{B},{L},")
  assert not stacked.search(_program(CFG, probe))
  assert stacked.search(_program(CFG, lambda out: out["mlp_out"]))


@functools.partial(jax.jit, static_argnums=0)
def _run_edited(cfg, params, block, add_D, *rows):
  edit = decoder.Edit(block, lambda x_BLD: x_BLD + add_D[None, None])
  return nnx.merge(decoder.graphdef(cfg), params)(
    *rows, probe=lambda out: out["resid_post"], edit=edit
  )


def test_an_edit_changes_one_block_and_what_follows():
  params, rows = _params(CFG), _batch()
  last_BLD, x_YBLD = _run(CFG, lambda out: out["resid_post"], params, *rows)
  add_D = np.float32(np.random.default_rng(3).normal(size=CFG.D))
  for block in range(CFG.Y):
    edited_BLD, edited_YBLD = _run_edited(CFG, params, block, add_D, *rows)
    np.testing.assert_array_equal(edited_YBLD[:block], x_YBLD[:block])
    np.testing.assert_allclose(
      edited_YBLD[block],
      np.asarray(x_YBLD[block]) + add_D,
      rtol=1e-6,
      atol=1e-6,
    )
    later = np.abs(np.asarray(edited_YBLD - x_YBLD))[block + 1 :]
    assert later.size == 0 or later.max() > 0.1
    assert np.abs(np.asarray(edited_BLD - last_BLD)).max() > 0.1


@pytest.mark.parametrize(
  "site",
  [
    *("block03.resid_post", "block01.resid", "resid_post", "block01"),
    *("block01.resid_post.x", "blockaa.mlp_out", "Block01.mlp_out", ""),
  ],
)
def test_a_site_that_does_not_exist_is_named(site):
  message = (
    f"^site {re.escape(repr(site))}: expected 'blockNN.POINT' with NN below 3"
    " and POINT one of resid_pre, attn_out, mlp_out, resid_post"
  )
  with pytest.raises(ValueError, match=message):
    decoder.parse_site(site, 3)


# Sizes.


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(V=0), "V=0 must be positive"),
    (dict(Y=-1), "Y=-1 must be positive"),
    (dict(G=3), "N=4 query heads not divisible by G=3"),
    (dict(H=5), "H=5: rotary embedding needs an even width"),
    (dict(dtype="float16"), "dtype: expected 'float32' or .* found 'float16'"),
    (dict(remat="all"), "remat: expected 'none', .* found 'all'"),
  ],
)
def test_a_bad_size_is_named(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CFG, **changes)
