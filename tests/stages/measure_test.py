"""Tests for what analogjax/stages/measure.py concludes and publishes."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import synthetic_report

from analogjax import config, config_files
from analogjax.fidelity import document
from analogjax.stages import measure

DEMO = Path(__file__).parents[2] / "configs" / "demo.py"


def sections(*overrides):
  cfg = config_files.load(DEMO, overrides)
  return config.to_sections(cfg)


@pytest.fixture
def workdir(tmp_path):
  """With a part that was measured, and its inputs."""
  inputs = synthetic_report.inputs(synthetic_report.REACH, ["control"])
  del inputs["quick"]
  (tmp_path / "fidelity").mkdir()
  cost = {"seconds": 1.5, "device_seconds": 3.0, "tokens": 4096}
  part = {"result": synthetic_report.parts()["output"], "cost": cost}
  path = tmp_path / "fidelity" / "output.json"
  config_files.write_json(path, {"inputs": inputs, **part})
  return tmp_path, inputs


def test_it_leaves_the_document_and_its_page(workdir):
  folder, inputs = workdir
  measure._conclude(folder, inputs, True)
  value = document.read(folder / "fidelity.json")
  assert value["inputs"] == {**inputs, "quick": True}
  assert value["cost"]["output"]["tokens"] == 4096
  assert value["output"] == synthetic_report.parts()["output"]
  verdicts = {c["id"]: c["verdict"] for c in value["claims"]}
  assert verdicts["output.kl"] == "transfers"
  assert verdicts["stitching"] == "not enough evidence"
  page = (folder / "fidelity.html").read_text("utf-8")
  assert page.startswith("<!DOCTYPE html>") and "4,096" in page
  assert str(folder) not in page
  # Once more, and nothing is written; with other flags, both are.
  paths = [folder / "fidelity.json", folder / "fidelity.html"]
  before = [path.stat().st_mtime_ns for path in paths]
  measure._conclude(folder, inputs, True)
  assert [path.stat().st_mtime_ns for path in paths] == before
  measure._conclude(folder, inputs, False)
  assert "--quick" not in paths[1].read_text("utf-8")
  assert document.read(paths[0])["inputs"]["quick"] is False


def test_a_part_of_other_inputs_is_not_taken(workdir):
  folder, inputs = workdir
  measure._conclude(folder, {**inputs, "teacher_digest": "another"}, False)
  value = document.read(folder / "fidelity.json")
  assert "output" not in value and value["cost"] == {}


def test_a_damaged_document_is_written_anew(workdir):
  folder, inputs = workdir
  (folder / "fidelity.json").write_text("{")
  measure._conclude(folder, inputs, False)
  document.read(folder / "fidelity.json")


def test_controls_never_saw_the_teacher():
  students = ("distill", "pretrain", "control", "earlier", "random")
  folder = ("measure.folders", "earlier=some/where")
  found = sections(folder)
  assert measure._controls(found, students, "distill") == [
    *("pretrain", "control", "earlier"),
  ]
  # Hard labels alone, but from a phase that saw it.
  found = sections(("train.phases", "pretrain,distill,control"))
  phases = {**found.train.phase}
  phases["control"] = dataclasses.replace(
    phases["control"], init_from="distill"
  )
  train = dataclasses.replace(found.train, phase=phases)
  found = dataclasses.replace(found, train=train)
  assert measure._controls(found, ("distill", "control"), "distill") == []
  assert measure._controls(found, ("control", "distill"), "control") == []


def test_what_is_published_has_no_paths(tmp_path):
  path = tmp_path / "politeness.json"
  path.write_text("{}")
  options = dataclasses.replace(
    sections().measure,
    folders=("b=/some/where", "a=else/where"),
    domains={"code": {"path": "/data/code"}},
    behaviours=("sentiment", str(path)),
  )
  found = measure._public(options)
  assert found["folders"] == ["a", "b"] and found["domains"] == ["code"]
  digest = hashlib.sha256(b"{}").hexdigest()
  assert found["behaviours"] == [
    "sentiment",
    f"politeness.json, SHA-256 {digest}",
  ]
  assert found["points"] == options.points
  text = json.dumps(found)
  assert "where" not in text and "/" not in text
