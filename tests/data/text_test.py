"""Tests for analogjax/data/text.py."""

import gzip
import json

import grain
from hypothesis import given, strategies as st
import numpy as np
import pytest
import tokenizers

from analogjax.data import json_state, text

END = "<|endoftext|>"
END_ID = 0


@pytest.fixture
def decode(tokenizer_folder):
  file = str(tokenizer_folder / "tokenizer.json")
  tokenizer = tokenizers.Tokenizer.from_file(file)
  return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False)


def packed(texts, folder, L=8, end_token=END, **options):
  source = grain.MapDataset.source(texts)
  return text.pack(source, str(folder), L, end_token, **options)


def documents_of(rows, decode):
  """The texts of all rows, put together again."""
  ids = np.concatenate([r["tokens"][r["segments"] > 0] for r in rows])
  return decode(ids).split(END)[:-1]


@given(
  texts=st.lists(
    st.text(st.characters(codec="utf-8"), max_size=30), max_size=8
  ),
  L=st.integers(1, 12),
  threads=st.sampled_from([0, 2]),
)
def test_packing_neither_loses_nor_reorders(
  tokenizer_folder, texts, L, threads
):
  rows = list(packed(texts, tokenizer_folder, L, num_threads=threads))
  encoder = text.open_tokenizer(str(tokenizer_folder))
  stream, starts = [], []
  for t in filter(None, texts):
    ids = [*encoder.encode(t).ids, END_ID]
    starts += [len(stream)]
    stream += ids

  assert len(rows) == -(-len(stream) // L)
  for r, row in enumerate(rows):
    expected = stream[r * L : (r + 1) * L]
    n = len(expected)
    np.testing.assert_array_equal(row["tokens"][:n], expected)
    # A document that began in an earlier row is this row's segment 1.
    segment, position = 0, 0
    segments, positions = [], []
    for i in range(r * L, r * L + n):
      if i in starts or i == r * L:
        segment, position = segment + 1, 0
      segments.append(segment)
      positions.append(position)
      position += 1
    np.testing.assert_array_equal(row["segments"][:n], segments)
    np.testing.assert_array_equal(row["positions"][:n], positions)
    if r + 1 < len(rows):
      assert n == L
    for field in row.values():
      assert field.shape == (L,)
    assert not row["segments"][n:].any()


@given(
  lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12),
  L=st.integers(1, 9),
  data=st.data(),
)
def test_a_saved_state_goes_on_with_the_same_rows(
  tokenizer_folder, lengths, L, data
):
  # "a" is one token, so the lengths are lengths in tokens.
  texts = [chr(ord("a") + i) * n for i, n in enumerate(lengths)]
  dataset = packed(texts, tokenizer_folder, L, end_token="", num_threads=0)
  rows = list(dataset)
  stop = data.draw(st.integers(0, len(rows)))
  iterator = iter(dataset)
  for _ in range(stop):
    next(iterator)
  saved = json.dumps(json_state.to_json(iterator.get_state()))

  fresh = iter(dataset)
  fresh.set_state(json_state.from_json(json.loads(saved)))
  rest = list(fresh)

  assert len(rest) == len(rows) - stop
  for one, other in zip(rows[stop:], rest, strict=True):
    for key in one:
      np.testing.assert_array_equal(one[key], other[key])


def test_a_state_through_plain_json_would_lose_a_document(tokenizer_folder):
  # Why json_state exists. If grain mends this, json_state may go.
  dataset = packed(["aa", "bb", "cc"], tokenizer_folder, 2, end_token="")
  iterator = iter(dataset)
  next(iterator)
  assert iterator.get_state()["remainder_slices"] == {"tokens": (-1, -1)}
  fresh = iter(dataset)
  fresh.set_state(json.loads(json.dumps(iter(dataset).get_state())))
  assert len(list(fresh)) < 3


def test_a_document_that_quotes_a_special_token_does_not_end(
  tokenizer_folder, decode
):
  quoted = f"see {END} and <|im_end|> here"
  rows = list(packed([quoted], tokenizer_folder, 200))
  ids = rows[0]["tokens"][rows[0]["segments"] > 0]
  assert list(ids).count(END_ID) == 1 and ids[-1] == END_ID
  assert decode(ids[:-1]) == quoted


def test_saved_truncation_and_padding_are_not_applied(tokenizer_folder, decode):
  long = "the cat sat on the mat\n" * 20
  rows = list(packed([long, "a"], tokenizer_folder, 16))
  assert documents_of(rows, decode) == [long, "a"]


def write(folder, files):
  for name, content in files.items():
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if name.endswith(".gz") else open
    with opener(file, "wb") as f:
      f.write(content if isinstance(content, bytes) else content.encode())


def read(function, path, folder, decode, **options):
  dataset = function(str(path), str(folder), 8, END, **options)
  return documents_of(list(dataset), decode)


def test_text_files_are_found_by_file_folder_and_glob(
  tmp_path, tokenizer_folder, decode
):
  write(
    tmp_path,
    {
      "b.txt": "bee\r\nline",
      "deep/a.md": b"\xef\xbb\xbfaye",
      "c.py": "code",
      "empty.txt": "",
    },
  )

  def documents(path, **options):
    return read(text.text_files, path, tokenizer_folder, decode, **options)

  assert documents(tmp_path, seed=None) == ["bee\nline", "aye"]
  assert documents(tmp_path, seed=None, suffixes=[".py"]) == ["code"]
  assert documents(tmp_path / "c.py") == ["code"]
  assert documents(tmp_path / "**/*.md") == ["aye"]


def test_jsonl_is_read_plain_and_compressed(tmp_path, tokenizer_folder, decode):
  # U+2028 ends a line for str.splitlines, not in JSONL.
  lines = '{"text": "one\\n\u2028", "n": 1}\n\n{"text": "two"}\r\n'
  write(tmp_path, {"a.jsonl": lines, "b/c.jsonl.gz": '{"text": "three"}'})
  found = read(text.jsonl, tmp_path, tokenizer_folder, decode, seed=None)
  assert found == ["one\n\u2028", "two", "three"]


def jsonl_of(tmp_path, n=200):
  texts = [f"document {i}" for i in range(n)]
  write(
    tmp_path, {"a.jsonl": "".join(json.dumps({"t": t}) + "\n" for t in texts)}
  )
  return texts


def test_splits_share_no_document_and_lose_none(
  tmp_path, tokenizer_folder, decode
):
  texts = jsonl_of(tmp_path)

  def documents(**options):
    return read(
      text.jsonl,
      tmp_path,
      tokenizer_folder,
      decode,
      field="t",
      held_out_every=10,
      **options,
    )

  train, held_out = documents(split="train"), documents(split="held_out")
  assert sorted(train + held_out) == sorted(texts)
  assert 5 <= len(held_out) <= 40
  # The seed changes the order and not the split.
  other = documents(split="train", seed=1)
  assert other != train and sorted(other) == sorted(train)
  assert documents(split="train") == train


def test_the_order_and_split_stay_what_they_were():
  # Golden: a change here changes every run's data.
  texts = [f"document {i}" for i in range(40)]
  assert text.shuffled(texts[:5], 0) == [
    "document 3",
    "document 4",
    "document 1",
    "document 2",
    "document 0",
  ]
  assert [i for i, t in enumerate(texts) if text.held_out(t, 10)] == [9, 15, 21]


def test_the_order_does_not_depend_on_where_documents_came_from():
  texts = [f"document {i}" for i in range(20)]
  assert text.shuffled(texts, 3) == text.shuffled(texts[::-1], 3)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ('{"text": "a"}\n{"text": ', r"a\.jsonl:2 is not JSON"),
    ("[1]", r"a\.jsonl:1: expected an object with 'text', found list"),
    ('{"body": "a"}', r"a\.jsonl:1: expected text in 'text', found 'body'"),
    ('{"text": 3}', r"a\.jsonl:1: expected text in 'text', found a int"),
    ('{"text": "\\ud800"}', r"a\.jsonl:1: 'text' is not valid Unicode"),
    (b'{"text": "a"}\n{"text": "\xff"}', r"a\.jsonl: broken after line"),
    ("\n", "none of the 0 documents falls into split 'all'"),
  ],
)
def test_bad_jsonl_is_refused_by_line(
  tmp_path, tokenizer_folder, content, message
):
  write(tmp_path, {"a.jsonl": content})
  with pytest.raises(ValueError, match=message):
    text.jsonl(str(tmp_path), str(tokenizer_folder), 8, END)


def test_a_truncated_gzip_is_refused(tmp_path, tokenizer_folder):
  write(tmp_path, {"a.jsonl.gz": '{"text": "a"}\n' * 100})
  file = tmp_path / "a.jsonl.gz"
  file.write_bytes(file.read_bytes()[:-12])
  with pytest.raises(ValueError, match=r"a\.jsonl\.gz: broken after line"):
    text.jsonl(str(tmp_path), str(tokenizer_folder), 8, END)


def test_text_that_is_not_utf8_is_refused(tmp_path, tokenizer_folder):
  write(tmp_path, {"a.txt": b"caf\xe9"})
  with pytest.raises(
    ValueError, match=r"a\.txt is not UTF-8 text: .*position 3"
  ):
    text.text_files(str(tmp_path), str(tokenizer_folder), 8, END)


@pytest.mark.parametrize(
  ("path", "message"),
  [
    ("nowhere", "no file or folder .*nowhere"),
    ("*.md", r"\*\.md' does not match a file"),
    ("", r"does not match a file that ends in \.txt or \.md or \.rst"),
  ],
)
def test_a_path_without_files_is_refused(
  tmp_path, tokenizer_folder, path, message
):
  with pytest.raises(ValueError, match=message):
    text.text_files(str(tmp_path / path), str(tokenizer_folder), 8, END)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"split": "heldout"}, "split='heldout': .*Did you mean 'held_out'?"),
    ({"held_out_every": 1}, "held_out_every must be at least 2"),
    ({"end_token": "<|endoftex|>"}, r"Did you mean '<\|endoftext\|>'"),
    ({"end_token": "qqq"}, r"special tokens: <\|endoftext\|>, <\|im_end\|>"),
    ({"L": 0}, "L must be at least 1, found 0"),
    ({"num_threads": -1}, "num_threads must be 0 or more"),
    ({"tokenizer": "nowhere"}, "tokenizer: there is no file nowhere"),
  ],
)
def test_bad_options_are_refused(tmp_path, tokenizer_folder, options, message):
  write(tmp_path, {"a.txt": "a"})
  good = {"tokenizer": str(tokenizer_folder), "L": 8, "end_token": END}
  with pytest.raises(ValueError, match=message):
    text.text_files(str(tmp_path), **{**good, **options})


def test_a_folder_without_a_tokenizer_and_a_broken_one_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r"no file .*tokenizer\.json.* Give the"):
    text.open_tokenizer(str(tmp_path))
  write(tmp_path, {"tokenizer.json": "{}"})
  with pytest.raises(
    ValueError, match=r"tokenizer\.json is not a Hugging Face"
  ):
    text.open_tokenizer(str(tmp_path))
