"""Rebuilds a GGUF file's tokenizer as Hugging Face files."""

from collections.abc import Mapping
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from analogjax.demo.gguf_file import File
from analogjax.workdir import files

# Values of tokenizer.ggml.token_type.
_CONTROL, _USER_DEFINED = 3, 4


def write(
  file: File, ids: Mapping[str, int], max_positions: int, folder: Path
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
  text = tokenizer.to_str(pretty=True)
  (folder / "tokenizer.json").write_text(text, encoding="utf-8")

  named = {key.removesuffix("_id"): tokens[i] for key, i in ids.items()}
  if "tokenizer.ggml.unknown_token_id" in file.fields:
    unknown = file.get("tokenizer.ggml.unknown_token_id", int)
    if unknown >= len(tokens):
      raise file.damaged(f"unknown_token_id below {len(tokens)}", unknown)
    named["unk_token"] = tokens[unknown]
  files.write_json(folder / "special_tokens_map.json", named)
  tokenizer_config = {
    # The class that takes tokenizer.json unchanged. GPT2Tokenizer would build
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
  files.write_json(folder / "tokenizer_config.json", tokenizer_config)


def _pair(merge: str) -> tuple[str, str]:
  left, right = merge.split(" ")
  return left, right
