"""Tests for analogjax/data/rows.py."""

import hashlib

from hypothesis import given, strategies as st
import numpy as np
import pytest

from analogjax.data import rows as rows_lib

L, V = 6, 10


def element(**changes):
  good = {
    "tokens": np.array([1, 2, 3, 4, 0, 0]),
    "segments": np.array([1, 1, 2, 2, 0, 0]),
  }
  return {**good, **changes}


def to_rows(*elements, first_index=17):
  return rows_lib.to_rows(elements, L=L, V=V, first_index=first_index)


def test_positions_and_weights_have_defaults():
  rows = to_rows(element(), element(segments=np.array([1, 2, 2, 3, 3, 3])))
  np.testing.assert_array_equal(rows.tokens_BL[0], [1, 2, 3, 4, 0, 0])
  np.testing.assert_array_equal(
    rows.positions_BL, [[0, 1, 0, 1, 0, 0], [0, 0, 1, 0, 1, 2]]
  )
  np.testing.assert_array_equal(
    rows.weights_BL, [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]
  )
  assert [f.dtype.name for f in rows] == ["int32"] * 3 + ["float32"]


def test_given_positions_and_weights_are_kept_but_for_padding():
  rows = to_rows(
    element(
      positions=np.array([5, 6, 0, 1, 9, 9], np.uint16),
      weights=[0.5, 1, 0, 2, 1, 1],
    )
  )
  np.testing.assert_array_equal(rows.positions_BL, [[5, 6, 0, 1, 9, 9]])
  np.testing.assert_array_equal(rows.weights_BL, [[0.5, 1, 0, 2, 0, 0]])


def test_unsigned_segments_do_not_wrap():
  rows = to_rows(element(segments=np.array([2, 1, 1, 0, 0, 0], np.uint8)))
  np.testing.assert_array_equal(rows.positions_BL, [[0, 0, 1, 0, 0, 0]])


def test_no_rows_have_the_right_shapes():
  rows = to_rows()
  assert [f.shape for f in rows] == [(0, L)] * 4
  assert rows_lib.rows_digests(rows).shape == (0, 32)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"tokens": np.array([1, 2, 3, 10, 0, 0])},
      r"row 17: token id 10 at position 3, but the vocabulary has 10 ",
    ),
    ({"tokens": np.array([1, -1, 0, 0, 0, 0])}, "token id -1 at position 1 is"),
    (
      {"tokens": np.ones(7, int)},
      r"'tokens' has shape \(7,\), expected \(6,\)",
    ),
    ({"tokens": np.ones((1, 6), int)}, r"'tokens' has shape \(1, 6\)"),
    ({"tokens": np.ones(6)}, "'tokens' must be integers, found dtype float64"),
    ({"tokens": np.ones(6, bool)}, "'tokens' must be integers, found dtype"),
    ({"segments": np.array([1, 1, -2, 0, 0, 0])}, "'segments' has -2 at pos"),
    ({"segments": np.ones(5, int)}, r"'segments' has shape \(5,\)"),
    ({"positions": np.full(6, -1)}, "'positions' has -1 at position 0"),
    ({"positions": np.full(6, 2**40)}, "'positions' has 1099511627776"),
    ({"positions": np.zeros(6)}, "'positions' must be integers"),
    ({"weights": [1, 1, np.nan, 1, 1, 1]}, "weight nan at position 2"),
    ({"weights": [1, 1, np.inf, 1, 1, 1]}, "weight inf at position 2"),
    ({"weights": [1, 1, 1, -0.5, 1, 1]}, "weight -0.5 at position 3"),
    ({"weights": ["a"] * 6}, "'weights' must be float32"),
    ({"weights": [[1], [1, 2]]}, "'weights' is not an array"),
  ],
)
def test_a_bad_row_is_refused_by_name(changes, message):
  with pytest.raises(ValueError, match=message):
    to_rows(element(**changes))


def test_the_row_named_is_the_bad_one():
  with pytest.raises(ValueError, match="^row 18: token id 99"):
    to_rows(element(), element(tokens=np.full(6, 99)))


def test_a_missing_key_names_those_found():
  with pytest.raises(ValueError, match="no 'tokens'; found 'text', 'segments'"):
    to_rows({"text": "a", "segments": np.ones(6, int)})
  with pytest.raises(ValueError, match="expected a dict .*, found ndarray"):
    to_rows(np.ones(6, int))


def test_the_digest_is_blake2b_over_length_and_fields():
  # Byte by byte, so that other software can recompute a cache's digests.
  expected = hashlib.blake2b(
    bytes([2, 0, 0, 0, 0, 0, 0, 0])  # Length.
    + bytes([1, 0, 0, 0, 0, 1, 0, 0])  # Tokens 1, 256.
    + bytes([1, 0, 0, 0, 1, 0, 0, 0])  # Segments 1, 1.
    + bytes([0, 0, 0, 0, 1, 0, 0, 0]),  # Positions 0, 1.
    digest_size=32,
  ).digest()
  assert rows_lib.row_digest([1, 256], [1, 1], [0, 1]) == expected


def test_fields_do_not_run_into_each_other():
  # The 6 numbers are the same.
  long = rows_lib.row_digest([1, 1], [1, 1], [1, 1])
  short = rows_lib.row_digest([1], [1], [1])
  assert long != short
  assert rows_lib.row_digest([1, 2], [1, 1], [0, 1]) != (
    rows_lib.row_digest([1, 1], [2, 1], [0, 1])
  )


fields = st.integers(0, 5).flatmap(
  lambda n: st.tuples(
    *[st.lists(st.integers(0, V - 1), min_size=n, max_size=n)] * 3
  )
)


@given(fields, fields)
def test_digests_are_equal_only_for_equal_rows(one, other):
  same = rows_lib.row_digest(*one) == rows_lib.row_digest(*other)
  assert same == (one == other)


def test_rows_digests_are_the_digests_of_the_rows():
  rows = to_rows(element(), element(tokens=np.arange(6)))
  digests = rows_lib.rows_digests(rows)
  assert digests.shape == (2, 32) and digests.dtype == np.uint8
  assert digests[1].tobytes() == rows_lib.row_digest(
    np.arange(6), [1, 1, 2, 2, 0, 0], [0, 1, 0, 1, 0, 0]
  )


@given(st.lists(st.integers(0, 3), min_size=L, max_size=L))
def test_default_positions_count_each_run(segments):
  expected, count = [], 0
  for i, s in enumerate(segments):
    count = count + 1 if i and segments[i - 1] == s else 0
    expected.append(count if s else 0)
  rows = to_rows(element(segments=np.array(segments)))
  np.testing.assert_array_equal(rows.positions_BL, [expected])
