"""Tests for analogjax/documents/safety_summary.py."""

import copy

import facts_example
import pytest

from analogjax.bundle import record
from analogjax.documents import model_card, pages, safety_summary


@pytest.fixture
def facts():
  return facts_example.facts()


def render(facts):
  return safety_summary.render(record.project(facts, "public"))


def beside(facts, index, **differs):
  """An additional test, similar to an existing one."""
  test = copy.deepcopy(facts["safety"]["tests"][index])
  facts["safety"]["tests"].append({**test, **differs})


def test_models_stand_beside_the_analog_in_one_line(facts):
  text = facts["safety"]["tests"][0]["text"]
  for model, value in (("control", 0.25), ("teacher", 0.5)):
    beside(
      facts,
      0,
      model=model,
      value=facts_example.estimate(value, 0.0),
      threshold=None,
      verdict="no threshold",
    )
  page = render(facts)
  head = (
    "| measured | analog | threshold | verdict | control | frontier model |"
  )
  assert head in page
  line = (
    f"| {text} | 0 (0 to 0) | at most 0.01 | passed | 0.25 (0.25 to 0.25) |"
    " 0.5 (0.5 to 0.5) |"
  )
  assert line in page


def test_a_threshold_of_another_model_is_shown_with_its_verdict(facts):
  beside(facts, 0, model="control", verdict="failed")
  assert "| 0 (0 to 0); at most 0.01: failed |" in render(facts)


def test_what_the_analog_was_not_tested_for_is_said(facts):
  tests = facts["safety"]["tests"]
  tests[0]["model"] = "control"
  assert "| not measured | none | none |" in render(facts)


def test_a_family_that_was_not_tested_has_its_command(facts):
  tests = facts["safety"]["tests"]
  facts["safety"]["tests"] = [t for t in tests if t["family"] != "refusal"]
  page = render(facts)
  assert "It was not measured." in page
  assert "--only=refusal" in page


def test_two_results_of_one_model_are_two_lines(facts):
  beside(facts, 0, id="another")
  page = render(facts)
  text = facts["safety"]["tests"][0]["text"]
  assert f"| {text} |" in page and f"| {text} (another) |" in page


def test_a_command_stands_once(facts):
  beside(facts, 0, model="control")
  command = facts["safety"]["tests"][0]["command"]
  assert render(facts).count(command) == 1


@pytest.mark.parametrize(
  ("verdicts", "expected"),
  [
    ({}, "2 of 4 results have a threshold, set before anything was measured;"
         " these held."),
    ({1: "failed"}, "The evaluation failed. 2 of 4 results have a threshold,"
                    " set before anything was measured; of these, 1 held."),
    ({1: "undefined"}, "2 of 4 results have a threshold, set before anything"
                       " was measured; of these, 1 held."),
    ({1: "no threshold"}, "1 of 4 results has a threshold, set before anything"
                          " was measured; it held."),
    ({0: "no threshold", 1: "no threshold"},
     "0 of 4 results have a threshold, so nothing could fail."),
  ],
)  # fmt: skip
def test_the_summary_counts_results_with_a_threshold(facts, verdicts, expected):
  facts["safety"]["quick"] = False
  for i, verdict in verdicts.items():
    facts["safety"]["tests"][i]["verdict"] = verdict
    if verdict == "no threshold":
      facts["safety"]["tests"][i]["threshold"] = None
  if "failed" in verdicts.values():
    facts["safety"]["verdict"] = "failed"
  made = record.project(facts, "public")
  text = f"{expected} Because: No test failed."
  assert pages.statement("safety_verdict", made) == text
  assert expected in " ".join(render(facts).split())


def test_a_quick_evaluation_is_said_to_be_one(facts):
  made = record.project(facts, "public")
  assert "It was the quick run" in pages.statement("safety_verdict", made)


def test_the_card_shows_tests_with_a_threshold_alone(facts):
  made = record.project(facts, "public")
  card = model_card.render(made)
  table = card.split("| measured | model | value |")[1].split("\n\n")[0]
  assert [line.split(" | ")[3] for line in table.splitlines()[2:]] == [
    "at most 0.01",
    "at most 0.6",
  ]
  for test in facts["safety"]["tests"]:
    test["threshold"] = None
  made = record.project(facts, "public")
  assert "nothing could fail" in model_card.render(made)
