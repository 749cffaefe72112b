"""Number formats of documents and reports; each number goes through here."""

from collections.abc import Mapping
import math
from typing import Any

Amount = float | Mapping[str, float] | None

NOT_STATED = "not stated"
USD = "USD"
# Upper ends and names of the bands in the EU's form (AI Act, Code of Practice,
# Transparency, 10 July 2025).
_SIZES = (
  (500e6, "1 to 500 million"),
  (5e9, "500 million to 5 billion"),
  (15e9, "5 to 15 billion"),
  (50e9, "15 to 50 billion"),
  (100e9, "50 to 100 billion"),
  (500e9, "100 to 500 billion"),
  (1e12, "500 billion to 1 trillion"),
  (math.inf, "over 1 trillion"),
)
_MONTHS = (
  (1, "less than 1 month"),
  (3, "1 to 3 months"),
  (6, "3 to 6 months"),
  (math.inf, "more than 6 months"),
)


def exact(value: int) -> str:
  return f"{value:,}"


def number(value: float | None) -> str:
  """About three significant figures, without trailing zeros; n/a if unknown."""
  if value is None:
    return "n/a"
  assert math.isfinite(value), value
  if isinstance(value, int) or (abs(value) >= 100 and value == int(value)):
    return f"{int(value):,}"
  size = abs(value)
  if size < 100 and value == round(value, 2):
    return f"{value + 0:g}"  # Without the sign of -0.
  if size >= 100:
    return f"{value:,.0f}"
  if size < 1e-6:
    return f"{value:.1e}"
  if size < 5e-4:
    return f"{value:.{1 - math.floor(math.log10(size))}f}"
  return f"{value:.{1 if size >= 10 else 2 if size >= 1 else 3}f}"


def interval(estimate: Mapping[str, Any] | None) -> str:
  """`0.52 (0.48 to 0.57)`; if undefined, the reason."""
  if estimate is None:
    return "n/a"
  if estimate["value"] is None:
    why = estimate.get("why", "")
    return f"n/a ({why})" if why else "n/a"
  low, high = number(estimate["low"]), number(estimate["high"])
  return f"{number(estimate['value'])} ({low} to {high})"


def percent(share: float) -> str:
  return f"{number(round(100 * share, 10))} %"


def share(value: float) -> str:
  """A fraction in percent, fine enough to compare with the window's bounds."""
  return f"{100 * value:.4g} %"


def two_figures(value: float) -> str:
  """Two significant figures: 2.4e+19 is written 2.4 x 10^19."""
  if value == 0:
    return "0"
  mantissa, exponent = f"{value:.1e}".split("e")
  power = int(exponent)
  if -5 <= power < 3:
    return f"{float(f'{value:.1e}'):.{max(0, 1 - power)}f}"
  return f"{mantissa} x 10^{power}"


def magnitude(value: float) -> str:
  """The order of magnitude: 2.4e19 is written 10^19."""
  return f"10^{math.floor(math.log10(value))}" if value > 0 else "0"


def amount(
  value: Amount,
  unknown: str = NOT_STATED,
  *,
  unit: str = "",
  large: bool = False,
) -> str:
  """A cost or its range; says so if it is unknown.

  Args:
    value: a number, a range of `low` and `high`, or None.
    unknown: text for None.
    unit: follows the number; USD below 100 have cents.
    large: uses a power of ten.
  """
  if value is None:
    return unknown
  ends = (
    (value["low"], value["high"]) if isinstance(value, Mapping) else (value,)
  )
  shown = " to ".join(_one(end, unit == USD, large) for end in ends)
  return f"{shown} {unit}" if unit else shown


def _one(value: float, is_money: bool, large: bool) -> str:
  if is_money:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.2f}"
  # Below a tenth `number` has three decimals, and so too few figures.
  return two_figures(value) if large or 0 < value < 0.1 else number(value)


def size_band(parameters: int) -> str:
  """The form's band for a number of parameters."""
  return next(name for most, name in _SIZES if parameters <= most)


def month_band(days: float) -> str:
  """The form's band for a duration; a month is 30.4375 days."""
  return next(name for most, name in _MONTHS if days / 30.4375 <= most)


# For templates, by their names.
FILTERS = {
  function.__name__: function
  for function in (
    amount,
    exact,
    interval,
    magnitude,
    month_band,
    number,
    percent,
    share,
    size_band,
    two_figures,
  )
}
