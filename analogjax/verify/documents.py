"""Claims about the documents: they match the record and are valid."""

import analogjax
from analogjax.bundle import layout
from analogjax.bundle.layout import expect
from analogjax.bundle.strict_json import Refused
from analogjax.documents import render
from analogjax.verify.rules import (
  NOT_CHECKABLE,
  VERIFIED,
  Evidence,
  Rules,
  listed,
  shown,
  told,
)

MLBOM, PAGE = "mlbom.cdx.json", "fidelity.html"
# The page up to the policy that forbids scripts, which governs the rest.
_HEAD = (
  b'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
  b'<meta http-equiv="Content-Security-Policy"'
  b""" content="default-src 'none'; style-src 'unsafe-inline'">"""
)
RULES = Rules()


def other_version(evidence: Evidence) -> str:
  """The analogjax version that wrote the bundle; "" if it is this one."""
  found = evidence.record["repro"]["software"].get("analogjax", "unknown")
  return "" if found == analogjax.__version__ else found


def rendered(record, fidelity, safety) -> dict[str, str]:
  """The documents of a record; Refused if they cannot be written."""
  try:
    return render.render(record, fidelity=fidelity, safety=safety)
  except Exception as error:  # Valid in form, but not a record that we wrote.
    raise Refused(
      f"the documents cannot be written ({type(error).__name__})"
    ) from None


@RULES.add(
  "documents",
  "The documents say exactly what the record says.",
  needs=("record", "fidelity", "safety"),
)
def _documents(evidence: Evidence):
  if version := other_version(evidence):
    # With this head a browser runs and fetches nothing of the page.
    head = evidence.tree.read(PAGE)[: len(_HEAD)]
    expect(head == _HEAD, f"{PAGE}: its head does not forbid scripts")
    return NOT_CHECKABLE, (
      f"Written by analogjax {shown(version, 40)}; this is"
      f" {analogjax.__version__}, which may word them differently. Verify with"
      " the version that wrote them."
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
  return VERIFIED, (
    f"{len(made)} documents were written again from the record; every byte is"
    " the same."
  )


@RULES.add("mlbom", "The bill of materials is valid.")
def _mlbom(evidence: Evidence):
  from cyclonedx.exception import MissingOptionalDependencyException
  from cyclonedx.schema import SchemaVersion
  from cyclonedx.validation.json import JsonStrictValidator

  version = evidence.value(MLBOM).get("specVersion")
  versions = {"1.5": SchemaVersion.V1_5, "1.6": SchemaVersion.V1_6}
  if not isinstance(version, str) or version not in versions:
    raise Refused(
      f"{MLBOM}: specVersion {shown(version)}, expected one of"
      f" {', '.join(versions)}"
    )
  try:
    validator = JsonStrictValidator(versions[version])
    error = validator.validate_str(evidence.tree.read_text(MLBOM))
  except MissingOptionalDependencyException:
    return NOT_CHECKABLE, (
      "Checking needs analogjax's extra `release`: `pip install"
      " cyclonedx-python-lib[json-validation]`."
    )
  expect(error is None, f"{MLBOM}: {told(str(error))}")
  return VERIFIED, f"Valid CycloneDX {version}."
