"""Tests for analogjax/rendering/numbers.py."""

import pytest

from analogjax.rendering import numbers


@pytest.mark.parametrize(
  ("value", "expected"),
  [
    (0, "0"),
    (2.44e19, "2.4 x 10^19"),
    (9.96e12, "1.0 x 10^13"),
    (17.2, "17"),
    (1.04, "1.0"),
    (0.00163, "0.0016"),
    (1.71e-5, "0.000017"),
    (1.71e-6, "1.7 x 10^-6"),
    (999, "1.0 x 10^3"),
    (0.0999, "0.10"),
  ],
)
def test_two_figures(value, expected):
  assert numbers.two_figures(value) == expected


@pytest.mark.parametrize(
  ("value", "expected"), [(2.4e19, "10^19"), (1e3, "10^3"), (0, "0")]
)
def test_magnitude(value, expected):
  assert numbers.magnitude(value) == expected


@pytest.mark.parametrize(
  ("value", "unit", "large", "expected"),
  [
    (None, "", False, "not stated"),
    (0.1856, "USD", False, "0.19 USD"),
    (70_053.2, "USD", False, "70,053 USD"),
    ({"low": 0.9, "high": 912.4}, "USD", False, "0.90 to 912 USD"),
    ({"low": 1.1e13, "high": 1.1e14}, "", True, "1.1 x 10^13 to 1.1 x 10^14"),
    (0.0151, "", False, "0.015"),
    (0.00054, "", False, "0.00054"),
    (0.388, "", False, "0.388"),
    (0.0, "", False, "0"),
  ],
)
def test_amount(value, unit, large, expected):
  assert numbers.amount(value, unit=unit, large=large) == expected


@pytest.mark.parametrize(
  ("value", "expected"), [(0.005, "0.5 %"), (0.05, "5 %"), (0.12345, "12.3 %")]
)
def test_percent(value, expected):
  assert numbers.percent(value) == expected


def test_share_tells_the_bounds_of_the_window():
  assert numbers.share(0.05001) == "5.001 %"
  assert numbers.share(0.00499) == "0.499 %"


@pytest.mark.parametrize(
  ("value", "expected"),
  [
    (500_000_000, "1 to 500 million"),
    (500_000_001, "500 million to 5 billion"),
    (8_000_000_000, "5 to 15 billion"),
    (10**12, "500 billion to 1 trillion"),
    (10**12 + 1, "over 1 trillion"),
  ],
)
def test_size_band(value, expected):
  assert numbers.size_band(value) == expected


@pytest.mark.parametrize(
  ("days", "expected"),
  [
    (0.1, "less than 1 month"),
    (60, "1 to 3 months"),
    (200, "more than 6 months"),
  ],
)
def test_month_band(days, expected):
  assert numbers.month_band(days) == expected
