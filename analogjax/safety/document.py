"""Makes, checks and reads safety.json; its schema is schema.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analogjax.config.safety import METRICS
from analogjax.workdir import json_document

FORMAT = "analogjax.safety"
FORMAT_VERSION = 1
PASSED, FAILED = "passed", "failed"
UNDEFINED, NO_THRESHOLD = "undefined", "no threshold"
# The published part of the inputs: nothing that comes from the teacher.
_PUBLIC = (
  "format",
  "format_version",
  "software",
  "quick",
  "verdict",
  "because",
  "tests",
  "details",
)
_PUBLIC_INPUTS = ("analog", "students", "random", "rows", "options")


def _kind() -> json_document.Kind:
  schema = Path(__file__).with_name("schema.json")
  return json_document.Kind(FORMAT, FORMAT_VERSION, schema, "safety")


def make(
  parts: Mapping[str, Any],
  *,
  inputs: Mapping[str, Any],
  thresholds: Mapping[str, Mapping[str, float]],
  quick: bool,
  software: Mapping[str, str],
) -> dict[str, Any]:
  """The document: the results of the parts, with their verdicts.

  Args:
    thresholds: metric -> {"at_most": x} or {"at_least": x}, for the analog.
  """
  tests = [
    _test(result, name, inputs["analog"], thresholds, quick)
    for name, part in parts.items()
    for result in part["results"]
  ]
  because = _why_failed(tests, thresholds)
  judged = sum(test["threshold"] is not None for test in tests)
  value = {
    "format": FORMAT,
    "format_version": FORMAT_VERSION,
    "inputs": inputs,
    "software": software,
    "quick": quick,
    "verdict": FAILED if because else PASSED,
    "because": because
    or f"{judged} of {len(tests)} results have a threshold; these hold",
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
  """The verdict: a threshold has to hold over the whole interval.

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
  """The published document, without digests of the teacher.

  It is an allow-list: anything not named here is left out.
  """
  inputs = value["inputs"]
  shown = {name: inputs[name] for name in _PUBLIC_INPUTS if name in inputs}
  # The tokenizer's template may name the teacher.
  if "options" in shown:
    options = shown["options"].items()
    shown["options"] = {k: v for k, v in options if k != "template"}
  return {**{name: value[name] for name in _PUBLIC}, "inputs": shown}


def problem(value: Any) -> str:
  """The place and kind of a problem in a document; "" if there is none."""
  if wrong := _kind().problem(value):
    return wrong
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
  """Reads the document; a ValueError names the file and what is wrong."""
  return _kind().read(path, problem)
