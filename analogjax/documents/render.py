"""Renders every document of a release from its record and nothing else.

The same record gives the same bytes, so that anyone can render them again and
compare.
"""

from collections.abc import Mapping
from typing import Any

from analogjax.bundle import record as records
from analogjax.documents import (
  bill_of_materials,
  compliance,
  model_card,
  pages,
  safety_summary,
  training_data,
)
from analogjax.fidelity.report import page


def render(
  record: Mapping[str, Any],
  *,
  fidelity: Mapping[str, Any],
  safety: Mapping[str, Any],
) -> dict[str, str]:
  """The documents of the record's view: path in the bundle -> text."""
  assert not (wrong := records.problem(record)), wrong
  if record["view"] == records.REGULATOR:
    return _for_regulator(record)
  del safety  # The record has everything that the documents say of it.
  return {
    "README.md": pages.page("guide", record),
    "model/README.md": model_card.render(record),
    "COMPLIANCE.md": compliance.to_page(record),
    "compliance.json": compliance.to_json(record),
    "TRAINING_DATA.md": training_data.to_page(record),
    "TRAINING_DATA.json": training_data.to_json(record),
    "COST.md": pages.page("cost", record),
    "SAFETY.md": safety_summary.render(record),
    "fidelity.html": page.render(fidelity),
    "mlbom.cdx.json": bill_of_materials.render(record),
    "repro/README.md": pages.page("reproduction", record),
    "repro/software.json": software(record),
  }


def _for_regulator(record: Mapping[str, Any]) -> dict[str, str]:
  """The documents beside the bundle, which are never in it."""
  openings = record["frontier"]["openings"]
  return {
    "COMPLIANCE.md": compliance.to_page(record),
    "compliance.json": compliance.to_json(record),
    "COST.md": pages.page("cost", record),
    "mlbom.cdx.json": bill_of_materials.render(record),
    "openings.json": records.to_text(openings),
  }


def software(record: Mapping[str, Any]) -> str:
  """repro/software.json."""
  repro = record["repro"]
  value = {"python": repro["python"], "packages": repro["software"]}
  return records.to_text(value)
