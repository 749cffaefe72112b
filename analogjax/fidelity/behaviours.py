"""Behaviours that are steered: their files, the checks, and their tokens.

A behaviour is a JSON file with three lists: pairs of texts with and without the
behaviour, which give the vector; prompts, after which the behaviour can show;
and words whose appearance as the first token shows it, or its absence.

Shape letters: R texts, L positions.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import difflib
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from analogjax.data import rows as rows_lib

FORMAT = "analogjax.behaviour"
FORMAT_VERSION = 1
BUILT_IN = ("sentiment", "refusal")
LEAST = 8  # Pairs and prompts; an interval from fewer would say nothing.

_LENGTHS = 4  # Rows are padded to a multiple of it: few programs are needed.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Behaviour:
  """A behaviour, as read from its file."""

  name: str
  source: str  # The file, for messages.
  digest: str  # SHA-256 of the file.
  pairs: tuple[tuple[str, str], ...]  # (with, without) the behaviour.
  prompts: tuple[str, ...]
  words_for: tuple[str, ...]  # With the space that follows a prompt.
  words_against: tuple[str, ...]


class Texts(NamedTuple):
  """Texts, one in each row, starting at its first position."""

  rows: rows_lib.Rows
  last_R: np.ndarray  # int32, position of each text's last token.


class Words(NamedTuple):
  """The first tokens of the words for and against, int32."""

  for_K: np.ndarray
  against_K: np.ndarray


def load_all(names: Sequence[str]) -> dict[str, Behaviour]:
  """The behaviours of `measure.behaviours`, by name.

  Raises:
    ValueError: as `load`, or two behaviours have the same name.
  """
  found: dict[str, Behaviour] = {}
  for name in names:
    behaviour = load(name)
    if other := found.get(behaviour.name):
      raise ValueError(
        f"measure.behaviours: {other.source} and {behaviour.source} are both"
        f" named {behaviour.name!r}; expected each name once."
      )
    found[behaviour.name] = behaviour
  return found


def load(name: str) -> Behaviour:
  """Loads a built-in behaviour or the one in a JSON file.

  Raises:
    ValueError: the behaviour or file does not exist, or the file is malformed.
  """
  folder = Path(__file__).with_name("behaviours")
  if name in BUILT_IN:
    path = folder / f"{name}.json"
  elif name.endswith(".json"):
    path = Path(name)
  else:
    close = difflib.get_close_matches(name, BUILT_IN, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ValueError(
      f"behaviour {name!r}: expected {' or '.join(BUILT_IN)}, or the path of a"
      f" .json file.{hint}"
    )
  try:
    data = path.read_bytes()
  except OSError as error:
    raise ValueError(
      f"{path}: expected a behaviour, cannot be read: {error.strerror}."
    ) from error
  try:
    value = json.loads(data)
  except ValueError as error:
    raise ValueError(f"{path}: expected JSON: {error}.") from error
  return _checked(value, path, hashlib.sha256(data).hexdigest())


def _checked(value: Any, path: Path, digest: str) -> Behaviour:
  def check(ok, field, expected, found):
    if not ok:
      raise ValueError(
        f"{path}: {field}: expected {expected}, found {found!r}."
      )

  check(isinstance(value, Mapping), "the file", "an object", value)
  for field, expected in (
    ("format", FORMAT),
    ("format_version", FORMAT_VERSION),
  ):
    check(value.get(field) == expected, field, repr(expected), value.get(field))
  known = {"format", "format_version", "name", "about", "pairs", "prompts"}
  unknown = sorted(value.keys() - known - {"words"})
  check(not unknown, "the file", "no other fields", unknown[:1])
  name = value.get("name")
  check(isinstance(name, str) and name.isidentifier(), "name", "a word", name)
  pairs = value.get("pairs")
  ok = isinstance(pairs, list) and all(
    isinstance(pair, Mapping) and pair.keys() == {"with", "without"}
    for pair in pairs
  )
  check(ok, "pairs", 'a list of {"with": TEXT, "without": TEXT}', pairs)
  words = value.get("words")
  ok = isinstance(words, Mapping) and words.keys() == {"for", "against"}
  check(ok, "words", '{"for": [WORD, ...], "against": [...]}', words)
  texts = {
    "pairs.with": [pair["with"] for pair in pairs],
    "pairs.without": [pair["without"] for pair in pairs],
    "prompts": value.get("prompts"),
    "words.for": words["for"],
    "words.against": words["against"],
  }
  for field, part in texts.items():
    ok = isinstance(part, list) and all(isinstance(text, str) for text in part)
    check(ok, field, "a list of texts", part)
  for field in ("pairs", "prompts"):
    number = len(value[field])
    check(number >= LEAST, field, f"{LEAST} or more", number)
  for field in ("words.for", "words.against"):
    check(len(texts[field]) > 0, field, "one word or more", [])
  once = {
    "pairs": list(
      zip(texts["pairs.with"], texts["pairs.without"], strict=True)
    ),
    "prompts": texts["prompts"],
    "words": texts["words.for"] + texts["words.against"],
  }
  for field, part in once.items():
    twice = [x for i, x in enumerate(part) if x in part[:i]]
    check(not twice, field, "each once", twice[0] if twice else None)
  same = [a for a, b in once["pairs"] if a == b]
  check(not same, "pairs", "two texts that differ", same[0] if same else None)
  return Behaviour(
    name=name,
    source=str(path),
    digest=digest,
    pairs=tuple(once["pairs"]),
    prompts=tuple(texts["prompts"]),
    words_for=tuple(texts["words.for"]),
    words_against=tuple(texts["words.against"]),
  )


def to_texts(
  texts: Sequence[str],
  tokenizer: tokenizers.Tokenizer,
  *,
  max_positions: int,
  source: str,
) -> Texts:
  """Converts texts to rows, padded at the end.

  No special token is added. If documents begin with one in training, the text
  must contain it.

  Raises:
    ValueError: a text has no tokens or is longer than the context.
  """
  ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
  for text, row in zip(texts, ids, strict=True):
    if not 1 <= len(row) <= max_positions:
      raise ValueError(
        f"{source}: expected texts of 1 to {max_positions} tokens, the shortest"
        f" context of the models, found {len(row)} tokens: {text[:60]!r}."
      )
  lengths_R = np.asarray([len(row) for row in ids])
  L = -(-lengths_R.max() // _LENGTHS) * _LENGTHS
  here_RL = np.arange(L)[None] < lengths_R[:, None]
  tokens_RL = np.zeros((len(ids), L), np.int32)
  tokens_RL[here_RL] = np.concatenate(ids)
  rows = rows_lib.Rows(
    tokens_RL,
    here_RL.astype(np.int32),
    np.tile(np.arange(L, dtype=np.int32), (len(ids), 1)),
    here_RL.astype(np.float32),
  )
  return Texts(rows, (lengths_R - 1).astype(np.int32))


def to_words(behaviour: Behaviour, tokenizer: tokenizers.Tokenizer) -> Words:
  """The first token of each word; words that share it count once.

  Raises:
    ValueError: the vocabulary lacks a word, or a word for and a word against
      begin with the same token.
  """
  unknown = getattr(tokenizer.model, "unk_token", None)
  by_token: dict[str, dict[int, str]] = {}
  for field, words in (
    ("for", behaviour.words_for),
    ("against", behaviour.words_against),
  ):
    firsts: dict[int, str] = {}
    for word in words:
      encoded = tokenizer.encode(word, add_special_tokens=False)
      if not encoded.ids or encoded.tokens[0] == unknown:
        raise ValueError(
          f"{behaviour.source}: words.{field}: {word!r} is not in the models'"
          " vocabulary; choose words that are."
        )
      firsts.setdefault(encoded.ids[0], word)
    by_token[field] = firsts
  for token in by_token["for"].keys() & by_token["against"].keys():
    a, b = by_token["for"][token], by_token["against"][token]
    raise ValueError(
      f"{behaviour.source}: words: {a!r} (for) and {b!r} (against) begin with"
      " the same token, so the first one said does not tell them apart; leave"
      " one out."
    )
  return Words(
    *(np.asarray(list(part), np.int32) for part in by_token.values())
  )


def check(
  behaviour: Behaviour, tokenizer: tokenizers.Tokenizer, max_positions: int
) -> None:
  """Refuses a behaviour that models of this tokenizer and context cannot take.

  Raises:
    ValueError: as `to_texts` and `to_words`.
  """
  texts = [text for pair in behaviour.pairs for text in pair]
  to_texts(
    [*texts, *behaviour.prompts],
    tokenizer,
    max_positions=max_positions,
    source=behaviour.source,
  )
  to_words(behaviour, tokenizer)
