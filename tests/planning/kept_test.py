"""Tests for analogjax/planning/kept.py."""

import dataclasses
import json

import pytest

from analogjax.planning import facts, kept

PROGRAM = facts.Program(
  stage="train.distill",
  how="compiled for v5p:4x4x4",
  tokens=2,
  flops=3.5,
  executed_flops=None,
  accessed_bytes=4.0,
  argument_bytes=5,
  temporary_bytes=6,
  output_bytes=7,
  code_bytes=8,
  largest=(("logits of a chunk", 6.0), ("batch", 5.0)),
  exchanges=(
    facts.Exchange(
      kind="all-gather",
      axes=("data", "fsdp"),
      runs=2,
      sent_bytes=9.0,
      is_whole=False,
    ),
  ),
  too_large="no room",
  compile_seconds=1.5,
  resident_bytes=1.0,
)


def test_what_is_kept_comes_back(tmp_path):
  folder = tmp_path / "new" / "folder"
  kept.write(folder, "a", PROGRAM)
  assert kept.read(folder, "a") == PROGRAM
  assert kept.read(folder, "b") is None
  kept.write(None, "a", PROGRAM)  # Nowhere.
  assert kept.read(None, "a") is None


@pytest.mark.parametrize(
  "text", ["", "{", "[]", "null", "{}", '{"program": {}}', '{"program": [1]}']
)
def test_a_damaged_file_is_not_there(tmp_path, text):
  kept.write(tmp_path, "a", PROGRAM)
  (tmp_path / "a.json").write_text(text)
  assert kept.read(tmp_path, "a") is None


def test_a_file_of_another_version_is_not_there(tmp_path):
  value = dataclasses.asdict(PROGRAM) | {"temperature": 3}
  (tmp_path / "a.json").write_text(json.dumps({"program": value}))
  assert kept.read(tmp_path, "a") is None


def test_the_key_is_of_everything_that_a_program_depends_on():
  keys = {
    kept.key({"L": 1}, ""),
    kept.key({"L": 2}, ""),
    kept.key({"L": 1}, "libtpu.so 3"),
  }
  assert len(keys) == 3
  assert kept.key({"a": 1, "b": 2}, "") == kept.key({"b": 2, "a": 1}, "")
