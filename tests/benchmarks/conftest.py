"""A teacher of toy size, as a Hugging Face folder with a tokenizer."""

import jax
import pytest
import tokenizers

from analogjax.distributed import sharding
from analogjax.models import decoder, hf_export

TEACHER = decoder.DecoderConfig(
  V=384,
  D=16,
  Y=1,
  N=2,
  G=1,
  H=8,
  F=32,
  max_positions=128,
  rope_theta=1e4,
  rms_norm_eps=1e-5,
  tie_embeddings=True,
  attention_bias=False,
  mlp_bias=False,
)


@pytest.fixture(autouse=True)
def compile_fast():
  """Toy runs of the scripts compile for long and compute next to nothing."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def teacher(tmp_path):
  source = tmp_path / "tokenizer"
  source.mkdir()
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  vocabulary = {x: i for i, x in enumerate(["<|endoftext|>", *alphabet])}
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocab=vocabulary, merges=[])
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  tokenizer.add_special_tokens(["<|endoftext|>"])
  tokenizer.save(str(source / "tokenizer.json"))
  (source / "config.json").write_text("{}")
  params = decoder.init_parameters(TEACHER, 0)
  embed = params["embed_VD"]
  params["embed_VD"] = embed.replace(embed.get_value() * 20)
  with jax.set_mesh(sharding.make_mesh({}, devices=jax.devices()[:1])):
    hf_export.write_folder(
      tmp_path / "teacher",
      TEACHER,
      params,
      dtype="float32",
      max_shard_bytes=10**9,
      tokenizer_folder=source,
      keeps_chat_template=False,
      metadata={},
    )
  return tmp_path / "teacher"
