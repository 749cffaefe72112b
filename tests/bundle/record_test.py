"""Tests for analogjax/bundle/record.py and record_fields.py."""

import json

import facts_example
import hypothesis
from hypothesis import strategies as st
import jsonschema
import pytest

from analogjax.bundle import record


def find(facts, path):
  """(where it is, its name) of a path with dots."""
  *sections, name = path.split(".")
  for section in sections:
    facts = facts[section]
  return facts, name


@pytest.mark.parametrize("view", record.VIEWS)
def test_the_example_is_complete(view):
  facts = facts_example.facts()
  assert not record.missing(facts)
  assert not record.problem(record.project(facts, view))


def test_the_regulator_s_record_holds_the_public_one():
  facts = facts_example.facts()
  regulator = record.project(facts, "regulator")
  public = record.project(facts, "public")
  assert record.project(regulator, "public") == public
  assert regulator["frontier"]["parameters"] == 134_515_008
  assert "134" not in json.dumps(public["frontier"]["window"])
  assert "openings" not in public["frontier"]
  assert "private_evidence" not in public["gates"][0]


def test_the_schema_is_one_and_knows_both_views():
  jsonschema.Draft202012Validator.check_schema(record.schema())
  validator = jsonschema.Draft202012Validator(record.schema())
  made = {v: record.project(facts_example.facts(), v) for v in record.VIEWS}
  assert all(map(validator.is_valid, made.values()))
  assert not validator.is_valid({**made["regulator"], "view": "public"})


@pytest.mark.parametrize(
  ("path", "expected"),
  [
    ("model.name", "model.name: set release.about.name in the config"),
    ("fidelity.sha256", "fidelity.sha256: run `analogjax measure`"),
    ("safety.tests", "safety.tests: run `analogjax safety`"),
    ("model.files", "model.files: run `analogjax export`"),
    ("frontier.window.size", "frontier.window.size: run `analogjax release`"),
    ("pair.same_family", "pair.same_family: run `analogjax release`"),
  ],
)
def test_a_missing_fact_says_what_to_run(path, expected):
  facts = facts_example.facts()
  place, name = find(facts, path)
  del place[name]
  assert record.missing(facts) == [expected]
  with pytest.raises(ValueError, match="lacks facts"):
    record.project(facts, "public")


def test_missing_in_an_item_of_a_list_is_named():
  facts = facts_example.facts()
  facts["training"]["phases"][1]["tokens"] = None
  facts["data"]["sources"]["web"]["about"] = ""
  assert record.missing(facts) == [
    "data.sources.web.about: set release.sources in the config",
    "training.phases[1].tokens: run `analogjax train`",
  ]


def test_what_only_a_regulator_sees_is_not_missed_by_the_public():
  facts = facts_example.facts()
  del facts["frontier"]["parameters"]
  assert not record.missing(facts, "public")
  assert record.missing(facts, "regulator")


def test_without_a_cached_teacher_no_cache_is_wanted():
  facts = facts_example.facts()
  facts["distillation"] = {"used": True}
  assert len(record.missing(facts)) == 8
  facts["training"]["phases"][1]["teaches"] = "live teacher"
  assert not record.missing(facts)
  # Null says as much as nothing.
  facts["distillation"] = {"used": True, "record_kind": None, "gram": None}
  made = record.project(facts, "regulator")
  assert made["distillation"] == {"used": True}


def test_what_is_needed_under_a_condition_is_missed_in_a_record():
  made = record.project(facts_example.facts(), "public")
  del made["distillation"]["cached_tokens"]
  assert record.problem(made) == (
    "distillation.cached_tokens: run `analogjax cache`"
  )


def test_null_is_a_statement_only_where_it_may_be_one():
  facts = facts_example.facts()
  facts["pair"]["same_data"] = None
  facts["data"]["sources"]["web"]["licence"] = ""
  assert not record.missing(facts)


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=15, deadline=None)
@pytest.mark.parametrize("view", record.VIEWS)
def test_what_the_table_does_not_name_never_appears(view, data):
  facts = facts_example.facts()
  clean = record.project(facts, view)
  places = objects(facts)
  for _ in range(5):
    place = places[data.draw(st.integers(0, len(places) - 1))]
    place[data.draw(st.sampled_from(("secret", "teacher_width", "x")))] = (
      data.draw(st.sampled_from(("s3cret", 134_515_008, ["s3cret"], {"a": 1})))
    )
  assert record.project(facts, view) == clean


def objects(value, path=""):
  """All objects of fixed fields in the facts."""
  free = ("files", "sources", "metrics", "software", "seeds", "sampling")
  free += ("loss", "optimizer")
  found = []
  if isinstance(value, dict):
    ranged = set(value) == {"low", "high"}  # From a closed form: refused.
    found += [] if path in free or ranged else [value]
    for key, item in list(value.items()):
      found += objects(item, key)
  elif isinstance(value, list):
    for item in value:
      found += objects(item, "item")
  return found


def test_the_public_record_has_no_line_of_the_regulator_s():
  public = json.dumps(record.project(facts_example.facts(), "public"))
  for secret in (
    *("Colossus", "134515008", "2026-03-31", "2.485", "openings", "salt"),
    *("learning_rate", "adamw", "tau", "wall_seconds", "teacher_digest"),
    *("cost_in_full", "private_evidence", '"heads": 9', "batch_rows"),
  ):
    assert secret not in public, secret


@pytest.mark.parametrize(
  ("path", "value", "expected"),
  [
    ("model.parameters.total", 3.5, "model.parameters.total"),
    ("model.name", {"secret": 1}, "model.name"),
    ("model.name", 7, "model.name"),
    ("model.released_on", "31 May 2026", "model.released_on"),
    ("model.released_on", "2026-05-31\n", "model.released_on"),
    ("fidelity.sha256", "abc", "fidelity.sha256"),
    ("fidelity.metrics", [], "fidelity.metrics"),
    ("gates", {"size": "passed"}, "gates"),
    ("data.row_tokens", True, "data.row_tokens"),
    ("distillation.temperature", float("nan"), "not JSON"),
  ],
)
def test_a_fact_of_another_form_is_named(path, value, expected):
  facts = facts_example.facts()
  place, name = find(facts, path)
  place[name] = value
  with pytest.raises(ValueError, match=expected):
    record.project(facts, "public")


@pytest.mark.parametrize(
  ("value", "expected"),
  [([], "expected an object, found list"), ({"view": "mine"}, "found 'mine'")],
)
def test_what_is_no_record_is_said_to_be_none(value, expected):
  assert expected in record.problem(value)
