"""Selects the tokenizer and generation settings that an export publishes.

The teacher's files hold more than a tokenizer needs: where it was loaded from,
the commit, names of the lab's code, the context length of the teacher, a chat
template with its name. So nothing is copied by default: a setting is exported
only if it is in the tables below and its value has the form that the table
expects. transformers loads the rest from tokenizer.json.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
import shutil
from typing import Any

from analogjax.workdir import files

CHAT_TEMPLATE = "chat_template.jinja"


def _is_flag(value: Any) -> bool:
  return isinstance(value, bool)


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _is_ids(value: Any) -> bool:
  if isinstance(value, list):
    return all(_is_ids(x) for x in value)
  return isinstance(value, int) and not isinstance(value, bool)


def _is_side(value: Any) -> bool:
  return value in ("left", "right")


# Classes of transformers; any other name may be the lab's own, and
# PreTrainedTokenizerFast reads only tokenizer.json.
_GENERIC_CLASS = "PreTrainedTokenizerFast"
_CLASSES = tuple(
  name + fast
  for name in (
    *("PreTrainedTokenizer", "LlamaTokenizer", "GPT2Tokenizer"),
    *("GemmaTokenizer", "Qwen2Tokenizer", "CodeGenTokenizer"),
    *("GPTNeoXTokenizer", "CohereTokenizer", "CodeLlamaTokenizer"),
  )
  for fast in ("", "Fast")
)

_SPECIAL_TOKENS = tuple(
  f"{name}_token" for name in ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
)
_LISTS_OF_TOKENS = ("additional_special_tokens", "extra_special_tokens")
_TOKEN_FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")

_TOKENIZER_FLAGS = (
  *("add_bos_token", "add_eos_token", "add_prefix_space"),
  *("clean_up_tokenization_spaces", "legacy", "split_special_tokens"),
  *("spaces_between_special_tokens", "trim_offsets"),
)
_TOKENIZER_SETTINGS: dict[str, Callable[[Any], bool]] = {
  **{name: _is_flag for name in _TOKENIZER_FLAGS},
  "padding_side": _is_side,
  "truncation_side": _is_side,
}

_GENERATION_FLAGS = ("do_sample", "_from_model_config")
_GENERATION_NUMBERS = (
  *("temperature", "top_p", "top_k", "min_p", "typical_p"),
  *("repetition_penalty", "no_repeat_ngram_size", "length_penalty"),
)
_GENERATION_IDS = (
  *("bos_token_id", "eos_token_id", "pad_token_id"),
  *("suppress_tokens", "begin_suppress_tokens", "bad_words_ids"),
)
_GENERATION_SETTINGS: dict[str, Callable[[Any], bool]] = {
  **{name: _is_flag for name in _GENERATION_FLAGS},
  **{name: _is_number for name in _GENERATION_NUMBERS},
  **{name: _is_ids for name in _GENERATION_IDS},
}


def generation_config(
  found: Mapping[str, Any], *, max_positions: int
) -> dict[str, Any]:
  """The published part of a generation_config.json.

  `max_positions` is the student's, tokens; a `max_length` is cut to it.
  """
  kept = {
    key: value
    for key, value in found.items()
    if key in _GENERATION_SETTINGS and _GENERATION_SETTINGS[key](value)
  }
  length = found.get("max_length")
  if isinstance(length, int) and not isinstance(length, bool):
    kept["max_length"] = min(length, max_positions)
  return kept


def tokenizer_config(
  found: Mapping[str, Any], *, max_positions: int, keeps_chat_template: bool
) -> dict[str, Any]:
  """The published part of a tokenizer_config.json.

  Args:
    max_positions: of the student, tokens: its `model_max_length`.
    keeps_chat_template: whether a template in it is published.
  """
  wanted = found.get("tokenizer_class")
  kept: dict[str, Any] = {
    "tokenizer_class": wanted if wanted in _CLASSES else _GENERIC_CLASS,
    "model_max_length": max_positions,
  }
  for key, value in found.items():
    is_kept = _TOKENIZER_SETTINGS.get(key)
    if is_kept is not None and is_kept(value):
      kept[key] = value
  kept |= _special_tokens(found)
  added = found.get("added_tokens_decoder")
  if isinstance(added, Mapping):
    tokens = {key: _token(added[key]) for key in added if str(key).isdigit()}
    kept["added_tokens_decoder"] = {
      key: token for key, token in tokens.items() if token is not None
    }
  template = found.get("chat_template")
  if keeps_chat_template and _is_template(template):
    kept["chat_template"] = template
  return kept


def special_tokens_map(found: Mapping[str, Any]) -> dict[str, Any]:
  """The published part of a special_tokens_map.json."""
  return _special_tokens(found)


def write(
  source: Path, folder: Path, *, max_positions: int, keeps_chat_template: bool
) -> None:
  """Writes the tokenizer of an export, from that of the teacher's folder.

  tokenizer.json is copied byte by byte: teacher and student share it, as its
  digest shows.

  Raises:
    ValueError: tokenizer.json is missing, or a file is not JSON.
  """
  if not (source / "tokenizer.json").exists():
    raise ValueError(
      f"{source / 'tokenizer.json'}: the tokenizer is missing; the export"
      " cannot be used without it."
    )
  shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
  name = "tokenizer_config.json"
  if (source / name).exists():
    config = tokenizer_config(
      files.read_json(source / name),
      max_positions=max_positions,
      keeps_chat_template=keeps_chat_template,
    )
    files.write_json(folder / name, config)
  name = "special_tokens_map.json"
  if (source / name).exists():
    tokens = special_tokens_map(files.read_json(source / name))
    files.write_json(folder / name, tokens)
  if keeps_chat_template and (source / CHAT_TEMPLATE).exists():
    shutil.copyfile(source / CHAT_TEMPLATE, folder / CHAT_TEMPLATE)


def _special_tokens(found: Mapping[str, Any]) -> dict[str, Any]:
  kept: dict[str, Any] = {}
  for key in _SPECIAL_TOKENS:
    token = _token(found.get(key))
    if token is not None:
      kept[key] = token
  for key in _LISTS_OF_TOKENS:
    values = found.get(key)
    if isinstance(values, list):
      tokens = [_token(value) for value in values]
      kept[key] = [token for token in tokens if token is not None]
  return kept


def _token(value: Any) -> Any:
  """A special token: a text, an object of its text and flags, or None."""
  if isinstance(value, str):
    return value
  if not isinstance(value, Mapping) or not isinstance(
    value.get("content"), str
  ):
    return None
  flags = {key: value[key] for key in _TOKEN_FLAGS if _is_flag(value.get(key))}
  # transformers distinguishes a token from other objects by this.
  kind = {"__type": "AddedToken"} if "__type" in value else {}
  return {**kind, "content": value["content"], **flags}


def _is_template(value: Any) -> bool:
  if isinstance(value, list):
    return all(
      isinstance(x, Mapping)
      and set(x) == {"name", "template"}
      and all(isinstance(text, str) for text in x.values())
      for x in value
    )
  return isinstance(value, str)
