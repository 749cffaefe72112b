"""Numbers of the frontier model in texts: its size, shape, settings, dates."""

from collections.abc import Iterator
import datetime
import re

from analogjax.leaks import context, numerals
from analogjax.leaks.secrets import WINDOW, Secrets

Found = Iterator[tuple[str, int, str]]  # Rule, offset, what.

_OF_A_MODEL = re.compile(
  r"\b(?:param\w*|weights|frontier|teacher|(?:larger?|big|base|full) model"
  r"|model size|parent model|sota model|dense)\b"
)
_OF_PARAMETERS = re.compile(r"\b(?:param\w*|weights|sized?)\b")
_OF_A_RATIO = re.compile(
  r"\b(?:ratio|fraction|sizes?|share|window|smaller|larger|bigger|param\w*"
  r"|frontier|teacher|compression|scale|times|part|slower|faster|cheaper)\b"
)
_TIMES = re.compile(r"\s?(?:x|times|fold|\u00d7)\b|-fold|-times")
_DEPLOYED = re.compile(
  r"\b(?:deploy\w*|launch\w*|frontier|teacher|production|went live|live since"
  r"|served|serving|ga date|general availability)\b"
)
# Above this a size needs no word beside it, unless one says it is another's.
_LARGE = 1000
_LEAST_AXIS = 16
_SHAPE = re.compile(
  r"(?<![\w.,])(?:\d{2,6}(?: ?[x*] ?\d{2,6}){1,3}"
  r"|[\[(]\d{2,6}(?:, ?\d{2,6}){1,3}[\])])(?![.,]?\d|\w)"
)
_LAYER = re.compile(
  r"(?i)\blayers?[ _.\[-](\d{1,3})\b|\bblock_?(\d{2,3})\.(?:resid|attn|mlp)"
)
_DEPTH = re.compile(r"depths?(?:\[\])?\W{0,3}(?:of )?$")
# Depths that are asked for are parts of these, whatever a model has.
_COMMON_PARTS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20)
_ITS_OWN = ("parameters", None)


class SizeRules:
  """Finds numbers in a text; made once for all files."""

  def __init__(self, secrets: Secrets):
    self._secrets = secrets
    self._spelled = {
      text: size
      for size in secrets.sizes
      for text in numerals.spellings(size)
      if not text.isdigit() or len(text) >= 7
    }
    small = secrets.student["parameters"]
    low, high = secrets.window
    self._public = (small, low, high)
    self._ratios = tuple(small / size for size in secrets.sizes)
    # Digit by digit, whatever stands between them.
    self._exact = [
      (
        size,
        re.compile(r"(?<!\d)" + r"[\s,._'\-]{0,2}".join(str(size)) + r"(?!\d)"),
      )
      for size in secrets.sizes
      if size >= 10_000
    ]
    self._settings = [
      (name, value, _pattern_of(name))
      for name, value in secrets.numbers.items()
    ]
    self._days = _Days(secrets)
    self._ours = {x for x in secrets.student.values() if x >= _LEAST_AXIS}
    self._axes = {
      x
      for name, x in secrets.architecture.items()
      if x >= _LEAST_AXIS and name != "context_tokens" and x not in self._ours
    }

  def find(self, text: str) -> Found:
    """Every private number in a plain text with decimal digits."""
    for size, pattern in self._exact:
      for match in pattern.finditer(text):
        yield "parameters", match.start(), _size_is(match[0], size)
    if self._spelled:
      for match in re.finditer(r"(?<![\w])[0-9A-Za-z]{5,48}(?!\w)", text):
        if size := self._spelled.get(match[0].lower()):
          yield "parameters", match.start(), _size_is(match[0], size)
    for number in numerals.find(text):
      yield from self._judge(text, number)
    yield from self._of_tensors(text)
    yield from self._days.find(text)

  def _judge(self, text: str, number: numerals.Number) -> Found:
    stated = text[number.start : number.end]
    kind: list[str | None] = []

    def of() -> str | None:
      if not kind:  # It takes longer than all else here.
        kind.append(context.kind(text, number.start, number.end))
      return kind[0]

    for size in self._secrets.sizes:
      if self._is_size(text, number, size, of):
        yield "parameters", number.start, _size_is(stated, size)
        break
    for ratio in self._ratios:
      if self._is_ratio(text, number, ratio):
        what = f"{stated!r} is the analog's size in parts of the frontier's"
        yield "ratio", number.start, f"{what}, or the other way round"
        break
    for name, size in self._secrets.architecture.items():
      if self._is_dimension(name, size, number, of):
        what = f"{stated!r} is the frontier's {name.replace('_', ' ')}"
        yield "architecture", number.start, what
    if 0 < number.value < 1 and number.figures >= 3:
      before = text[max(number.start - 16, 0) : number.start]
      if _DEPTH.search(before) and self._is_depth(number):
        what = f"{stated!r} is a whole number of the frontier's layers"
        yield "architecture", number.start, f"{what}, as a part of them"
    for name, value, pattern in self._settings:
      if _is_setting(text, number, value, pattern):
        yield "setting", number.start, f"{stated!r} is the private {name}"

  def _is_size(self, text, number, size, of) -> bool:
    if number.figures >= 5 and _same_digits(number, size):
      return True
    if number.value < 1e4 or not number.states(size):
      # In millions or billions, with that in the name: "params_b: 0.135".
      return any(
        number.figures >= 3
        and not number.scaled
        and number._replace(
          value=number.value * unit, step=number.step * unit
        ).states(size)
        and of() == "parameters"
        for unit in (1e6, 1e9, 1e12)
      )
    if any(
      number.states(public) and abs(number.value / public - 1) < 0.05
      for public in self._public
    ):
      return False
    if number.figures >= 3:
      return of() in _ITS_OWN and (number.scaled or number.value >= 1e6)
    if number.figures == 2:
      return of() in _ITS_OWN and context.near(
        text, number.start, number.end, _OF_A_MODEL
      )
    ok = abs(number.value / size - 1) <= 0.5
    return ok and of() == "parameters"

  def _is_ratio(self, text, number, ratio: float) -> bool:
    behind = text[number.end : number.end + 12]
    before = text[max(number.start - 6, 0) : number.start]
    if number.scaled:
      return False
    if re.match(r"\s?(?:%|percent|per cent)", behind):
      ok = number.states(100 * ratio) and number.figures >= 2
      window = 0.5, 5
    elif re.search(r"\b1 ?(?:/|:|in|to) ?$", before) or _TIMES.match(behind):
      # 40 times is two figures, whatever stands at its end.
      ok = number.states(1 / ratio) and abs(number.value * ratio - 1) < 0.03
      window = WINDOW
    else:
      ok = number.figures >= 3 and number.states(ratio)
      ok = ok or (number.figures >= 4 and number.states(1 / ratio))
      window = 0.005, 0.05, *WINDOW
    # Which are the window's ends, whatever the frontier model is.
    if not ok or number.value in window:
      return False
    return number.figures >= 5 or context.near(
      text, number.start, number.end, _OF_A_RATIO
    )

  def _is_depth(self, number: numerals.Number) -> bool:
    """Whether a part of the depth has the frontier's layers below its line."""

    def is_part_of(layers: int) -> bool:
      off = abs(number.value * layers - round(number.value * layers))
      return off <= max(layers * number.step / 2, 1e-9)

    layers = self._secrets.architecture.get("layers", 0)
    ours = self._secrets.student.get("layers", 1)
    common = any(map(is_part_of, (*_COMMON_PARTS, ours)))
    return layers > 0 and not common and is_part_of(layers)

  def _is_dimension(self, name: str, size: int, number, of) -> bool:
    student = self._secrets.student
    if number.value != size:  # 16k for 16,384 is close enough.
      ok = size >= _LARGE and number.scaled and number.states(size)
      ours = number.states(student.get(name, 0))
      return ok and not ours and number.figures >= 2 and of() == name
    kind = of()
    if kind == name:
      return student.get(name) != size
    if size < _LARGE or size in student.values():
      return False
    return kind is None or kind in self._secrets.architecture

  def _of_tensors(self, text: str) -> Found:
    """Shapes and numbers of layers in a text."""
    for match in _SHAPE.finditer(text):
      found = {int(digits) for digits in re.findall(r"\d+", match[0])}
      if not found & self._axes or not found <= self._axes | self._ours:
        continue
      kind = context.kind(text, match.start(), match.end())
      if kind in _ITS_OWN or kind in self._secrets.architecture:
        what = f"{match[0]!r} is the shape of a tensor of the frontier model"
        yield "architecture", match.start(), what
    layers = self._secrets.architecture.get("layers", 0)
    for match in _LAYER.finditer(text):
      index = int(match[1] or match[2])
      # The last of the analog is its number of layers, if one counts from 1.
      if self._secrets.student.get("layers", layers) < index < layers:
        what = f"{match[0]!r} is a layer that the analog does not have"
        yield "architecture", match.start(), what


def _same_digits(number: numerals.Number, size: int) -> bool:
  """134.515 as well as 134515008, whatever the unit."""
  stated = number.digits.replace(".", "").strip("0")
  exact = str(size).rstrip("0")
  if not 5 <= len(stated) <= len(exact):
    return False
  step = 10 ** (len(str(size)) - len(stated))
  rounded = {size // step, (size + step // 2) // step}
  return stated in {str(value).rstrip("0") for value in rounded}


def _size_is(stated: str, size: int) -> str:
  return f"{stated!r} is the frontier's number of parameters, {size:,}"


# Other names of optimizer settings.
_ALIASES = {
  "learning rate": r"learning rate|lr|step size|peak lr|max lr",
  "b1": r"b1|beta ?1|betas|adam beta1|first moment",
  "b2": r"b2|beta ?2|betas|adam beta2|second moment",
  "weight decay": r"weight decay|wd|decay",
  "warmup steps": r"warm ?up(?: steps)?",
  "clip norm": r"clip(?:ping)?(?: norm)?|max (?:grad )?norm|grad\w* clip\w*",
  "batch rows": r"batch(?: rows| size)?|rows per step",
}


def _pattern_of(name: str) -> re.Pattern:
  """What stands beside the value of a setting."""
  leaf = re.sub(r"\[\d+\]", "", name.rpartition(".")[2].lower())
  leaf = re.sub(r"[_\-\s]+", " ", leaf).strip()
  return re.compile(rf"\b(?:{_ALIASES.get(leaf, re.escape(leaf))})\b")


def _is_setting(text, number, value: float, pattern: re.Pattern) -> bool:
  percent = text[number.end : number.end + 2].strip().startswith("%")
  if percent:
    same = abs(number.value - 100 * value) < number.step / 2
  else:
    same = abs(number.value - value) <= 1e-9 * abs(value)
  if not same or not number.value:
    return False
  return context.near(text, number.start, number.end, pattern)


_MONTHS = (
  "january february march april may june july august september october november"
  " december"
).split()


def _day(text: str) -> datetime.date | None:
  try:
    return datetime.date.fromisoformat(text)
  except ValueError:
    return None


class _Days:
  """The day of deployment, as dates are written, and as seconds and days."""

  def __init__(self, secrets: Secrets):
    self._patterns: list[tuple[re.Pattern, re.Pattern | None]] = []
    day = _day(secrets.deployed_on)
    if day is None:
      return
    name = _MONTHS[day.month - 1]
    month = rf"(?:{name}|{name[:3]}\.?|{name[:4]}\.?)"
    two = rf"(?:{day.day:02d}|{day.day})(?:st|nd|rd|th)?"
    numbers = rf"0?{day.month}[/.\-]0?{day.day}|0?{day.day}[/.\-]0?{day.month}"
    year, week = day.isocalendar()[:2]
    for text in (
      rf"{day.year}[-/._ ]?0?{day.month}[-/._ ]?0?{day.day}(?!\d)",
      rf"(?:{numbers})[/.\-](?:{day.year}|{day.year % 100:02d})(?!\d)",
      rf"{two}\s+(?:of\s+)?{month},?\s+{day.year}",
      rf"{month}\s+{two},?\s+{day.year}",
      rf"{day.year}\s+{month}\s+{two}(?!\d)",
      rf"{day.year}-{day.timetuple().tm_yday:03d}(?!\d)",
      rf"{year}-?w{week:02d}-?{day.isoweekday()}(?!\d)",
    ):
      self._add(text)
    # The month alone is three times as narrow as what the public knows.
    for text in (
      rf"{month}\s+(?:of\s+)?{day.year}",
      rf"{day.year}-{day.month:02d}(?![-\d])",
      rf"q{(day.month + 2) // 3}\s+{day.year}",
    ):
      self._add(text, _DEPLOYED)
    released = _day(secrets.released_on)
    if released is not None:
      days = (released - day).days
      self._add(
        rf"{days}\s+days?",
        re.compile(r"\b(?:after|since|later|deploy\w*|lag)\b"),
      )
    utc = datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC)
    start = int(utc.timestamp())
    self._seconds = range(start, start + 86_400)

  def _add(self, text: str, needed: re.Pattern | None = None) -> None:
    pattern = re.compile(rf"(?<![\d.]){text}", re.I)
    self._patterns.append((pattern, needed))

  def find(self, text: str) -> Found:
    for pattern, needed in self._patterns:
      for match in pattern.finditer(text):
        start, end = match.span()
        if needed is None or context.near(text, start, end, needed):
          yield "date", match.start(), f"{match[0]!r} is when it was deployed"
    if not self._patterns:
      return
    for match in re.finditer(
      r"(?<![\d.])1\d{9}(?=\d{3}(?!\d)|\d{6}(?!\d)|(?!\d))", text
    ):
      if int(match[0]) in self._seconds:
        what = f"{match[0]!r} is a second of the day of deployment"
        yield "date", match.start(), what
