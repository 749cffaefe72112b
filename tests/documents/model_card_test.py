"""Tests for analogjax/documents/model_card.py."""

import facts_example
import huggingface_hub
import pytest

from analogjax.bundle import record
from analogjax.documents import model_card


def render(**licence):
  facts = facts_example.facts()
  facts["model"]["licence"].update(licence)
  return model_card.render(record.project(facts, "public"))


def test_the_hub_s_library_reads_it_back():
  data = huggingface_hub.ModelCard(render()).data
  assert data.license == "apache-2.0"
  assert data.language == ["en", "de"]
  assert data.library_name == "transformers"
  assert data.pipeline_tag == "text-generation"
  assert {"analog-model", "distillation"} <= set(data.tags)
  assert data.base_model is None
  results = {r.metric_type: r.metric_value for r in data.eval_results}
  assert results == {
    "kl_to_teacher_nats": 3.2595,
    "cross_entropy_nats": 5.755,
    "top1_agreement": 0.1978,
    "accuracy": 0.1396,
  }
  assert not model_card.metadata_problem(render())


def test_another_licence_is_other_with_a_name_and_the_text_beside_it():
  text = render(
    spdx="other", name="The Lab's RAIL, v1.2", category="limited safeguards"
  )
  data = huggingface_hub.ModelCard(text).data.to_dict()
  assert data["license"] == "other"
  assert data["license_name"] == "the-lab-s-rail-v1.2"
  assert data["license_link"] == "LICENSE"
  assert not model_card.metadata_problem(text)
  assert "limited safeguards" in text


@pytest.mark.parametrize(
  ("old", "new", "expected"),
  [
    ("license: apache-2.0", "license: Apache-2.0", "license: expected"),
    ("license: apache-2.0", "license: other", "license_name: expected"),
    ("- de", "- Deutsch", "language: expected"),
    ("text-generation\ntags", "texts\ntags", "pipeline_tag: expected"),
    ("library_name: transformers", "library_name: x", "library_name: expected"),
    ("license: apache-2.0", "license: [a", "metadata: not readable"),
  ],
)
def test_metadata_that_the_hub_would_not_take(old, new, expected):
  text = render()
  assert old in text
  assert model_card.metadata_problem(text.replace(old, new)).startswith(
    expected
  )


def test_a_metric_that_is_undefined_is_in_the_page_and_not_in_the_head():
  facts = facts_example.facts()
  facts["fidelity"]["metrics"]["accuracy"] = {
    **{"value": None, "low": None, "high": None, "n": 0},
    "why": "no rows",
  }
  text = model_card.render(record.project(facts, "public"))
  results = huggingface_hub.ModelCard(text).data.eval_results
  assert "accuracy" not in {r.metric_type for r in results}
  assert "| accuracy | n/a (no rows) |" in text


def test_a_gate_that_did_not_pass_is_not_claimed():
  facts = facts_example.facts()
  gates = {gate["id"]: gate for gate in facts["gates"]}
  gates["size"].update(verdict="waived", waiver="It is too small by a little.")
  text = " ".join(model_card.render(record.project(facts, "public")).split())
  assert "The analog has 0.5 % to 5 % of the frontier model's" not in text
  assert "The gate's verdict on this one: waived." in text
