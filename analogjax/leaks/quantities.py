"""Public quantities with a unit: what sums can be done with.

A statement says how much of what, of which model, and beside which others it
stands: in one JSON object, one row of a table or one paragraph.
"""

from collections.abc import Iterator
import re
from typing import Any, NamedTuple

from analogjax.leaks import numerals, units
from analogjax.leaks.reading import Page, Pairs

TEACHER, STUDENT = "teacher", "student"


class Statement(NamedTuple):
  """One quantity in SI units, FLOP, tokens, dollars or dollars an hour.

  Attributes:
    kind: flops, flops_per_token, flop_rate, device_seconds, seconds, tokens,
      token_rate, mfu, dollars, price, joules, watts, devices or weights_bytes.
    low, high: the same for a number, the ends of a range.
    step: what one more in the last stated digit is; 0: stated exactly.
    role: TEACHER, STUDENT or "" where no word says.
    is_certain: a field of the record says so, not a word.
    in_row: its scope is a row of a table or an object, not prose.
    scope: statements of one scope stand together.
    file, where, text: where it was, and the words.
  """

  kind: str
  low: float
  high: float
  step: float
  role: str
  is_certain: bool
  in_row: bool
  scope: tuple[str, str]
  file: str
  where: str
  text: str

  @property
  def is_point(self) -> bool:
    return self.low == self.high


_OF_TEACHER = re.compile(
  r"\b(?:teacher\w*|frontier\w*|caching|fill(?:ed|ing)? the (?:logit )?cache"
  r"|(?:larger?|big|parent|source) model)\b"
)
_STAGE_OF_TEACHER = "cache"
_OF_STUDENT = re.compile(
  r"\b(?:student\w*|analog\w*|pretrain\w*|small model)\b"
)
# Other numbers of a JSON object that say nothing of compute.
_NOT_COST = re.compile(r"per |context|row|max|vocab|position|sequence|chunk")
_RANGE = re.compile(r"\s?(?:to|and|-|\u2013|\.\.\.?)\s?\$?$", re.I)
_SCOPES = re.compile(r"\n\s*\n|\f|\n(?=\s*(?:[-*|]|\d+\.)\s)")
_SENTENCE = re.compile(r"(?<=[.;!?])\s+(?=[A-Z(])")
_GOES_ON = re.compile(r"(?:this|it|that|these|they|which|all)\b", re.I)
# "The weights take 3 GB"; where the noun is behind, units.BEHIND has it.
_WEIGHTS = re.compile(r"\b(?:weights?|checkpoint)\b[^.;\n\d]{0,40}$", re.I)
_BYTES = re.compile(r"[\s-]{0,2}([kmgtp])i?b(?:ytes?)?\b", re.I)
_MOST_SENTENCES = 10_000  # Of a paragraph.


def statements(page: Page, text: str) -> Iterator[Statement]:
  """The quantities of a page.

  Args:
    page: as it was read; of JSON its value is used.
    text: its text, plain and with decimal digits.
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
  """Whose quantities a text speaks of, if it says so."""
  words = re.sub(r"[_.\-/]+", " ", text.lower())
  if _OF_TEACHER.search(words):
    return TEACHER
  return STUDENT if _OF_STUDENT.search(words) else ""


def _of_text(page: Page, where: str, text: str, role: str = ""):
  """Quantities of a paragraph; each has the role of its sentence.

  Args:
    page, where: the place of the paragraph.
    text: of it.
    role: what stands before it says.
  """
  scope = (page.file, where)
  before = role
  for sentence in _SENTENCE.split(text)[:_MOST_SENTENCES]:
    found = role_of(sentence)
    if not found:
      found = before if _GOES_ON.match(sentence) else role
    yield from _of_sentence(page, scope, sentence, found)
    before = found


def _of_sentence(page: Page, scope: tuple[str, str], text: str, role: str):
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
    low = waiting if begins and waiting is not None else number
    ends = sorted((low.value * factor, number.value * factor))
    begin = low.start - (text[low.start - 1 : low.start] == "$")
    words = text[begin : number.end + 24].replace("\n", " ")
    step = number.step * factor
    yield Statement(
      *(kind, ends[0], ends[1], step, role, False, False, scope),
      *(page.file, scope[1], words.strip()),
    )
    waiting = number


def _unit_of(text: str, number: numerals.Number) -> tuple[str, float] | None:
  before = text[max(number.start - 24, 0) : number.start].lower()
  behind = text[number.end : number.end + 60]
  money = before.rstrip()[-1:] == "$"
  for kind, factor, pattern in units.BEHIND:
    match = pattern.match(behind)
    if not match or (kind == "price" and not money and "$" not in match[0]):
      continue
    prefix = match[1] if match.re.groups and match[1] else ""
    return kind, factor * units.PREFIXES[prefix.lower()]
  if money:
    return "dollars", 1
  of = text[max(number.start - 60, 0) : number.start]
  if _WEIGHTS.search(of) and (match := _BYTES.match(behind)):
    return "weights_bytes", units.PREFIXES[match[1].lower()]
  if re.search(r"\b(?:mfu|utili[sz]ation)\b[^\d.;]{0,16}$", before):
    return "mfu", 0.01 if behind.lstrip().startswith("%") else 1
  return None


def _of_json(page: Page) -> Iterator[Statement]:
  """Numbers of objects by the names of their fields."""
  waiting: list[tuple[str, Any]] = [("", page.value)]
  while waiting:
    path, value = waiting.pop()
    if isinstance(value, list) and not isinstance(value, Pairs):
      waiting += [(f"{path}[{i}]", x) for i, x in enumerate(value)]
    elif isinstance(value, Pairs):
      yield from _of_object(page, path, value)
      waiting += [(f"{path}.{k}" if path else k, x) for k, x in value]


def _of_object(page: Page, path: str, value: Pairs) -> Iterator[Statement]:
  words = []
  for _, found in value:
    found = found if type(found) is list else [found]
    words += [x.lower() for x in found if isinstance(x, str)]
  of_teacher = value.get("of_teacher")
  role = role_of(" ".join([path, *words]))
  if _STAGE_OF_TEACHER in words:
    role = TEACHER
  if path.rpartition(".")[2] == "total":
    role = ""  # Its words say of what it is without.
  certain = isinstance(of_teacher, bool)
  if certain:
    role = TEACHER if of_teacher else STUDENT
  # What measured the frontier model ran it.
  if page.file.endswith("fidelity.json") and path.startswith("cost."):
    role = TEACHER
  for key, found in value:
    ends = _ends(found)
    name = re.sub(r"[_\-\s]+", " ", key.lower())
    for kind, factor, pattern in units.NAMES:
      if ends and pattern.search(name):
        low, high = (end * factor for end in ends)
        if kind == "mfu" and high > 1:
          low, high = low / 100, high / 100
        if kind == "tokens" and _NOT_COST.search(name):
          break
        where = f"{path}.{key}" if path else key
        here = TEACHER if _OF_TEACHER.search(name) else role
        shown = f"{key} {found if not isinstance(found, list) else ends}"
        yield Statement(
          *(kind, low, high, 0.0, here, certain, True, (page.file, path)),
          *(page.file, where, shown),
        )
        break


def _ends(value: Any) -> tuple[float, float] | None:
  """A number twice, or the ends of a range, or None."""
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
  """Cells of Markdown tables, by the heads of their columns."""
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
      kind_of = next(
        (x for x in units.NAMES if x[2].search(head.strip())), None
      )
      unit = _unit_of(cell, found[-1])
      if unit is None and kind_of is not None:
        unit = kind_of[:2]
      if unit is not None:
        low, high = sorted(x.value * unit[1] for x in (found[0], found[-1]))
        scope = (page.file, where)
        shown = f"{head.strip()} {cell}"
        yield Statement(
          *(unit[0], low, high, found[-1].step * unit[1]),
          *(role, False, True, scope),
          *(page.file, where, shown),
        )
