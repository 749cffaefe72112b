"""Tables of quality.py: means, paired differences, and which of them are told.

Every arm of a seed has the same start, rows and order of rows, so differences
are taken within a seed; intervals are over seeds.
"""

from collections.abc import Iterable, Mapping, Sequence
import json
import math
from pathlib import Path
import textwrap
from typing import Any, NamedTuple

from grid_run import interval, read_results


class Measure(NamedTuple):
  """One number of a student."""

  field: str
  title: str
  digits: int
  sign: int  # 1: more is better.


MEASURES = (
  Measure("cross_entropy", "cross-entropy", 3, -1),
  Measure("kl", "KL to the teacher", 3, -1),
  Measure("ece", "ECE", 4, -1),
  Measure("agreement", "top-1 agreement", 4, 1),
)
REFERENCES = ("hard", "dense")

Lines = Mapping[tuple[str, int], Mapping[str, Any]]  # By arm and seed.


class Difference(NamedTuple):
  """Of two arms, a - b, over the seeds that both have."""

  mean: float
  half_width: float  # Of the 95 % interval; NaN for one seed.
  seeds: int

  @property
  def is_told(self) -> bool:
    """The interval leaves out 0."""
    return abs(self.mean) > self.half_width  # False for NaN.


def difference(lines: Lines, a: str, b: str, field: str) -> Difference:
  seeds = sorted(seed for arm, seed in lines if arm == a and (b, seed) in lines)
  values = [lines[a, i][field] - lines[b, i][field] for i in seeds]
  return Difference(*interval(values), len(values))


def report(
  workdir: Path,
  names: Sequence[str],
  pairs: Iterable[tuple[str, str]],
  learning_rate: float,
) -> str:
  """Tables and sentences; `names` gives the order of arms."""
  lines = {
    (line["arm"], line["seed"]): line
    for line in read_results(workdir)
    if line["learning_rate"] == learning_rate and line["arm"] in names
  }
  names = [name for name in names if any(arm == name for arm, _ in lines)]
  pairs = [pair for pair in pairs if set(pair) <= set(names)]
  against = [
    (name, reference)
    for reference in REFERENCES
    for name in names
    if reference in names and name != reference
  ]
  every = list(dict.fromkeys([*against, *pairs]))
  told = {
    (a, b, m.field): difference(lines, a, b, m.field)
    for a, b in every
    for m in MEASURES
  }
  parts = ["Means over seeds:", _means(lines, names)]
  for reference in REFERENCES:
    mine = [(a, b) for a, b in against if b == reference]
    if mine:
      parts += [f"Paired differences to *{reference}*:", _table(mine, told)]
  if pairs:
    parts += ["Paired differences between others:", _table(pairs, told)]
  parts += _sentences(against, pairs, told)
  entries = [
    {"a": a, "b": b, "field": field, **d._asdict(), "is_told": d.is_told}
    for (a, b, field), d in told.items()
  ]
  path = workdir / "quality.json"
  path.write_text(json.dumps(entries, indent=2) + "\n")
  return "\n\n".join(parts) + "\n"


def _means(lines: Lines, names: Sequence[str]) -> str:
  head = ["arm", "seeds", "bytes per token", "ids per token"]
  rows = []
  for name in names:
    own = [line for (arm, _), line in lines.items() if arm == name]

    def mean(field, own=own):
      return math.fsum(line[field] for line in own) / len(own)

    size = mean("bytes_per_token"), mean("ids_per_token")
    sizes = [f"{n:.1f}" if n else "-" for n in size]
    values = [f"{mean(m.field):.{m.digits}f}" for m in MEASURES]
    rows.append([name, str(len(own)), *sizes, *values])
  return _markdown(head + [m.title for m in MEASURES], rows)


def _table(
  pairs: Iterable[tuple[str, str]],
  told: Mapping[tuple[str, str, str], Difference],
) -> str:
  head = ["arm", "minus", *(m.title for m in MEASURES)]
  rows = []
  for a, b in pairs:
    cells = [_cell(told[a, b, m.field], m) for m in MEASURES]
    rows.append([a, b, *cells])
  return _markdown(head, rows)


def _cell(d: Difference, measure: Measure) -> str:
  if not d.seeds:
    return "-"
  value = f"{d.mean:+.{measure.digits}f}"
  if math.isnan(d.half_width):
    return value
  value += f" +- {d.half_width:.{measure.digits}f}"
  return f"**{value}**" if d.is_told else value


def _sentences(against, pairs, told) -> list[str]:
  """What the intervals say, by measure; wrapped for a page."""
  out = []
  for m in MEASURES:
    phrases = []
    for reference in REFERENCES:
      mine = [(a, b) for a, b in against if b == reference]
      for word, wanted in (
        ("better than", 1),
        ("worse than", -1),
        ("not told apart from", 0),
      ):
        verdicts = {a: _verdict(told[a, b, m.field], m) for a, b in mine}
        found = [a for a, verdict in verdicts.items() if verdict == wanted]
        if found:
          phrases.append(f"{word} *{reference}*: {', '.join(found)}")
    others = {1: [], 0: []}
    for a, b in pairs:
      verdict = _verdict(told[a, b, m.field], m)
      both = (b, a) if verdict < 0 else (a, b)
      others[abs(verdict)].append(both)
    if others[1]:
      found = ", ".join(f"{a} before {b}" for a, b in others[1])
      phrases.append(f"of the others, better first: {found}")
    if others[0]:
      found = ", ".join(f"{a} and {b}" for a, b in others[0])
      phrases.append(f"not told apart: {found}")
    if phrases:
      out.append(_wrapped(f"- **{m.title}**. {'; '.join(phrases)}."))
  count, found = len(told), sum(d.is_told for d in told.values())
  by_chance = (
    f"Of {count} intervals {found} leave out 0 (bold); about"
    f" {count / 20:.0f} would by chance, were there no difference anywhere."
  )
  return ["\n".join(out), _wrapped(by_chance)] if told else []


def _verdict(d: Difference, measure: Measure) -> int:
  """1: the first of the two is better, -1: it is worse, 0: it is not told."""
  sign = 1 if d.mean > 0 else -1
  return sign * measure.sign if d.is_told else 0


def _wrapped(text: str) -> str:
  indent = "  " if text.startswith("-") else ""
  return textwrap.fill(
    text,
    80,
    subsequent_indent=indent,
    break_long_words=False,
    break_on_hyphens=False,
  )


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
