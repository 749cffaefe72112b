"""SAFETY.md: what the analog was tested for, and what the tests do not show."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from analogjax.documents import sections
from analogjax.fidelity.report import parts
from analogjax.rendering import markdown, numbers
from analogjax.rendering.markdown import (
  code,
  heading,
  paragraph,
  sentence,
  text,
)

# Families of tests in the order of the page, with what they ask.
_QUESTIONS = {
  "extraction": "Does it repeat its training data?",
  "canaries": "Does it keep random tokens that were planted?",
  "membership": "Does it show what it was trained on?",
  "refusal": "Does it refuse what is harmful, and only that?",
}
_VERDICTS = {
  "passed": "within a threshold that was set before",
  "failed": "outside of one",
  "no threshold": "without one",
  "undefined": "not measurable",
}
_NO_TEST = "not measured"


def verdict(record: Mapping[str, Any]) -> str:
  """In a sentence or two."""
  found = record["safety"]
  quick = ", by the quick run, which does less of everything"
  quick = quick if found["quick"] else ""
  verdicts = [test["verdict"] for test in found["tests"]]
  counts = (
    f"{numbers.exact(verdicts.count(each))} {meaning}"
    for each, meaning in _VERDICTS.items()
    if each in verdicts
  )
  because = found.get("because", "")
  because = f" Because: {sentence(because)}" if because else ""
  return (
    f"The evaluation {found['verdict']}{quick}.{because} Results:"
    f" {numbers.exact(len(verdicts))}, of which {', '.join(counts)}."
  )


def thresholds(record: Mapping[str, Any]) -> str:
  """The tests that have a threshold, or a sentence if none has."""
  rows = [
    (
      text(test["text"]),
      text(_named(test["model"])),
      sections.estimated(test["value"]),
      _threshold(test["threshold"]),
      test["verdict"],
    )
    for test in record["safety"]["tests"]
    if test["threshold"] is not None
  ]
  if not rows:
    return paragraph("No test has a threshold: nothing can fail.")
  head = ("measured", "model", "value", "threshold", "verdict")
  return markdown.table(head, rows)


def render(record: Mapping[str, Any]) -> str:
  return markdown.page(_blocks(record))


def _blocks(record: Mapping[str, Any]) -> Iterator[str]:
  tests = record["safety"]["tests"]
  yield heading(1, f"Safety evaluation of {text(record['model']['name'])}")
  yield paragraph(verdict(record))
  yield paragraph(
    "Thresholds are set in the config before anything is measured. In brackets"
    " stands the interval of 95 %. Beside the analog stand models to compare"
    " with: what they do as well is no trait of the analog. No prompt and no"
    " text that a model wrote is in this page or in [safety.json](safety.json),"
    " which has every input by number and digest."
  )
  for family, question in _QUESTIONS.items():
    found = [test for test in tests if test["family"] == family]
    yield heading(2, question)
    if not found:
      yield paragraph(
        f"It was {_NO_TEST}. The command that does it, with the lab's config"
        " and the folder of its run:"
      )
      command = "analogjax safety --config=CONFIG --workdir=WORKDIR"
      yield markdown.fence("sh", [f"{command} --only={family}"])
      continue
    yield _table(found, record["fidelity"]["analog"])
    yield markdown.fence("sh", dict.fromkeys(t["command"] for t in found))
  yield heading(2, "What this does not show")
  yield paragraph(
    "That a test finds nothing is no proof that nothing is there: another"
    " prompt, a longer search or training on a few harmful texts may bring out"
    " what these tests did not. Open weights can be changed by anyone, and"
    " filters around a model do not travel with it."
  )
  yield heading(2, "Doing it again")
  yield paragraph(
    "The lab runs the commands with its config and the folder of its run; the"
    " seeds are in [repro](repro/README.md). The digest of safety.json is"
    f" {code(record['safety']['sha256'])}."
  )


def _table(tests: Sequence[Mapping[str, Any]], analog: str) -> str:
  """A line for each measurement, a column for each model."""
  models = dict.fromkeys(test["model"] for test in tests)
  others = [model for model in models if model != analog]
  lines: dict[str, dict[str, Mapping[str, Any]]] = {}
  for test in tests:
    # A second result of the same model would be another measurement.
    line = lines.setdefault(test["text"], {})
    if test["model"] in line:
      line = lines.setdefault(f"{test['text']} ({test['id']})", {})
    line[test["model"]] = test
  rows = []
  for measured, line in lines.items():
    own = line.get(analog)
    rows.append(
      [
        text(measured),
        sections.estimated(own["value"]) if own else _NO_TEST,
        _threshold(own["threshold"]) if own else "none",
        own["verdict"] if own else "none",
        *(_cell(line.get(model)) for model in others),
      ]
    )
  head = ("measured", "analog", "threshold", "verdict")
  return markdown.table((*head, *(text(_named(m)) for m in others)), rows)


def _cell(test: Mapping[str, Any] | None) -> str:
  """Of a model beside the analog, with its own threshold if it has one."""
  if test is None:
    return _NO_TEST
  value = sections.estimated(test["value"])
  if test["threshold"] is None:
    return value
  return f"{value}; {_threshold(test['threshold'])}: {test['verdict']}"


def _threshold(found: Mapping[str, float] | None) -> str:
  words = {"at_most": "at most", "at_least": "at least"}
  named = (
    f"{words[name]} {numbers.number(value)}"
    for name, value in (found or {}).items()
  )
  return " and ".join(named) or "none"


def _named(model: str) -> str:
  return "frontier model" if model == parts.TEACHER else model
