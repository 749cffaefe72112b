"""Tests for analogjax/release/gates.py and family.py."""

import dataclasses
import json

import hypothesis
from hypothesis import strategies as st
import pytest
import synthetic_report

from analogjax.bundle import licences
from analogjax.config import release
from analogjax.fidelity import claims as claims_lib
from analogjax.leaks import Leak
from analogjax.release import family, gates

CONFIG = dict(
  **dict(model_type="llama", hidden_act="silu", rms_norm_eps=1e-5),
  **dict(num_attention_heads=4, num_key_value_heads=2, hidden_size=64),
  **dict(rope_parameters=dict(rope_type="default", rope_theta=1e4)),
  num_hidden_layers=4,
)
FRONTIER = dict(
  **dict(model_type="llama", hidden_act="swish", rms_norm_eps=1e-6),
  **dict(num_attention_heads=97, num_key_value_heads=31, hidden_size=12_416),
  **dict(rope_theta=5e5, num_hidden_layers=83),
)
CHECKPOINT = gates.Checkpoint("distill", 160, "f" * 64, "d" * 64)
INPUTS = dict(
  analog="distill",
  teacher_digest="d" * 64,
  students=dict(
    distill=dict(step=160, fingerprint="f" * 64),
    control=dict(step=160, fingerprint="e" * 64),
  ),
)


def test_of(name, verdict="passed"):
  return dict(id=name, family=name, verdict=verdict)


test_of.__test__ = False  # pytest would take it for a test.


def safety(*tests, quick=False, verdict="passed", **inputs):
  tests = tests or tuple(map(test_of, gates.SAFETY_FAMILIES))
  return dict(
    inputs=INPUTS | inputs, quick=quick, verdict=verdict, tests=list(tests)
  )


def fidelity(quick=False, **inputs):
  claims = [dict(verdict="transfers"), dict(verdict="does not transfer")]
  return dict(inputs=INPUTS | dict(quick=quick) | inputs, claims=claims)


LICENCE = licences.find("MIT", holder="A Lab", year=2026)
GOOD = gates.Evidence(
  parameters=(50_000_000, 2_345_678_901),
  active_parameters=(50_000_000, 1_234_567_891),
  released_on="2026-11-01",
  deployed_on="2026-08-17",
  configs=(CONFIG, FRONTIER),
  tokenizers=("a" * 64, "a" * 64),
  pipelines=("b" * 64, "b" * 64),
  licence=LICENCE,
  missing=(),
  demos=(),
  checkpoint=CHECKPOINT,
  fidelity=fidelity(),
  safety=safety(),
  leaks=(),
)


def judged(waivers=None, /, **changes):
  evidence = dataclasses.replace(GOOD, **changes)
  return {g["id"]: g for g in gates.judge(evidence, waivers or {})}


def verdicts(found):
  return {name: gate["verdict"] for name, gate in found.items()}


ALL_PASS = dict.fromkeys(release.GATES, "passed")


def test_a_good_release_passes_every_gate():
  found = judged()
  assert list(found) == list(release.GATES) and verdicts(found) == ALL_PASS
  assert all(gate["waiver"] is None for gate in found.values())
  assert gates.failed(list(found.values())) == []
  assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
  ("ours", "theirs", "verdict"),
  (
    (499, 100_000, "failed"),  # 0.499 %.
    (500, 100_000, "passed"),  # 0.5 %.
    (5_000, 100_000, "passed"),  # 5.0 %.
    (5_001, 100_000, "failed"),  # 5.001 %.
    # One parameter beyond, where a quotient of floats cannot tell.
    (5 * 10**15, 10**18, "passed"),
    (5 * 10**15 - 1, 10**18, "failed"),
    (5 * 10**16, 10**18, "passed"),
    (5 * 10**16 + 1, 10**18, "failed"),
  ),
)
def test_the_ends_of_the_window_are_exact_in_all_and_in_active(
  ours, theirs, verdict
):
  inside = dict.fromkeys(("parameters", "active_parameters"), (10**16, 10**18))
  for field in inside:
    found = judged(**(inside | {field: (ours, theirs)}))
    assert verdicts(found) == ALL_PASS | {"size": verdict}
    assert f"{ours:,}" in found["size"]["private_evidence"]
    wrong = {"parameters": "all", "active_parameters": "active"}[field]
    assert (f"({wrong})" in found["size"]["evidence"]) == (verdict == "failed")


@pytest.mark.parametrize(
  ("deployed", "released", "verdict"),
  (
    ("2026-11-30", "2026-12-29", "warning"),
    ("2026-11-30", "2026-12-30", "passed"),
    ("2026-11-30", "2027-02-28", "passed"),
    ("2026-11-30", "2027-03-01", "failed"),
    ("2027-11-30", "2028-02-29", "passed"),
    ("2027-11-30", "2028-03-01", "failed"),
    ("2026-11-30", "2026-01-01", "warning"),
  ),
)
def test_too_early_is_flagged_and_too_late_fails(deployed, released, verdict):
  days = dict(deployed_on=deployed, released_on=released)
  found = judged(**days)
  assert verdicts(found) == ALL_PASS | {"window": verdict}
  assert deployed in found["window"]["private_evidence"]
  waived = judged({"window": "The board asked for it."}, **days)["window"]
  assert waived["verdict"] == ("passed" if verdict == "passed" else "waived")


@pytest.mark.parametrize(
  ("changes", "name"),
  (
    (dict(model_type="gpt_neox"), "model type"),
    (dict(rms_norm_eps=None, layer_norm_eps=1e-5), "norm"),
    (dict(hidden_act="gelu"), "activation"),
    (dict(rope_theta=None, alibi=True), "positions"),
    (dict(num_key_value_heads=97), "attention"),
    (dict(kv_lora_rank=512), "attention"),
    (dict(sliding_window=4096), "span of attention"),
    (dict(num_local_experts=8), "feed-forward"),
  ),
)
def test_another_family_is_told_by_what_differs(changes, name):
  found = judged(configs=(CONFIG, FRONTIER | changes))
  assert verdicts(found) == ALL_PASS | {"family": "failed"}
  assert f"Different: {name}." in found["family"]["evidence"]
  assert name in found["family"]["private_evidence"]


def test_sizes_make_no_other_family():
  found = family.compare(CONFIG, FRONTIER)
  assert found.is_one_family and not found.different and not found.unknown
  assert len(found.same) == 7


def test_what_is_not_stated_is_said_to_be_and_a_model_type_is_needed():
  without = {k: v for k, v in CONFIG.items() if k != "hidden_act"}
  found = judged(configs=(without, FRONTIER))
  assert found["family"]["verdict"] == "passed"
  assert "Not stated by both: activation." in found["family"]["evidence"]
  nameless = {k: v for k, v in CONFIG.items() if k != "model_type"}
  assert judged(configs=(nameless, FRONTIER))["family"]["verdict"] == "failed"


def test_another_tokenizer_is_another_family():
  for digests in (("a" * 64, "c" * 64), ("", "")):
    found = judged(tokenizers=digests)
    assert verdicts(found) == ALL_PASS | {"family": "failed"}
    assert "Different: tokenizer." in found["family"]["evidence"]


@pytest.mark.parametrize(
  ("changes", "gate", "verdict", "says"),
  (
    (dict(pipelines=("b", "")), "data", "failed", "Not stated"),
    (dict(pipelines=("b", "c")), "data", "failed", "differ"),
    (
      dict(
        licence=licences.find("other", holder="", year=1, name="R", text="x")
      ),
      *("licence", "warning", "limited safeguards"),
    ),
    (dict(missing=["a.b: run x"]), "documents", "failed", "1 fact is"),
    (
      dict(demos=["release.sources", "safety.template"]),
      *("documents", "failed", "the demo's config: release.sources, safety"),
    ),
    (dict(safety=None), "safety", "failed", "no safety evaluation"),
    (dict(safety=safety(quick=True)), "safety", "warning", "quick"),
    (
      dict(safety=safety(test_of("canaries"))),
      *("safety", "warning", "not tested: extraction, membership, refusal"),
    ),
    (
      dict(safety=safety(test_of("canaries", "no threshold"))),
      *("safety", "warning", "no result has a threshold"),
    ),
    (
      dict(safety=safety(test_of("canaries", "failed"), verdict="failed")),
      *("safety", "failed", "Of 1 results, outside of a threshold: canaries"),
    ),
    # A document that contradicts itself does not pass.
    (
      dict(safety=safety(test_of("canaries", "failed"))),
      *("safety", "failed", "canaries"),
    ),
    (dict(safety=safety(verdict="failed")), "safety", "failed", "as a whole"),
    (
      dict(safety=safety(analog="control")),
      *("safety", "failed", "another phase"),
    ),
    (
      dict(safety=safety(students={})),
      *("safety", "failed", "another checkpoint"),
    ),
    (
      dict(safety=safety(teacher_digest="0" * 64)),
      *("safety", "failed", "another teacher"),
    ),
    (dict(fidelity=None), "fidelity", "failed", "no measurement"),
    (dict(fidelity=fidelity(quick=True)), "fidelity", "warning", "quick"),
    (
      dict(fidelity=fidelity(analog="control")),
      *("fidelity", "failed", "another phase"),
    ),
    (
      dict(fidelity=fidelity() | dict(claims=[])),
      *("fidelity", "failed", "no claims"),
    ),
    (dict(leaks=None), "leaks", "failed", "did not run"),
    (
      dict(leaks=[Leak("width", "COST.md", "line 3", "12416")]),
      *("leaks", "failed", "1 findings"),
    ),
  ),
)
def test_each_gate_by_what_it_asks_for(changes, gate, verdict, says):
  found = judged(**changes)
  assert verdicts(found) == ALL_PASS | {gate: verdict}
  assert says in found[gate]["evidence"]
  lines = gates.failed(list(found.values()))
  assert len(lines) == (verdict == "failed")
  assert all(f"release.waivers.{gate}" in line for line in lines)


def test_a_checkpoint_of_another_step_is_another_one():
  for changes in (dict(step=120), dict(fingerprint="0" * 64)):
    found = verdicts(judged(checkpoint=CHECKPOINT._replace(**changes)))
    assert found == ALL_PASS | {"safety": "failed", "fidelity": "failed"}


def test_a_waiver_gives_its_reason_and_one_that_is_not_needed_is_reported():
  waivers = {
    "data": "The frontier run predates the manifests.",
    "size": "Nobody needs this one.",
  }
  found = judged(waivers, pipelines=("b", ""))
  assert verdicts(found) == ALL_PASS | {"data": "waived"}
  assert found["data"]["waiver"] == waivers["data"]
  assert "Not stated" in found["data"]["evidence"]  # Not made to pass.
  assert found["size"]["waiver"] is None  # It was not needed.
  assert found["size"]["evidence"].endswith("was not used.")
  assert gates.failed(list(found.values())) == []
  with pytest.raises(ValueError, match="release.waivers: .* found 'sizes'"):
    judged({"sizes": "A slip of the pen."})


# Numbers allowed in public evidence: those of the analog and the rules.
@hypothesis.given(
  frontier=st.integers(10**9, 10**10),
  active=st.integers(10**9, 10**10),
  day=st.dates(),
)
def test_public_evidence_says_nothing_of_the_frontier_model(
  frontier, active, day
):
  hypothesis.assume(day.year < 9990)
  found = judged(
    parameters=(50_000_000, frontier),
    active_parameters=(50_000_000, active),
    deployed_on=str(day),
    leaks=[Leak("width", "COST.md", "line 3", "12416")],
  )
  again = judged(
    leaks=[Leak("layers", "record.json", "line 4", "83")],
  )
  # But for the verdicts, it is the same whatever the frontier model is.
  for name, gate in found.items():
    if gate["verdict"] == again[name]["verdict"]:
      assert gate["evidence"] == again[name]["evidence"]
    if str(day) != GOOD.released_on:
      assert str(day) not in gate["evidence"], name
  text = json.dumps([gate["evidence"] for gate in found.values()])
  for secret in ("12416", "12,416", "83", str(frontier), f"{frontier:,}"):
    assert secret not in text


@pytest.mark.parametrize(
  "days", (("2026-08-17", "2026-09-20"), ("2026-01-01", "2025-01-01"))
)
def test_the_evidence_of_the_window_is_the_same_for_any_day_of_a_verdict(days):
  found = [judged(deployed_on=day)["window"] for day in days]
  assert found[0]["evidence"] == found[1]["evidence"]
  assert found[0]["private_evidence"] != found[1]["private_evidence"]


def test_a_measurement_as_the_stage_makes_it_is_read():
  made = synthetic_report.make({"output": synthetic_report.parts()["output"]})
  inputs = made["inputs"]
  analog = inputs["analog"]
  # The stage has a fingerprint beside the step.
  inputs["students"][analog]["fingerprint"] = "f" * 64
  held = sum(c["verdict"] == claims_lib.TRANSFERS for c in made["claims"])
  found = judged(
    fidelity=made,
    checkpoint=CHECKPOINT._replace(
      phase=analog, teacher_digest=inputs["teacher_digest"]
    ),
    safety=None,
  )["fidelity"]
  assert found["verdict"] == "passed" and held > 0
  assert (
    f"{len(made['claims'])} claims were measured, {held}" in (found["evidence"])
  )
