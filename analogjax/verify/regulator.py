"""Claims that the regulator's folder opens: the frontier's size and dates."""

from analogjax import leaks
from analogjax.bundle import commitments, layout, record as record_lib, window
from analogjax.bundle.layout import expect
from analogjax.bundle.strict_json import Refused
from analogjax.verify import documents, model as verify_model, rules as checks
from analogjax.verify.rules import (
  DECLARED,
  NOT_CHECKABLE,
  VERIFIED,
  Evidence,
  Outcome,
  Rule,
  listed,
  shown,
  told,
)

OPENINGS = "openings.json"


def _folder(evidence: Evidence) -> Outcome:
  assert evidence.regulator is not None
  tree = evidence.regulator
  expect(not tree.problems, listed(tree.problems))
  return Outcome(VERIFIED, f"{len(tree.files)} files; nothing else is there.")


def _record(evidence: Evidence) -> Outcome:
  value = evidence.regulators(layout.RECORD)
  where = f"the regulator's {layout.RECORD}"
  if wrong := record_lib.problem(value):
    raise Refused(f"{where}: {told(wrong)}")
  expect(value["view"] == "regulator", f"{where}: not the regulator's view")
  try:
    public = record_lib.project(value, "public")
  except ValueError as error:
    raise Refused(f"{where}: {told(str(error))}") from None
  differing = sorted(k for k in public if public[k] != evidence.record[k])
  expect(
    not differing,
    f"{where} says other things than the bundle's: {listed(differing)}",
  )
  return Outcome(
    VERIFIED,
    "Without what is withheld it is the bundle's record, fact by fact.",
  )


def _documents(evidence: Evidence) -> Outcome:
  assert evidence.regulator is not None
  tree, where = evidence.regulator, "the regulator's folder"
  if version := documents.other_version(evidence):
    return Outcome(NOT_CHECKABLE, f"Written by analogjax {shown(version, 40)}.")
  made = documents.rendered(evidence.regulators(layout.RECORD), {}, {})
  expected = {*made, layout.RECORD}
  unlike = sorted(expected ^ set(tree.files))
  expect(not unlike, f"{where}: missing or left over: {listed(unlike)}")
  other = [
    path for path, text in made.items() if tree.read(path) != text.encode()
  ]
  expect(
    not other, f"{where}: not what its record makes of it: {listed(other)}"
  )
  return Outcome(VERIFIED, f"{len(made)} documents were written again.")


def _openings(evidence: Evidence) -> Outcome:
  frontier = evidence.regulators(layout.RECORD)["frontier"]
  openings = evidence.regulators(OPENINGS)
  made = evidence.record["frontier"]["commitments"]
  wrong = commitments.problems(made, openings)
  expect(not wrong, listed([told(text, 200) for text in wrong]))
  expect(
    frontier["openings"] == openings,
    f"the regulator's {layout.RECORD} has other openings than {OPENINGS}",
  )
  said = {
    name: commitments.canonical(frontier[name])
    for name in ("parameters", "active_parameters", "deployed_on", "name")
  }
  differing = sorted(k for k in said if openings[k]["value"] != said[k])
  expect(
    not differing,
    f"the regulator's {layout.RECORD} says other values than were committed to:"
    f" {listed(differing)}",
  )
  return Outcome(
    VERIFIED,
    f"The openings fit: {', '.join(sorted(made))} are what they were when the"
    " bundle was signed. That they are true is for the regulator to find out.",
  )


def _size(evidence: Evidence) -> Outcome:
  frontier = evidence.regulators(layout.RECORD)["frontier"]
  ours, parts = verify_model.count(evidence), []
  for name, key in (
    ("parameters", "size_ratio"),
    ("active_parameters", "active_ratio"),
  ):
    theirs = frontier[name]
    # In integers: 0.5 % and 5 % are within, and nothing beyond them.
    within = 200 * ours >= theirs and 20 * ours <= theirs
    text = f"{ours:,} of {theirs:,} {name.replace('_', ' ')} are"
    text += f" {ours / theirs:.4%}"
    expect(abs(frontier[key] - ours / theirs) < 1e-9, f"{key}: {text}")
    if not within:
      text += ", outside of 0.5 % to 5 %"
      _expect_waiver(evidence, "size", text)
      text += ", and waived"
    parts.append(text)
  return Outcome(VERIFIED, "; ".join(parts) + ".")


def _dates(evidence: Evidence) -> Outcome:
  value = evidence.regulators(layout.RECORD)
  try:
    found = window.verdict(
      value["frontier"]["deployed_on"], value["model"]["released_on"]
    )
  except ValueError as error:
    raise Refused(told(str(error))) from None
  text = (
    f"deployed on {found.deployed_on}, released on {found.released_on}; the"
    f" window is {found.first} to {found.last}"
  )
  if found.where == window.LATE:
    text = f"late: {text}"
    _expect_waiver(evidence, "window", text)
    text += "; it is waived"
  if found.where == window.EARLY:
    gate = _gate(evidence, "window")
    expect(gate["verdict"] != "passed", f"early, and not flagged: {text}")
    text = f"early: {text}"
  return Outcome(VERIFIED, checks.sentence(text))


def _gate(evidence: Evidence, key: str):
  gates = evidence.record["gates"]
  return next(gate for gate in gates if gate["id"] == key)


def _expect_waiver(evidence: Evidence, key: str, text: str) -> None:
  """A gate that is not passed has to be waived; the reason is printed."""
  expect(_gate(evidence, key)["verdict"] == "waived", text)


def _architecture(evidence: Evidence) -> Outcome:
  value = evidence.regulators(layout.RECORD)
  same = value["frontier"]["family"] == value["model"]["family"]
  expect(
    same == value["pair"]["same_family"],
    "pair.same_family is not what the two families say",
  )
  return Outcome(
    DECLARED,
    f"The frontier model is a {value['frontier']['family']}, the analog a"
    f" {value['model']['family']}; it takes the frontier model to tell.",
  )


def _leaks(evidence: Evidence) -> Outcome:
  value = evidence.regulators(layout.RECORD)
  frontier, model = value["frontier"], value["model"]
  sizes = {
    k: v for k, v in model["architecture"].items() if k in leaks.DIMENSIONS
  }
  student = {
    **{k: model[k] for k in ("vocabulary_size", "context_tokens")},
    **{"parameters": verify_model.count(evidence), **sizes},
  }
  secrets = leaks.Secrets(
    parameters=frontier["parameters"],
    active_parameters=frontier["active_parameters"],
    architecture=frontier["architecture"],
    student=student,
    names=(frontier["name"],),
    deployed_on=frontier["deployed_on"],
    released_on=model["released_on"],
  )
  found = leaks.lint(evidence.tree.root, secrets)
  where = sorted({f"{told(leak.file)} ({leak.rule})" for leak in found})
  text = f"the bundle tells of the frontier model in {listed(where)}"
  if found:
    _expect_waiver(evidence, "leaks", text)
    return Outcome(VERIFIED, checks.sentence(text) + " It is waived.")
  return Outcome(
    VERIFIED,
    "The linter found neither size, shape, name nor day of the frontier model,"
    " and nothing that they follow from. The lab had more secrets to look for.",
  )


def rules() -> tuple[Rule, ...]:
  return (
    Rule(
      "regulator", "The regulator's folder holds plain data alone.", _folder
    ),
    Rule(
      "regulator_record",
      "The regulator's record says what the public one says, and more.",
      _record,
      needs=("record", "regulator"),
    ),
    Rule(
      "regulator_documents",
      "The regulator's documents say what that record says.",
      _documents,
      needs=("regulator_record",),
    ),
    Rule(
      "openings",
      "What the regulator was told was fixed when the bundle was signed.",
      _openings,
      needs=("regulator_record",),
    ),
    Rule(
      "regulator_size",
      "By the opened size it has 0.5 % to 5 % of the parameters, or a waiver.",
      _size,
      needs=("openings", "parameters"),
    ),
    Rule(
      "regulator_dates",
      "By the opened day it was released one to three months later, or the"
      " record says that it was not.",
      _dates,
      needs=("openings", "gates"),
    ),
    Rule(
      "regulator_family",
      "The frontier model is of the same family.",
      _architecture,
      needs=("regulator_record",),
    ),
    Rule(
      "regulator_leaks",
      "Nothing in the bundle gives away what was opened, or that is waived.",
      _leaks,
      needs=("files", "openings", "parameters", "architecture", "gates"),
    ),
  )
