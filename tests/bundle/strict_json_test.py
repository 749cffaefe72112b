"""Tests for analogjax/bundle/strict_json.py."""

import json

import hypothesis
from hypothesis import strategies as st
import pytest

from analogjax.bundle import strict_json
from analogjax.bundle.strict_json import Refused


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    (b'{"a": 1, "a": 2}', "'a' stands twice"),
    (b"[NaN]", "NaN is no JSON number"),
    (b"[-Infinity]", "-Infinity is no JSON number"),
    (b"[1e999]", "no float64 holds"),
    (b"[" + b"1" * 401 + b"]", "a number of 401 digits"),
    (b"[1." + b"1" * 401 + b"]", "no float64 holds"),
    (b"[" * 65 + b"]" * 65, "nested deeper than 64"),
    (b"[" * 5_000_000, "JSON values, expected"),
    (b"[" * 100_000, "nested deeper"),
    (b'["\\ud800"]', "not text in UTF-8: surrogates"),
    (b'["\xff"]', "not text in UTF-8"),
    (b"\xef\xbb\xbf{}", "not JSON"),
    (b'["a', "a string that does not end"),
    (b'"' + b'\\"' * 1_000_000, "a string that does not end"),
    (b"", "not JSON"),
    (b"{} {}", "not JSON"),
    (b'["\x00"]', "not JSON"),
    (b" " * (strict_json.MOST_BYTES + 1), "bytes of JSON, expected <="),
  ],
)
def test_what_two_readers_could_read_in_two_ways_is_refused(text, expected):
  with pytest.raises(Refused, match=expected):
    strict_json.parse(text)


def test_brackets_in_a_string_are_not_counted():
  value = ["[" * 100, '\\"[[[' * 40, {"[": "{"}]
  assert strict_json.parse(json.dumps(value).encode()) == value
  with pytest.raises(Refused, match="expected a JSON object, found list"):
    strict_json.parse_object(b"[]")


VALUES = st.recursive(
  st.none()
  | st.booleans()
  | st.integers(-(2**63), 2**63)
  | st.floats(allow_nan=False, allow_infinity=False)
  | st.text(),
  lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
  max_leaves=20,
)


@hypothesis.given(VALUES, st.booleans())
@hypothesis.settings(max_examples=100, deadline=None)
def test_what_python_writes_is_read(value, ascii_only):
  data = json.dumps(value, ensure_ascii=ascii_only).encode()
  assert strict_json.parse(data) == value


@hypothesis.given(st.binary(max_size=200))
@hypothesis.settings(max_examples=200, deadline=None)
def test_no_bytes_make_it_fall_over(data):
  try:
    strict_json.parse(data)
  except Refused:
    pass
