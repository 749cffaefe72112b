"""Tests for analogjax/verify/regulator.py and trust.py."""

import copy
import shutil

import pytest
import tiny_bundle
from tiny_bundle import CFG, to_json, write_certificates

from analogjax.bundle import commitments, folder, signature, writer
from analogjax.verify import bundle, rules as checks, trust

NEEDED = ("files", "record", "weights", "parameters", "architecture", "gates")
N = CFG.num_parameters
pytestmark = pytest.mark.usefixtures("quick_pages")


def failures(report):
  return {c.id: c.evidence for c in report.checks if c.status == checks.FAILED}


def write(
  tmp_path, made, *, waive=(), early=False, limitations="Small.", **frontier
):
  """A bundle and a regulator's folder of another frontier model."""
  _, key, files, facts = made
  facts = copy.deepcopy(facts)
  facts["model"]["limitations"] = limitations
  found = facts["frontier"]
  found |= frontier
  found["size_ratio"] = N / found["parameters"]
  found["active_ratio"] = N / found["active_parameters"]
  found["commitments"], found["openings"] = commitments.make(
    {
      name: commitments.canonical(found[name])
      for name in ("parameters", "active_parameters", "deployed_on", "name")
    }
  )
  for gate in facts["gates"]:
    if gate["id"] in waive:
      gate |= {"verdict": "waived", "waiver": "The reason is told here."}
    if gate["id"] == "window" and early:
      gate["verdict"] = "warning"
  tiny_bundle.write(
    tmp_path / "bundle", tiny_bundle.documented(files, facts), key
  )
  tiny_bundle.write_regulator(tmp_path / "regulator", facts)
  return facts


def check(tmp_path, *, without=("regulator_leaks",)):
  """Examines only claims about the regulator; the linter takes a while."""
  evidence = checks.Evidence(
    folder.open_tree(tmp_path / "bundle"),
    regulator=folder.open_tree(tmp_path / "regulator"),
  )
  rules = [
    rule
    for rule in bundle.rules(regulator=True)
    if rule.id in NEEDED or rule.id.startswith(("regulator", "openings"))
    if rule.id not in without
  ]
  report = checks.Report(checks.run(rules, evidence))
  assert not [c for c in report.checks if checks.BROKE in c.evidence]
  return report


@pytest.mark.parametrize(
  ("parameters", "within"),
  [
    (200 * N, True),  # 0.5 %.
    (200 * N + 1, False),
    (round(N / 0.00499), False),
    (20 * N, True),  # 5 %.
    (20 * N - 1, False),
    (round(N / 0.05001), False),
    (round(N / 0.025), True),
  ],
)
def test_the_size_window_ends_where_it_says(tmp_path, made, parameters, within):
  write(tmp_path, made, parameters=parameters, active_parameters=parameters)
  found = failures(check(tmp_path))
  assert ("regulator_size" in found) == (not within), found


def test_active_parameters_have_the_same_window(tmp_path, made):
  write(tmp_path, made, parameters=200 * N, active_parameters=10 * N)
  found = failures(check(tmp_path))
  assert "active parameters are 10.0000%, outside" in found["regulator_size"]


def test_a_waived_gate_may_be_missed(tmp_path, made):
  write(tmp_path, made, waive=("size",), parameters=7 * N)
  found = {c.id: c for c in check(tmp_path).checks}["regulator_size"]
  assert found.status == checks.VERIFIED and "outside" in found.evidence


@pytest.mark.parametrize(
  ("deployed_on", "late"),
  [
    # Released on 2026-05-31.
    ("2026-03-31", False),
    ("2026-03-01", False),
    ("2026-02-28", True),  # Three months later is 28 May.
    ("2025-11-30", True),
  ],
)
def test_a_late_release_fails(tmp_path, made, deployed_on, late):
  write(tmp_path, made, deployed_on=deployed_on)
  assert ("regulator_dates" in failures(check(tmp_path))) == late


def test_an_early_release_has_to_be_flagged(tmp_path, made):
  write(tmp_path, made, deployed_on="2026-05-01")
  assert "Early" in failures(check(tmp_path))["regulator_dates"]


def test_an_early_release_that_is_flagged_is_as_it_says(tmp_path, made):
  write(tmp_path, made, deployed_on="2026-05-01", early=True)
  assert not failures(check(tmp_path))


def test_a_leak_of_what_was_opened_fails(tmp_path, made):
  write(tmp_path, made)
  assert not failures(check(tmp_path, without=()))
  shutil.rmtree(tmp_path / "regulator")
  write(tmp_path, made, limitations="Not a Colossus 9.")
  found = failures(check(tmp_path, without=()))
  assert set(found) == {"regulator_leaks"}
  assert "COMPLIANCE.md (name)" in found["regulator_leaks"]


def test_another_opening_fails(tmp_path, made):
  facts = write(tmp_path, made)
  openings = copy.deepcopy(facts["frontier"]["openings"])
  openings["parameters"]["value"] = str(30 * N)
  (tmp_path / "regulator" / "openings.json").write_bytes(to_json(openings))
  found = failures(check(tmp_path))
  assert set(found) == {"openings", "regulator_documents"}
  assert "does not fit" in found["openings"]


def test_a_regulators_record_of_another_bundle_fails(tmp_path, made):
  facts = write(tmp_path, made)
  other = copy.deepcopy(facts)
  other["model"]["version"] = "2"
  for path in (tmp_path / "regulator").iterdir():
    path.unlink()
  (tmp_path / "regulator").rmdir()
  tiny_bundle.write_regulator(tmp_path / "regulator", other)
  found = failures(check(tmp_path))
  assert set(found) == {"regulator_record"}
  assert "differs from the bundle's: model" in found["regulator_record"]


def test_files_that_are_no_regulators_folder_fail(tmp_path, made):
  write(tmp_path, made)
  (tmp_path / "regulator" / "record.json").write_bytes(b"[")
  (tmp_path / "regulator" / "a.py").write_bytes(b"")
  assert set(failures(check(tmp_path))) == {"regulator"}


def test_a_certificate_counts_by_who_vouches_for_it(tmp_path, made):
  _, key, files, _ = made
  own, root = write_certificates(tmp_path, key)
  (tmp_path / "other").mkdir()
  other = write_certificates(tmp_path / "other", key)[1]
  signer = signature.with_key(key, certificates=(own, root))
  writer.write(tmp_path / "bundle", files=files, signer=signer)

  def signed(paths):
    expected = trust.with_chain(paths)
    report = bundle.check(tmp_path / "bundle", verifier=expected)
    return {c.id: c for c in report.checks}["signer"]

  assert signed([root]).status == checks.VERIFIED
  assert "CN=Own" in signed([root]).evidence
  assert "not vouched for" in signed([other]).evidence
  assert signed([other]).status == checks.FAILED
  # The key is the certificate's, so it does as well.
  by_key = trust.with_key(key.with_suffix(".pub"))
  assert not failures(bundle.check(tmp_path / "bundle", verifier=by_key))
  bare = bundle.check(made[0], verifier=trust.with_chain([root]))
  assert "signed by a bare key" in failures(bare)["signer"]
