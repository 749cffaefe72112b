"""compliance.json: the gates and the EU's form, for one kind of reader.

The form is the Model Documentation Form of the Code of Practice for
general-purpose AI models, Transparency chapter, Measure 1.1 (10 July 2025). Its
items are paraphrased here. The audience of an item follows Annexes XI (AI
Office and national authorities, on request) and XII (downstream providers) of
Regulation (EU) 2024/1689; the ticks of the form itself were read in copies: not
verified. Compute and energy are only for authorities.
"""

from collections.abc import Mapping
import hashlib
from pathlib import Path
from typing import Any

from analogjax.bundle import record as records
from analogjax.documents import eu_form, pages
from analogjax.workdir import json_document

FORMAT = "analogjax.compliance"
FORMAT_VERSION = 1


def make(record: Mapping[str, Any]) -> dict[str, Any]:
  """The report in the view of the record."""
  model = record["model"]
  value = {
    "format": FORMAT,
    "format_version": FORMAT_VERSION,
    "view": record["view"],
    "model": {
      "name": model["name"],
      "version": model["version"],
      "provider": model["provider"],
      "contact": model["contact"],
      "released_on": model["released_on"],
      "parameters": dict(model["parameters"]),
      "licence": model["licence"]["spdx"],
    },
    "record_sha256": hashlib.sha256(
      records.to_text(record).encode("utf-8")
    ).hexdigest(),
    "window": dict(record["frontier"]["window"]),
    "commitments": dict(record["frontier"]["commitments"]),
    "pair": dict(record["pair"]),
    "gates": [dict(gate) for gate in record["gates"]],
    "form": eu_form.items(record),
    "openness": record["mof"],
    "not_recorded": list(record["not_recorded"]),
  }
  if record["view"] == records.REGULATOR:
    value["frontier"] = _frontier(record)
  wrong = problem(value)
  assert not wrong, f"compliance.json: {wrong}"
  return value


def _frontier(record: Mapping[str, Any]) -> dict[str, Any]:
  found = record["frontier"]
  names = ("name", "deployed_on", "parameters", "active_parameters", "family")
  return {n: found[n] for n in (*names, "size_ratio", "active_ratio")}


def to_json(record: Mapping[str, Any]) -> str:
  return records.to_text(make(record))


def to_page(record: Mapping[str, Any]) -> str:
  """COMPLIANCE.md."""
  return pages.page("compliance", record, report=make(record))


def problem(value: Any) -> str:
  """The place and kind of a problem in a report; "" if there is none."""
  return json_document.Kind(
    FORMAT,
    FORMAT_VERSION,
    Path(__file__).with_name("compliance_schema.json"),
    command="release",
  ).problem(value)
