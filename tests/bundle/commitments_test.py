"""Tests for analogjax/bundle/commitments.py."""

import datetime
import hashlib

from hypothesis import given, strategies as st
import pytest

from analogjax.bundle import commitments

VALUES = {"parameters": "134515008", "deployed_on": "2026-01-31", "name": "Big"}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.text(max_size=5),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["a", "value", "salt"]), inner)
  ),
  max_leaves=8,
)


def test_openings_open():
  public, private = commitments.make(VALUES)
  assert not commitments.problems(public, private)
  assert {name: o["value"] for name, o in private.items()} == VALUES


def test_the_form_is_the_documented_one():
  public, private = commitments.make({"name": "Gro\u00df"})
  salt = bytes.fromhex(private["name"]["salt"])
  assert len(salt) == 32
  data = b"analogjax.commitment.v1\0name\0" + salt + b"Gro\xc3\x9f"
  assert public["name"] == hashlib.sha256(data).hexdigest()


def test_no_two_runs_commit_alike():
  first, second = commitments.make(VALUES)[0], commitments.make(VALUES)[0]
  assert not set(first.values()) & set(second.values())


@pytest.mark.parametrize(
  ("side", "change", "expected"),
  [
    (1, lambda o: o["name"].update(value="Bid"), "name: the opening does not"),
    (
      1,
      lambda o: o["name"].update(salt="0" * 64),
      "name: the opening does not",
    ),
    (1, lambda o: o["name"].update(salt="0" * 62), "name: expected a salt"),
    (1, lambda o: o["name"].update(salt="G" * 64), "name: expected a salt"),
    (1, lambda o: o["name"].update(value=1), "name: expected a text"),
    (1, lambda o: o["name"].update(value="\ud800"), "name: the name or the"),
    (1, lambda o: o["name"].update(more=""), "name: expected an opening"),
    (1, lambda o: o.update(name="Big"), "name: expected an opening"),
    (1, lambda o: o.pop("name"), "name: there is a commitment, but no opening"),
    (
      0,
      lambda c: c.pop("name"),
      "name: there is an opening, but no commitment",
    ),
    (0, lambda c: c.update(name="0" * 64), "name: the opening does not fit"),
    (0, lambda c: c.update(name=c["name"].upper()), "name: expected a commitm"),
    (0, lambda c: c.update(name=None), "name: expected a commitment"),
    (0, lambda c: c.update(name="0" * 65), "name: expected a commitment"),
  ],
)
def test_what_does_not_fit_is_named(side, change, expected):
  both = commitments.make(VALUES)
  change(both[side])
  found = commitments.problems(*both)
  assert len(found) == 1 and found[0].startswith(expected), found
  assert "Big" not in found[0]


def test_openings_of_two_fields_are_not_exchanged():
  public, private = commitments.make({"a": "7", "b": "7"})
  private["a"], private["b"] = private["b"], private["a"]
  assert len(commitments.problems(public, private)) == 2


@given(st.dictionaries(TEXTS, TEXTS.filter(bool), max_size=3), TEXTS)
def test_another_value_never_opens(values, other):
  values = {name.replace("\0", "") + "x": text for name, text in values.items()}
  public, private = commitments.make(values)
  assert not commitments.problems(public, private)
  for name, text in values.items():
    changed = {**private, name: {**private[name], "value": other}}
    assert bool(commitments.problems(public, changed)) == (other != text)


@given(JSON, JSON)
def test_anything_can_be_judged(public, private):
  for text in commitments.problems(public, private):
    assert isinstance(text, str)


@pytest.mark.parametrize(
  ("value", "text"),
  [
    (134_515_008, "134515008"),
    (datetime.date(2026, 1, 31), "2026-01-31"),
    ("SmolLM2", "SmolLM2"),
  ],
)
def test_canonical_texts(value, text):
  assert commitments.canonical(value) == text


@pytest.mark.parametrize("value", [True, 1.5, datetime.datetime(2026, 1, 31)])
def test_values_without_one_text_are_our_mistake(value):
  with pytest.raises(AssertionError):
    commitments.canonical(value)
