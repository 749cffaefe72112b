"""Tests for analogjax/verify/: a good bundle, and false ones.

Each changed bundle is signed again with another key, so that each false claim
has to be found by its own check.
"""

import copy
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
import tiny_bundle
from tiny_bundle import sha256, to_json

from analogjax.bundle import folder as folder_lib, licences, record
from analogjax.verify import (
  bundle as verify,
  files as verify_files,
  rules,
  trust,
)

WEIGHTS = "model/model.safetensors"
pytestmark = pytest.mark.usefixtures("quick_pages")


def by_id(report):
  return {check.id: check for check in report.checks}


def failures(report):
  return {c.id: c.evidence for c in report.checks if c.status == rules.FAILED}


def test_a_good_bundle_has_no_failure(made):
  folder, key, *_ = made
  expected = trust.with_key(key.with_suffix(".pub"))
  report = verify.check(folder, verifier=expected, deep=True)
  assert not failures(report)
  found = by_id(report)
  declared = {
    *("training", "cost", "size_window", "date_window", "pair", "leaks"),
    *("fidelity_to_teacher", "safety_values"),
  }
  for name, check in found.items():
    wanted = rules.DECLARED if name in declared else rules.VERIFIED
    assert check.status == wanted, check
  assert f"{tiny_bundle.CFG.num_parameters:,} param" in found["parameters"][-1]


def test_weights_in_bfloat16_and_in_several_files(tmp_path):
  key = tiny_bundle.write_key(tmp_path / "key.pem")
  files, _ = tiny_bundle.contents(
    tmp_path, dtype="bfloat16", max_shard_bytes=3000
  )
  tiny_bundle.write(tmp_path / "bundle", files, key)
  report = verify.check(tmp_path / "bundle", deep=True)
  assert not failures(report)
  assert by_id(report)["measured"].status == rules.VERIFIED
  assert "20 tensors in 4 safetensors files" in by_id(report)["weights"][-1]
  # A loader that prefers this name would take other weights than were counted.
  files[WEIGHTS] = files["model/model-00001-of-00004.safetensors"]
  tiny_bundle.write(tmp_path / "bundle", files, key)
  assert "weights" in failures(verify.check(tmp_path / "bundle"))


def test_without_a_key_whose_signature_it_is_cannot_be_told(made):
  found = by_id(verify.check(made[0]))
  assert found["signature"].status == rules.VERIFIED
  assert found["signer"].status == rules.NOT_CHECKABLE
  assert found["measured"].status == rules.NOT_CHECKABLE


def test_another_key_than_the_expected_one_fails(made, tmp_path):
  other = tiny_bundle.write_key(tmp_path / "key.pem")
  expected = trust.with_key(other.with_suffix(".pub"))
  found = failures(verify.check(made[0], verifier=expected))
  assert found == {"signer": "The signature is not by the given key."}


def test_one_flipped_bit_of_any_file_fails(made, tmp_path):
  folder, _, files, _ = made
  copy_ = tmp_path / "bundle"
  shutil.copytree(folder, copy_)
  unseen = []
  for path in sorted(p for p in copy_.rglob("*") if p.is_file()):
    data = path.read_bytes()
    # Those that nothing else covers are taken more closely.
    few = path.relative_to(copy_).as_posix() in files
    places = {0, len(data) - 1, *range(7, len(data), len(data) // 3 + 1)}
    if not few:
      places |= set(range(0, len(data), 37))
    for i in sorted(places):
      flipped = bytearray(data)
      flipped[i] ^= 1 << (i % 8)
      path.write_bytes(flipped)
      if not files_fail(copy_):
        unseen.append((path.name, i))
    path.write_bytes(data)
  assert not unseen
  assert not files_fail(copy_)


def files_fail(folder):
  evidence = rules.Evidence(folder_lib.open_tree(folder))
  found = rules.run(verify_files.RULES, evidence)
  return rules.Report(found).failed


def test_a_file_more_or_less_fails(made, tmp_path):
  copy_ = tmp_path / "bundle"
  shutil.copytree(made[0], copy_)
  (copy_ / "NOTICE").write_bytes(b"")
  assert set(failures(verify.check(copy_))) == {"manifest"}
  (copy_ / "NOTICE").unlink()
  (copy_ / "rows" / "held_out.safetensors").unlink()
  (copy_ / "rows").rmdir()
  assert "manifest" in failures(verify.check(copy_))


def relabelled(files, facts, change):
  """The files with a changed record and all documents made from it."""
  value = record.project(facts, "public")
  change(value)
  return tiny_bundle.documented(files, facts, value)


def change_record(path, value):
  def change(files, facts):
    def edit(found):
      *folders, name = path
      for step in folders:
        found = found[step]
      found[name] = value

    return relabelled(files, facts, edit)

  return change


def change_json(path, edit, *, section=None, digest="sha256"):
  """Edits a JSON file, and its digest in the record."""

  def change(files, facts):
    value = json.loads(files[path])
    edit(value)
    files = {**files, path: to_json(value)}
    if path.startswith("model/"):
      name = path.removeprefix("model/")
      facts["model"]["files"][name] = sha256(files[path])
    elif section:
      facts[section][digest] = sha256(files[path])
    return tiny_bundle.documented(files, facts)

  return change


def change_bytes(path, data):
  def change(files, facts):
    return {**files, path: data(files.get(path, b""))}

  return change


def change_weights(edit):
  def change(files, facts):
    arrays = safetensors.numpy.load(files[WEIGHTS])
    edit(arrays)
    data = safetensors.numpy.save(arrays)
    facts["model"]["files"]["model.safetensors"] = sha256(data)
    facts["model"]["weights_bytes"] = len(data)
    return tiny_bundle.documented({**files, WEIGHTS: data}, facts)

  return change


def spoil(name, value):
  def edit(arrays):
    arrays[name][0, 0] = value

  return edit


def set_metric(value):
  value["output"]["models"]["distill"]["metrics"]["accuracy"]["value"] += 0.01


def fidelity_says_more(files, facts):
  """A better accuracy, in every place that states it."""
  value = json.loads(files["fidelity.json"])
  set_metric(value)
  facts["fidelity"]["sha256"] = sha256(to_json(value))
  facts["fidelity"]["metrics"]["accuracy"]["value"] += 0.01
  files = {**files, "fidelity.json": to_json(value)}
  return tiny_bundle.documented(files, facts)


NORM = "model.norm.weight"
LIES = {
  "more parameters": (
    change_record(("model", "parameters", "total"), 10_000),
    {"parameters": "parameters.total is 10,000 in the record, 4,896 in the"},
  ),
  "another width": (
    change_record(("model", "architecture", "width"), 32),
    {"architecture": "model.architecture"},
  ),
  "a private field": (
    change_record(("frontier", "name"), "Colossus-9"),
    {"record": "'name' was unexpected"},
  ),
  "a gate left out": (
    change_record(("gates",), []),
    {"record": "gates"},
  ),
  "a failed gate": (
    change_record(("gates", 8, "verdict"), "failed"),
    {"gates": "gate leaks failed"},
  ),
  "a waiver without a reason": (
    change_record(("gates", 3, "waiver"), "because"),
    {"gates": "gate data is waived without a reason"},
  ),
  "a waiver of nothing": (
    change_record(("gates", 3, "verdict"), "passed"),
    {"gates": "go together"},
  ),
  "another licence": (
    change_record(("model", "licence", "spdx"), "MIT"),
    {"licence": "expected the text of MIT"},
  ),
  "a licence with a condition": (
    change_bytes("LICENSE", lambda data: data + b"\nNo audits.\n"),
    {"licence": "model/LICENSE is not the same"},
  ),
  "a wider window": (
    change_record(("frontier", "window", "size"), [0.001, 0.5]),
    {"size_window": "expected"},
  ),
  "a day that is none": (
    change_record(("model", "released_on"), "2026-02-30"),
    {"date_window": "'2026-02-30' is not a date", "mlbom": "2026-02-30T00"},
  ),
  "fewer training tokens": (
    change_record(("data", "train_tokens"), 1),
    {"training": "the phases have"},
  ),
  "no distillation": (
    change_record(("distillation", "used"), False),
    {"training": "not what the phases say"},
  ),
  "a smaller total": (
    change_record(("cost", "total", "dollars"), 1.0),
    {"cost": "the total of dollars is 1.0"},
  ),
  "another config": (
    change_bytes("repro/config.json", lambda data: b"{}"),
    {"config": "another SHA-256"},
  ),
  "code to run": (
    change_json(
      "model/config.json", lambda v: v.update(auto_map={"AutoModel": "a.B"})
    ),
    {"no_code": "auto_map", "architecture": "auto_map"},
  ),
  "a config of other heads": (
    change_json("model/config.json", lambda v: v.update(num_attention_heads=8)),
    {"weights": "q_proj.weight has shape"},
  ),
  "a config of a billion layers": (
    change_json(
      "model/config.json", lambda v: v.update(num_hidden_layers=10**9)
    ),
    {"weights": "1,000,000,000 layers"},
  ),
  "a config of a huge vocabulary": (
    change_json("model/config.json", lambda v: v.update(vocab_size=10**30)),
    {"weights": "expected <="},
  ),
  "a config of no kind": (
    change_json("model/config.json", lambda v: v.update(rope_scaling=[1])),
    {"weights": "a value of the wrong kind"},
  ),
  "a tensor more": (
    change_weights(lambda a: a.update(extra=np.ones(3, np.float32))),
    {"weights": "'extra' belongs to no part"},
  ),
  "a tensor less": (
    change_weights(lambda a: a.pop(NORM)),
    {"weights": f"{NORM} is missing"},
  ),
  "a weight that is no number": (
    change_weights(spoil("model.embed_tokens.weight", np.nan)),
    {"finite": "holds NaN or infinity"},
  ),
  "another tokenizer": (
    change_bytes("model/tokenizer.json", lambda data: data + b" "),
    {"model_files": "another SHA-256: tokenizer.json"},
  ),
  "an adapter beside the weights": (
    change_bytes("model/adapter_config.json", lambda data: b"{}"),
    {"layout": "not part of a bundle: model/adapter_config.json"},
  ),
  "a bill that is none": (
    change_bytes("mlbom.cdx.json", lambda data: b'{"specVersion": "1.6"}'),
    {"mlbom": "bomFormat", "documents": "mlbom"},
  ),
  "a better verdict": (
    change_json(
      "fidelity.json",
      lambda v: v["claims"][0].update(because="It is so."),
      section="fidelity",
    ),
    {"fidelity": "other claims"},
  ),
  "a better number": (
    change_json("fidelity.json", set_metric, section="fidelity"),
    {"fidelity": "other numbers than fidelity.json: accuracy"},
  ),
  "a better number everywhere": (
    fidelity_says_more,
    {"measured": "accuracy is 0."},
  ),
  "another page": (
    change_bytes("fidelity.html", lambda data: data[:-1]),
    {"documents": "not what the record makes of it: fidelity.html"},
  ),
  "rows of another text": (
    change_bytes(
      "rows/held_out.safetensors", lambda data: data[:-4] + b"\0\0\0\1"
    ),
    {"rows": "", "measured": ""},
  ),
  "a safety test that passed": (
    change_json(
      "safety.json",
      lambda v: v["tests"][0]["value"].update(value=0.5),
      section="safety",
    ),
    {"safety": "the record's safety.tests"},
  ),
}

PASSED = {"verdict": "passed", "waiver": None}


def edit_record(edit):
  return lambda files, facts: relabelled(files, facts, edit)


def other_version(page):
  """A bundle of another version, whose documents cannot be rendered again."""

  def change(files, facts):
    value = record.project(facts, "public")
    value["repro"]["software"]["analogjax"] = "0.0.1"
    files = tiny_bundle.documented(files, facts, value)
    return {**files, "fidelity.html": page + files["fidelity.html"]}

  return change


def set_head(arrays):
  arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"] + 1


LIES |= {
  "a head beside the embedding that it is tied to": (
    change_weights(set_head),
    {"weights": "'lm_head.weight' belongs to no part"},
  ),
  "a family that is none": (
    change_record(("pair", "same_tokenizer"), False),
    {"gates": "gate family passed, though"},
  ),
  "data that nobody stated": (
    edit_record(
      lambda v: (v["pair"].update(same_data=None), v["gates"][3].update(PASSED))
    ),
    {"gates": "gate data passed, though"},
  ),
  "a quick measurement": (
    edit_record(
      lambda v: (
        v["fidelity"].update(quick=True),
        v["gates"][7].update(PASSED),
      )
    ),
    {"gates": "gate fidelity passed, though", "fidelity": "quick"},
  ),
  "rules of its own": (
    change_json(
      "fidelity.json",
      lambda v: v["rules"][0].update(transfers="always"),
      section="fidelity",
    ),
    {"fidelity_verdicts": "its rules are not those"},
  ),
  "a safety evaluation of another model": (
    change_json(
      "safety.json",
      lambda v: v["inputs"].update(analog="control"),
      section="safety",
    ),
    {"safety": "about another model"},
  ),
  "another reason of the safety verdict": (
    change_record(("safety", "because"), "Nothing can leak."),
    {"safety": "safety.because"},
  ),
  "rows that are not to be there": (
    change_record(("data", "shares_rows"), False),
    {"rows": "data.shares_rows is False"},
  ),
  "a page of another version with a script": (
    other_version(b"<script>alert(1)</script>"),
    {"documents": "its head does not forbid scripts"},
  ),
}


def test_a_page_of_another_version_is_not_checkable(made, tmp_path):
  _, key, files, facts = made
  files = other_version(b"")(dict(files), copy.deepcopy(facts))
  tiny_bundle.write(tmp_path / "bundle", files, key)
  report = verify.check(tmp_path / "bundle")
  assert not failures(report)
  assert by_id(report)["documents"].status == rules.NOT_CHECKABLE


@pytest.mark.parametrize(
  ("field", "text", "status"),
  [
    ("because", "It is so.", rules.VERIFIED),
    ("verdict", "not enough evidence", rules.FAILED),
  ],
)
def test_another_version_may_word_its_reasons_otherwise(
  made, tmp_path, field, text, status
):
  _, key, files, facts = made
  files, facts = dict(files), copy.deepcopy(facts)
  value = json.loads(files["fidelity.json"])
  for claims in (value["claims"], facts["fidelity"]["claims"]):
    assert claims[0][field] != text
    claims[0][field] = text
  files["fidelity.json"] = to_json(value)
  facts["fidelity"]["sha256"] = sha256(files["fidelity.json"])
  tiny_bundle.write(tmp_path / "bundle", other_version(b"")(files, facts), key)
  found = by_id(verify.check(tmp_path / "bundle"))
  assert found["fidelity"].status == rules.VERIFIED
  assert found["fidelity_verdicts"].status == status


def test_whoever_holds_the_copyright_is_shown(made, tmp_path):
  _, key, files, facts = made
  facts = copy.deepcopy(facts)
  holder = facts["model"]["provider"] = "Acme. No audits"
  licence = licences.find("MIT", holder=holder, year=2026)
  text = licence.text.encode()
  facts["model"]["licence"] = {
    **{"spdx": "MIT", "name": licence.name, "category": licence.category},
    "text_sha256": licence.text_sha256,
  }
  files = {**files, "LICENSE": text, "model/LICENSE": text}
  files = tiny_bundle.documented(files, facts)
  tiny_bundle.write(tmp_path / "bundle", files, key)
  report = verify.check(tmp_path / "bundle")
  assert not failures(report)
  assert "'Acme. No audits'" in by_id(report)["licence"].evidence


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_found_though_it_is_signed(made, tmp_path, name):
  change, expected = LIES[name]
  files = change(dict(made[2]), copy.deepcopy(made[3]))
  key = tiny_bundle.write_key(tmp_path / "key.pem")
  tiny_bundle.write(tmp_path / "bundle", files, key)
  deep = "measured" in expected
  report = verify.check(tmp_path / "bundle", deep=deep)
  found = failures(report)
  assert not [text for text in found.values() if rules.BROKE in text]
  for check, text in expected.items():
    assert check in found, found
    assert text.lower() in found[check].lower(), found
  assert by_id(report)["signature"].status == rules.VERIFIED
  # Claims that a lie does not touch still hold.
  assert set(found) <= {*expected, "model_files", "parameters"}, found


def test_a_verdict_that_does_not_follow_from_safety_values_fails(
  made, tmp_path
):
  _, key, files, facts = made
  facts = copy.deepcopy(facts)
  facts["safety"]["tests"][0]["value"]["high"] = 0.5
  value = to_json(tiny_bundle.safety(facts))
  facts["safety"]["sha256"] = sha256(value)
  files = tiny_bundle.documented({**files, "safety.json": value}, facts)
  tiny_bundle.write(tmp_path / "bundle", files, key)
  found = failures(verify.check(tmp_path / "bundle"))
  assert "it does not follow from the threshold" in found["safety"]


HUGE = {
  "deep": b"[" * 300_000 + b"]" * 300_000,
  "wide": b"[" + b"{}," * 300_000 + b"{}]",
  "long": b'{"a": "' + b"x" * (17 << 20) + b'"}',
  "empty": b"",
}


@pytest.mark.parametrize("kind", HUGE)
def test_huge_json_is_refused_wherever_it_stands(made, tmp_path, kind):
  bundle = tmp_path / "bundle"
  shutil.copytree(made[0], bundle)
  paths = [p for p in bundle.rglob("*.json") if p.name != "tokenizer.json"]
  for path in paths:
    path.write_bytes(HUGE[kind])
  report = verify.check(bundle)
  assert not [c for c in report.checks if rules.BROKE in c.evidence]
  assert {"manifest", "record", "weights", "mlbom"} <= set(failures(report))


def test_a_huge_file_is_not_read_before_its_size_is_right(made, tmp_path):
  bundle = tmp_path / "bundle"
  shutil.copytree(made[0], bundle)
  with open(bundle / WEIGHTS, "r+b") as file:
    file.truncate(1 << 40)  # A terabyte of holes.
  found = failures(verify.check(bundle))
  assert "has 1,099,511,627,776 bytes instead of" in found["manifest"]
  assert "the file has 1,099,511," in found["weights"]
