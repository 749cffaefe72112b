"""Tests for analogjax/documents/pages.py."""

import json

import facts_example
import pytest

from analogjax.bundle import record
from analogjax.documents import pages, render


def project(view="public", facts=None):
  return record.project(facts or facts_example.facts(), view)


def rows(page):
  """The first table of a page: title of a row -> its other cells."""
  found = {}
  for line in page.splitlines():
    if line.startswith("| "):
      first, *cells = line.strip("| ").split(" | ")
      found.setdefault(first, cells)
  return found


def test_teacher_inference_is_a_line_of_its_own_and_withheld_in_public():
  public = rows(pages.page("cost", project()))["Teacher inference"]
  assert public == [
    *("cache", "frontier model", "withheld", "0.86 to 8.61 USD", "withheld"),
    "1.1 x 10^13 to 1.1 x 10^14",
  ]
  regulator = rows(pages.page("cost", project("regulator")))[
    "Teacher inference"
  ]
  assert regulator == [
    *("cache", "frontier model", "0.043", "0.53 USD", "0.0091"),
    "2.2 x 10^13",
  ]


def test_the_paper_s_lines_come_first_and_the_total_last():
  facts = facts_example.facts()
  facts["cost"]["rows"].reverse()
  steps = list(rows(pages.page("cost", project(facts=facts))))
  paper_s = [
    *("Weight hosting and bandwidth", "Safety fine-tune/RLHF"),
    "Distill frontier model to analog",
    "Train analog model from scratch",
  ]
  assert steps[2:] == [
    *paper_s,
    *("Measurement", "Teacher inference", "**Total analog cost**"),
    "Phases to compare with",
  ]


def test_a_price_that_is_not_known_is_said_to_be():
  facts = facts_example.facts()
  facts["cost"]["rows"][0].update(dollars=None, note="price not known")
  page = pages.page("cost", project(facts=facts))
  assert "not stated" in rows(page)["Train analog model from scratch"]
  assert "- Train analog model from scratch: price not known.\n" in page


def test_the_same_note_stands_once():
  facts = facts_example.facts()
  for row in facts["cost"]["rows"][:2]:
    row["note"] = "Price not known."
  page = " ".join(pages.page("cost", project(facts=facts)).split())
  assert page.count("Price not known.") == 1
  assert (
    "Train analog model from scratch, Distill frontier model to analog: Price"
    in page
  )


@pytest.mark.parametrize("shares", [True, False])
def test_the_guide_names_rows_if_there_are_any(shares):
  facts = facts_example.facts()
  facts["data"]["shares_rows"] = shares
  page = pages.page("guide", project(facts=facts))
  assert ("rows/held_out.safetensors" in page) == shares


@pytest.mark.parametrize("url", ["https://example.org/x", "", None])
def test_the_guide_says_where_the_verifier_is(url):
  facts = facts_example.facts()
  facts["repro"]["verifier"] = url
  page = " ".join(pages.page("guide", project(facts=facts)).split())
  assert f"Where to get analogjax: {url or 'not stated'}." in page


def test_the_guide_tallies_the_gates():
  page = " ".join(pages.page("guide", project()).split())
  assert (
    "Of 9 gates: 7 passed, 1 passed with a warning, 1 did not pass and were"
    " waived."
  ) in page


def test_reproduction_has_what_the_record_has():
  facts = facts_example.facts()
  page = pages.page("reproduction", project(facts=facts))
  assert "\n".join(["```sh", *facts["repro"]["commands"], "```"]) in page
  assert facts["repro"]["commit"] in page
  assert "not committed" not in page
  facts["repro"]["dirty"] = True
  assert "not committed" in pages.page("reproduction", project(facts=facts))


def test_software_is_json():
  value = json.loads(render.software(project()))
  assert value == {
    "python": "3.11.9",
    "packages": {"analogjax": "0.2.0", "jax": "0.10.2"},
  }
