"""Tests for analogjax/documents/compliance.py and eu_form.py."""

import hashlib
import json

import facts_example
import pytest

from analogjax.bundle import record
from analogjax.documents import compliance


def project(view, facts=None):
  return record.project(facts or facts_example.facts(), view)


def leaves(value, path=""):
  if isinstance(value, dict):
    for key, item in value.items():
      yield from leaves(item, f"{path}.{key}")
  elif isinstance(value, list):
    for item in value:
      yield from leaves(item, f"{path}[]")
  else:
    yield path, value


@pytest.mark.parametrize("view", record.VIEWS)
def test_it_is_of_its_schema(view):
  made = project(view)
  value = json.loads(compliance.to_json(made))
  assert not compliance.problem(value)
  text = record.to_text(made).encode()
  assert value["record_sha256"] == hashlib.sha256(text).hexdigest()


def test_the_public_view_has_no_key_of_the_regulator_s():
  public = dict(leaves(compliance.make(project("public"))))
  regulator = dict(leaves(compliance.make(project("regulator"))))
  added = {path for path in regulator if path not in public}
  assert added == {
    *(f".frontier.{n}" for n in ("name", "deployed_on", "parameters")),
    *(f".frontier.{n}" for n in ("active_parameters", "family")),
    *(".frontier.size_ratio", ".frontier.active_ratio"),
    ".gates[].private_evidence",
  }
  assert not set(public) - set(regulator)


def test_compute_and_energy_are_for_authorities_alone():
  public = compliance.make(project("public"))["form"]
  regulator = compliance.make(project("regulator"))["form"]
  private = [i for i in regulator if i["id"] not in {p["id"] for p in public}]
  assert {i["id"].split(".")[0] for i in private} == {"compute", "energy"}
  assert not [i for i in private if "downstream" in i["for"]]
  answers = {i["id"]: i["answer"] for i in regulator}
  # By hand: 2.51274e12 + 3.35033e12 = 5.86307e12; + 2.20389e13 = 2.79020e13.
  assert answers["compute.flops"] == (
    "5.9 x 10^12 of the analog; 2.2 x 10^13 of the frontier model's run over"
    " its text; together 2.8 x 10^13."
  )
  assert answers["compute.magnitude"] == "10^13"
  # (0.0032 + 0.0048 + 0.0091) kWh.
  assert answers["energy.training"] == "0.000017 MWh."
  assert answers["compute.time"].startswith("Less than 1 month: 0.0016 days")


def test_what_no_fact_answers_is_said_to_be_not_recorded():
  form = {i["id"]: i for i in compliance.make(project("public"))["form"]}
  assert form["data.bias"]["status"] == "not recorded"
  assert form["data.bias"]["answer"] == "Not recorded."
  assert form["general.provider"]["status"] == "stated"


def test_costs_that_are_not_known_are_not_made_up():
  facts = facts_example.facts()
  facts["cost_in_full"]["rows"][1]["flops"] = None
  facts["cost_in_full"]["rows"][1]["kwh"] = None
  facts["cost_in_full"]["rows"][1]["device_hours"] = None
  form = compliance.make(project("regulator", facts))["form"]
  statuses = {i["id"]: i["status"] for i in form}
  for key in ("compute.time", "compute.flops", "energy.training"):
    assert statuses[key] == "not recorded"


@pytest.mark.parametrize("view", record.VIEWS)
def test_every_gate_and_waiver_is_in_the_page(view):
  page = compliance.to_page(project(view))
  for gate in facts_example.facts()["gates"]:
    assert f"| {gate['title']} | {gate['verdict']} |" in page
    assert gate["waiver"] is None or gate["waiver"] in page
    private = gate["private_evidence"]
    assert not private or (private in page) == (view == "regulator")


def test_the_public_page_names_nothing_private():
  page = compliance.to_page(project("public"))
  for word in ("Colossus", "134,515,008", "2026-03-31", "2.485"):
    assert word not in page
    assert word in compliance.to_page(project("regulator"))


def test_the_schema_refuses_a_waiver_without_a_reason():
  value = compliance.make(project("public"))
  gate = next(g for g in value["gates"] if g["verdict"] == "waived")
  gate["waiver"] = None
  assert "waiver" in compliance.problem(value)


def test_the_schema_refuses_what_is_private_in_public():
  value = compliance.make(project("regulator"))
  value["view"] = "public"
  assert compliance.problem(value)
