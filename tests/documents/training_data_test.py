"""Tests for analogjax/documents/training_data.py."""

import json
import re

import facts_example
import pytest

from analogjax.bundle import record
from analogjax.config import release
from analogjax.documents import training_data


def project(**differs):
  facts = facts_example.facts()
  for key, value in differs.items():
    facts[key] = value
  return record.project(facts, "public")


def test_every_section_of_the_template_is_there():
  page = training_data.to_page(project())
  headings = re.findall(r"^#+ (\d[\d.]*) ", page, re.MULTILINE)
  assert headings == [
    *("1", "2", "2.1", "2.2", "2.3", "2.4", "2.5", "2.6", "3")
  ]
  assert re.search(r"### 2\.4 User data\n\nNone\.\n", page)


@pytest.mark.parametrize("kind", release.SOURCE_KINDS)
def test_each_kind_of_source_has_its_section(kind):
  facts = facts_example.facts()
  facts["data"]["sources"] = {
    "one": {**facts["data"]["sources"]["web"], "kind": kind}
  }
  made = training_data.make(record.project(facts, "public"))
  sections = {
    "public_dataset": "2.1",
    "licensed": "2.2",
    "private": "2.2",
    "crawled": "2.3",
    "user": "2.4",
    "synthetic": "2.5",
    "other": "2.6",
  }
  held = [n for n, s in made["sources"].items() if s["entries"]]
  assert held == [sections[kind]]


def test_distillation_is_synthetic_data_of_the_provider_s_larger_model():
  text = training_data.make(project())["sources"]["2.5"]["statement"]
  assert "distillation" in text and "larger" in text and "provider" in text
  assert "81,920" in text


def test_a_live_teacher_is_one_too(rendered):
  facts = facts_example.facts()
  facts["training"]["phases"][1]["teaches"] = "live teacher"
  facts["distillation"] = {"used": True}
  made = training_data.make(record.project(facts, "public"))
  text = made["sources"]["2.5"]["statement"]
  assert "distillation" in text and "recorded" not in text
  pages = rendered(facts)
  card = " ".join(pages["model/README.md"].split())
  assert "In distill the frontier model ran beside the analog" in card
  assert "ran once" not in card
  assert "records" not in pages["repro/README.md"]
  assert rendered(facts, "regulator")


def test_without_a_teacher_there_is_no_synthetic_data():
  facts = facts_example.facts()
  facts["training"]["phases"][1]["teaches"] = "hard labels"
  facts["distillation"] = {"used": False}
  made = training_data.make(record.project(facts, "public"))
  assert made["sources"]["2.5"]["statement"] == "None."
  assert made["general"]["dependencies"].startswith("None")


@pytest.mark.parametrize(
  ("tokens", "expected"),
  [
    (999_999_999, "less than 1 billion tokens"),
    (10**9, "1 billion to 10 trillion tokens"),
    (10**13, "more than 10 trillion tokens"),
  ],
)
def test_the_band_of_the_size(tokens, expected):
  facts = facts_example.facts()
  facts["data"]["train_tokens"] = tokens
  made = record.project(facts, "public")
  assert training_data.make(made)["general"]["size"] == expected
  assert expected in training_data.to_page(made)


@pytest.mark.parametrize(
  ("same", "expected"),
  [
    (True, "from the pipeline that trained the frontier model"),
    (False, "on other text than the frontier model"),
    (None, "is not stated"),
  ],
)
def test_it_says_whether_the_data_is_the_frontier_model_s(same, expected):
  facts = facts_example.facts()
  facts["pair"]["same_data"] = same
  page = training_data.to_page(record.project(facts, "public"))
  assert expected in " ".join(page.split())


def test_the_page_and_the_object_say_the_same():
  made = project()
  value = json.loads(training_data.to_json(made))
  page = training_data.to_page(made)
  for found in value["sources"].values():
    for entry in found["entries"]:
      assert f"| {entry['name']} |" in page and entry["about"] in page
