"""COMPLIANCE.md: compliance.json as a page, in the view of its record."""

from collections.abc import Iterator, Mapping
import itertools
from typing import Any

from analogjax.documents import compliance, sections
from analogjax.rendering import markdown, numbers
from analogjax.rendering.markdown import (
  code,
  heading,
  paragraph,
  sentence,
  text,
)


def render(record: Mapping[str, Any]) -> str:
  return markdown.page(_blocks(compliance.make(record), record))


def _blocks(
  report: Mapping[str, Any], record: Mapping[str, Any]
) -> Iterator[str]:
  model, private = report["model"], report["view"] == "regulator"
  yield heading(1, f"Compliance report of {text(model['name'])}")
  reader = (
    "For the regulator alone: it holds what is withheld from the public."
    if private
    else "For everyone. A regulator gets the same report with what is withheld"
    " here."
  )
  yield paragraph(
    f"{text(model['provider'])} released {text(model['name'])}, version"
    f" {text(model['version'])}, on {model['released_on']}, an analog of a"
    f" larger model, here called the frontier model. {reader}",
    "[compliance.json](compliance.json) has the same facts for programs. All of"
    " it comes from the record of the digest"
    f" {code(report['record_sha256'])}.",
  )
  yield heading(2, "Gates")
  yield paragraph(
    "What the paper that proposes analogs asks of a release (Require Frontier"
    " AI Labs To Release Small Analog Models, section 3), gate by gate. A gate"
    " that was waived did not pass; the reason is the provider's."
  )
  yield sections.gates_table(record)
  yield heading(2, "The pair")
  if private:
    yield from _frontier(report)
  yield from sections.commitments(record)
  yield from _form(report, private)
  yield heading(2, "Openness")
  yield paragraph(
    "By the Model Openness Framework (arXiv:2403.13784), counted from what the"
    f" bundle holds: {sentence(report['openness'])}"
  )
  yield heading(2, "Not recorded")
  yield sections.gaps(record)


def _frontier(report: Mapping[str, Any]) -> Iterator[str]:
  found = report["frontier"]
  yield markdown.table(
    ("of the frontier model", "value"),
    [
      ("name", text(found["name"])),
      ("deployed on", found["deployed_on"]),
      ("parameters", numbers.exact(found["parameters"])),
      ("parameters a token uses", numbers.exact(found["active_parameters"])),
      ("family", text(found["family"])),
      (
        "analog's parameters in parts of it",
        numbers.share(found["size_ratio"]),
      ),
      ("of those a token uses", numbers.share(found["active_ratio"])),
    ],
  )
  yield paragraph(
    "[openings.json](openings.json) has the value and the salt behind each"
    " hash; this checks them, and that the rest of this folder is in accord"
    " with the public bundle:"
  )
  yield markdown.fence("sh", ["analogjax verify BUNDLE --regulator=FOLDER"])


def _form(report: Mapping[str, Any], private: bool) -> Iterator[str]:
  yield heading(2, "The EU's Model Documentation Form")
  withheld = (
    ""
    if private
    else " Compute and energy are for authorities alone, and are not here."
  )
  yield paragraph(
    "Items of the form in the Code of Practice for general-purpose AI models"
    " (Transparency chapter, Measure 1.1, of 10 July 2025), in words of this"
    " report. Whom an item is for follows Annexes XI and XII of Regulation (EU)"
    f" 2024/1689.{withheld} The form is to be kept for ten years."
  )
  grouped = itertools.groupby(report["form"], key=lambda item: item["section"])
  for section, found in grouped:
    yield heading(3, section)
    yield markdown.table(
      ("item", "answer", "for"),
      [
        (text(i["item"]), text(i["answer"]), ", ".join(i["for"])) for i in found
      ],
    )
