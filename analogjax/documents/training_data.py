"""TRAINING_DATA: what the analog learned from, for rightsholders and others.

On the sections of the European Commission's template for the public summary of
training content (Article 53(1)(d) of the AI Act; explanatory notice and
template of 24 July 2025, adopted as C(2025) 8311 of 5 December 2025). Its
numbers 1 to 3 and 2.1 to 2.6 are used here, in words of our own; the smaller
numbers and the bands of sizes were read in copies: not verified.
"""

from collections.abc import Iterator, Mapping, Sequence
import json
import math
from typing import Any

from analogjax.bundle.record_table import CACHED
from analogjax.documents import sections
from analogjax.rendering import markdown, numbers
from analogjax.rendering.markdown import heading, paragraph, text

FORMAT = "analogjax.training_data"
FORMAT_VERSION = 1
TEMPLATE = (
  "Template for the public summary of training content, Article 53(1)(d) of"
  " Regulation (EU) 2024/1689, C(2025) 8311 of 5 December 2025"
)
# Section of the template -> (title, kinds of config sources).
_SECTIONS = {
  "2.1": ("Publicly available datasets", ("public_dataset",)),
  "2.2": ("Private datasets from third parties", ("licensed", "private")),
  "2.3": ("Data crawled and scraped from online sources", ("crawled",)),
  "2.4": ("User data", ("user",)),
  "2.5": ("Synthetic data", ("synthetic",)),
  "2.6": ("Other sources", ("other",)),
}
_SIZES = (
  (1e9, "less than 1 billion tokens"),
  (1e13, "1 billion to 10 trillion tokens"),
  (math.inf, "more than 10 trillion tokens"),
)
NONE = "None."


def make(record: Mapping[str, Any]) -> dict[str, Any]:
  """The summary as an object; every section is there."""
  model, data = record["model"], record["data"]
  return {
    "format": FORMAT,
    "format_version": FORMAT_VERSION,
    "template": TEMPLATE,
    "general": {
      "provider": model["provider"],
      "contact": model["contact"],
      "model": model["name"],
      "version": model["version"],
      "dependencies": _dependencies(record),
      "released_on": model["released_on"],
      "modalities": model["modalities"],
      "size": _size(data["train_tokens"]),
      "train_tokens": data["train_tokens"],
      "train_rows": data["train_rows"],
      "row_tokens": data["row_tokens"],
      "languages": model["languages"],
      "tokenizer_sha256": data["tokenizer_sha256"],
      "pipeline_sha256": data["pipeline_sha256"],
    },
    "sources": {
      number: {
        "title": title,
        "statement": _statement(record, number),
        "entries": [
          {"name": name, **source}
          for name, source in data["sources"].items()
          if source["kind"] in kinds
        ],
      }
      for number, (title, kinds) in _SECTIONS.items()
    },
    "processing": {
      "curation": data["curation"],
      "reservations_of_rights": _NOT_ASKED,
      "illegal_content": _NOT_ASKED,
    },
    "same_data_as_frontier_model": record["pair"]["same_data"],
    "limitations": model["limitations"],
    "not_recorded": record["not_recorded"],
  }


_NOT_ASKED = "Not recorded apart from what the account of curation says."


def _dependencies(record: Mapping[str, Any]) -> str:
  if record["distillation"]["used"]:
    return (
      "Distilled from a larger model, the provider's frontier model, which is"
      " not part of this release; none of its parameters were taken over."
    )
  return "None: trained from random parameters."


def _size(tokens: int) -> str:
  return next(name for most, name in _SIZES if tokens < most)


def _statement(record: Mapping[str, Any], number: str) -> str:
  kinds = _SECTIONS[number][1]
  found = record["data"]["sources"].values()
  some = any(source["kind"] in kinds for source in found)
  if number == "2.5" and record["distillation"]["used"]:
    return f"{_distilled(record)}{' Beside that:' if some else ''}"
  return "As listed." if some else NONE


def _distilled(record: Mapping[str, Any]) -> str:
  """What section 2.5 wants to know of a model taught by another one."""
  recorded = ""
  if sections.taught_by(record, CACHED):
    tokens = numbers.exact(record["distillation"]["cached_tokens"])
    recorded = f" They were recorded for {tokens} tokens."
  return (
    "The analog was trained directly on the outputs of another model, by"
    " distillation. That model is a larger one, the provider's frontier model;"
    " it is not part of this release and is not named here. Its outputs are"
    " probabilities of next tokens of the text that the other sections list: it"
    f" wrote no text.{recorded} The analog thereby learns what that model"
    " learned from its own training data, to an extent that cannot be told from"
    " here."
  )


def to_json(record: Mapping[str, Any]) -> str:
  text = json.dumps(make(record), indent=2, ensure_ascii=False, allow_nan=False)
  return text + "\n"


def to_page(record: Mapping[str, Any]) -> str:
  return markdown.page(_blocks(make(record), record))


def _blocks(
  summary: Mapping[str, Any], record: Mapping[str, Any]
) -> Iterator[str]:
  general = summary["general"]
  yield heading(1, f"Training data of {text(general['model'])}")
  yield paragraph(
    "A public summary of what the analog was trained on. It follows the"
    f" sections of this template: {TEMPLATE}. The same facts for programs are"
    " in [TRAINING_DATA.json](TRAINING_DATA.json).",
    sections.same_data(record),
  )
  yield heading(2, "1 General information")
  yield markdown.table(
    ("question", "answer"),
    [
      ("provider", text(general["provider"])),
      ("contact", text(general["contact"])),
      (
        "model, version",
        f"{text(general['model'])}, {text(general['version'])}",
      ),
      ("depends on", general["dependencies"]),
      ("released", general["released_on"]),
      ("modalities", text(", ".join(general["modalities"]))),
      ("size", general["size"]),
      (
        "tokens trained on",
        f"{numbers.exact(general['train_tokens'])}, each counted as often as it"
        " was used",
      ),
      (
        "rows",
        f"{numbers.exact(general['train_rows'])} of"
        f" {numbers.exact(general['row_tokens'])} tokens",
      ),
      ("languages", text(", ".join(general["languages"]))),
      ("tokenizer, SHA-256", markdown.code(general["tokenizer_sha256"])),
      ("pipeline, SHA-256", markdown.code(general["pipeline_sha256"])),
    ],
  )
  yield heading(2, "2 Sources")
  for number, found in summary["sources"].items():
    yield heading(3, f"{number} {found['title']}")
    yield paragraph(found["statement"])
    if found["entries"]:
      yield _entries(found["entries"])
  yield heading(2, "3 Processing")
  yield paragraph("**Curation.**", text(summary["processing"]["curation"]))
  yield paragraph(
    "**Reservations of rights (text and data mining).**",
    summary["processing"]["reservations_of_rights"],
  )
  yield paragraph(
    "**Illegal content.**", summary["processing"]["illegal_content"]
  )
  yield heading(2, "Known limitations")
  yield paragraph(text(summary["limitations"]))
  yield heading(2, "Not recorded")
  yield sections.gaps(record)


def _entries(entries: Sequence[Mapping[str, str]]) -> str:
  return markdown.table(
    ("source", "modality", "what it is", "licence", "period"),
    [
      (
        text(entry["name"]),
        text(entry["modality"]),
        text(entry["about"]),
        text(entry["licence"]) or numbers.NOT_STATED,
        text(entry["period"]) or numbers.NOT_STATED,
      )
      for entry in entries
    ],
  )
