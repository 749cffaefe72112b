"""Tests for analogjax/fidelity/document.py: its publishable part."""

import json

import pytest
import synthetic_report

from analogjax.fidelity import document
from analogjax.fidelity.report import page as report


@pytest.fixture
def value():
  return synthetic_report.make(synthetic_report.parts())


def test_the_public_document_is_one_and_makes_a_page(value):
  public = document.public(value)
  assert not document.problem(public)
  page = report.render(public)
  assert "Not published: it would tell" in page
  assert "Not published" not in report.render(value)
  assert public["claims"] == value["claims"]
  assert public["output"] == value["output"]


def test_nothing_private_is_left(value):
  inputs = value["inputs"]
  inputs["teacher_digest"] = "S3CRET"
  inputs["students"]["control"] = {"step": 160, "fingerprint": "S3CRET"}
  inputs["students"]["distill"] = {"digest": "S3CRET", "folder": "S3CRET"}
  inputs["options"].update(
    folders=["a=S3CRET"], batch_rows=9876598765, phases=["S3CRET"]
  )
  inputs["new"] = "S3CRET"
  value["cost"] = {
    "output": {
      "seconds": 9876598765.0,
      "device_seconds": 9876598765.0,
      "tokens": 9876598765,
    }
  }
  value["similarity"]["variance_in_components"] = {"teacher": [0.9876598765]}
  public = document.public(value)
  text = json.dumps(public)
  assert "S3CRET" not in text and "9876598765" not in text
  assert public["inputs"]["students"]["control"] == {"step": 160}
  assert public["inputs"]["students"]["distill"] == {}


def test_a_part_that_was_not_measured_stays_away(value):
  del value["steering"]
  assert "steering" not in document.public(value)


def test_it_can_be_made_public_again(value):
  public = document.public(value)
  assert document.public(public) == public
