"""Reading any folder ends, and ends without an exception."""

import gzip
import json
import os
import random
import struct
import time

from hypothesis import given, settings, strategies as st
import pytest

from analogjax import leaks
from analogjax.leaks import containers, linter, reading


def _lint(folder, name, data, secrets):
  folder.mkdir(exist_ok=True)
  for path in folder.iterdir():
    path.unlink()
  (folder / name).write_bytes(data)
  return leaks.lint(folder, secrets)


NAMES = st.sampled_from(
  ["a.md", "a.json", "a.html", "a.png", "a.safetensors", "tokenizer.json", "a"]
)
HEADS = st.sampled_from(
  [
    *(b"", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"\x1f\x8b\x08", b"BZh9"),
    *(b"\xfd7zXZ\0", b"\xff\xd8\xff\xe0", b"\xff\xfe", b"{", b"["),
    struct.pack("<Q", 20),
  ]
)


@settings(max_examples=200, deadline=None)
@given(NAMES, HEADS, st.binary(max_size=200))
def test_any_bytes_are_read(tmp_path_factory, secrets, name, head, body):
  folder = tmp_path_factory.getbasetemp() / "any"
  for leak in _lint(folder, name, head + body, secrets):
    assert isinstance(leak, leaks.Leak)


TEXT = st.lists(
  st.sampled_from(
    [
      *(
        "134",
        ".5",
        "M",
        "1e",
        "e8",
        "0x",
        ",",
        "_",
        " ",
        "\n",
        "|",
        "-",
        "--",
      ),
      *("layers", "thirty", "hundred", "million", "and", "point", "one", "$"),
      *("GPU-hours", "%", "MFU", "teacher", "tokens", "per", "/", "x", "10^8"),
      *("<b>", "</p>", "&#49;", "%31", "\\u0031", "\u0661", "\u00b2", "\u200b"),
      *("2026", "March", "31", "s3://", "/mnt/", "kWh", "to", "9" * 500, ":"),
    ]
  ),
  max_size=30,
).map("".join)


@settings(max_examples=200, deadline=None)
@given(NAMES, TEXT)
def test_any_words_are_read(tmp_path_factory, secrets, name, words):
  folder = tmp_path_factory.getbasetemp() / "words"
  _lint(folder, name, words.encode(), secrets)


@pytest.mark.parametrize(
  "data",
  [
    b"[" * 100_000,
    b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
    b'{"a":' + b"9" * 100_000 + b"}",
    b"1e999 " * 1000,
    b"one hundred " * 10_000,
    b"thirty-" * 10_000,
    b"5 GPU-hours at 40 % MFU of the teacher for 7 tokens. " * 2_000,
    b"| a | 1 |\n|---|---|\n" * 5_000,
    b"a-b." * 50_000,
    b"/" * 200_000,
    b"1,234 " * 20_000,
    b"QUJD" * 50_000,
    random.Random(0).randbytes(500_000),
  ],
  ids=lambda data: ascii(data[:12]),
)
def test_long_files_take_no_longer_than_they_are(tmp_path, secrets, data):
  start = time.process_time()
  _lint(tmp_path, "a.html", data, secrets)
  # A pattern that goes back and forth would take hours.
  assert time.process_time() - start < 20


@pytest.mark.parametrize(
  "header",
  [
    *(b"", b"{", b"[]", b"{}", b'{"a": 1}', b'{"a": {"shape": 3}}'),
    b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 99]}}',
    b'{"a": {"dtype": 7, "shape": [-1], "data_offsets": [4, 0]}}',
    b'{"a": {"shape": [1], "data_offsets": [true, 4]}, "a": {}}',
    b'{"__metadata__": [1, {"b": null}]}',
  ],
)
@pytest.mark.parametrize("length", [None, 0, 2**63])
def test_lying_headers(tmp_path, secrets, header, length):
  size = struct.pack("<Q", len(header) if length is None else length)
  _lint(tmp_path, "a.safetensors", size + header + b"\0" * 8, secrets)


def test_what_is_no_file_is_a_finding(tmp_path, secrets):
  os.mkfifo(tmp_path / "pipe")
  (tmp_path / "loop").symlink_to(tmp_path)
  found = leaks.lint(tmp_path, secrets)
  assert {x.file for x in found if x.rule == "unread"} == {"pipe", "loop"}


def test_a_file_that_is_too_large_is_a_finding(tmp_path, secrets, monkeypatch):
  monkeypatch.setattr(reading, "MOST_TEXT", 10)
  (found,) = _lint(tmp_path, "a.md", b"eleven char", secrets)
  assert found.rule == "unread"


def test_weights_are_not_read(tmp_path, secrets):
  head = json.dumps(
    {"a": {"dtype": "F32", "shape": [2**31], "data_offsets": [0, 2**33]}}
  ).encode()
  path = tmp_path / "a.safetensors"
  with path.open("wb") as file:
    file.write(struct.pack("<Q", len(head)) + head)
    file.truncate(8 + len(head) + 2**33)  # 8 GiB, none of it on the disk.
  start = time.process_time()
  assert not leaks.lint(tmp_path, secrets)
  assert time.process_time() - start < 2


def test_random_bytes_are_no_words(tmp_path, secrets):
  data = random.Random(1).randbytes(1_000_000)
  assert not _lint(tmp_path, "tokenizer.model", data, secrets)


@pytest.mark.parametrize("packer", ["gzip", "bz2", "lzma"])
def test_what_unpacks_to_more_is_cut(packer):
  module = __import__(packer)
  data = module.compress(b"\0" * (containers.MOST_UNPACKED + 1000))
  parts = list(containers.pieces(data) or [])
  assert len(parts[-1][1]) == containers.MOST_UNPACKED


@given(st.text())
def test_plain_text_keeps_its_lines(text):
  assert reading.plain(text).count("\n") == text.count("\n")


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_is_plain(text):
  assert reading.plain(text) == text


def test_more_text_than_a_bundle_has_is_not_read(
  tmp_path, secrets, monkeypatch
):
  """400 bytes of nested archives may become gigabytes."""
  monkeypatch.setattr(linter, "_MOST_TEXT", 10_000)
  data = gzip.compress(b"It is a text. " * 1000)
  (found,) = _lint(tmp_path / "a", "a.gz", data, secrets)
  assert found.rule == "unread" and "10,000 characters" in found.what


def test_more_figures_than_a_bundle_has_are_not_tried(
  tmp_path, secrets, monkeypatch
):
  monkeypatch.setattr(linter, "_MOST_FIGURES", 10)
  lines = "".join(f"It took {i} seconds.\n\n" for i in range(12))
  found = _lint(tmp_path / "a", "a.md", lines.encode(), secrets)
  assert "12 figures; 10 are tried" in [
    leak.what for leak in found if leak.rule == "unread"
  ]
