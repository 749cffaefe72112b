"""Hostile texts from a config change only their own text in a document."""

import json
import random

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
import facts_example
import huggingface_hub
import hypothesis
from hypothesis import strategies as st
import jsonschema
import markdown_it
import pytest
import yaml

from analogjax.bundle import record
from analogjax.documents import (
  bill_of_materials,
  compliance,
  model_card,
  pages,
  render,
  safety_summary,
  training_data,
)

PAGES = {
  "card": lambda r: model_card.render(r).split("\n---\n", 1)[1],
  "compliance": compliance.to_page,
  "training data": training_data.to_page,
  "cost": lambda r: pages.page("cost", r),
  "safety": safety_summary.render,
  "repro": lambda r: pages.page("reproduction", r),
  "guide": lambda r: pages.page("guide", r),
}
OBJECTS = {
  "compliance": compliance.to_json,
  "training data": training_data.to_json,
  "ML-BOM": bill_of_materials.render,
  "software": render.software,
  "record": record.to_text,
}
# Written by the lab or taken from its config.
FREE = (
  *("name", "version", "provider", "contact", "intended_use", "out_of_scope"),
  *("limitations", "about", "licence", "period", "modality", "curation"),
  *("evidence", "waiver", "text", "because", "note", "why", "command", "title"),
  *("commands", "not_recorded", "languages", "category", "mof", "private"),
)
NASTY = (
  "---\nlicense: mit\n---",
  "# Heading\n\n- item",
  "</td></tr></table><script>alert(1)</script>",
  '": null, "view": "regulator',
  "a: b\n? !!python/object/apply:os.system ['x']",
  "| a | b |\n| - | - |\n| c | d |",
  "```\nfence\n~~~",
  "[link](javascript:alert(1)) ![i](http://x/y.png) <http://x>",
  "\u202eevil\u200b \x00\x1b[31m `code` \\",
  "&amp; &#60; {{ jinja }} {% x %} ${HOME} %s",
  "*a* _b_ ~~c~~ ***",
  "1. one",
  "=====",
)
TEXTS = st.one_of(
  st.sampled_from(NASTY),
  st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40
  ).filter(str.strip),
)


def soiled(value, text, key=""):
  """The facts with `text` in every free place."""
  if isinstance(value, dict) and key != "commitments":
    if key in ("sources", "seeds", "software"):
      value = {f"{name} {text}": item for name, item in value.items()}
    return {k: soiled(v, text, k) for k, v in value.items()}
  if isinstance(value, list):
    return [soiled(item, text, key) for item in value]
  free = isinstance(value, str) and value and key in FREE
  return f"{text} {value}" if free else value


def structure(page):
  parser = markdown_it.MarkdownIt("commonmark").enable(
    ["table", "strikethrough"]
  )
  found = []
  for token in parser.parse(page):
    found.append(token.type)
    inside = [c.type for c in token.children or ()]
    found += [kind for kind in inside if kind not in ("text", "softbreak")]
  return found


def check(text, view):
  facts = soiled(facts_example.facts(), text)
  made = record.project(facts, view)
  clean = record.project(facts_example.facts(), view)
  for name, to_text in PAGES.items():
    if view == "public" or name in ("compliance", "cost"):
      assert structure(to_text(made)) == structure(to_text(clean)), name
  for name, to_text in OBJECTS.items():
    value = json.loads(to_text(made))
    assert shape(value) == shape(json.loads(to_text(clean))), name
  assert not compliance.problem(json.loads(compliance.to_json(made)))


def shape(value):
  """Kinds of values by place; free names count as one."""
  if isinstance(value, dict):
    return [shape(item) for item in value.values()]
  if isinstance(value, list):
    return [shape(item) for item in value]
  return type(value).__name__


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize("view", record.VIEWS)
def test_nasty_texts_are_only_texts(text, view):
  check(text, view)


@pytest.mark.parametrize("text", NASTY)
def test_the_bill_of_materials_stays_one(text):
  made = record.project(soiled(facts_example.facts(), text), "regulator")
  validator = JsonStrictValidator(SchemaVersion.V1_6)
  assert validator.validate_str(bill_of_materials.render(made)) is None


@hypothesis.given(TEXTS)
@hypothesis.settings(max_examples=25, deadline=None)
def test_any_text_is_only_a_text(text):
  check(text, "public")


@hypothesis.given(TEXTS)
@hypothesis.settings(max_examples=40, deadline=None)
def test_the_head_of_the_card_holds_any_text(text):
  facts = soiled(facts_example.facts(), text)
  page = model_card.render(record.project(facts, "public"))
  head = yaml.safe_load(page.split("---\n")[1])
  clean = model_card.render(record.project(facts_example.facts(), "public"))
  assert list(head) == [
    key for key in yaml.safe_load(clean.split("---\n")[1]) if key in head
  ]
  name = " ".join(facts["model"]["name"].split())
  assert head["model-index"][0]["name"] == name
  assert huggingface_hub.ModelCard(page).data.license == "apache-2.0"
  assert not model_card.metadata_problem(page)


EXTREMES = (0, 1, -1, 10**18, 1e100, 1e-300, 0.1, None, "", "x", [], {}, True)


def places(value, steps):
  """(container, key) of all values at a path of the table."""
  step, *rest = steps
  if step == "[]":
    keys = range(len(value))
  elif step == "*":
    keys = list(value)
  else:
    keys = [step] if step in value else []
  for key in keys:
    if not rest:
      yield value, key
    elif value[key]:
      yield from places(value[key], rest)


def extremes():
  """(path, possible extreme values) of single values."""
  for path, form in single_values(record.schema()["$defs"]["regulator"], []):
    validator = jsonschema.Draft202012Validator(form)
    values = [value for value in EXTREMES if validator.is_valid(value)]
    if values and "const" not in form:
      yield path, values


def single_values(schema, path):
  """(path, schema) of values that hold no other values."""
  inner = dict(schema.get("properties", {}))
  for name, step in (("items", "[]"), ("additionalProperties", "*")):
    if isinstance(schema.get(name), dict):
      inner[step] = schema[name]
  for step, below in inner.items():
    yield from single_values(below, [*path, step])
  if not inner and path[-1] != "[]":
    yield path, schema


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("view", record.VIEWS)
def test_whatever_is_of_the_schema_can_be_rendered(view, seed):
  """A bundle's record is not trusted, but verify renders it."""
  rng = random.Random(seed)
  made = json.loads(record.to_text(record.project(facts_example.facts(), view)))
  for steps, values in extremes():
    for place, key in places(made, steps):
      if rng.random() < 0.3:
        place[key] = rng.choice(values)
  for gate in made["gates"]:
    if gate["verdict"] == "waived":
      gate["waiver"] = "x"
  assert not record.problem(made)
  for name, to_text in (*PAGES.items(), *OBJECTS.items()):
    if view == "public" or name in ("compliance", "cost", "ML-BOM", "record"):
      to_text(made)


def test_text_that_is_no_unicode_is_refused():
  facts = facts_example.facts()
  facts["model"]["limitations"] = "\ud800"
  with pytest.raises(ValueError, match="not JSON in UTF-8"):
    record.project(facts, "public")
