"""Makes, checks and reads fidelity.json; its schema is schema.json."""

from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any

from analogjax.fidelity import claims
from analogjax.workdir import json_document

FORMAT = "analogjax.fidelity"
FORMAT_VERSION = 2

# The part of `inputs` that may be published. The batch size and the folders of
# other students are private; the teacher's digest would confirm a guess at
# which model it is.
_PUBLIC_INPUTS = ("analog", "controls", "random", "quick", "behaviours")
_PUBLIC_ROWS = ("number", "digest")
_PUBLIC_OPTIONS = (
  "parts",
  "seed",
  "fit_rows",
  "domain_rows",
  "depths",
  "points",
  "permutations",
  "resamples",
  "max_strength",
  "strengths",
  "random_vectors",
  "mapper_steps",
  "stitch_steps",
)
# The fields of each part that may be published. What lies below them follows
# the schema, which is closed and names no width and no layer.
_PUBLIC_PARTS = {
  "output": ("models",),
  "similarity": (
    "points",
    "permutations",
    "depths",
    "models",
    "embeddings",
    "maps",
  ),
  "steering": ("behaviours", "maps"),
  "stitching": ("cross_entropy_nats", "models"),
}


def _kind() -> json_document.Kind:
  schema = Path(__file__).with_name("schema.json")
  return json_document.Kind(FORMAT, FORMAT_VERSION, schema, "measure")


def make(
  parts: Mapping[str, Any],
  *,
  inputs: Mapping[str, Any],
  cost: Mapping[str, Any],
  software: Mapping[str, str],
) -> dict[str, Any]:
  """The document: the parts and the claims that follow from them.

  Args:
    inputs: with `analog`, `controls`, `random` and `quick`.
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
    "rules": claims.rules(),
    **parts,
    "cost": cost,
  }
  wrong = problem(value)
  assert not wrong, f"fidelity.json: {wrong}"
  return value


def problem(value: Any) -> str:
  """The place and kind of a schema violation; "" if there is none."""
  return _kind().problem(value)


def public(value: Mapping[str, Any]) -> dict[str, Any]:
  """The publishable part of the document, chosen by an allow-list.

  The cost is left out, because seconds and tokens reveal the teacher's size.
  The teacher's digest, the students' fingerprints, which hash private options,
  and anything a later version may add are left out too.
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
    "format": FORMAT,
    "format_version": FORMAT_VERSION,
    "inputs": shown,
    **{k: value[k] for k in ("software", "claims", "rules")},
    **parts,
    "cost": {},
  }
  wrong = problem(found)
  assert not wrong, f"fidelity.json, public: {wrong}"
  return json.loads(json.dumps(found))


def read(path: Path) -> dict[str, Any]:
  """Reads the document; a ValueError names the file and what is wrong."""
  return _kind().read(path)
