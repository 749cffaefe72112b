"""Rows from documents: plain text files and JSONL, tokenised and packed.

Documents are read into memory, which suits corpora of up to a few GB; use an
ArrayRecord dataset (tfds.py) or the lab's own pipeline for larger ones.

Letters: L tokens of a row.
"""

from collections.abc import Iterator, Mapping, Sequence
import difflib
import functools
import glob
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import grain
import numpy as np
from tokenizers import Tokenizer

SPLITS = ("train", "held_out", "all")


def text_files(
  path: str,
  tokenizer: str,
  L: int,
  end_token: str,
  *,
  suffixes: Sequence[str] = (".txt", ".md", ".rst"),
  split: str = "all",
  held_out_every: int = 20,
  seed: int | None = 0,
  num_threads: int = 2,
) -> grain.IterDataset:
  """Packed rows of UTF-8 text files; every file is one document.

  Args:
    path: a file, a folder (searched to any depth for `suffixes`), or a glob.
    tokenizer: a tokenizer.json, or the folder that holds it.
    end_token: the token put after every document, by its name in the tokenizer,
      e.g. "<|endoftext|>". Empty for none.
    suffixes: which files of a folder are documents.
    split: "train", "held_out" or "all".
    held_out_every: one in this many documents is held out, by a hash of its
      text.
    seed: of the order of the documents; None keeps the order of reading.
    num_threads: threads that tokenise ahead of the reader.
  """
  check_split(split, held_out_every)
  texts = []
  for file in _files(path, tuple(suffixes)):
    try:
      # Also drops a byte order mark, and unifies the three line endings.
      texts.append(file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as e:
      raise ValueError(f"{file} is not UTF-8 text: {e}.") from e
  return _from_texts(
    texts, tokenizer, L, end_token, split, held_out_every, seed, num_threads
  )


def jsonl(
  path: str,
  tokenizer: str,
  L: int,
  end_token: str,
  *,
  field: str = "text",
  split: str = "all",
  held_out_every: int = 20,
  seed: int | None = 0,
  num_threads: int = 2,
) -> grain.IterDataset:
  """Packed rows of .jsonl and .jsonl.gz files; every line is one document.

  Args are those of `text_files`, except:

  Args:
    path: a file, a folder (searched to any depth), or a glob.
    field: the key of a line's object that holds the text.
  """
  check_split(split, held_out_every)
  texts = []
  for file in _files(path, (".jsonl", ".jsonl.gz")):
    texts.extend(_read_jsonl(file, field))
  return _from_texts(
    texts, tokenizer, L, end_token, split, held_out_every, seed, num_threads
  )


def pack(
  documents: grain.MapDataset,
  tokenizer: str,
  L: int,
  end_token: str,
  *,
  num_threads: int = 2,
) -> grain.IterDataset:
  """Rows of L tokens from a dataset of strings, in its order.

  The documents' tokens are concatenated and cut every L tokens, so none is lost
  and only the last row is padded. A document cut by the end of a row continues
  in the next as that row's segment 1, with positions from 0 again: the model
  sees one row at a time. None in place of a document is skipped.
  """
  if L < 1:
    raise ValueError(f"config.data.arguments.L must be at least 1, found {L}.")
  if num_threads < 0:
    raise ValueError(
      "config.data.arguments.num_threads must be 0 or more, found "
      f"{num_threads}."
    )
  encoder = open_tokenizer(tokenizer)
  end = [token_id(encoder, end_token)] if end_token else []
  encode = functools.partial(_encode, tokenizer=encoder, end=end)
  read_options = grain.ReadOptions(
    num_threads=num_threads, prefetch_buffer_size=16 * num_threads
  )
  tokens = grain.experimental.WithOptionsIterDataset(
    documents.map(encode).to_iter_dataset(read_options),
    # Otherwise grain warns that most documents are skipped, as intended for a
    # held-out split.
    grain.experimental.DatasetOptions(filter_warn_threshold_ratio=None),
  )
  packed = grain.experimental.ConcatThenSplitIterDataset(
    tokens, length_struct={"tokens": L}
  )
  return packed.map(_to_row)


def held_out(key: str, held_out_every: int) -> bool:
  """Whether the document that `key` names is held out.

  It depends only on the key, so it does not change when documents are added or
  removed, and the same text can never be on both sides.
  """
  h = hashlib.blake2b(key.encode(), digest_size=8, person=b"held_out")
  return int.from_bytes(h.digest(), "little") % held_out_every == 0


def in_split(key: str, split: str, held_out_every: int) -> bool:
  """Whether the document that `key` names belongs to `split`."""
  return split == "all" or held_out(key, held_out_every) == (
    split == "held_out"
  )


def shuffled(texts: Sequence[str], seed: int) -> list[str]:
  """The texts in an order that depends only on the seed and the texts.

  A sort by hash, unlike a library's shuffle, cannot change with a version.
  """
  salt = str(seed).encode()[:16]

  def order(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16, salt=salt).digest()

  return sorted(texts, key=order)


def open_tokenizer(path: str) -> Tokenizer:
  """The tokenizer in a tokenizer.json, or in the folder that holds one.

  It neither cuts nor pads, and the text of a document never becomes a special
  token: a page that quotes "<|endoftext|>" must not end there.
  """
  file = Path(path)
  if file.is_dir():
    file /= "tokenizer.json"
  if not file.is_file():
    raise ValueError(
      f"config.data.arguments.tokenizer: there is no file {file}. Give the "
      "teacher's Hugging Face tokenizer.json, or the folder that holds it."
    )
  try:
    tokenizer = Tokenizer.from_file(str(file))
  except Exception as e:  # The library raises bare Exception.
    raise ValueError(
      f"config.data.arguments.tokenizer: {file} is not a Hugging Face "
      f"tokenizer.json: {e}."
    ) from e
  tokenizer.no_truncation()
  tokenizer.no_padding()
  tokenizer.encode_special_tokens = True
  return tokenizer


def token_id(tokenizer: Tokenizer, name: str) -> int:
  """The id of a token by its name."""
  found = tokenizer.token_to_id(name)
  if found is not None:
    return found
  added = [t.content for t in tokenizer.get_added_tokens_decoder().values()]
  close = difflib.get_close_matches(name, added, n=1)
  hint = f" Did you mean {close[0]!r}?" if close else ""
  raise ValueError(
    f"config.data.arguments.end_token={name!r} is not a token of the "
    f"tokenizer.{hint} Its special tokens: {', '.join(added) or 'none'}."
  )


def check_split(split: str, held_out_every: int) -> None:
  """Refuses a split that does not exist."""
  if split not in SPLITS:
    close = difflib.get_close_matches(str(split), SPLITS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(
      f"config.data.arguments.split={split!r}: expected one of "
      f"{', '.join(SPLITS)}.{hint}"
    )
  if held_out_every < 2:
    raise ValueError(
      "config.data.arguments.held_out_every must be at least 2 (one document "
      f"in two held out), found {held_out_every}."
    )


def _from_texts(
  texts: Sequence[str],
  tokenizer: str,
  L: int,
  end_token: str,
  split: str,
  held_out_every: int,
  seed: int | None,
  num_threads: int,
) -> grain.IterDataset:
  chosen = [t for t in texts if t and in_split(t, split, held_out_every)]
  if not chosen:
    raise ValueError(
      f"config.data.arguments: none of the {len(texts)} documents falls into "
      f"split {split!r} (held_out_every={held_out_every}; empty documents do "
      "not count)."
    )
  if seed is not None:
    chosen = shuffled(chosen, seed)
  return pack(
    grain.MapDataset.source(chosen),
    tokenizer,
    L,
    end_token,
    num_threads=num_threads,
  )


def _files(path: str, suffixes: tuple[str, ...]) -> list[Path]:
  """The files of a path, folder or glob, sorted."""
  root = Path(path)
  if root.is_file():
    return [root]
  if root.is_dir():
    what = f"a file that ends in {' or '.join(suffixes)}"
    found = [f for f in root.rglob("*") if f.name.endswith(suffixes)]
  elif glob.has_magic(path):
    what = "a file"
    found = [Path(f) for f in glob.glob(path, recursive=True)]
  else:
    raise ValueError(
      f"config.data.arguments.path: there is no file or folder {path}."
    )
  found = sorted(f for f in found if f.is_file())
  if not found:
    raise ValueError(
      f"config.data.arguments.path={path!r} does not match {what}."
    )
  return found


def _read_jsonl(file: Path, field: str) -> Iterator[str]:
  opener = gzip.open if file.name.endswith(".gz") else open
  number = 0
  try:
    with opener(file, "rt", encoding="utf-8-sig") as lines:
      for number, line in enumerate(lines, start=1):
        if line.strip():
          yield _text_of_line(line, field, f"{file}:{number}")
  except (EOFError, gzip.BadGzipFile, UnicodeDecodeError) as e:
    raise ValueError(f"{file}: broken after line {number}: {e}.") from e


def _text_of_line(line: str, field: str, where: str) -> str:
  try:
    value = json.loads(line)
  except json.JSONDecodeError as e:
    raise ValueError(f"{where} is not JSON: {e}.") from e
  if not isinstance(value, Mapping):
    raise ValueError(
      f"{where}: expected an object with {field!r}, found "
      f"{type(value).__name__}."
    )
  text = value.get(field)
  if not isinstance(text, str):
    keys = ", ".join(map(repr, value)) or "no keys"
    found = f"a {type(text).__name__}" if field in value else keys
    raise ValueError(
      f"{where}: expected text in {field!r}, found {found}. Name the key "
      "that holds the text in config.data.arguments.field."
    )
  try:
    text.encode()
  except UnicodeEncodeError as e:
    raise ValueError(f"{where}: {field!r} is not valid Unicode: {e}.") from e
  return text


def _encode(
  text: str, *, tokenizer: Tokenizer, end: list[int]
) -> dict[str, np.ndarray] | None:
  ids = tokenizer.encode(text, add_special_tokens=False).ids
  # An empty document would use up a segment id.
  return {"tokens": np.asarray([*ids, *end], np.int32)} if ids else None


def _to_row(packed: Mapping[str, Any]) -> dict[str, np.ndarray]:
  return {
    "tokens": packed["tokens"],
    "segments": packed["tokens_segment_ids"],
    "positions": packed["tokens_positions"],
  }
