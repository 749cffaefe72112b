"""Reads numbers in any spelling, and infers from nearby words what they count.

`digits` first turns other bases and English words into decimal digits; `find`
then reads those. A number is as exact as its last digit: 134.5M stands for
134.5 million, to 0.1 million.

30 is a secret only as a number of layers. The noun after a number says what it
counts ("30 layers", "30-layer", "30 attention heads"). Without one, the last
noun before it does ("layers: 30", "num_hidden_layers = 30"). `kind` finds it.
"""

from collections.abc import Iterator
import functools
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
# A comma only continues after a scale: "one, two" are two numbers.
_NEXT = (
  rf"(?:[ -]+|\s+and\s+|(?:(?<=sand)|(?<=ion)),\s*(?:and\s+)?)(?:{_WORD})\b"
)
_POINT = rf" point(?: (?:{'|'.join(_UNITS[:10])})\b)+(?: (?:{_SCALED})\b)?"
_BEGIN = rf"\b(?:(?:{_FIRST})|an? (?:hundred|{_SCALED}))\b"
_WORDS = re.compile(rf"{_BEGIN}(?:{_NEXT}){{0,24}}(?:{_POINT})?", re.I)
_POWER_OF_TWO = re.compile(r"(?<![\w.])2\s?(?:\^|\*\*)\s?\{?([1-5]?\d)\b\}?")
_OTHER_BASE = re.compile(r"\b0(?:x[0-9a-f_]+|b[01_]+|o[0-7_]+)\b", re.I)

SCALES = {
  name: scale
  for scale, names in (
    (1e3, "k thousand".split()),
    (1e5, "lakh".split()),
    (1e6, "m mio mn mln million millions mega".split()),
    (1e7, "crore".split()),
    (1e9, "g b bn bln mrd billion billions giga".split()),
    (1e12, "t tn trillion tera".split()),
    (1e15, "p peta".split()),
    (1e18, "e exa".split()),
  )
  for name in names
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
    start, end: its place.
    value: with its scale.
    step: one unit of the last stated digit. Zeros at the end of a whole number
      are not stated digits.
    figures: how many digits are stated.
    scaled: whether a word, a letter or a power of ten scales it.
    digits: as written, without separators.
  """

  start: int
  end: int
  value: float
  step: float
  figures: int
  scaled: bool
  digits: str

  def states(self, quantity: float) -> bool:
    """Whether it is the quantity, rounded or truncated at its last digit."""
    if self.step == 1 and quantity == int(quantity):
      return self.value == quantity
    return abs(self.value - quantity) < self.step * (1 + 1e-9)


def find(text: str) -> Iterator[Number]:
  """Yields every number of a text that is in decimal digits."""
  for match in _NUMBER.finditer(text):
    stated = match["digits"]
    separator = match[2]
    if separator:
      stated = stated.replace(separator, "")
    elif stated.count(".") > 1:  # 134.515.008
      stated = stated.replace(".", "")
    whole, _, fraction = stated.partition(".")
    if len(whole) + len(fraction) > 400:
      continue  # Python refuses to read it, and no fact is that long.
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
    scaled = bool(scale) or match["power"] is not None
    start, end = match.span()
    yield Number(start, end, value, step, figures, scaled, stated)


def _exponent(power: str | None) -> int:
  if power is None:
    return 0
  found = re.search(r"[+-]?\d+(?=\}?$)", power)
  assert found is not None, power
  return max(min(int(found[0]), 300), -300)


def digits(text: str) -> str:
  """Rewrites other bases and English number words in decimal digits."""
  text = _OTHER_BASE.sub(_to_decimal, text)
  text = _POWER_OF_TWO.sub(lambda m: str(2 ** int(m[1])), text)
  return _WORDS.sub(lambda m: _spelled(m[0].lower()), text)


def _to_decimal(match: re.Match) -> str:
  try:
    return str(int(match[0].replace("_", ""), 0)) if len(match[0]) < 80 else ""
  except ValueError:
    return match[0]


def _spelled(words: str) -> str:
  """Rewrites number words in digits; the smallest scale is the last digit.

  A round number keeps its scale as a word ("134 million"), so that it is not
  taken as exact.
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
  """Returns a count in other bases, as written without a prefix."""
  found = {f"{value:x}", f"{value:o}", f"{value:b}", _in_base_36(value)}
  return {text for text in found if len(text) >= 5}


def _in_base_36(value: int) -> str:
  letters = "0123456789abcdefghijklmnopqrstuvwxyz"
  text = ""
  while value:
    value, digit = divmod(value, 36)
    text = letters[digit] + text
  return text


_SIZE = r"(?: (?:width|dim\w*|size|units?))?"
# The nouns of each kind, longest first where one contains another. Kinds that
# no rule asks for show that a number counts something else.
_NOUNS = (
  ("head_width", r"heads? (?:width|dim\w*|size)|d head|d k|size per head"),
  (
    "kv_heads",
    r"(?:num )?(?:kv|key value|key and value|gqa|query) (?:heads?|groups?)"
    r"|n kv heads?|num key value heads?|kv|gqa",
  ),
  ("heads", r"(?:(?:attention|query|num|n) )*heads?|n head"),
  (
    "feed_forward",
    rf"(?:feed ?forward|ffn?)(?: network| hidden)?{_SIZE}|d ff"
    rf"|(?:intermediate|mlp){_SIZE}",
  ),
  (
    "layers",
    r"(?:(?:num|n|hidden|transformer|decoder|number of) )*(?:layers?|blocks?)"
    r"|depth|deep|stack",
  ),
  (
    "width",
    rf"hidden(?: states?)?{_SIZE}|(?:model|residual) (?:width|dim\w*|size)"
    rf"|residual stream|d model|n embd|embed(?:ding)?s?{_SIZE}"
    r"|width|wide|dims?|dimensions?|dimensional|channels?|rank",
  ),
  (
    "context_tokens",
    r"(?:max )?(?:position embeddings|positions)|(?:model )?max length"
    r"|context(?: (?:length|window|size))?"
    r"|(?:max )?(?:sequence|seq) len(?:gth)?",
  ),
  ("parameters", r"(?:trainable )?param(?:eter)?s?|weights?|model size"),
  ("tokens", r"tokens?|toks?"),
  ("bytes", r"bytes?|[kmgtpe]i?b|bits?"),
  (
    "time",
    r"(?:device |gpu |tpu |chip |accelerator |h100 |a100 )?(?:hours?|hrs?|h)"
    r"|seconds?|secs?|s|ms|minutes?|mins?|days?|weeks?|months?|years?",
  ),
  ("money", r"dollars?|usd|eur|euros?|cents?"),
  ("energy", r"[kmg]?wh|joules?|k?watts?|k?w"),
  ("compute", r"[kmgtpe]?flops?|flop|mfu"),
  ("rate", r"percent|%"),
  (
    "count",
    r"rows?|steps?|documents?|docs?|files?|points?|permutations?|resamples?"
    r"|prompts?|pairs?|samples?|examples?|items?|entries|ids?|index|seed"
    r"|vocab\w*|words?|lines?|versions?|pages?|tests?|rounds?|times|devices?"
    r"|gpus?|tpus?|chips?|hosts?|nodes?|offsets?|position|number|count|n"
    r"|nats|temperature|strengths?|vectors?|draws?|epochs?|batch(?:es)?"
    r"|shards?|chunks?|people|users?|downloads?|canaries|digits?|repeats?|k"
    r"|epsilon|rev(?:ision)?|section|arxiv|doi|page|figure|table|license"
    r"|licence|copyright|percentile|quantile|bins?|tensors?",
  ),
)
_ANY = re.compile(
  "|".join(rf"(?P<{kind}>\b(?:{nouns})\b)" for kind, nouns in _NOUNS)
)
# A few other words may stand between a number and its noun.
_BEHIND, _WORDS_BEHIND = 48, 2
_BEFORE, _WORDS_BEFORE = 72, 5
_ENDS_BEHIND = re.compile(r"[;:!?|\n\f={}\[\]<>,\d]|\.(?=\s|$)")
_ENDS_BEFORE = re.compile(r"[\n\f|;]|[.!?](?=\s)")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_WORD_BREAKS = re.compile(r"[^A-Za-z0-9%]+")


def kind(text: str, start: int, end: int) -> str | None:
  """Returns what the number at text[start:end] counts, or None."""
  before = text[max(start - _BEFORE, 0) : start]
  return _kind(before, text[end : end + _BEHIND])


@functools.lru_cache(10_000)  # Rows of a table repeat.
def _kind(before: str, behind: str) -> str | None:
  if stop := _ENDS_BEHIND.search(behind):
    # Words before a colon name the next value.
    behind = "" if stop[0] in ":=" else behind[: stop.start()]
  if behind.lstrip().startswith("%"):
    return "rate"
  words = _words(behind)
  found = _ANY.search(words)
  if found and len(words[: found.start()].split()) <= _WORDS_BEHIND:
    return found.lastgroup
  if before.rstrip()[-1:] in ("$", "\u20ac", "\u00a3"):
    return "money"
  if before.rstrip().endswith("|"):
    # A number alone in a table cell is named by the cell before.
    before = before.rstrip()[:-1]
  words = _words(_ENDS_BEFORE.split(before)[-1])
  found = None
  for match in _ANY.finditer(words):
    found = match
  if found is None:
    return None
  # A number in between has its own noun: "layers 4, width 64, 30".
  gap = words[found.end() :]
  if re.search(r"\d", gap) or len(gap.split()) > _WORDS_BEFORE:
    return None
  return found.lastgroup


def near(text: str, start: int, end: int, pattern: re.Pattern) -> bool:
  """Whether a pattern occurs on the same line, within 80 characters."""
  before = re.split(r"[\n\f]", text[max(start - 80, 0) : start])[-1]
  behind = re.split(r"[\n\f]", text[end : end + 80])[0]
  return bool(pattern.search(_words(before)) or pattern.search(_words(behind)))


def _words(text: str) -> str:
  """Splits key names into words: num_hidden_layers, numHiddenLayers."""
  return _WORD_BREAKS.sub(" ", _CAMEL.sub(" ", text)).lower()
