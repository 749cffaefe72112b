"""fidelity.json: made, checked and read, by schema.json beside this file."""

from collections.abc import Mapping
import functools
import json
from pathlib import Path
from typing import Any

import jsonschema
import jsonschema.exceptions

from analogjax.fidelity import claims, verdicts
from analogjax.workdir import json_document

FORMAT = "analogjax.fidelity"
FORMAT_VERSION = 2

# What of `inputs` may be published. How many rows go through the models at once
# and where other students lie is nobody's business; the teacher's digest would
# confirm a guess at which model it is.
_PUBLIC_INPUTS = ("analog", "controls", "random", "quick", "behaviours")
_PUBLIC_ROWS = ("number", "digest")
_PUBLIC_OPTIONS = (
  *("parts", "seed", "fit_rows", "domain_rows", "depths", "points"),
  *("permutations", "resamples", "max_strength", "strengths"),
  *("random_vectors", "mapper_steps", "stitch_steps"),
)
# Parts, with what of each may be published; all below it is of the schema,
# which is closed and names no width and no layer.
_PUBLIC_PARTS = {
  "output": ("models",),
  "similarity": (
    *("points", "permutations", "depths", "models", "embeddings", "maps"),
  ),
  "steering": ("behaviours", "maps"),
  "stitching": ("cross_entropy_nats", "models"),
}


def make(
  parts: Mapping[str, Any],
  *,
  inputs: Mapping[str, Any],
  cost: Mapping[str, Any],
  software: Mapping[str, str],
) -> dict[str, Any]:
  """The document: the parts, and what follows from them.

  Args:
    parts: name -> what was found; some may be missing.
    inputs: with `analog`, `controls`, `random` and `quick`.
    cost: of each part.
    software: versions.
  """
  made = claims.make(
    parts,
    analog=inputs["analog"],
    controls=inputs["controls"],
    random=inputs["random"],
    quick=inputs["quick"],
  )
  value = {
    "format": FORMAT,
    "format_version": FORMAT_VERSION,
    "inputs": inputs,
    "software": software,
    "claims": made,
    "rules": verdicts.rules(),
    **parts,
    "cost": cost,
  }
  wrong = problem(value)
  assert not wrong, f"fidelity.json: {wrong}"
  return value


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
  return "" if error is None else f"{error.json_path}: {error.message}"


def public(value: Mapping[str, Any]) -> dict[str, Any]:
  """The document as it may be published: an allow-list of what it holds.

  What measuring cost is left out, because seconds and tokens tell how large the
  teacher is; so are the teacher's digest, the students' fingerprints, which
  hash private options, and whatever a later version may add.
  """
  inputs = value["inputs"]
  shown = {k: inputs[k] for k in _PUBLIC_INPUTS if k in inputs}
  shown["students"] = {
    name: {"step": about["step"]} if "step" in about else {}
    for name, about in inputs["students"].items()
  }
  shown["rows"] = {
    name: {k: rows[k] for k in _PUBLIC_ROWS}
    for name, rows in inputs["rows"].items()
  }
  options = inputs["options"]
  shown["options"] = {k: options[k] for k in _PUBLIC_OPTIONS if k in options}
  parts = {
    part: {k: value[part][k] for k in fields if k in value[part]}
    for part, fields in _PUBLIC_PARTS.items()
    if part in value
  }
  found = {
    **{"format": FORMAT, "format_version": FORMAT_VERSION, "inputs": shown},
    **{k: value[k] for k in ("software", "claims", "rules")},
    **parts,
    "cost": {},
  }
  wrong = problem(found)
  assert not wrong, f"fidelity.json, public: {wrong}"
  return json.loads(json.dumps(found))


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
    command="measure",
  )
