"""Tests for analogjax/fidelity/study.py: controls, and what is published."""

import dataclasses
import json
from pathlib import Path

from analogjax.config import loading, schema
from analogjax.fidelity import study

DEMO = Path(__file__).parents[2] / "configs" / "demo.py"


def sections(*overrides):
  cfg = loading.load(DEMO, overrides)
  return schema.to_sections(cfg)


def test_controls_never_saw_the_teacher():
  students = ("distill", "pretrain", "control", "earlier", "random")
  folder = ("measure.folders", "earlier=some/where")
  found = sections(folder)
  assert study.controls_of(found, students, "distill") == [
    *("pretrain", "control", "earlier"),
  ]
  # Only hard labels, but from a phase that saw it.
  found = sections(("train.phases", "pretrain,distill,control"))
  phases = {**found.train.phase}
  phases["control"] = dataclasses.replace(
    phases["control"], init_from="distill"
  )
  train = dataclasses.replace(found.train, phase=phases)
  found = dataclasses.replace(found, train=train)
  assert study.controls_of(found, ("distill", "control"), "distill") == []
  assert study.controls_of(found, ("control", "distill"), "control") == []


def test_what_is_published_has_no_paths(tmp_path):
  path = tmp_path / "politeness.json"
  options = dataclasses.replace(
    sections().measure,
    folders=("b=/some/where", "a=else/where"),
    domains={"code": {"path": "/data/code"}},
    behaviours=("sentiment", str(path)),
  )
  found = study.published(options)
  assert found["folders"] == ["a", "b"] and found["domains"] == ["code"]
  assert found["behaviours"] == ["sentiment", "politeness.json"]
  assert found["points"] == options.points
  text = json.dumps(found)
  assert "where" not in text and "/" not in text
