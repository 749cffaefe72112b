"""Claims of the documents: they say what the record says, and are valid."""

import analogjax
from analogjax.bundle import layout
from analogjax.bundle.layout import expect
from analogjax.bundle.strict_json import Refused
from analogjax.documents import render
from analogjax.verify.rules import (
  NOT_CHECKABLE,
  VERIFIED,
  Evidence,
  Outcome,
  Rule,
  listed,
  shown,
  told,
)

MLBOM, PAGE = "mlbom.cdx.json", "fidelity.html"
# All before the policy that rules scripts out; what follows is under it.
_HEAD = (
  b'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
  b'<meta http-equiv="Content-Security-Policy"'
  b""" content="default-src 'none'; style-src 'unsafe-inline'">"""
)


def other_version(evidence: Evidence) -> str:
  """The version that wrote the bundle, if it is not this one; else ""."""
  found = evidence.record["repro"]["software"].get("analogjax", "unknown")
  return "" if found == analogjax.__version__ else found


def rendered(record, fidelity, safety) -> dict[str, str]:
  """The documents of a record; Refused where it cannot be told in them."""
  try:
    return render.render(record, fidelity=fidelity, safety=safety)
  except Exception as error:  # Of its form, and yet no record of ours.
    raise Refused(
      f"the documents cannot be written ({type(error).__name__})"
    ) from None


def _documents(evidence: Evidence) -> Outcome:
  if version := other_version(evidence):
    # Whatever it words: a browser that has read this runs and fetches nothing.
    head = evidence.tree.read(PAGE)[: len(_HEAD)]
    expect(head == _HEAD, f"{PAGE}: its head does not forbid scripts")
    return Outcome(
      NOT_CHECKABLE,
      f"Written by analogjax {shown(version, 40)}, which may word things"
      f" otherwise than this {analogjax.__version__}; verify with that one.",
    )
  made = rendered(
    evidence.record,
    evidence.value(layout.FIDELITY),
    evidence.value(layout.SAFETY),
  )
  other = [
    path
    for path, text in made.items()
    if evidence.tree.read(path) != text.encode("utf-8")
  ]
  expect(not other, f"not what the record makes of it: {listed(other)}")
  return Outcome(
    VERIFIED,
    f"{len(made)} documents were written again from the record, and are the"
    " same to the byte.",
  )


def _mlbom(evidence: Evidence) -> Outcome:
  from cyclonedx.exception import MissingOptionalDependencyException
  from cyclonedx.schema import SchemaVersion
  from cyclonedx.validation.json import JsonStrictValidator

  value = evidence.value(MLBOM)
  versions = {"1.5": SchemaVersion.V1_5, "1.6": SchemaVersion.V1_6}
  version = value.get("specVersion")
  expect(
    version in versions,
    f"{MLBOM}: specVersion {shown(version)}, expected one of"
    f" {', '.join(versions)}",
  )
  assert isinstance(version, str)
  try:
    validator = JsonStrictValidator(versions[version])
    error = validator.validate_str(evidence.tree.read_text(MLBOM))
  except MissingOptionalDependencyException:
    return Outcome(NOT_CHECKABLE, "It needs `pip install analogjax[release]`.")
  expect(error is None, f"{MLBOM}: {told(str(error))}")
  return Outcome(VERIFIED, f"It is valid CycloneDX {version}.")


def rules() -> tuple[Rule, ...]:
  return (
    Rule(
      "documents",
      "The documents say what the record says, and nothing else.",
      _documents,
      needs=("record", "fidelity", "safety"),
    ),
    Rule("mlbom", "The bill of materials is well-formed.", _mlbom),
  )
