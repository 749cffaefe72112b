"""TRAINING_DATA: the analog's training data, for rightsholders and others.

It follows the sections of the European Commission's template for the public
summary of training content (Article 53(1)(d) of the AI Act; explanatory notice
and template of 24 July 2025, adopted as C(2025) 8311 of 5 December 2025). Its
numbers 1 to 3 and 2.1 to 2.6 are used here, paraphrased; the smaller numbers
and the bands of sizes were read in copies: not verified.
"""

from collections.abc import Mapping
import math
from typing import Any

from analogjax.bundle import record as records
from analogjax.documents import pages

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
_NOT_ASKED = "Not recorded apart from what the account of curation says."


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
      "dependencies": pages.statement("dependencies", record),
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


def _size(tokens: int) -> str:
  return next(name for most, name in _SIZES if tokens < most)


def _statement(record: Mapping[str, Any], number: str) -> str:
  kinds = _SECTIONS[number][1]
  found = record["data"]["sources"].values()
  some = any(source["kind"] in kinds for source in found)
  if number == "2.5" and record["distillation"]["used"]:
    return (
      f"{pages.statement('distilled', record)}{' Beside that:' if some else ''}"
    )
  return "As listed." if some else NONE


def to_json(record: Mapping[str, Any]) -> str:
  return records.to_text(make(record))


def to_page(record: Mapping[str, Any]) -> str:
  return pages.page("training_data", record, summary=make(record))
