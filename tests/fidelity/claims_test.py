"""Tests for analogjax/fidelity/claims.py, questions.py and document.py."""

import copy
import json
import math
import pathlib
import re

import pytest
import synthetic_report

from analogjax.fidelity import claims, document
from analogjax.fidelity.claims import DOES_NOT, OPEN, TRANSFERS, Span

ROOT = pathlib.Path(__file__).parents[2]
MODELS = dict(analog="a", controls=("c", "d"), random="random", quick=False)


def estimate(*numbers):
  """value, low, high; nothing is undefined."""
  if not numbers:
    return synthetic_report.undefined("nobody knows")
  return dict(zip(("value", "low", "high"), numbers, strict=True), n=32)


def judge(part, found, **models):
  """{id: claim} of one part."""
  made = claims.make({part: found}, **{**MODELS, **models})
  return {c["id"]: c for c in made if c["part"] == part}


def output(kl, auc=None):
  auc = auc or {}
  return {
    "models": {
      name: {
        "metrics": {"kl_to_teacher_nats": value},
        **({"outcomes": {"auc": auc[name]}} if name in auc else {}),
      }
      for name, value in kl.items()
    }
    | {"teacher": {"metrics": {}}}
  }


@pytest.mark.parametrize(
  ("ours", "theirs", "expected"),
  [
    ((1.0, 0.9, 1.1), (1.5, 1.4, 1.6), TRANSFERS),
    # 0.14 apart, and sqrt(0.1**2 + 0.1**2) = 0.141: the interval reaches 0.
    ((1.0, 0.9, 1.1), (1.14, 1.04, 1.24), OPEN),
    ((1.0, 0.9, 1.1), (1.15, 1.05, 1.25), TRANSFERS),
    ((1.0, 0.9, 1.1), (1.0, 0.9, 1.1), OPEN),
    ((1.5, 1.4, 1.6), (1.0, 0.9, 1.1), DOES_NOT),
    ((1.05, 0.95, 1.15), (1.0, 0.9, 1.1), OPEN),
    ((), (1.0, 0.9, 1.1), OPEN),
    ((1.0, 0.9, 1.1), (), OPEN),
  ],
)
def test_output(ours, theirs, expected):
  # The better one of two controls counts.
  kl = {"a": estimate(*ours), "c": estimate(9, 8, 10), "d": estimate(*theirs)}
  if not theirs:
    del kl["c"]
  claim = judge("output", output(kl))["output.kl"]
  assert claim["verdict"] == expected
  assert claim["control"] == ("d" if theirs else "")
  assert claim["estimate"] == kl["a"]


@pytest.mark.parametrize(
  ("ours", "theirs", "expected"),
  [
    ((0.8, 0.78, 0.82), (0.6, 0.58, 0.62), TRANSFERS),
    ((0.6, 0.58, 0.62), (0.8, 0.78, 0.82), DOES_NOT),
    ((0.49, 0.48, 0.5), (0.48, 0.47, 0.49), DOES_NOT),
    ((0.52, 0.49, 0.55), (0.4, 0.39, 0.41), OPEN),
    ((0.6, 0.55, 0.65), (0.58, 0.53, 0.63), OPEN),
  ],
)
def test_failures(ours, theirs, expected):
  kl = {"a": estimate(1, 1, 1), "c": estimate(2, 2, 2)}
  auc = {"a": estimate(*ours), "c": estimate(*theirs)}
  claim = judge("output", output(kl, auc))["output.failures"]
  assert claim["verdict"] == expected
  assert claim["control_estimate"] == auc["c"]


def test_without_a_control_it_says_which_phase_to_add():
  found = output({"a": estimate(1, 1, 1), "random": estimate(9, 9, 9)})
  claim = judge("output", found, controls=())["output.kl"]
  assert claim["verdict"] == OPEN and claim["control"] == ""
  assert "no control was measured: add a phase" in claim["because"]
  assert "measure.phases" in claim["because"]
  # It is there, but its number is not.
  claim = judge("output", found)["output.kl"]
  assert claim["verdict"] == OPEN
  assert claim["because"].endswith("there is no such number of c, d.")


@pytest.mark.parametrize(
  ("ours", "p", "control", "random", "expected"),
  [
    (0.5, 0.005, 0.2, 0.0, TRANSFERS),
    (0.5, 0.05, 0.2, 0.0, TRANSFERS),
    (0.5, 0.06, 0.2, 0.0, DOES_NOT),
    (0.5, 0.005, 0.5, 0.0, DOES_NOT),
    (0.5, 0.005, 0.2, 0.6, DOES_NOT),
    (0.5, 0.005, 0.46, 0.0, OPEN),
    (0.5, 0.005, 0.2, 0.46, OPEN),
    (0.5, 0.005, None, 0.0, OPEN),
  ],
)
def test_similarity(ours, p, control, random, expected):
  values = {"a": (ours, p), "c": (control, 0.005), "random": (random, 0.5)}
  models = {
    name: {"mutual_knn": {"calibrated": value, "p": p}}
    for name, (value, p) in values.items()
    if value is not None
  }
  (claim,) = judge("similarity", {"models": models}).values()
  assert claim["id"] == "similarity.mutual_knn"
  assert claim["verdict"] == expected


RATIOS = [
  # analog, control, random, shuffled map
  ((0.9, 0.8, 1.0), (0.3, 0.2, 0.4), (0, 0, 0.1), (0, 0, 0.1), TRANSFERS),
  ((0.9, 0.8, 1.0), (0.6, 0.3, 0.85), (0, 0, 0.1), (0, 0, 0.1), OPEN),
  ((0.9, 0.8, 1.0), (0.3, 0.2, 0.4), (0, 0, 0.9), (0, 0, 0.1), OPEN),
  ((0.9, 0.8, 1.0), (0.3, 0.2, 0.4), (0, 0, 0.1), (0, 0, 0.9), OPEN),
  ((0.9, 0.8, 1.0), (0.9, 0.8, 1.0), (0, 0, 0.1), (0, 0, 0.1), DOES_NOT),
  ((0.9, 0.8, 1.0), (0.3, 0.2, 0.4), (0, 0, 0.1), (1, 0, 2), DOES_NOT),
  ((0.9, 0.8, 1.0), (), (0, 0, 0.1), (0, 0, 0.1), OPEN),
  ((0.9, 0.5, 1.0), (0.3, 0.2, 0.4), (0, 0, 0.1), (0, 0, 0.1), OPEN),
  ((0.9, 0.501, 1.0), (0.3, 0.2, 0.4), (0, 0, 0.1), (0, 0, 0.1), TRANSFERS),
  ((0.1, 0.0, 0.24), (0.0, 0.0, 0.1), (0, 0, 0.1), (0, 0, 0.1), DOES_NOT),
  ((-0.5, -0.6, -0.4), (0.0, 0.0, 0.1), (0, 0, 0.1), (0, 0, 0.1), DOES_NOT),
  ((0.1, 0.0, 0.25), (0.0, 0.0, 0.1), (0, 0, 0.1), (0, 0, 0.1), OPEN),
  ((), (0.0, 0.0, 0.1), (0, 0, 0.1), (0, 0, 0.1), OPEN),
]


@pytest.mark.parametrize(("a", "c", "random", "shuffled", "expected"), RATIOS)
def test_steering(a, c, random, shuffled, expected):
  def item(kind, model, mapper, numbers, matched="perplexity"):
    ratio = estimate(*numbers)
    of = dict(kind=kind, model=model, mapper=mapper, matched=matched)
    return {**of, "ratio": ratio}

  transfer = [
    item("mapped", "a", "affine", a),
    item("mapped", "c", "affine", c),
    item("mapped", "random", "affine", random),
    item("shuffled", "a", "shuffled", shuffled),
    # None of these counts: another map, another way, another behaviour.
    item("mapped", "a", "embedding", (5, 5, 5)),
    item("mapped", "c", "embedding", (9, 9, 9)),
    item("mapped", "c", "affine", (9, 9, 9), "norm"),
    item("wrong_behaviour", "teacher", "wrong_behaviour", (9, 9, 9)),
  ]
  behaviour = {"undefined": None, "transfer": transfer}
  (claim,) = judge("steering", {"behaviours": {"b": behaviour}}).values()
  assert claim["id"] == "steering.b"
  assert claim["verdict"] == expected
  assert claim["threshold"] == 0.5
  is_opposite = bool(a) and a[2] < 0
  assert is_opposite == ("the opposite way" in claim["text"])
  assert is_opposite == ("moves it the opposite way" in claim["because"])
  assert "affine map, at matched perplexity" in claim["because"]


def test_steering_that_is_undefined_says_why():
  behaviour = {"undefined": "nothing moves.", "transfer": []}
  (claim,) = judge("steering", {"behaviours": {"b": behaviour}}).values()
  assert claim["verdict"] == OPEN
  assert claim["because"] == "The transfer ratio is undefined: nothing moves."


@pytest.mark.parametrize(
  ("a", "c", "random", "expected"),
  [(a, c, random, v) for a, c, random, s, v in RATIOS if s == (0, 0, 0.1)],
)
def test_stitching(a, c, random, expected):
  def stitches(numbers):
    lines = [
      (0.5, 0.5, "least_squares", numbers),
      # None of these counts: other depths, another fit.
      (0.25, 0.5, "least_squares", (7, 7, 7)),
      (1.0, 1.0, "least_squares", (7, 7, 7)),
      (0.5, 0.5, "trained", (7, 7, 7)),
    ]
    return [
      {
        "student_depth": s,
        "teacher_depth": t,
        "fit": fit,
        "recovered": estimate(*numbers),
      }
      for s, t, fit, numbers in lines
    ]

  models = {"a": a, "c": c, "random": random}
  found = {"models": {name: stitches(x) for name, x in models.items()}}
  (claim,) = judge("stitching", found).values()
  assert claim["id"] == "stitching.half"
  assert claim["verdict"] == expected
  assert claim["estimate"] == estimate(*a)


def test_difference():
  found = claims.difference(Span(3.0, 2.7, 3.4), Span(1.0, 0.7, 1.4))
  low, high = 2 - math.hypot(0.3, 0.4), 2 + math.hypot(0.4, 0.3)
  assert found == pytest.approx((2.0, low, high))


def test_a_pair_that_transfers_and_one_that_does_not():
  good = synthetic_report.make(synthetic_report.parts())
  found = {c["id"]: c["verdict"] for c in good["claims"]}
  assert found.pop("steering.refusal") == OPEN  # Undefined.
  assert len(found) == 7 and set(found.values()) == {TRANSFERS}
  # The model called the analog there has learned less than the control.
  reach = {"distill": 0.05, "control": 0.4, "random": 0.0}
  bad = synthetic_report.make(synthetic_report.parts(reach), reach)
  found = {c["id"]: c["verdict"] for c in bad["claims"]}
  assert found.pop("steering.refusal") == OPEN
  assert set(found.values()) == {DOES_NOT}


def test_the_document_says_the_rules():
  value = synthetic_report.make({})
  rules = {rule["part"]: rule for rule in value["rules"]}
  assert set(rules) == set(synthetic_report.MAKERS)
  assert f"above {claims.ENOUGH}" in rules["steering"]["transfers"]
  assert f"below {claims.TOO_LITTLE}" in rules["stitching"]["does_not"]


def test_the_page_of_the_docs_has_the_same_rules():
  page = (ROOT / "docs" / "fidelity.md").read_text("utf-8")
  words = " ".join(page.split())
  for rule in claims.rules():
    assert f"`{rule['part']}` transfers if {rule['transfers']}. -" in words
    assert f"`{rule['part']}` does not if {rule['does_not']}." in words
  rows = re.findall(r"^\| `([A-Z_]+)` \| (.*?) \|", page, re.MULTILINE)
  assert len(rows) == 8
  for name, text in rows:
    constant = getattr(claims, name)
    shown = ", ".join(constant) if isinstance(constant, tuple) else constant
    assert text == str(shown)


@pytest.fixture(scope="module")
def value():
  return synthetic_report.make(synthetic_report.parts())


def test_a_document_is_as_the_schema_says(value, tmp_path):
  assert document.problem(value) == ""
  path = tmp_path / "fidelity.json"
  path.write_text(json.dumps(value))
  assert document.read(path) == value


def _delete(*path):
  def change(value):
    for key in path[:-1]:
      value = value[key]
    del value[path[-1]]

  return change


def _set(*path):
  def change(value):
    for key in path[:-2]:
      value = value[key]
    value[path[-2]] = path[-1]

  return change


_KL = ("output", "models", "distill", "metrics", "kl_to_teacher_nats")


@pytest.mark.parametrize(
  ("change", "expected"),
  [
    (_delete("claims"), "'claims' is a required property"),
    (_delete(*_KL, "low"), r"kl_to_teacher_nats: 'low' is a required"),
    (_set(*_KL, "low", None), r"kl_to_teacher_nats.low: None is not of type"),
    (_set(*_KL, "value", float("nan")), "not finite"),
    (_set(*_KL, 1.5), r"kl_to_teacher_nats: 1.5 is not of type 'object'"),
    (_set("output", "models", "distill", "metrics", "speed", {}), "speed"),
    (_set("cost", "output", "tokens", -1), r"tokens: -1 is less than"),
    (_set("software", "jax", 10), r"software.jax: 10 is not of type"),
    (_set("claims", 0, "verdict", "yes"), r"claims\[0\].verdict: 'yes'"),
    (_set("stitching", "layers", 12), "'layers' was unexpected"),
    (_set("steering", "behaviours", "refusal", "depth", 4), "depth: 4 is gr"),
    (_set("similarity", "models", "control", "cosine", {}), "cosine"),
    (_delete("inputs", "analog"), "'analog' is a required"),
  ],
)
def test_a_document_that_is_not(value, tmp_path, change, expected):
  value = copy.deepcopy(value)
  change(value)
  assert re.search(expected, document.problem(value))
  path = tmp_path / "fidelity.json"
  path.write_text(json.dumps(value))
  with pytest.raises(ValueError, match="analogjax measure") as error:
    document.read(path)
  assert str(path) in str(error.value)


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    (None, "there is no such file"),
    ("{", "not readable as JSON"),
    ("[]", "expected format 'analogjax.fidelity' of version 2, found version"),
    ('{"format": "analogjax.fidelity", "format_version": 1}', "version 1"),
    ('{"format": "x", "format_version": 2}', "expected format"),
  ],
)
def test_what_is_no_document(tmp_path, text, expected):
  path = tmp_path / "fidelity.json"
  if text is not None:
    path.write_text(text)
  with pytest.raises(ValueError, match=expected):
    document.read(path)


def test_parts_that_are_not_of_the_form_are_our_mistake():
  found = synthetic_report.parts()
  del found["stitching"]["cross_entropy_nats"]
  with pytest.raises(AssertionError, match="cross_entropy_nats"):
    synthetic_report.make(found)
