"""Tests for analogjax/documents/bill_of_materials.py."""

import json

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
import facts_example
import pytest

from analogjax.bundle import record
from analogjax.documents import bill_of_materials


def validated(facts, view):
  text = bill_of_materials.render(record.project(facts, view))
  validator = JsonStrictValidator(SchemaVersion.V1_6)
  assert validator.validate_str(text) is None
  return json.loads(text)


@pytest.mark.parametrize("view", record.VIEWS)
def test_it_is_cyclonedx(view):
  value = validated(facts_example.facts(), view)
  model = value["components"][0]
  assert model["type"] == "machine-learning-model"
  assert model["licenses"] == [{"license": {"id": "Apache-2.0"}}]
  hashes = {c["name"]: c["hashes"][0]["content"] for c in model["components"]}
  files = facts_example.facts()["model"]["files"]
  assert hashes == {f"model/{name}": value for name, value in files.items()}
  metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
  assert metrics[0]["value"] == "3.26"
  assert metrics[0]["confidenceInterval"]["lowerBound"] == "3.16"


def test_energy_is_for_the_regulator_alone():
  def energy(view):
    value = validated(facts_example.facts(), view)
    card = value["components"][0]["modelCard"]
    return card["considerations"].get("environmentalConsiderations")

  assert energy("public") is None
  [found] = energy("regulator")["energyConsumptions"]
  assert found["activity"] == "training"
  # 0.0032 + 0.0048 + 0.0091, by hand.
  assert found["activityEnergyCost"] == {"value": 0.0171, "unit": "kWh"}


def test_a_licence_without_an_identifier_has_its_name():
  facts = facts_example.facts()
  facts["model"]["licence"].update(spdx="other", name="The Lab's licence")
  model = validated(facts, "public")["components"][0]
  assert model["licenses"] == [{"license": {"name": "The Lab's licence"}}]


def test_the_serial_number_follows_from_the_record():
  facts = facts_example.facts()
  first = validated(facts, "public")["serialNumber"]
  assert first == validated(facts, "public")["serialNumber"]
  facts["model"]["version"] = "2"
  assert first != validated(facts, "public")["serialNumber"]


def test_what_is_unknown_is_left_out():
  facts = facts_example.facts()
  for row in facts["cost_in_full"]["rows"]:
    row["kwh"] = None
  card = validated(facts, "regulator")["components"][0]["modelCard"]
  assert "environmentalConsiderations" not in card["considerations"]
