"""Claims of the reports on fidelity and safety."""

from analogjax.bundle import layout
from analogjax.bundle.layout import expect
from analogjax.bundle.strict_json import Refused
from analogjax.fidelity import claims, document
from analogjax.safety import document as safety_document
from analogjax.verify import documents
from analogjax.verify.rules import (
  DECLARED,
  NOT_CHECKABLE,
  VERIFIED,
  Evidence,
  Outcome,
  Rule,
  listed,
  told,
)

_PARTS = ("output", "similarity", "steering", "stitching")


def _digest(evidence: Evidence, path: str, section: str) -> None:
  said = evidence.record[section]["sha256"]
  expect(
    evidence.tree.sha256(path) == said,
    f"{path} has another SHA-256 than the record says",
  )


def _fidelity(evidence: Evidence) -> Outcome:
  value = evidence.value(layout.FIDELITY)
  if wrong := document.problem(value):
    raise Refused(f"{layout.FIDELITY}: {told(wrong)}")
  _digest(evidence, layout.FIDELITY, "fidelity")
  said, inputs = evidence.record["fidelity"], value["inputs"]
  expect(
    (said["analog"], said["quick"]) == (inputs["analog"], inputs["quick"]),
    f"the record's analog and quick are not those of {layout.FIDELITY}",
  )
  fields = ("id", "text", "verdict", "because")
  found = [{k: claim[k] for k in fields} for claim in value["claims"]]
  expect(
    said["claims"] == found,
    f"the record has other claims than {layout.FIDELITY}",
  )
  models = value.get("output", {}).get("models", {})
  metrics = models.get(said["analog"], {}).get("metrics", {})
  other = sorted(
    name for name, x in said["metrics"].items() if metrics.get(name) != x
  )
  expect(
    not other,
    f"the record has other numbers than {layout.FIDELITY}: {listed(other)}",
  )
  return Outcome(
    VERIFIED,
    f"{len(found)} claims and {len(said['metrics'])} numbers of the record are"
    " those of the report.",
  )


def _verdicts(evidence: Evidence) -> Outcome:
  value = evidence.value(layout.FIDELITY)
  inputs = value["inputs"]
  if value["rules"] != claims.rules():
    expect(
      bool(documents.other_version(evidence)),
      f"{layout.FIDELITY}: its rules are not those of the version that the"
      " record names",
    )
    return Outcome(
      NOT_CHECKABLE, "It has other rules than this version of analogjax."
    )
  try:
    made = claims.make(
      {part: value[part] for part in _PARTS if part in value},
      analog=inputs["analog"],
      controls=inputs["controls"],
      random=inputs["random"],
      quick=inputs["quick"],
    )
  except Exception as error:  # Of its form, and yet no report of ours.
    raise Refused(
      f"{layout.FIDELITY}: no verdict follows ({type(error).__name__})"
    ) from None
  expect(
    made == value["claims"],
    f"{layout.FIDELITY}: its claims do not follow from its numbers",
  )
  return Outcome(
    VERIFIED, "Every verdict was drawn again from the report's numbers."
  )


def _teachers(evidence: Evidence) -> Outcome:
  metrics = evidence.record["fidelity"]["metrics"]
  alone = ("cross_entropy_nats", "accuracy", "expected_calibration_error")
  names = [name for name in metrics if name not in alone]
  return Outcome(
    DECLARED,
    f"{', '.join(sorted(names)) or 'nothing'}, and what is said of"
    " representations and interventions: it takes the frontier model.",
  )


def _safety(evidence: Evidence) -> Outcome:
  value = evidence.value(layout.SAFETY)
  # It draws the verdicts again, too.
  if wrong := safety_document.problem(value):
    raise Refused(f"{layout.SAFETY}: {told(wrong)}")
  _digest(evidence, layout.SAFETY, "safety")
  said = evidence.record["safety"]
  analog = evidence.record["fidelity"]["analog"]
  expect(
    value["inputs"]["analog"] == analog,
    f"{layout.SAFETY} is of another model than {layout.FIDELITY}",
  )
  others = [
    test["id"]
    for test in value["tests"]
    if test["threshold"] is not None and test["model"] != analog
  ]
  expect(
    not others,
    f"{layout.SAFETY}: thresholds of models that do not go out:"
    f" {listed([told(name) for name in others])}",
  )
  expect(
    said.get("because", value["because"]) == value["because"],
    f"the record's safety.because is not that of {layout.SAFETY}",
  )
  for key in ("quick", "verdict", "tests"):
    expect(
      value[key] == said[key],
      f"the record's safety.{key} is not that of {layout.SAFETY}",
    )
  return Outcome(
    VERIFIED,
    f"{len(said['tests'])} tests of the report are the record's, and every"
    " verdict follows from its value and threshold.",
  )


def _safety_values(evidence: Evidence) -> Outcome:
  tests = evidence.record["safety"]["tests"]
  return Outcome(
    DECLARED,
    f"The values of {len(tests)} tests. Each has the command that repeats it;"
    " prompts and canaries are not in the bundle.",
  )


def rules() -> tuple[Rule, ...]:
  return (
    Rule(
      "fidelity",
      "The fidelity report is whole, and the record says what it says.",
      _fidelity,
      needs=("record",),
    ),
    Rule(
      "fidelity_verdicts",
      "Its verdicts follow from its numbers.",
      _verdicts,
      needs=("fidelity",),
    ),
    Rule(
      "fidelity_to_teacher",
      "The analog resembles the frontier model as reported.",
      _teachers,
      needs=("fidelity",),
    ),
    Rule(
      "safety",
      "The safety report is whole, and its verdicts follow from its values.",
      _safety,
      needs=("record",),
    ),
    Rule(
      "safety_values",
      "The safety tests gave these values.",
      _safety_values,
      needs=("safety",),
    ),
  )
