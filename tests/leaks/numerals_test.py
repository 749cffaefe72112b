"""Tests for analogjax/leaks/numerals.py."""

from hypothesis import given, strategies as st
import pytest

from analogjax.leaks import numerals


def _read(text):
  return [
    (x.value, x.step, x.figures) for x in numerals.find(numerals.digits(text))
  ]


@pytest.mark.parametrize(
  ("text", "value", "step", "figures"),
  [
    ("1345", 1345, 1, 4),
    ("1,345,678", 1_345_678, 1, 7),
    ("1_000", 1000, 1000, 1),
    ("12 345.5", 12_345.5, 0.1, 6),
    ("134.515.008", 134_515_008, 1, 9),
    ("1.50", 1.5, 0.01, 3),
    (".5", 0.5, 0.1, 1),
    ("134.5M", 134.5e6, 1e5, 4),
    ("0.135B-parameter", 0.135e9, 1e6, 3),
    ("135 million", 135e6, 1e6, 3),
    ("1.35e8", 1.35e8, 1e6, 3),
    ("1.35 x 10^8", 1.35e8, 1e6, 3),
    ("2 * 10**-3", 2e-3, 1e-3, 1),
    ("0x240", 576, 1, 3),
    ("thirty", 30, 10, 1),
    ("forty-two", 42, 1, 2),
    ("two hundred and six", 206, 1, 3),
    ("a hundred million", 100e6, 100e6, 1),
    ("one hundred and thirty-four million", 134e6, 1e6, 3),
    ("two point five million", 2.5e6, 1e5, 2),
    ("one two three", 123, 1, 3),
  ],
)
def test_spellings(text, value, step, figures):
  ((found, least, stated),) = _read(text)
  assert found == pytest.approx(value) and stated == figures
  assert least == pytest.approx(step)


@pytest.mark.parametrize("text", ["H100", "v5e", "a1b2c3", "block07x", "1.2.3"])
def test_what_is_no_number(text):
  assert [x for x, _, _ in _read(text)] in ([], [1.2])


def test_two_numbers_stay_two():
  assert [x[0] for x in _read("one, two; 3 4 and 5,678")] == [1, 2, 3, 4, 5678]


@given(st.integers(1, 10**15))
def test_separators_do_not_matter(value):
  for text in (f"{value}", f"{value:,}", f"{value:_}"):
    ((found, _, _),) = _read(text)
    assert found == value


@given(st.integers(1000, 10**13), st.integers(2, 5))
def test_a_rounded_number_states_what_it_was(value, figures):
  (number,) = numerals.find(f"{value:.{figures - 1}e}")
  assert number.states(value)
  assert not number.states(value * 2)


@pytest.mark.parametrize(
  ("text", "kind"),
  [
    ("30 layers", "layers"),
    ("a 30-layer model", "layers"),
    ("num_hidden_layers: 30", "layers"),
    ('"numHiddenLayers":30', "layers"),
    ("layers of the large one: 30", "layers"),
    ("30 attention heads", "heads"),
    ("head_dim = 30", "head_width"),
    ("head width of 30", "head_width"),
    ("30 key/value heads", "kv_heads"),
    ("num_key_value_heads: 30", "kv_heads"),
    ("intermediate_size: 30", "feed_forward"),
    ("30-dimensional", "width"),
    ("layers 4, 30 tokens", "tokens"),
    ("$30", "money"),
    ("30 %", "rate"),
    ("layers 4, 30", None),
    ("layers.\n30", None),
    ("30: heads", None),
    ("the 30 key findings", None),
  ],
)
def test_what_a_number_counts(text, kind):
  start = text.index("30")
  assert numerals.kind(text, start, start + 2) == kind
