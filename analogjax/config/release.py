"""The section `release` of a config: what is released, and what is private."""

from collections.abc import Mapping
import dataclasses
import datetime
from typing import Annotated

from analogjax.config.fields import (
  ABOVE_0,
  NOT_NEGATIVE,
  PUBLIC,
  Bound,
  FreeForm,
  Private,
  Section,
  check,
  choice,
)

GATES = (
  "size",
  "window",
  "family",
  "data",
  "licence",
  "documents",
  "safety",
  "fidelity",
  "leaks",
)

# Sections 2.1 to 2.6 of the EU Commission's template for the public summary of
# training content (July 2025); 2.5 is made from the cache, not from here.
SOURCE_KINDS = (
  "public_dataset",
  "licensed",
  "private",
  "crawled",
  "user",
  "synthetic",
  "other",
)
SOURCE_FIELDS = ("kind", "modality", "about", "licence", "period")

_FRONTIER = "what the frontier model is"
_PRINTED = Bound(bool, "a text, as documents have no empty places")


def _is_day(text: str) -> bool:
  try:
    return datetime.date.fromisoformat(text).isoformat() == text
  except ValueError:
    return False


@dataclasses.dataclass(frozen=True, kw_only=True)
class AboutConfig(Section):
  """Facts that only the lab knows; the documents print them unchanged."""

  name: Annotated[str, "name of the analog as published", _PRINTED, PUBLIC]
  version: Annotated[str, "version of the analog", _PRINTED, PUBLIC]
  provider: Annotated[
    str, "legal name of the provider that releases it", _PRINTED, PUBLIC
  ]
  contact: Annotated[str, "e-mail or URL for questions", _PRINTED, PUBLIC]
  languages: Annotated[
    tuple[str, ...], "languages of the data, ISO 639 codes", _PRINTED, PUBLIC
  ]
  intended_use: Annotated[str, "one paragraph", _PRINTED, PUBLIC]
  out_of_scope: Annotated[
    str, "uses that are ruled out, one paragraph", _PRINTED, PUBLIC
  ]
  limitations: Annotated[
    str,
    "known limitations of data and model, one paragraph",
    _PRINTED,
    PUBLIC,
  ]
  curation: Annotated[
    str, "how the data was filtered, one paragraph", _PRINTED, PUBLIC
  ]
  verifier: Annotated[
    str, "URL of the program that verifies the bundle; '': not stated", PUBLIC
  ] = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrontierConfig(Section, private=_FRONTIER):
  """The frontier model: private, except for what the gates say about it."""

  name: Annotated[
    str,
    "name of the frontier model, which must not be in the bundle",
    Bound(bool, "the frontier model's, which the leak linter looks for"),
  ]
  deployed_on: Annotated[
    str, "day of its deployment", Bound(_is_day, "a day, YYYY-MM-DD")
  ]
  parameters: Annotated[
    int, "its parameters; 0: counted from teacher.path", NOT_NEGATIVE
  ] = 0
  active_parameters: Annotated[
    int, "parameters that a token passes through; 0: all", NOT_NEGATIVE
  ] = 0
  family: Annotated[
    str, "its architecture; '': the model_type of the teacher"
  ] = ""
  pipeline_fingerprint: Annotated[
    str,
    "fingerprint of the pipeline that trained it, as in the manifest of a"
    " cache; '': not stated",
  ] = ""
  private_words: Annotated[
    tuple[str, ...],
    "further names and paths that must not be in the bundle",
    Bound(
      lambda words: all(len(word) >= 3 for word in words),
      "words of 3 letters or more",
    ),
  ] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReleaseConfig(Section):
  """The release: weights, documents, and their terms."""

  phase: Annotated[
    str, "phase whose last checkpoint becomes the analog", PUBLIC
  ]
  dtype: Annotated[
    str, "dtype of the exported weights", choice("float32", "bfloat16"), PUBLIC
  ] = "bfloat16"
  max_shard_gb: Annotated[
    float, "greatest size of a safetensors file, 1e9 bytes", ABOVE_0, PUBLIC
  ] = 5.0
  date: Annotated[
    str,
    "day of the release; '': today",
    Bound(lambda day: not day or _is_day(day), "a day, YYYY-MM-DD"),
    PUBLIC,
  ] = ""
  licence: Annotated[
    str,
    "SPDX identifier, e.g. Apache-2.0, or other",
    Bound(bool, "an SPDX identifier"),
    PUBLIC,
  ]
  licence_name: Annotated[str, "name of the licence if other", PUBLIC] = ""
  licence_file: Annotated[
    str,
    "text of the licence if other, a path",
    Private("a path; the text itself is in the bundle"),
  ] = ""
  shares_rows: Annotated[
    bool,
    "whether held-out rows go along, so that anyone can measure again",
    PUBLIC,
  ] = False
  keeps_chat_template: Annotated[
    bool, "whether the teacher's goes along; it may hold a name", PUBLIC
  ] = False
  about: Annotated[AboutConfig, "what only the lab can say"]
  sources: Annotated[
    FreeForm,
    "sources of the data: name -> dict of kind, modality, about, licence,"
    " period",
    Private("free-form; record.json has its known fields"),
  ]
  frontier: Annotated[FrontierConfig, "private: the frontier model"]
  waivers: Annotated[
    FreeForm,
    "gate -> reason why it need not pass, which the documents print",
    Private("free-form; the report prints them beside their gates"),
  ] = dataclasses.field(default_factory=dict)

  def rules(self) -> None:
    for field in ("licence_name", "licence_file"):
      expected = "a text, as licence is 'other'"
      ok = self.licence != "other" or bool(getattr(self, field))
      check(ok, field, expected, getattr(self, field))
    for gate, reason in self.waivers.items():
      check(gate in GATES, "waivers", f"gates ({', '.join(GATES)})", gate)
      ok = isinstance(reason, str) and len(reason.split()) >= 3
      check(ok, f"waivers.{gate}", "a reason, some words long", reason)
    check(bool(self.sources), "sources", "at least one source of data", {})
    for name, source in self.sources.items():
      _check_source(f"sources.{name}", source)


def _check_source(field: str, source: object) -> None:
  """Checks one of the sources of data.

  Raises:
    ValueError: it is not a dict of SOURCE_FIELDS, or one of these is wrong.
  """
  ok = isinstance(source, Mapping)
  check(ok, field, "a dict", source)
  assert isinstance(source, Mapping)
  expected = f"the fields {', '.join(SOURCE_FIELDS)}"
  check(set(source) == set(SOURCE_FIELDS), field, expected, sorted(source))
  for key, value in source.items():
    check(isinstance(value, str), f"{field}.{key}", "a text", value)
  expected = f"one of {', '.join(SOURCE_KINDS)}"
  ok = source["kind"] in SOURCE_KINDS
  check(ok, f"{field}.kind", expected, source["kind"])
  for key in ("about", "modality"):
    check(bool(source[key]), f"{field}.{key}", "a text", source[key])
