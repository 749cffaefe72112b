"""Reads quantities with a unit from fields, tables and sentences.

A statement is one quantity, whether it is about the frontier model or the
analog, and the other statements beside it: in one JSON object, one row of a
table or one paragraph.
"""

from collections.abc import Iterator
import re
from typing import Any, NamedTuple

from analogjax.leaks import numerals
from analogjax.leaks.reading import Page, Pairs

TEACHER, STUDENT = "teacher", "student"
Scope = tuple[str, str]  # File, and the place in it.


class Statement(NamedTuple):
  """One quantity, in SI units, FLOPs, tokens, dollars or dollars an hour.

  Attributes:
    kind: flops, flops_per_token, flop_rate, device_seconds, seconds, tokens,
      token_rate, mfu, dollars, price, joules, watts, devices or weights_bytes.
    low, high: equal for a number, the ends of a range otherwise.
    step: one unit of the last stated digit; 0 if the number is exact.
    role: TEACHER, STUDENT, or "" where no word says.
    scope: statements with the same scope stand together.
    where, text: the place and the words.
    is_certain: a field of the record gives the role, not a word.
    in_row: the scope is a row of a table or an object, not prose.
  """

  kind: str
  low: float
  high: float
  step: float
  role: str
  scope: Scope
  where: str
  text: str
  is_certain: bool = False
  in_row: bool = False

  @property
  def is_point(self) -> bool:
    return self.low == self.high


# Prefixes of units, in lower case.
_PREFIXES = {
  **{"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18},
  **{"z": 1e21, "y": 1e24},
}

_DEVICE = (
  r"(?:device|gpu|tpu|chip|accelerator|core"
  r"|[habv]\d{2,3}|gb200|v\dp?e?|mi\d+x?)"
)
_A = r"\s?(?:/|per|an|a)[\s-]?"  # One unit per another.
_S = r"(?:seconds?|secs?|s)\b"
_H = r"(?:hours?|hrs?|h)\b"
_PREFIX = r"([kmgtpezy]?)"
_OF_TIME = r"[\s-]?(?:hour|sec|day|h\b)"
_OF_WEIGHTS = r"[^.\n]{0,40}(?:weight|checkpoint|model|memory)"

# Units by what follows a number, and by the name of the field that it is in.
# Each table is read from its top and the first match counts: tokens a second
# before seconds. An entry is a kind of `Statement`, its unit in the kind's own
# unit, and a pattern; its group is a prefix of the unit.
_BEHIND = (
  ("price", 1, rf"(?:usd|dollars?|\$)?{_A}(?:{_DEVICE}[\s-]?)?{_H}"),
  ("device_seconds", 3600, rf"{_DEVICE}[\s-]?{_H}"),
  ("device_seconds", 86_400, rf"{_DEVICE}[\s-]?days?\b"),
  ("device_seconds", 1, rf"{_DEVICE}[\s-]?{_S}"),
  ("token_rate", 1, rf"(?:tokens?|toks?){_A}{_S}"),
  ("seconds_per_token", 1, rf"s(?:econds?)?{_A}token"),
  ("seconds_per_token", 1e-3, rf"ms{_A}token"),
  ("flops_per_token", 1, rf"{_PREFIX}flops?{_A}token"),
  ("flop_rate", 1, rf"{_PREFIX}flops?{_A}{_S}"),
  ("flops", 1, rf"{_PREFIX}flops?\b"),
  ("tokens", 1, r"(?:[a-z-]+\s){0,2}(?:tokens?|toks?)\b(?!\s?(?:/|per))"),
  ("mfu", 0.01, r"%\s?(?:mfu|utili[sz]ation|of (?:the )?peak|model flops)"),
  ("joules", 3.6e3, r"([kmgt]?)w[\s-]?h(?:ours?|rs?)?\b"),
  ("joules", 1, r"([kmgt]?)(?:joules?|j)\b"),
  ("watts", 1, r"([km]?)(?:watts?|w)\b(?!\s?h)"),
  ("dollars", 1, r"(?:usd|dollars?)\b"),
  ("devices", 1, rf"(?:x\s)?(?:[a-z]+\s)?{_DEVICE}s\b(?!{_OF_TIME})"),
  ("seconds", 3600, _H),
  ("seconds", 60, r"(?:minutes?|mins?)\b"),
  ("seconds", 1, _S),
  ("weights_bytes", 1, rf"([kmgtp]?)i?b(?:ytes?)?\b(?={_OF_WEIGHTS})"),
)
_UNITS = tuple(
  (kind, factor, re.compile(rf"[\s-]{{0,2}}(?:{pattern})", re.I))
  for kind, factor, pattern in _BEHIND
)

_NAMES = (
  ("price", 1, r"dollars? per (?:\w+ )?hour|price|hourly"),
  ("seconds_per_token", 1, r"seconds? per token|latency"),
  ("token_rate", 1, rf"tokens? (?:per )?{_S}|throughput|\btps\b"),
  ("device_seconds", 3600, rf"{_DEVICE} ?(?:hours?|h)\b"),
  ("device_seconds", 1, rf"{_DEVICE} ?(?:seconds?|s)\b"),
  ("flops_per_token", 1, r"flops? per token"),
  ("flop_rate", 1e12, r"tflops? per s|tflop s\b|peak tflops?"),
  ("flop_rate", 1, r"flops? per s|peak flops?"),
  ("flops", 1e12, r"\btflops?$"),
  ("flops", 1, r"\bflops?\b(?! per)"),
  ("mfu", 1, r"\bmfu\b|utili[sz]ation"),
  ("joules", 3.6e6, r"\bkwh\b"),
  ("joules", 3.6e9, r"\bmwh\b"),
  ("joules", 3.6e3, r"\bwh\b"),
  ("joules", 1, r"\bjoules?\b"),
  ("watts", 1, r"\bwatts?\b"),
  ("dollars", 1, r"\b(?:dollars?|usd)\b|\bcost$|^\$$"),
  ("tokens", 1, r"\btokens?$"),
  ("devices", 1, r"\b(?:num )?(?:devices|gpus|tpus|chips)$"),
  ("seconds", 3600, r"\bhours?$"),
  ("seconds", 1, r"\b(?:wall )?seconds?$"),
  (
    "weights_bytes",
    1,
    r"(?:weights?|checkpoint|model|teacher|frontier) bytes$",
  ),
)
_FIELDS = tuple(
  (kind, factor, re.compile(pattern)) for kind, factor, pattern in _NAMES
)

_OF_TEACHER = re.compile(
  r"\b(?:teacher\w*|frontier\w*|caching|fill(?:ed|ing)? the (?:logit )?cache"
  r"|(?:larger?|big|parent|source) model)\b"
)
_TEACHER_STAGE = "cache"
_OF_STUDENT = re.compile(
  r"\b(?:student\w*|analog\w*|pretrain\w*|small model)\b"
)
# Numbers of tokens that say nothing about compute.
_NOT_COST = re.compile(r"per |context|row|max|vocab|position|sequence|chunk")
_RANGE = re.compile(r"\s?(?:to|and|-|\u2013|\.\.\.?)\s?\$?$", re.I)
_SCOPES = re.compile(r"\n\s*\n|\f|\n(?=\s*(?:[-*|]|\d+\.)\s)")
_SENTENCE = re.compile(r"(?<=[.;!?])\s+(?=[A-Z(])")
_GOES_ON = re.compile(r"(?:this|it|that|these|they|which|all)\b", re.I)
# "The weights take 3 GB"; _UNITS has the nouns after a number.
_WEIGHTS = re.compile(r"\b(?:weights?|checkpoint)\b[^.;\n\d]{0,40}$", re.I)
_BYTES = re.compile(r"[\s-]{0,2}([kmgtp])i?b(?:ytes?)?\b", re.I)
_MOST_SENTENCES = 10_000  # In a paragraph.


def statements(page: Page, text: str) -> Iterator[Statement]:
  """Yields the quantities of a page.

  Args:
    page: a JSON page is read by its value.
  """
  if page.value is not None:
    yield from _of_json(page)
    for number, line in enumerate(text.split("\n")):
      keys, colon, words = line.partition(": ")
      if colon and " " in words.strip():
        where = page.where(number)
        yield from _of_text(page, where, words, role_of(keys))
    return
  yield from _of_tables(page, text)
  place = 0
  for scope in _SCOPES.split(text):
    place = text.find(scope, place)
    where = page.where(text.count("\n", 0, place))
    if not scope.lstrip().startswith("|"):
      yield from _of_text(page, where, scope)
    place += len(scope)


def role_of(text: str) -> str:
  """Returns whose quantities a text is about, if it says so."""
  words = re.sub(r"[_.\-/]+", " ", text.lower())
  if _OF_TEACHER.search(words):
    return TEACHER
  return STUDENT if _OF_STUDENT.search(words) else ""


def _of_text(page: Page, where: str, text: str, role: str = ""):
  """Yields the quantities of a paragraph, each with its sentence's role."""
  scope = (page.file, where)
  before = role
  for sentence in _SENTENCE.split(text)[:_MOST_SENTENCES]:
    found = role_of(sentence)
    if not found:
      found = before if _GOES_ON.match(sentence) else role
    yield from _of_sentence(scope, sentence, found)
    before = found


def _of_sentence(scope: Scope, text: str, role: str) -> Iterator[Statement]:
  waiting: numerals.Number | None = None
  for number in numerals.find(text):
    found = _unit_of(text, number)
    begins = waiting is not None and _RANGE.search(
      text[waiting.end : number.start]
    )
    if found is None:
      waiting = number
      continue
    kind, factor = found
    first = waiting if begins and waiting is not None else number
    low, high = sorted((first.value * factor, number.value * factor))
    begin = first.start - (text[first.start - 1 : first.start] == "$")
    words = text[begin : number.end + 24].replace("\n", " ").strip()
    step = number.step * factor
    yield Statement(kind, low, high, step, role, scope, scope[1], words)
    waiting = number


def _unit_of(text: str, number: numerals.Number) -> tuple[str, float] | None:
  before = text[max(number.start - 24, 0) : number.start].lower()
  behind = text[number.end : number.end + 60]
  money = before.rstrip()[-1:] == "$"
  for kind, factor, pattern in _UNITS:
    match = pattern.match(behind)
    if not match or (kind == "price" and not money and "$" not in match[0]):
      continue
    prefix = match[1] if match.re.groups and match[1] else ""
    return kind, factor * _PREFIXES[prefix.lower()]
  if money:
    return "dollars", 1
  of = text[max(number.start - 60, 0) : number.start]
  if _WEIGHTS.search(of) and (match := _BYTES.match(behind)):
    return "weights_bytes", _PREFIXES[match[1].lower()]
  if re.search(r"\b(?:mfu|utili[sz]ation)\b[^\d.;]{0,16}$", before):
    return "mfu", 0.01 if behind.lstrip().startswith("%") else 1
  return None


def _of_json(page: Page) -> Iterator[Statement]:
  """Yields the numbers of all objects in a JSON value."""
  waiting: list[tuple[str, Any]] = [("", page.value)]
  while waiting:
    path, value = waiting.pop()
    if isinstance(value, list) and not isinstance(value, Pairs):
      waiting += [(f"{path}[{i}]", x) for i, x in enumerate(value)]
    elif isinstance(value, Pairs):
      yield from _of_object(page, path, value)
      waiting += [(f"{path}.{k}" if path else k, x) for k, x in value]


def _of_object(page: Page, path: str, value: Pairs) -> Iterator[Statement]:
  """Yields the numbers of an object, by the names of their fields."""
  words = []
  for _, found in value:
    found = found if type(found) is list else [found]
    words += [x.lower() for x in found if isinstance(x, str)]
  of_teacher = value.get("of_teacher")
  role = role_of(" ".join([path, *words]))
  if _TEACHER_STAGE in words:
    role = TEACHER
  if path.rpartition(".")[2] == "total":
    role = ""  # Its words say what it leaves out.
  certain = isinstance(of_teacher, bool)
  if certain:
    role = TEACHER if of_teacher else STUDENT
  # To measure the frontier model is to run it.
  if page.file.endswith("fidelity.json") and path.startswith("cost."):
    role = TEACHER
  for key, found in value:
    ends = _ends(found)
    name = re.sub(r"[_\-\s]+", " ", key.lower())
    for kind, factor, pattern in _FIELDS:
      if ends and pattern.search(name):
        low, high = (end * factor for end in ends)
        if kind == "mfu" and high > 1:
          low, high = low / 100, high / 100
        if kind == "tokens" and _NOT_COST.search(name):
          break
        where = f"{path}.{key}" if path else key
        here = TEACHER if _OF_TEACHER.search(name) else role
        shown = f"{key} {found if not isinstance(found, list) else ends}"
        scope = (page.file, path)
        yield Statement(
          kind, low, high, 0.0, here, scope, where, shown, certain, in_row=True
        )
        break


def _ends(value: Any) -> tuple[float, float] | None:
  """Returns the ends of a range, twice the same for a number, or None."""
  if isinstance(value, Pairs):
    value = [value.get("low"), value.get("high")]
  ends = value if isinstance(value, list) else [value, value]
  ok = len(ends) == 2 and all(
    isinstance(x, int | float) and not isinstance(x, bool) for x in ends
  )
  if not ok or not all(0 <= x < 1e40 for x in ends):
    return None
  return float(min(ends)), float(max(ends))


def _of_tables(page: Page, text: str) -> Iterator[Statement]:
  """Yields the cells of Markdown tables, by the heads of their columns."""
  heads: list[str] = []
  lines = text.split("\n")
  for number, line in enumerate(lines):
    cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
    if not line.lstrip().startswith("|"):
      heads = []
      continue
    if set(line) <= set("|-: "):
      heads = [
        re.sub(r"[_\-\s]+", " ", cell.lower())
        for cell in lines[number - 1].strip().strip("|").split("|")
      ]
      continue
    where, role = page.where(number), role_of(line)
    for head, cell in zip(heads, cells, strict=False):
      found = list(numerals.find(cell))
      if not 1 <= len(found) <= 2:
        continue
      kind_of = next((x for x in _FIELDS if x[2].search(head.strip())), None)
      unit = _unit_of(cell, found[-1])
      if unit is None and kind_of is not None:
        unit = kind_of[:2]
      if unit is not None:
        kind, factor = unit
        low, high = sorted(x.value * factor for x in (found[0], found[-1]))
        step, shown = found[-1].step * factor, f"{head.strip()} {cell}"
        scope = (page.file, where)
        yield Statement(
          kind, low, high, step, role, scope, where, shown, in_row=True
        )
