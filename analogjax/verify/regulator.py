"""Claims about the regulator's folder: the frontier model's size and dates."""

from typing import Any

from analogjax import leaks
from analogjax.bundle import commitments, layout, record as record_lib, window
from analogjax.bundle.layout import expect
from analogjax.bundle.strict_json import Refused
from analogjax.config.window import TIMES
from analogjax.verify import documents, model as verify_model
from analogjax.verify.rules import (
  DECLARED,
  NOT_CHECKABLE,
  VERIFIED,
  Evidence,
  Rules,
  listed,
  sentence,
  shown,
  told,
)

OPENINGS = "openings.json"
_RECORD = f"the regulator's {layout.RECORD}"
RULES = Rules()


def _record_of(evidence: Evidence) -> dict[str, Any]:
  return evidence.regulator_value(layout.RECORD)


@RULES.add(
  "regulator",
  "The regulator's folder contains only regular files.",
)
def _folder(evidence: Evidence):
  assert evidence.regulator is not None
  tree = evidence.regulator
  expect(not tree.problems, listed(tree.problems))
  return VERIFIED, f"{len(tree.files)} files; nothing else."


@RULES.add(
  "regulator_record",
  "The regulator's record agrees with the public one.",
  needs=("record", "regulator"),
)
def _record(evidence: Evidence):
  value = _record_of(evidence)
  wrong = record_lib.problem(value)
  expect(not wrong, f"{_RECORD}: {told(wrong)}")
  expect(value["view"] == "regulator", f"{_RECORD}: not the regulator's view")
  try:
    public = record_lib.project(value, "public")
  except ValueError as error:
    raise Refused(f"{_RECORD}: {told(str(error))}") from None
  differing = sorted(k for k in public if public[k] != evidence.record[k])
  expect(
    not differing, f"{_RECORD} differs from the bundle's: {listed(differing)}"
  )
  return VERIFIED, "Without the withheld facts it equals the public record."


@RULES.add(
  "regulator_documents",
  "The regulator's documents say what that record says.",
  needs=("regulator_record",),
)
def _documents(evidence: Evidence):
  assert evidence.regulator is not None
  tree, where = evidence.regulator, "the regulator's folder"
  if version := documents.other_version(evidence):
    return NOT_CHECKABLE, f"Written by analogjax {shown(version, 40)}."
  made = documents.rendered(_record_of(evidence), {}, {})
  unlike = sorted({*made, layout.RECORD} ^ set(tree.files))
  expect(not unlike, f"{where}: missing or unexpected: {listed(unlike)}")
  other = [
    path for path, text in made.items() if tree.read(path) != text.encode()
  ]
  expect(
    not other, f"{where}: not what its record makes of it: {listed(other)}"
  )
  return VERIFIED, f"{len(made)} documents were written again and are equal."


@RULES.add(
  "openings",
  "The opened facts are those that the bundle committed to.",
  needs=("regulator_record",),
)
def _openings(evidence: Evidence):
  frontier = _record_of(evidence)["frontier"]
  openings = evidence.regulator_value(OPENINGS)
  made = evidence.record["frontier"]["commitments"]
  wrong = commitments.problems(made, openings)
  expect(not wrong, listed([told(text, 200) for text in wrong]))
  expect(
    frontier["openings"] == openings,
    f"{_RECORD} has other openings than {OPENINGS}",
  )
  differing = sorted(
    name
    for name in ("parameters", "active_parameters", "deployed_on", "name")
    if openings[name]["value"] != commitments.canonical(frontier[name])
  )
  expect(
    not differing,
    f"{_RECORD} has other values than the commitments: {listed(differing)}",
  )
  return VERIFIED, (
    f"{', '.join(sorted(made))} have not changed since the bundle was signed."
    " Whether they are true is for the regulator to find out."
  )


@RULES.add(
  "regulator_size",
  "It has 0.5 % to 5 % of the opened size, or this is waived.",
  needs=("openings", "parameters"),
)
def _size(evidence: Evidence):
  frontier = _record_of(evidence)["frontier"]
  ours, parts = verify_model.count(evidence), []
  least, most = TIMES
  for name, key in (
    ("parameters", "size_ratio"),
    ("active_parameters", "active_ratio"),
  ):
    theirs = frontier[name]
    # In integers, because both ends belong to the window.
    within = least * ours <= theirs <= most * ours
    text = f"{ours:,} of {theirs:,} {name.replace('_', ' ')} are"
    text += f" {ours / theirs:.4%}"
    expect(abs(frontier[key] - ours / theirs) < 1e-9, f"{key}: {text}")
    if not within:
      text += ", outside of 0.5 % to 5 %"
      _expect_waiver(evidence, "size", text)
      text += ", which is waived"
    parts.append(text)
  return VERIFIED, "; ".join(parts) + "."


@RULES.add(
  "regulator_dates",
  "It came 1-3 months after the opened day, or this is waived.",
  needs=("openings", "gates"),
)
def _dates(evidence: Evidence):
  value = _record_of(evidence)
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
    text += ", which is waived"
  if found.where == window.EARLY:
    gate = _gate(evidence, "window")
    expect(gate["verdict"] != "passed", f"early, but not flagged: {text}")
    text = f"early: {text}"
  return VERIFIED, sentence(text)


def _gate(evidence: Evidence, key: str):
  gates = evidence.record["gates"]
  return next(gate for gate in gates if gate["id"] == key)


def _expect_waiver(evidence: Evidence, key: str, text: str) -> None:
  """Refuses with `text` unless the gate is waived."""
  expect(_gate(evidence, key)["verdict"] == "waived", text)


@RULES.add(
  "regulator_family",
  "The frontier model is of the same family.",
  needs=("regulator_record",),
)
def _family(evidence: Evidence):
  value = _record_of(evidence)
  theirs, ours = value["frontier"]["family"], value["model"]["family"]
  expect(
    (theirs == ours) == value["pair"]["same_family"],
    "pair.same_family is not what the two families say",
  )
  return DECLARED, (
    f"The frontier model is a {theirs}, the analog a {ours}. Checking takes the"
    " frontier model."
  )


@RULES.add(
  "regulator_leaks",
  "Nothing reveals an opened fact, or this is waived.",
  needs=("files", "openings", "parameters", "architecture", "gates"),
)
def _leaks(evidence: Evidence):
  value = _record_of(evidence)
  frontier, model = value["frontier"], value["model"]
  sizes = model | model["architecture"]
  shared = ("vocabulary_size", *leaks.DIMENSIONS)
  secrets = leaks.Secrets(
    parameters=frontier["parameters"],
    active_parameters=frontier["active_parameters"],
    architecture=frontier["architecture"],
    student={
      "parameters": verify_model.count(evidence),
      **{name: sizes[name] for name in shared},
    },
    names=(frontier["name"],),
    deployed_on=frontier["deployed_on"],
    released_on=model["released_on"],
  )
  found = leaks.lint(evidence.tree.root, secrets)
  if found:
    where = sorted({f"{told(leak.file)} ({leak.rule})" for leak in found})
    text = f"the bundle reveals private facts in {listed(where)}"
    _expect_waiver(evidence, "leaks", text)
    return VERIFIED, sentence(text) + " This is waived."
  return VERIFIED, (
    "The linter found neither size, shape, name nor day of the frontier model,"
    " and nothing from which they follow. The lab looks for more."
  )
