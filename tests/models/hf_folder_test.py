"""Tests for analogjax/models/hf_folder.py."""

import hashlib
import json
import math
import shutil

from flax import nnx
import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
import transformers

from analogjax import sharding
from analogjax.models import decoder, hf_folder

LLAMA3 = {
  "rope_parameters": {
    # With these numbers and H=8, the four planes meet all three branches: one
    # is left alone, one interpolated, two are divided.
    **dict(rope_type="llama3", rope_theta=100.0, factor=4.0),
    **dict(low_freq_factor=1.0, high_freq_factor=4.0),
    "original_max_position_embeddings": 32,
  }
}
LINEAR = {
  "rope_parameters": dict(rope_type="linear", rope_theta=500.0, factor=2.5)
}

# Every switch is on and off at least once. L=48 is past llama3's 32 positions.
MODELS = {
  "plain": (48, {}),
  "tied_with_one_kv_head": (
    7,
    dict(tie_word_embeddings=True, num_key_value_heads=1, mlp_bias=True),
  ),
  "llama3_with_all_kv_heads": (
    48,
    dict(num_key_value_heads=4, attention_bias=True, **LLAMA3),
  ),
  "linear_with_all_biases": (
    33,
    dict(attention_bias=True, mlp_bias=True, rms_norm_eps=0.1, **LINEAR),
  ),
  "odd_sizes": (
    1,
    dict(
      **dict(vocab_size=53, hidden_size=15, intermediate_size=29),
      **dict(num_attention_heads=3, num_key_value_heads=3, head_dim=6),
      **dict(num_hidden_layers=1, tie_word_embeddings=True),
    ),
  ),
  "head_dim_by_default": (
    16,
    dict(num_attention_heads=6, num_key_value_heads=3, head_dim=None),
  ),
  "deep": (48, dict(num_hidden_layers=5, tie_word_embeddings=True, **LLAMA3)),
}
FORMATS = {
  "one_file": {},
  "sharded": dict(max_shard_size="8KB"),
  "bfloat16": dict(dtype="bfloat16"),
  "float16": dict(dtype="float16", max_shard_size="8KB"),
}


@pytest.fixture(scope="module")
def alone():
  return sharding.make_mesh({}, jax.devices()[:1])


@pytest.fixture(scope="module")
def cube():
  return sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))


@pytest.fixture(scope="module")
def tiny(write_llama, tmp_path_factory):
  """A folder that every axis of a (2, 2, 2) mesh divides; read only."""
  folder = tmp_path_factory.mktemp("tiny") / "llama"
  write_llama(
    folder,
    **dict(vocab_size=62, intermediate_size=38, max_shard_size="8KB"),
    **dict(attention_bias=True, mlp_bias=True),
  )
  return folder


def _tokens(cfg, L):
  return np.random.default_rng(0).integers(0, cfg.V, (2, L))


def _load(folder):
  return transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, trust_remote_code=False
  ).eval()


def _export(folder, cfg, params, source, **changes):
  options = dict(dtype="float32", max_shard_bytes=10**9, metadata={})
  return hf_folder.write_folder(
    folder, cfg, params, tokenizer_folder=source, **options | changes
  )


def _host(params):
  return {
    "/".join(map(str, path)): np.asarray(leaf.get_value())
    for path, leaf in nnx.to_flat_state(params)
  }


def _assert_close(ours_BLV, theirs_BLV):
  assert ours_BLV.shape == theirs_BLV.shape
  assert theirs_BLV.std() > 0.5  # Or a small difference would say little.
  np.testing.assert_allclose(ours_BLV, theirs_BLV, rtol=0, atol=2e-4)


# Reading.


@pytest.mark.parametrize("storage", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(
  name, storage, tmp_path, alone, write_llama, our_logits, their_logits
):
  L, changes = MODELS[name]
  write_llama(tmp_path, **FORMATS[storage], **changes)
  num_files = len(list(tmp_path.glob("*.safetensors")))
  sharded = "max_shard_size" in FORMATS[storage] and name != "odd_sizes"
  assert (num_files > 1) == sharded

  cfg = hf_folder.read_config(tmp_path)
  params = hf_folder.read_parameters(tmp_path, cfg, alone)
  theirs = _load(tmp_path)
  tokens_BL = _tokens(cfg, L)
  _assert_close(
    our_logits(cfg, params, tokens_BL), their_logits(theirs, tokens_BL)
  )
  assert cfg.num_parameters == theirs.num_parameters()


def test_an_old_config_means_the_same(
  tmp_path, alone, write_llama, our_logits, their_logits
):
  # As transformers 4 wrote it: rope_theta at the top, rope_scaling beside it.
  write_llama(tmp_path, **LLAMA3)
  config = json.loads((tmp_path / "config.json").read_text())
  rope = config.pop("rope_parameters")
  config["rope_theta"] = rope.pop("rope_theta")
  config["rope_scaling"] = rope
  (tmp_path / "config.json").write_text(json.dumps(config))
  cfg = hf_folder.read_config(tmp_path)
  params = hf_folder.read_parameters(tmp_path, cfg, alone)
  tokens_BL = _tokens(cfg, 48)
  theirs_BLV = their_logits(_load(tmp_path), tokens_BL)
  _assert_close(our_logits(cfg, params, tokens_BL), theirs_BLV)


def test_a_mesh_reads_the_same_numbers_each_slice_once(
  tiny, alone, cube, monkeypatch
):
  cfg = hf_folder.read_config(tiny)
  expected = _host(hf_folder.read_parameters(tiny, cfg, alone))

  reads, sizes = [], {}
  original = hf_folder._Tensors.read

  def read(self, name, slices):
    x = original(self, name, slices)
    reads.append((name, tuple((s.start, s.stop) for s in slices)))
    sizes.setdefault(name, []).append(x.size)
    return x

  monkeypatch.setattr(hf_folder._Tensors, "read", read)
  params = hf_folder.read_parameters(tiny, cfg, cube)
  assert len(set(reads)) == len(reads)
  # What one layer of each of the tensors is cut into by fsdp and tensor.
  pieces = dict(embed_tokens=4, lm_head=4, q_proj=4, k_proj=4, v_proj=4)
  pieces |= dict(o_proj=4, gate_proj=4, up_proj=4, down_proj=4)
  with_bias = dict(o_proj=2, down_proj=2)  # D alone; the others 2 by tensor.
  for name, found in sizes.items():
    module, kind = name.split(".")[-2:]
    number = pieces.get(module, 2) if kind == "weight" else 2
    assert len(found) == with_bias.get(module, number) or kind == "weight"
    assert len(found) == number and len(set(found)) == 1, name

  assert len(sizes) == 2 * 16 + 3
  for path, x in _host(params).items():
    np.testing.assert_array_equal(x, expected[path], err_msg=path)
  for path, leaf in nnx.to_flat_state(params):
    letters = sharding.letters_of("/".join(map(str, path)))
    assert leaf.get_value().sharding.spec == sharding.weight_spec(letters)
