"""SAFETY.md: the tests of the analog, and what they do not show."""

from collections.abc import Mapping
from typing import Any

from analogjax.documents import pages
from analogjax.rendering import numbers

# Families of safety tests in the order of the page, with their questions.
_FAMILIES = {
  "extraction": "Does it repeat its training data?",
  "canaries": "Does it keep random tokens that were planted?",
  "membership": "Does it show what it was trained on?",
  "refusal": "Does it refuse what is harmful, and only that?",
}
_NOT_MEASURED = "not measured"


def render(record: Mapping[str, Any]) -> str:
  return pages.page("safety", record, families=_families(record))


def _families(record: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The tests of each family as a table, with a column for each model."""
  analog, found = record["fidelity"]["analog"], []
  for name, question in _FAMILIES.items():
    tests = [t for t in record["safety"]["tests"] if t["family"] == name]
    others = [
      m for m in dict.fromkeys(t["model"] for t in tests) if m != analog
    ]
    lines: dict[str, dict[str, Mapping[str, Any]]] = {}
    for test in tests:
      line = lines.setdefault(test["text"], {})
      if test["model"] in line:  # Another measurement, in the same words.
        line = lines.setdefault(f"{test['text']} ({test['id']})", {})
      line[test["model"]] = test
    found.append(
      {
        "name": name,
        "question": question,
        "head": [
          *("measured", "analog", "threshold", "verdict"),
          *map(pages.model_name, others),
        ],
        "rows": [
          [
            text,
            *_own(line.get(analog)),
            *(_other(line.get(m)) for m in others),
          ]
          for text, line in lines.items()
        ],
        "commands": dict.fromkeys(test["command"] for test in tests),
      }
    )
  return found


def _own(test: Mapping[str, Any] | None) -> tuple[str, str, str]:
  """Value, threshold and verdict of the analog."""
  if test is None:
    return _NOT_MEASURED, "none", "none"
  value = numbers.interval(test["value"])
  return value, pages.threshold(test["threshold"]), test["verdict"]


def _other(test: Mapping[str, Any] | None) -> str:
  """A model beside the analog, with its own threshold if it has one."""
  value, threshold, verdict = _own(test)
  return value if threshold == "none" else f"{value}; {threshold}: {verdict}"
