"""Tests for analogjax/documents/render.py: rules for every document."""

import json
import re

import facts_example
import pytest

from analogjax.bundle import record
from analogjax.documents import render

PUBLIC = {
  *("README.md", "model/README.md", "COMPLIANCE.md", "compliance.json"),
  *("TRAINING_DATA.md", "TRAINING_DATA.json", "COST.md", "SAFETY.md"),
  *("fidelity.html", "mlbom.cdx.json", "repro/README.md"),
  "repro/software.json",
}
REGULATOR = {
  *("COMPLIANCE.md", "compliance.json", "COST.md", "mlbom.cdx.json"),
  "openings.json",
}


def test_each_view_has_its_documents(rendered):
  assert set(rendered()) == PUBLIC
  assert set(rendered(view="regulator")) == REGULATOR


def test_the_same_record_gives_the_same_bytes(rendered, fidelity):
  made = record.project(facts_example.facts(), "public")
  again = json.loads(record.to_text(made))
  assert render.render(again, fidelity=fidelity, safety={}) == rendered()


PLACEHOLDER = re.compile(
  r"(?i:more information needed|\btodo\b|\btbd\b|\bfixme\b|lorem|placeholder)"
  r"|\bNone\b(?![.:]| beside)|\bnull\b|\b[Nn]a[Nn]\b|\binf\b|\bTrue\b|\bFalse\b"
  r"|\{\}|\[\]|\{[a-z_]+\}|\|  +\|"
)


@pytest.mark.parametrize("view", record.VIEWS)
def test_no_place_is_left_empty(rendered, view):
  for path, text in rendered(view=view).items():
    if path.endswith(".md"):
      assert not PLACEHOLDER.search(text), path
      headings = re.findall(r"^#+ .*\n\n(?=#+ |$)", text, re.MULTILINE)
      # A section may begin with a section, but not end with its heading.
      assert not [h for h in headings if not h.startswith("## 2 ")], headings


@pytest.mark.parametrize(
  "text", ["a None", "TODO", "[More Information Needed]", "nan", "is {name}"]
)
def test_a_placeholder_would_be_seen(text):
  assert PLACEHOLDER.search(text)


@pytest.mark.parametrize("view", record.VIEWS)
def test_json_documents_are_json(rendered, view):
  for path, text in rendered(view=view).items():
    if path.endswith(".json"):
      json.loads(text)
      assert text.endswith("}\n")
