"""Tests for analogjax/stages/measure.py: conclusions and published parts."""

import pytest
import synthetic_report

from analogjax.config import loading
from analogjax.fidelity import document
from analogjax.stages import measure


@pytest.fixture
def workdir(tmp_path):
  """A workdir with a measured part, and its inputs."""
  inputs = synthetic_report.inputs(synthetic_report.REACH, ["control"])
  del inputs["quick"]
  (tmp_path / "fidelity").mkdir()
  cost = {"seconds": 1.5, "device_seconds": 3.0, "tokens": 4096}
  part = {"result": synthetic_report.parts()["output"], "cost": cost}
  path = tmp_path / "fidelity" / "output.json"
  loading.write_json(path, {"inputs": inputs, **part})
  return tmp_path, inputs


def test_it_leaves_the_document_and_its_page(workdir):
  folder, inputs = workdir
  command = f"analogjax measure --workdir={folder}"
  measure._conclude(folder, inputs, True, command)
  value = document.read(folder / "fidelity.json")
  assert value["inputs"] == {**inputs, "quick": True}
  assert value["cost"]["output"]["tokens"] == 4096
  assert value["output"] == synthetic_report.parts()["output"]
  verdicts = {c["id"]: c["verdict"] for c in value["claims"]}
  assert verdicts["output.kl"] == "transfers"
  assert verdicts["stitching"] == "not enough evidence"
  page = (folder / "fidelity.html").read_text("utf-8")
  assert page.startswith("<!DOCTYPE html>") and "4,096" in page
  # Only the lab's own page has its paths.
  assert f"--workdir={folder}</span> <span>--only=output</span>" in page
  assert str(folder) not in (folder / "fidelity.json").read_text("utf-8")
  # Once more, and nothing is written; with other flags, both are.
  paths = [folder / "fidelity.json", folder / "fidelity.html"]
  before = [path.stat().st_mtime_ns for path in paths]
  measure._conclude(folder, inputs, True, command)
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
