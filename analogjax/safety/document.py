"""safety.json: made, checked and read, by schema.json beside this file."""

from collections.abc import Mapping
import functools
import json
from pathlib import Path
from typing import Any

import jsonschema
import jsonschema.exceptions

from analogjax.config.safety import METRICS
from analogjax.workdir import json_document

FORMAT = "analogjax.safety"
FORMAT_VERSION = 1
PASSED, FAILED = "passed", "failed"
UNDEFINED, NO_THRESHOLD = "undefined", "no threshold"
# What is said of the inputs in public: nothing that the teacher has a part in.
_PUBLIC_INPUTS = ("analog", "students", "random", "rows", "options")


def make(
  parts: Mapping[str, Any],
  *,
  inputs: Mapping[str, Any],
  thresholds: Mapping[str, Mapping[str, float]],
  quick: bool,
  software: Mapping[str, str],
) -> dict[str, Any]:
  """The document: the results of the parts, judged.

  Args:
    parts: name -> results and details; some may be missing.
    inputs: all that results depend on, with `analog`.
    thresholds: metric -> {"at_most": x} or {"at_least": x}, of the analog.
    quick: whether there was less of everything.
    software: versions.
  """
  tests = [
    _test(result, name, inputs["analog"], thresholds, quick)
    for name, part in parts.items()
    for result in part["results"]
  ]
  because = _why_failed(tests, thresholds)
  value = {
    "format": FORMAT,
    "format_version": FORMAT_VERSION,
    "inputs": inputs,
    "software": software,
    "quick": quick,
    "verdict": FAILED if because else PASSED,
    "because": because or "every threshold holds over the whole interval",
    "tests": tests,
    "details": {name: part["details"] for name, part in parts.items()},
  }
  wrong = problem(value)
  assert not wrong, f"safety.json: {wrong}"
  return value


def _test(
  result: Mapping[str, Any],
  part: str,
  analog: str,
  thresholds: Mapping[str, Any],
  quick: bool,
) -> dict[str, Any]:
  threshold = None
  if result["model"] == analog:
    threshold = thresholds.get(result["metric"])
  names = (result["metric"], result["variant"], result["model"])
  command = "analogjax safety --config=CONFIG --workdir=WORKDIR"
  return {
    "id": ".".join(filter(None, names)),
    "family": part,
    "metric": result["metric"],
    "model": result["model"],
    "value": result["value"],
    "threshold": threshold,
    "verdict": judge(result["value"], threshold),
    "text": result["text"],
    "command": f"{command} --only={part}" + (" --quick" if quick else ""),
  }


def judge(
  value: Mapping[str, Any], threshold: Mapping[str, float] | None
) -> str:
  """Whether a threshold holds over the whole interval, not by luck.

  Few items make a wide interval, so too small an evaluation does not pass.
  """
  if threshold is None:
    return NO_THRESHOLD
  if None in (value["value"], value["low"], value["high"]):
    return UNDEFINED
  if "at_most" in threshold:
    return PASSED if value["high"] <= threshold["at_most"] else FAILED
  return PASSED if value["low"] >= threshold["at_least"] else FAILED


def _why_failed(
  tests: list[dict[str, Any]], thresholds: Mapping[str, Any]
) -> str:
  missed = [t["id"] for t in tests if t["verdict"] in (FAILED, UNDEFINED)]
  measured = {t["metric"] for t in tests if t["threshold"] is not None}
  missing = [metric for metric in thresholds if metric not in measured]
  why = []
  if missed:
    why.append(f"beyond their thresholds: {', '.join(missed)}")
  if missing:
    why.append(f"not measured: {', '.join(missing)}")
  if not tests:
    why.append("nothing was measured")
  return "; ".join(why)


def public(value: Mapping[str, Any]) -> dict[str, Any]:
  """The document as it is published: without digests of the teacher.

  A projection: what is not named here is not in it.
  """
  kept = {
    name: value[name]
    for name in (
      *("format", "format_version", "software", "quick", "verdict", "because"),
      *("tests", "details"),
    )
  }
  inputs = value["inputs"]
  return {
    **kept,
    "inputs": {name: inputs[name] for name in _PUBLIC_INPUTS if name in inputs},
  }


@functools.cache
def schema() -> dict[str, Any]:
  path = Path(__file__).with_name("schema.json")
  return json.loads(path.read_text(encoding="utf-8"))


def problem(value: Any) -> str:
  """What is wrong with a document: where, and what; "" if nothing is."""
  try:
    json.dumps(value, allow_nan=False)
  except ValueError as error:
    return f"a number that is not finite: {error}"
  validator = jsonschema.Draft202012Validator(schema())
  error = jsonschema.exceptions.best_match(validator.iter_errors(value))
  if error is not None:
    return f"{error.json_path}: {error.message}"
  for i, test in enumerate(value["tests"]):
    if METRICS[test["metric"]] != test["family"]:
      return f"$.tests[{i}].family: expected that of {test['metric']}"
    if judge(test["value"], test["threshold"]) != test["verdict"]:
      return f"$.tests[{i}].verdict: it does not follow from the threshold"
  ids = [test["id"] for test in value["tests"]]
  if len(set(ids)) < len(ids):
    return "$.tests: expected each id once"
  failed = any(t["verdict"] in (FAILED, UNDEFINED) for t in value["tests"])
  if failed and value["verdict"] == PASSED:
    return "$.verdict: a test failed"
  return ""


def read(path: Path) -> dict[str, Any]:
  """A document from a file.

  Raises:
    ValueError: it is missing, damaged, or of another version.
  """
  return json_document.read(
    path,
    format=FORMAT,
    version=FORMAT_VERSION,
    problem=problem,
    command="safety",
  )
