"""mlbom.cdx.json: the model as a bill of materials, in CycloneDX 1.6.

Written by hand, because cyclonedx-python-lib has no class for a model card
(11.12, November 2026); the tests check it with that library's strict
validator. The same record gives the same file: the serial number comes from the
record's digest, and the timestamp is the day of the release.

Format: https://cyclonedx.org/docs/1.6/json/, `component.modelCard`.
"""

from collections.abc import Mapping
import hashlib
from typing import Any
import uuid

from analogjax.bundle import record as records
from analogjax.documents import pages
from analogjax.rendering import numbers

SPEC = "1.6"
_TASK = "text-generation"


def render(record: Mapping[str, Any]) -> str:
  return records.to_text(make(record))


def make(record: Mapping[str, Any]) -> dict[str, Any]:
  model = record["model"]
  digest = hashlib.sha256(records.to_text(record).encode("utf-8")).digest()
  return {
    "bomFormat": "CycloneDX",
    "specVersion": SPEC,
    # As the format requires: a UUID of version 4 in form, here of the digest.
    "serialNumber": uuid.UUID(bytes=digest[:16], version=4).urn,
    "version": 1,
    "metadata": {
      "timestamp": f"{model['released_on']}T00:00:00Z",
      "tools": {
        "components": [
          {
            "type": "application",
            "name": "analogjax",
            "version": record["repro"]["software"].get("analogjax", "unknown"),
          }
        ]
      },
      "supplier": {"name": model["provider"]},
    },
    "components": [_component(record), *_data(record)],
    "dependencies": [
      {"ref": "model", "dependsOn": [f"data:{n}" for n in _sources(record)]}
    ],
  }


def _sources(record: Mapping[str, Any]) -> Mapping[str, Any]:
  return record["data"]["sources"]


def _component(record: Mapping[str, Any]) -> dict[str, Any]:
  model = record["model"]
  licence = model["licence"]
  known = licence["spdx"] != "other"
  named = {"id": licence["spdx"]} if known else {"name": licence["name"]}
  return {
    "type": "machine-learning-model",
    "bom-ref": "model",
    "name": model["name"],
    "version": model["version"],
    "supplier": {"name": model["provider"]},
    "description": (
      "An analog: a small open model that stands in for a larger closed one."
    ),
    "licenses": [{"license": named}],
    "components": [
      {
        "type": "file",
        "name": f"model/{name}",
        "hashes": [{"alg": "SHA-256", "content": value}],
      }
      for name, value in model["files"].items()
    ],
    "modelCard": _card(record),
    "properties": [
      {"name": f"analogjax:{name}", "value": value}
      for name, value in _properties(record).items()
    ],
  }


def _properties(record: Mapping[str, Any]) -> dict[str, str]:
  """Facts for which CycloneDX has no field, distillation first."""
  model, found = record["model"], record["distillation"]
  gates = {f"gate:{g['id']}": g["verdict"] for g in record["gates"]}
  return {
    "distilled": "true" if found["used"] else "false",
    "parameters": str(model["parameters"]["total"]),
    "active-parameters": str(model["parameters"]["active"]),
    "safety": record["safety"]["verdict"],
    **gates,
  }


def _data(record: Mapping[str, Any]) -> list[dict[str, Any]]:
  return [
    {
      "type": "data",
      "bom-ref": f"data:{name}",
      "name": name,
      "description": source["about"],
      "data": [
        {
          "type": "dataset",
          "name": name,
          "description": source["about"],
          "classification": source["kind"].replace("_", " "),
        }
      ],
    }
    for name, source in _sources(record).items()
  ]


def _card(record: Mapping[str, Any]) -> dict[str, Any]:
  model = record["model"]
  metrics = [
    {
      "type": pages.metric_name(name),
      "value": numbers.number(estimate["value"]),
      "slice": "held-out rows",
      "confidenceInterval": {
        "lowerBound": numbers.number(estimate["low"]),
        "upperBound": numbers.number(estimate["high"]),
      },
    }
    for name, estimate in record["fidelity"]["metrics"].items()
    if estimate["value"] is not None
  ]
  return {
    "modelParameters": {
      # There is no value for distillation; it has labels, so supervised.
      "approach": {"type": "supervised"},
      "task": _TASK,
      "architectureFamily": "transformer",
      "modelArchitecture": model["family"],
      "datasets": [{"ref": f"data:{name}"} for name in _sources(record)],
      "inputs": [{"format": m} for m in model["modalities"]],
      "outputs": [{"format": m} for m in model["modalities"]],
    },
    "quantitativeAnalysis": {"performanceMetrics": metrics},
    "considerations": _considerations(record),
  }


def _considerations(record: Mapping[str, Any]) -> dict[str, Any]:
  model = record["model"]
  found = {
    "users": ["Researchers of safety and interpretability"],
    "useCases": [model["intended_use"]],
    "technicalLimitations": [model["limitations"]],
    "ethicalConsiderations": [
      {
        "name": f"Out of scope: {model['out_of_scope']}",
        "mitigationStrategy": pages.statement("safety_verdict", record),
      }
    ],
  }
  if record["view"] == "regulator":
    energy = _energy(record)
    if energy:
      found["environmentalConsiderations"] = {"energyConsumptions": energy}
  return found


def _energy(record: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The known kWh of training."""
  cost = record["cost_in_full"]
  rows = [row for row in cost["rows"] if pages.is_training(row)]
  known = [row["kwh"] for row in rows if isinstance(row["kwh"], int | float)]
  if not known:
    return []
  provider = {
    "organization": {"name": "as billed to the provider"},
    "energySource": "unknown",
    "energyProvided": {"value": sum(known), "unit": "kWh"},
    "description": cost["energy"]["method"],
  }
  return [
    {
      "activity": "training",
      "energyProviders": [provider],
      "activityEnergyCost": {"value": sum(known), "unit": "kWh"},
    }
  ]
