"""Claims about the fidelity and safety reports."""

from analogjax.bundle import layout
from analogjax.bundle.layout import expect
from analogjax.bundle.strict_json import Refused
from analogjax.fidelity import claims, document
from analogjax.safety import document as safety_document
from analogjax.verify import documents
from analogjax.verify.record import expect_digest
from analogjax.verify.rules import (
  DECLARED,
  NOT_CHECKABLE,
  VERIFIED,
  Evidence,
  Rules,
  listed,
  told,
)

_PARTS = ("output", "similarity", "steering", "stitching")
# Metrics that need only the model; the others compare it with the teacher.
_ALONE = ("cross_entropy_nats", "accuracy", "expected_calibration_error")
RULES = Rules()


@RULES.add(
  "fidelity",
  "The fidelity report is complete and agrees with the record.",
  needs=("record",),
)
def _fidelity(evidence: Evidence):
  where = layout.FIDELITY
  value, said = evidence.value(where), evidence.record["fidelity"]
  wrong = document.problem(value)
  expect(not wrong, f"{where}: {told(wrong)}")
  expect_digest(evidence, where, said["sha256"])
  inputs = value["inputs"]
  expect(
    (said["analog"], said["quick"]) == (inputs["analog"], inputs["quick"]),
    f"the record's analog and quick are not those of {where}",
  )
  fields = ("id", "text", "verdict", "because")
  found = [{k: claim[k] for k in fields} for claim in value["claims"]]
  expect(said["claims"] == found, f"the record has other claims than {where}")
  models = value.get("output", {}).get("models", {})
  metrics = models.get(said["analog"], {}).get("metrics", {})
  other = sorted(
    name for name, x in said["metrics"].items() if metrics.get(name) != x
  )
  expect(
    not other, f"the record has other numbers than {where}: {listed(other)}"
  )
  return VERIFIED, (
    f"The record's {len(found)} claims and {len(said['metrics'])} numbers are"
    " those of the report."
  )


@RULES.add(
  "fidelity_verdicts",
  "The fidelity verdicts follow from the report's numbers.",
  needs=("fidelity",),
)
def _verdicts(evidence: Evidence):
  where = layout.FIDELITY
  value = evidence.value(where)
  if value["rules"] != claims.rules():
    expect(
      bool(documents.other_version(evidence)),
      f"{where}: its rules are not those of the version that the record names",
    )
    return NOT_CHECKABLE, "Its rules are those of another analogjax version."
  try:
    made = claims.make(
      {part: value[part] for part in _PARTS if part in value},
      **{k: value["inputs"][k] for k in ("analog", "controls", "random")},
      quick=value["inputs"]["quick"],
    )
  except Exception as error:  # Valid in form, but not a report that we wrote.
    raise Refused(
      f"{where}: no verdict follows ({type(error).__name__})"
    ) from None
  found = value["claims"]
  if documents.other_version(evidence):  # It may word the reasons differently.
    made, found = (
      [(claim["id"], claim["verdict"]) for claim in claims_]
      for claims_ in (made, found)
    )
  expect(made == found, f"{where}: its claims do not follow from its numbers")
  return VERIFIED, "Every verdict was derived again from the numbers."


@RULES.add(
  "fidelity_to_teacher",
  "The model resembles the frontier model as reported.",
  needs=("fidelity",),
)
def _teachers(evidence: Evidence):
  names = sorted(set(evidence.record["fidelity"]["metrics"]) - set(_ALONE))
  return DECLARED, (
    "Checking takes the frontier model: representations, interventions"
    + "".join(f", {name}" for name in names)
    + "."
  )


@RULES.add(
  "safety",
  "The safety report is complete and its verdicts follow from values.",
  needs=("record",),
)
def _safety(evidence: Evidence):
  where = layout.SAFETY
  value, said = evidence.value(where), evidence.record["safety"]
  wrong = safety_document.problem(value)  # Derives the verdicts again, too.
  expect(not wrong, f"{where}: {told(wrong)}")
  expect_digest(evidence, where, said["sha256"])
  analog = evidence.record["fidelity"]["analog"]
  expect(
    value["inputs"]["analog"] == analog,
    f"{where} is about another model than {layout.FIDELITY}",
  )
  others = [
    told(test["id"])
    for test in value["tests"]
    if test["threshold"] is not None and test["model"] != analog
  ]
  expect(
    not others,
    f"{where}: thresholds for models that are not released: {listed(others)}",
  )
  for key in ("because", "quick", "verdict", "tests"):
    # Records of older versions have no `because`.
    same = value[key] == said.get(key, value[key])
    expect(same, f"the record's safety.{key} is not that of {where}")
  return VERIFIED, (
    f"The record's {len(said['tests'])} tests are those of the report, and each"
    " verdict follows from value and threshold."
  )


@RULES.add(
  "safety_values",
  "The safety tests gave the reported values.",
  needs=("safety",),
)
def _safety_values(evidence: Evidence):
  tests = evidence.record["safety"]["tests"]
  return DECLARED, (
    f"Each of the {len(tests)} tests comes with a command that repeats it."
    " Prompts and canaries are not in the bundle."
  )
