"""Tests for analogjax/release/public_config.py."""

import copy
import json
from pathlib import Path

from hypothesis import given, strategies as st
import pytest

from analogjax.config import loading, schema
from analogjax.release import public_config

CONFIGS = Path(__file__).parents[2] / "configs"
SECRET = "s3cret"


@pytest.fixture(scope="module")
def demo():
  cfg = loading.load(CONFIGS / "demo.py", [])
  return schema.to_values(cfg)


def test_someone_decided_on_every_field():
  for field in schema.schema():
    assert field.private != "", f"{field.path}: PUBLIC, or Private with why"


def test_what_is_public_cannot_be_free_form():
  public = [field for field in schema.schema() if field.private is None]
  assert 60 < len(public) < 80
  assert "free-form" not in {field.type for field in public}
  for private in ("teacher", "plan", "mesh", "watch", "release.frontier"):
    assert not [x for x in public if x.path.startswith(private)]


def test_the_demo(demo):
  public = public_config.project(demo)
  assert set(public) == {
    *("student", "data", "cache", "train", "measure", "safety", "release"),
  }
  assert public["student"]["D"] == 64
  assert public["train"]["phases"] == ["pretrain", "control", "distill"]
  assert public["train"]["distill"] == {
    **dict(init_from="pretrain", rows="cache", num_steps=160, seed=1),
    "loss": {"teacher": "cache"},
  }
  assert public["release"]["about"]["languages"] == ["en"]
  text = json.dumps(public)
  for private in ("SmolLM", "learning_rate", "pipeline:", "dollars", "0.04"):
    assert private not in text, private
  # A workdir's config.json gives the same.
  assert public_config.project(json.loads(json.dumps(demo))) == public


def _sections(values, path=()):
  """Every dict of a config."""
  yield path
  for key, value in values.items():
    if isinstance(value, dict):
      yield from _sections(value, (*path, key))


NAMES = st.text("abcDVLY_.", min_size=1, max_size=6).map(lambda n: "new_" + n)
UNKNOWN = st.recursive(
  st.just(SECRET) | st.just([SECRET]) | st.just((SECRET,)),
  lambda inner: st.dictionaries(NAMES, inner, min_size=1, max_size=2),
  max_leaves=3,
)


@given(st.data())
def test_an_unknown_field_never_appears(demo, data):
  values = copy.deepcopy(demo)
  paths = list(_sections(demo))
  for _ in range(data.draw(st.integers(1, 4))):
    section = values
    for key in data.draw(st.sampled_from(paths)):
      section = section[key]
    section[data.draw(NAMES)] = data.draw(UNKNOWN)
  public = public_config.project(values)
  assert public == public_config.project(demo)
  assert SECRET not in json.dumps(public)


@given(st.data())
def test_a_field_that_became_something_else_never_appears(demo, data):
  values = copy.deepcopy(demo)
  *keys, last = data.draw(st.sampled_from(public_config.public_fields())).split(
    "."
  )
  section = values
  for key in keys:
    section = section["distill" if key == "<phase>" else key] or {}
  inner = st.dictionaries(NAMES, st.just(SECRET), min_size=1)
  section[last] = data.draw(inner | st.lists(inner, min_size=1))
  assert SECRET not in json.dumps(public_config.project(values))


def test_what_is_missing_is_missing():
  assert public_config.project({}) == {}
  assert public_config.project({"train": {"phases": ["a"]}}) == {
    "train": {"phases": ["a"]}
  }
