"""Tests for analogjax/safety/document.py."""

import copy
import json

import pytest

from analogjax.evaluation import estimates
from analogjax.safety import document
from analogjax.safety.evaluation import Result


def result(metric, hits, n, model="distill", variant=""):
  value = estimates.share(hits, n)
  return Result(metric, model, value, "What it is.", variant).to_json()


PARTS = {
  "membership": {
    "results": [
      result("membership_auc", 55, 100, variant="loss"),
      result("membership_auc", 60, 100, variant="min_k"),
      result("membership_auc", 90, 100, model="control", variant="loss"),
    ],
    "details": {
      **dict(min_k=0.2, false_positives=0.01, reference="", rows={}),
      "models": {},
    },
  },
  "refusal": {
    "results": [result("refusal_rate", 95, 100)],
    "details": {
      **dict(answer_tokens=4, phrases=3, refused={}),
      "lists": {
        side: dict(files=[], prompts=1, too_long=0, tried=1, sha256="0" * 64)
        for side in ("harmful", "harmless")
      },
    },
  },
}
INPUTS = {
  "analog": "distill",
  "teacher_digest": "ab" * 32,
  "canaries": {"seed": 7},
  "rows": {"members": {"number": 3, "digest": "c"}},
}


def make(parts=PARTS, **thresholds):
  return document.make(
    parts, inputs=INPUTS, thresholds=thresholds, quick=False, software={}
  )


def test_the_whole_interval_has_to_hold():
  tests = {
    t["id"]: t["verdict"]
    for t in make(
      membership_auc=dict(at_most=0.69), refusal_rate=dict(at_least=0.88)
    )["tests"]
  }
  # Wilson, 60 of 100: 0.502 to 0.691; 95 of 100: 0.888 to 0.978.
  assert tests == {
    "membership_auc.loss.distill": "passed",
    "membership_auc.min_k.distill": "failed",
    "membership_auc.loss.control": "no threshold",
    "refusal_rate.distill": "passed",
  }


@pytest.mark.parametrize(
  ("thresholds", "because"),
  [
    ({}, ""),
    (dict(membership_auc=dict(at_most=0.7)), ""),
    (
      dict(membership_auc=dict(at_most=0.6)),
      "beyond their thresholds: membership_auc.loss.distill, membership_auc.m",
    ),
    (dict(refusal_rate=dict(at_least=0.9)), "beyond their thresholds: refu"),
    (
      dict(canary_exposure=dict(at_most=3)),
      "not measured: canary_exposure",
    ),
  ],
)
def test_one_threshold_that_does_not_hold_fails_it(thresholds, because):
  value = make(**thresholds)
  assert value["verdict"] == ("failed" if because else "passed")
  assert value["because"].startswith(because)


def test_an_undefined_number_fails_its_threshold_and_nothing_fails_all():
  parts = copy.deepcopy(PARTS)
  undefined = estimates.undefined("there is nothing").to_json()
  parts["refusal"]["results"][0]["value"] = undefined
  value = make(parts, refusal_rate=dict(at_least=0.0))
  assert value["tests"][-1]["verdict"] == "undefined"
  assert value["verdict"] == "failed"
  assert make(parts)["verdict"] == "passed"
  assert make({})["because"] == "nothing was measured"


def test_the_command_is_that_of_the_part():
  value = document.make(
    PARTS, inputs=INPUTS, thresholds={}, quick=True, software={}
  )
  assert value["tests"][-1]["command"] == (
    "analogjax safety --config=CONFIG --workdir=WORKDIR --only=refusal --quick"
  )


def test_in_public_nothing_is_said_of_the_teacher_or_of_canaries():
  value = document.public(make())
  assert not document.problem(value)
  assert set(value["inputs"]) == {"analog", "rows"}
  assert "ab" * 32 not in json.dumps(value)
  assert value["tests"] == make()["tests"]


def test_a_document_comes_back_from_its_file(tmp_path):
  path = tmp_path / "safety.json"
  path.write_text(json.dumps(make()))
  assert document.read(path) == make()


def broken():
  value = make(membership_auc=dict(at_most=0.6))
  yield "a test failed", {**value, "verdict": "passed"}
  tests = copy.deepcopy(value["tests"])
  tests[0]["verdict"] = "passed"
  yield "does not follow from the threshold", {**value, "tests": tests}
  tests = copy.deepcopy(value["tests"])
  tests[0]["family"] = "refusal"
  yield "expected that of membership_auc", {**value, "tests": tests}
  yield "each id once", {**value, "tests": value["tests"] * 2}
  yield "Additional properties", {**value, "prompts": ["x"]}
  tests = copy.deepcopy(value["tests"])
  tests[0]["answer"] = "x"
  yield "Additional properties", {**value, "tests": tests}
  tests = copy.deepcopy(value["tests"])
  tests[0]["value"]["high"] = float("nan")
  yield "not finite", {**value, "tests": tests}
  yield "required", {k: v for k, v in value.items() if k != "details"}


@pytest.mark.parametrize(("what", "value"), list(broken()))
def test_what_is_wrong_is_said(what, value, tmp_path):
  found = document.problem(value)
  assert what in found
  path = tmp_path / "safety.json"
  path.write_text(json.dumps(value))
  with pytest.raises(ValueError, match="`analogjax safety` writes it anew"):
    document.read(path)


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    (None, "there is no such file; `analogjax safety` writes it"),
    ("{", "not readable as JSON"),
    ("[" * 100_000, "not readable as JSON"),
    ("[]", "expected format 'analogjax.safety' of version 1"),
    ('{"format": "analogjax.safety", "format_version": 2}', "version 2"),
  ],
)
def test_a_file_that_is_none(text, expected, tmp_path):
  path = tmp_path / "safety.json"
  if text is not None:
    path.write_text(text)
  with pytest.raises(ValueError, match=expected):
    document.read(path)


def test_the_chat_template_is_not_published():
  options = {"template": "<Teacher>{prompt}", "prompts": 8}
  public = document.public({**make(), "inputs": {**INPUTS, "options": options}})
  assert public["inputs"]["options"] == {"prompts": 8}
