"""Tests for analogjax/api/results.py."""

import pytest

import analogjax as aj


def test_measurements_are_read_from_a_file_or_its_folder(desk):
  file = desk / "runs/demo/fidelity.json"
  assert aj.read_fidelity(file) == aj.read_fidelity(str(file.parent))
  file.write_text("{}")
  with pytest.raises(ValueError, match=r"fidelity\.json"):
    aj.read_fidelity(file)
  with pytest.raises(ValueError, match="no-such"):
    aj.read_fidelity(desk / "no-such")


def test_a_changed_bundle_fails_by_name(desk):
  bundle = desk / "runs/demo/bundle"
  with (bundle / "COST.md").open("a") as file:
    file.write(" ")
  report = aj.verify_bundle(bundle, key=desk / "demo.key.pub")
  assert report.verdict == "failed"
  (found, *_) = [x for x in report.checks if x.status == "failed"]
  assert "COST.md" in found.evidence


def test_somebody_elses_key_and_a_missing_bundle(desk):
  with pytest.raises(ValueError, match="key, chain: expected one of them"):
    aj.verify_bundle("runs/demo/bundle", key="a", chain=["b"])
  with pytest.raises(ValueError, match=r"no\.pub"):
    aj.verify_bundle("runs/demo/bundle", key="no.pub")
  with pytest.raises(ValueError, match="no-such"):
    aj.verify_bundle("no-such")
