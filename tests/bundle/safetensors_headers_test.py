"""Tests for analogjax/bundle/safetensors_headers.py: files that lie."""

import json
import struct

import numpy as np
import pytest
import safetensors.numpy

from analogjax.bundle import folder as walk, safetensors_headers
from analogjax.bundle.strict_json import Refused


def read(folder, data):
  (folder / "a.safetensors").write_bytes(data)
  return safetensors_headers.read(walk.open_tree(folder), "a.safetensors")


def packed(header, size, length=None):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  length = len(text) if length is None else length
  return struct.pack("<Q", length) + text + b"\0" * size


def one(**changes):
  entry = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
  return {"a": {**entry, **changes}}


def test_what_the_library_writes_is_read(tmp_path):
  arrays = {
    "b": np.zeros((2, 3), np.float32),
    "a": np.zeros((5,), np.float16),
    "empty": np.zeros((0, 3), np.int64),
    "scalar": np.zeros((), np.uint8),
  }
  found = read(tmp_path, safetensors.numpy.save(arrays, {"format": "pt"}))
  shapes = {name: tensor.shape for name, tensor in found.tensors.items()}
  assert shapes == {name: array.shape for name, array in arrays.items()}
  assert found.tensors["b"].size == 6 and found.tensors["a"].dtype == "F16"
  assert found.metadata == {"format": "pt"}


@pytest.mark.parametrize(
  ("data", "expected"),
  [
    (b"abc", "shorter than a safetensors header"),
    (struct.pack("<Q", 2**63), "its header claims 9,223,372"),
    (packed(one(), 24, length=10**6), "its header claims 1,000,000"),
    (packed(b" " + json.dumps(one()).encode(), 24), "begin with an object"),
    (packed(b"{", 0), "not JSON"),
    (packed(one(), 23), "its tensors take 24 bytes; the file has 23"),
    (packed(one(), 25), "its tensors take 24 bytes; the file has 25"),
    (packed(one(shape=[2, 4]), 24), "takes 32 bytes; .* span 24"),
    (packed(one(shape=[2**62, 2**62]), 24), "span 24"),
    (packed(one(shape=[-2, -3]), 24), "not a list of at most 8 sizes"),
    (packed(one(shape=[True, 6]), 24), "not a list of at most 8 sizes"),
    (packed(one(shape=[6.0]), 24), "not a list of at most 8 sizes"),
    (packed(one(shape=[1] * 9), 4), "not a list of at most 8 sizes"),
    (packed(one(dtype="F33"), 24), "dtype 'F33' is none of"),
    (packed(one(dtype=["F32"]), 24), "dtype .* is none of"),
    (packed(one(data_offsets=[24, 0]), 24), "span -24"),
    (packed(one(data_offsets=[1, 25]), 25), "leaves a hole"),
    (packed(one(extra=1), 24), "shape and data_offsets alone"),
    (packed({"a": 1}, 0), "shape and data_offsets alone"),
    (packed(one() | {"b": one()["a"]}, 24), "overlaps another"),
    (packed(one() | {"__metadata__": {"a": 1}}, 24), "is not a string"),
    (packed(one() | {"__metadata__": []}, 24), "is not an object"),
    (packed(b'{"a":1,"a":2}', 0), "'a' stands twice"),
  ],
)
def test_a_header_that_lies_is_refused(tmp_path, data, expected):
  with pytest.raises(Refused, match=rf"^a\.safetensors: .*{expected}"):
    read(tmp_path, data)
