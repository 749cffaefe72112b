"""Real models of other libraries: tiny random Llamas and the demo's teacher."""

import functools
from pathlib import Path

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from smollm import (  # noqa: F401
  smollm2,
  smollm2_gguf,
  smollm2_model,
  smollm2_tokenizer,
  story,
)
import tokenizers
import torch
import transformers

from analogjax.models import decoder


def make_llama(seed: int = 0, **changes) -> transformers.LlamaForCausalLM:
  """A tiny Llama whose every parameter is random.

  transformers sets biases to 0 and norms to 1, which hides many mistakes.
  """
  sizes = dict(vocab_size=61, hidden_size=24, intermediate_size=37)
  heads = dict(num_attention_heads=4, num_key_value_heads=2, head_dim=8)
  others = dict(num_hidden_layers=2, max_position_embeddings=64)
  ids = dict(bos_token_id=1, eos_token_id=0, pad_token_id=0)
  config = transformers.LlamaConfig(**sizes | heads | others | ids | changes)
  torch.manual_seed(seed)
  model = transformers.LlamaForCausalLM(config).eval()
  for name, x in model.named_parameters():
    if "norm" in name:
      torch.nn.init.uniform_(x.detach(), 0.5, 1.5)
    elif name.endswith("bias"):
      torch.nn.init.normal_(x.detach(), std=0.5)
    else:
      # Large enough for attention far from uniform and logits far from 0.
      torch.nn.init.normal_(x.detach(), std=0.3)
  return model


def write_tokenizer(folder: Path) -> None:
  """Adds a tokenizer of words to a folder, as transformers writes it."""
  words = ["<end>", "<start>", *"the cat sat on a mat .".split()]
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(
      {word: i for i, word in enumerate(words)}, unk_token="<end>"
    )
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, eos_token="<end>", bos_token="<start>"
  ).save_pretrained(folder)


@pytest.fixture(scope="session", name="make_llama")
def _make_llama():
  return make_llama


@pytest.fixture(scope="session")
def write_llama():
  """Writes a tiny Llama as transformers does, with a tokenizer."""

  def write(folder: Path, *, dtype="float32", max_shard_size="5GB", **changes):
    model = make_llama(**changes).to(getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    write_tokenizer(folder)

  return write


@functools.partial(jax.jit, static_argnums=0)
def _logits(cfg, params, tokens_BL, segments_BL, positions_BL):
  model = nnx.merge(decoder.graphdef(cfg), params)
  x_BLD, _ = model(tokens_BL, segments_BL, positions_BL)
  return jnp.einsum("BLD,VD->BLV", x_BLD, model.head_VD)


@pytest.fixture(scope="session")
def our_logits():
  """Logits [B, L, V] of our decoder for whole documents, one per row."""

  def logits(cfg, params, tokens_BL):
    positions_BL = np.broadcast_to(
      np.arange(tokens_BL.shape[1], dtype=np.int32)[None], tokens_BL.shape
    )
    ones_BL = np.ones_like(positions_BL)
    tokens_BL = np.asarray(tokens_BL, np.int32)
    return np.asarray(_logits(cfg, params, tokens_BL, ones_BL, positions_BL))

  return logits


@pytest.fixture(scope="session")
def their_logits():
  """Logits [B, L, V] of the same documents by transformers."""

  def logits(model, tokens_BL):
    with torch.no_grad():
      return model(torch.as_tensor(np.asarray(tokens_BL))).logits.numpy()

  return logits
