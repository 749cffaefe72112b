"""Numbers in text, in any spelling, with how exactly they are stated.

`digits` first turns other bases and English words into decimal digits; `find`
then reads those. A number is worth what its last digit is: 134.5M says that
something is 134.5 million to 0.1 million.
"""

from collections.abc import Iterator
import re
from typing import NamedTuple

_UNITS = (
  "zero one two three four five six seven eight nine ten eleven twelve thirteen"
  " fourteen fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_SMALL = {
  **{word: i for i, word in enumerate(_UNITS)},
  **{word: 10 * i for i, word in enumerate(_TENS, 2)},
}
_LARGE = {
  "thousand": 10**3,
  "million": 10**6,
  "billion": 10**9,
  "trillion": 10**12,
}
_SCALED = "|".join(_LARGE)
_FIRST = "|".join([*_SMALL, "hundred"])
_WORD = f"{_FIRST}|{_SCALED}"
# A comma goes on after a scale alone: "one, two" are two numbers.
_NEXT = (
  rf"(?:[ -]+|\s+and\s+|(?:(?<=sand)|(?<=ion)),\s*(?:and\s+)?)(?:{_WORD})\b"
)
_POINT = rf" point(?: (?:{'|'.join(_UNITS[:10])})\b)+(?: (?:{_SCALED})\b)?"
_BEGIN = rf"\b(?:(?:{_FIRST})|an? (?:hundred|{_SCALED}))\b"
_WORDS = re.compile(rf"{_BEGIN}(?:{_NEXT}){{0,24}}(?:{_POINT})?", re.I)
_POWER_OF_TWO = re.compile(r"(?<![\w.])2\s?(?:\^|\*\*)\s?\{?([1-5]?\d)\b\}?")
_OTHER_BASE = re.compile(r"\b0(?:x[0-9a-f_]+|b[01_]+|o[0-7_]+)\b", re.I)

SCALES = {
  **{"k": 1e3, "thousand": 1e3, "m": 1e6, "mio": 1e6, "mn": 1e6, "mln": 1e6},
  **{"million": 1e6, "millions": 1e6, "mega": 1e6, "g": 1e9, "b": 1e9},
  **{"bn": 1e9, "bln": 1e9, "mrd": 1e9, "billion": 1e9, "billions": 1e9},
  **{"giga": 1e9, "t": 1e12, "tn": 1e12, "trillion": 1e12, "tera": 1e12},
  **{
    "lakh": 1e5,
    "crore": 1e7,
    "p": 1e15,
    "peta": 1e15,
    "e": 1e18,
    "exa": 1e18,
  },
}
_SCALE = "|".join(sorted((s for s in SCALES if len(s) > 1), key=len)[::-1])
_NUMBER = re.compile(
  r"(?<![A-Za-z0-9.])(?<!\d[,'_])"
  r"(?P<digits>\d{1,3}(?:([,'_ ])\d{2,3})(?:\2\d{2,3})*(?!\d)(?:\.\d+)?"
  r"|\d{1,3}(?:\.\d{3}){2,}(?!\d)"
  r"|\d+(?:\.\d+)?|\.\d+)"
  r"(?P<power>[eE][+-]?\d{1,3}(?!\d)"
  r"|\s?(?:[x*]|\\times|\\cdot|\u00d7|\u00b7)\s?10"
  r"(?:\^|\*\*)\{?[+-]?\d{1,3}\}?)?"
  rf"(?:[ -]?(?P<word>{_SCALE})\b|[ ]?(?P<letter>[kKmMgGbBtTpPE])(?![\w]))?",
)


class Number(NamedTuple):
  """A number in a text.

  Attributes:
    start, end: in the text.
    value: with its scale.
    step: what one more in the last stated digit is. Zeros at the end of a
      whole number are not stated digits.
    figures: how many digits are stated.
    scaled: by a word, a letter or a power of ten.
    digits: as they stand, without separators.
  """

  start: int
  end: int
  value: float
  step: float
  figures: int
  scaled: bool
  digits: str

  def states(self, quantity: float) -> bool:
    """Whether it is the quantity, rounded or cut at its last digit."""
    if self.step == 1 and quantity == int(quantity):
      return self.value == quantity
    return abs(self.value - quantity) < self.step * (1 + 1e-9)


def find(text: str) -> Iterator[Number]:
  """Every number of a text in decimal digits."""
  for match in _NUMBER.finditer(text):
    stated = match["digits"]
    separator = match[2]
    if separator:
      stated = stated.replace(separator, "")
    elif stated.count(".") > 1:  # 134.515.008
      stated = stated.replace(".", "")
    whole, _, fraction = stated.partition(".")
    if len(whole) + len(fraction) > 400:
      continue  # Python would refuse to read it, and no fact is as long.
    exponent = _exponent(match["power"])
    scale = match["word"] or match["letter"]
    factor = SCALES[scale.lower()] if scale else 1
    try:
      value = float(f"{whole or 0}.{fraction or 0}e{exponent}") * factor
    except (OverflowError, ValueError):
      continue
    digits = (whole + fraction).lstrip("0")
    zeros = 0 if fraction else len(digits) - len(digits.rstrip("0"))
    figures = max(len(digits) - zeros, 1)
    step = 10.0 ** (exponent - len(fraction) + zeros) * factor
    yield Number(
      *(match.start(), match.end(), value, step, figures),
      *(bool(scale) or match["power"] is not None, stated),
    )


def _exponent(power: str | None) -> int:
  if power is None:
    return 0
  found = re.search(r"[+-]?\d+(?=\}?$)", power)
  assert found is not None, power
  return max(min(int(found[0]), 300), -300)


def digits(text: str) -> str:
  """The text with other bases and English words written in decimal digits."""
  text = _OTHER_BASE.sub(_to_decimal, text)
  text = _POWER_OF_TWO.sub(lambda m: str(2 ** int(m[1])), text)
  return _WORDS.sub(lambda m: _spelled(m[0].lower()), text)


def _to_decimal(match: re.Match) -> str:
  try:
    return str(int(match[0].replace("_", ""), 0)) if len(match[0]) < 80 else ""
  except ValueError:
    return match[0]


def _spelled(words: str) -> str:
  """Number words as digits; of several scales the least is the last digit.

  A round number keeps its scale as a word, "134 million", so that it is not
  taken to be exact.
  """
  words, _, fraction = words.partition(" point ")
  each = re.findall(rf"\b(?:{_WORD})\b", words)
  if len(each) > 1 and all(_SMALL.get(word, 10) < 10 for word in each):
    return "".join(str(_SMALL[word]) for word in each)  # Digit by digit.
  total = current = 0
  least = 1
  for word in each:
    if word in _SMALL:
      current += _SMALL[word]
    elif word == "hundred":
      current = max(current, 1) * 100
    else:
      total += max(current, 1) * _LARGE[word]
      current, least = 0, _LARGE[word]
  if current:
    total, least = total + current, 1
  if fraction:
    *parts, last = fraction.split()
    scale = f" {last}" if last in _LARGE else ""
    parts = parts if scale else [*parts, last]
    return f"{total}." + "".join(str(_SMALL[x]) for x in parts) + scale
  names = {value: name for name, value in _LARGE.items()}
  return f"{total // least} {names[least]}" if least > 1 else str(total)


def spellings(value: int) -> set[str]:
  """A count in other bases, as it may stand in a text without a prefix."""
  found = {f"{value:x}", f"{value:o}", f"{value:b}", _in_base_36(value)}
  return {text for text in found if len(text) >= 5}


def _in_base_36(value: int) -> str:
  letters = "0123456789abcdefghijklmnopqrstuvwxyz"
  text = ""
  while value:
    value, digit = divmod(value, 36)
    text = letters[digit] + text
  return text
