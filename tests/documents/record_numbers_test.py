"""Every number of every page comes from the record, or from the fixed text.

Numbers are taken out of the pages and looked up among all ways in which
rendering/numbers.py writes the record's. Numbers that follow from several
others are computed here by hand.
"""

import math
import re

import facts_example
import pytest

from analogjax.bundle import record
from analogjax.rendering import numbers

NUMBER = re.compile(
  r"(?:\d+\.\d x )?10\^-?\d+|-?\d+(?:,\d{3})*(?:\.\d+)?(?: %)?"
)
# Statements of the documents about laws, papers, formats and the form's bands.
WORDS = (
  *("SHA-256", "Table 1", "95 %", "arXiv:2403.13784", "arXiv:2503.16870"),
  *("Article 53(1)(d)", "(EU) 2024/1689", "C(2025) 8311", "10 July 2025"),
  *("5 December 2025", "section 3", "Measure 1.1"),
  *("less than 1 billion tokens", "1 to 500 million", "Less than 1 month"),
)
HEADINGS = re.compile(r"^#+ (?:[123]|2\.[1-6]) (?=[A-Z])", re.MULTILINE)


def leaves(value):
  if isinstance(value, dict):
    yield from (x for item in value.values() for x in leaves(item))
  elif isinstance(value, list):
    yield len(value)
    yield from (x for item in value for x in leaves(item))
  else:
    yield value


def derived(facts):
  """Numbers that documents compute, by hand."""
  for verdict in ("passed", "waived", "warning", "failed"):
    yield sum(g["verdict"] == verdict for g in facts["gates"])
  for verdict in ("passed", "failed", "no threshold", "undefined"):
    yield sum(t["verdict"] == verdict for t in facts["safety"]["tests"])
  yield 134.9 / 86_400  # Days by the clock.
  yield (0.0151 + 0.0224) / 24  # Device-days of the analog.
  yield 0.0429 / 24  # And of the teacher.
  yield 2.51274e12 + 3.35033e12
  yield 2.51274e12 + 3.35033e12 + 2.20389e13
  yield (0.0032 + 0.0048 + 0.0091) / 1000  # MWh.
  yield 2 * 3_342_912  # FLOPs of a token.


def written(value):
  """All ways to write a number."""
  yield numbers.number(value)
  yield numbers.percent(value)
  yield numbers.share(value)
  yield numbers.two_figures(value)
  yield numbers.magnitude(value)
  if value >= 0:
    yield numbers.amount(value)
    yield numbers.amount(value, unit=numbers.USD)
  if isinstance(value, int):
    yield numbers.exact(value)


def allowed(facts):
  found = set()
  for value in (*leaves(facts), *derived(facts)):
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and math.isfinite(value):
      for text in written(value):
        found |= set(NUMBER.findall(text))
  return found


def strange(page, facts):
  """Numbers of a page without a source."""
  page = re.sub(r"\A---\n.*?\n---\n", "", page, flags=re.DOTALL)
  # The digest of the record is not one of its facts.
  page = re.sub(r"\b[0-9a-f]{64}\b", "", HEADINGS.sub("", page))
  page = " ".join(page.split())
  texts = [x for x in leaves(facts) if isinstance(x, str) and x]
  for text in sorted((*texts, *WORDS), key=len, reverse=True):
    # Not in the middle of a number: a version "1" is not part of "12".
    whole = rf"(?<![\d.,]){re.escape(text)}(?!,?\d|\.\d)"
    page = re.sub(whole, " ", page)
  return sorted(set(NUMBER.findall(page)) - allowed(facts))


@pytest.mark.parametrize("view", record.VIEWS)
def test_every_number_is_the_record_s(rendered, view):
  facts = facts_example.facts()
  for path, page in rendered(view=view).items():
    if path.endswith(".md"):
      assert not strange(page, facts), path


@pytest.mark.parametrize(
  "line", ["It has 3,342,913 parameters.", "KL 3.27", "7 x 10^9", "0.51 %"]
)
def test_a_number_of_nobody_is_found(rendered, line):
  page = rendered()["model/README.md"]
  assert strange(f"{page}\n{line}\n", facts_example.facts())


def test_a_number_that_changes_in_the_record_changes_in_the_pages(rendered):
  facts = facts_example.facts()
  facts["model"]["parameters"] = {"total": 4_111_222, "active": 3_999_888}
  facts["training"]["phases"][0]["tokens"] = 777_001
  facts["fidelity"]["metrics"]["accuracy"]["value"] = 0.8765
  pages = rendered(facts)
  card = pages["model/README.md"]
  for text in ("4,111,222", "3,999,888", "777,001", "0.876"):
    assert text in card
  assert "3,342,912" not in "".join(pages.values())
  assert "4,111,222" in pages["compliance.json"]
