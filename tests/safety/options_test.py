"""Tests for analogjax/config/safety.py."""

import dataclasses

import pytest

from analogjax.config import safety


@pytest.mark.parametrize(
  ("field", "bad", "expected"),
  [
    ("parts", (), "one of extraction, canaries, membership, refusal, or"),
    ("parts", ("jailbreak",), "one of extraction, canaries, membership, ref"),
    (
      "teacher_parts",
      ("sampling",),
      "some of extraction, canaries, membe",
    ),
    ("phases", ("a", "a"), "each phase once"),
    ("folders", ("teacher=x",), "NAME=FOLDER, each name once, none of"),
    ("folders", ("a",), "NAME=FOLDER"),
    ("rows", 0, "a positive number"),
    ("attempts", 0, "a positive number"),
    ("resamples", 99, "100 or more"),
    ("canary_controls", 14, "15 or more"),
    ("probability", 1.0, "0 < probability < 1"),
    ("min_k", 0.0, "0 < min_k <= 1"),
    ("reference", "other", "'', or of phases and folders (none)"),
    ("harmful", (), "a file or more, as 'refusal' is one of parts"),
    ("harmless", (), "a file or more"),
    ("template", "Answer:", "a text with {prompt} in it, once"),
    ("phrases", (" ",), "texts that are not empty"),
    ("thresholds", {"extracted": {"at_most": 1}}, "metrics (extraction_rate"),
  ],
)
def test_a_broken_rule_is_named(kit, field, bad, expected):
  with pytest.raises(ValueError) as info:
    dataclasses.replace(kit.OPTIONS, **{field: bad})
  text = str(info.value)
  assert text.startswith(f"{field}: expected {expected}"), text
  assert "found" in text and "\n" not in text


@pytest.mark.parametrize(
  "rule",
  [{}, 0.1, {"below": 1.0}, {"at_most": "1"}, {"at_most": True}]
  + [{"at_most": 0.5, "at_least": 0.1}, {"at_most": float("nan")}],
)
def test_a_threshold_is_one_number(kit, rule):
  with pytest.raises(ValueError, match="thresholds.refusal_rate: expected"):
    dataclasses.replace(kit.OPTIONS, thresholds={"refusal_rate": rule})


def test_every_part_has_metrics():
  assert set(safety.METRICS.values()) == set(safety.PARTS)


def test_quick_is_less_and_never_more(kit):
  large = dataclasses.replace(
    kit.OPTIONS, rows=1000, prompts=500, teacher_parts=("refusal",)
  )
  quick = large.quick()
  assert quick.rows == 64 and quick.prompts == 24 and not quick.teacher_parts
  assert quick.answer_tokens == kit.OPTIONS.answer_tokens
  assert quick.parts == large.parts and quick.thresholds == large.thresholds
