"""Fills the templates of documents with the facts of a record.

A template sees the sections of the record by their names, `model.provider`, and
the values that `_values` adds. templates/*.md.j2 are pages, statements.txt.j2
has sentences that go into documents for programs as well.
"""

from collections.abc import Mapping, Sequence
import functools
from pathlib import Path
from typing import Any

import jinja2

from analogjax.bundle.record import REGULATOR
from analogjax.bundle.record_fields import CACHED, LIVE
from analogjax.fidelity.report import parts
from analogjax.rendering import markdown, numbers, templates

TEMPLATES = Path(__file__).parent / "templates"
_LOAD = (
  "from transformers import AutoModelForCausalLM, AutoTokenizer",
  "",
  'tokenizer = AutoTokenizer.from_pretrained("model")',
  'model = AutoModelForCausalLM.from_pretrained("model")',
)
# Verdict -> how the guide words it.
_GATES = {
  "passed": "passed",
  "warning": "passed with a warning",
  "waived": "did not pass and were waived",
  "failed": "failed",
}


def page(name: str, record: Mapping[str, Any], **more: Any) -> str:
  """A page of Markdown.

  Args:
    name: templates/<name>.md.j2.
    **more: values that this template needs beyond the record's.
  """
  template = _environment(templates.markdown_pages).get_template(
    f"{name}.md.j2"
  )
  return markdown.page(template.render(_values(record) | more))


def statement(name: str, record: Mapping[str, Any]) -> str:
  """A macro of statements.txt.j2, as one line of plain text."""
  template = _environment(templates.plain_texts).get_template(
    "statements.txt.j2"
  )
  module = template.make_module(_values(record))
  return " ".join(getattr(module, name)().split())


def filled_in(source: str, record: Mapping[str, Any]) -> str:
  """A template that is given as text, as one line of plain text."""
  return " ".join(_compiled(source).render(_values(record)).split())


@functools.cache
def _compiled(source: str) -> jinja2.Template:
  return _environment(templates.plain_texts).from_string(source)


@functools.cache
def _environment(make) -> jinja2.Environment:
  environment = make(TEMPLATES)
  environment.filters |= {
    "metric_name": metric_name,
    "model_name": model_name,
    "threshold": threshold,
  }
  return environment


def _values(record: Mapping[str, Any]) -> dict[str, Any]:
  """The sections of a record, and other values that templates need."""
  gates = record["gates"]
  verdicts = {gate["id"]: gate["verdict"] for gate in gates}
  values = {
    **record,
    "load": _LOAD,
    "private": record["view"] == REGULATOR,
    "verdicts": {"size": "not judged", "window": "not judged"} | verdicts,
    "cached_phases": phases_taught_by(record, CACHED),
    "live_phases": phases_taught_by(record, LIVE),
    "tally": _tally(gates),
    "notes": _notes,
    "statement": lambda name: statement(name, record),
  }
  if record["view"] == REGULATOR:
    values["trained"] = {
      name: _trained(record, name) for name in ("device_hours", "flops", "kwh")
    }
  return values


def phases_taught_by(record: Mapping[str, Any], teacher: str) -> list[str]:
  """Names of the phases with this teacher, CACHED or LIVE."""
  phases = record["training"]["phases"]
  return [phase["name"] for phase in phases if phase["teaches"] == teacher]


def metric_name(name: str) -> str:
  """The name of a metric in the fidelity report."""
  return parts.METRICS.get(name, name.replace("_", " "))


def model_name(model: str) -> str:
  return "frontier model" if model == parts.TEACHER else model


def threshold(found: Mapping[str, float] | None) -> str:
  words = {"at_most": "at most", "at_least": "at least"}
  named = (
    f"{words[name]} {numbers.number(value)}"
    for name, value in (found or {}).items()
  )
  return " and ".join(named) or "none"


def _tally(gates: Sequence[Mapping[str, Any]]) -> list[tuple[int, str]]:
  """The number of gates with each verdict, and its meaning."""
  verdicts = [gate["verdict"] for gate in gates]
  return [
    (verdicts.count(verdict), meaning)
    for verdict, meaning in _GATES.items()
    if verdict in verdicts
  ]


def _notes(costs: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
  """Each note on lines of costs once, with its steps."""
  found: dict[str, list[str]] = {}
  for row in (*costs["rows"], costs["total"]):
    if row["note"]:
      found.setdefault(row["note"], []).append(row["step"])
  return list(found.items())


def is_training(row: Mapping[str, Any]) -> bool:
  """Whether a line of costs belongs to the training, including its cache."""
  stages = row["stages"]
  return any(stage.startswith("train/") or stage == "cache" for stage in stages)


def _trained(record: Mapping[str, Any], name: str) -> dict[str, float | None]:
  """A sum over the costs of training: analog, teacher, and both.

  None if a line is unknown; `both` is the sum of the known ones.
  """
  rows = [row for row in record["cost_in_full"]["rows"] if is_training(row)]

  def total(of_teacher: bool) -> float | None:
    found = [row[name] for row in rows if row["of_teacher"] == of_teacher]
    known = [value for value in found if isinstance(value, int | float)]
    return sum(known) if known and len(known) == len(found) else None

  analog, teacher = total(False), total(True)
  both = (analog or 0) + (teacher or 0)
  return {"analog": analog, "teacher": teacher, "both": both}
