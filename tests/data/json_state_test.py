"""Tests for analogjax/data/json_state.py."""

import json

from hypothesis import given, strategies as st
import numpy as np
import pytest

from analogjax.data import json_state


def through_json(value):
  return json_state.from_json(json.loads(json.dumps(json_state.to_json(value))))


leaves = (
  st.none()
  | st.booleans()
  | st.integers()
  | st.floats(allow_nan=False)
  | st.text()
  | st.binary()
)
keys = st.text() | st.integers() | st.just("__type__")
states = st.recursive(
  leaves,
  lambda inner: (
    st.lists(inner)
    | st.lists(inner).map(tuple)
    | st.dictionaries(keys, inner, max_size=3)
  ),
  max_leaves=8,
)


@given(states)
def test_a_state_comes_back_with_its_types(state):
  back = through_json(state)
  assert back == state
  assert repr(back) == repr(state)  # (1, 2) is not [1, 2], True is not 1.


def test_numpy_values_come_back():
  assert through_json({"i": np.int64(3), "b": np.bool_(True)}) == {
    "i": 3,
    "b": True,
  }
  array = np.arange(6, dtype=np.int16).reshape(2, 3)
  back = through_json(array)
  np.testing.assert_array_equal(back, array)
  assert back.dtype == array.dtype


def test_what_json_cannot_hold_is_refused():
  with pytest.raises(ValueError, match=r"holds a builtins\.object"):
    json_state.to_json({"a": [object()]})
  with pytest.raises(ValueError, match="unknown type 'set'"):
    json_state.from_json({"__type__": "set", "of": []})
