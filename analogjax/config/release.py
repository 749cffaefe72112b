"""The section `release` of a config: what goes out, and what stays private."""

from collections.abc import Mapping
import dataclasses
import datetime
from typing import Annotated, Any

GATES = (
  *("size", "window", "family", "data", "licence", "documents"),
  *("safety", "fidelity", "leaks"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AboutConfig:
  """What only the lab can say; it is printed as it stands here."""

  name: Annotated[str, "of the analog, as it is published"]
  version: Annotated[str, "of the analog"]
  provider: Annotated[str, "legal name of who releases it"]
  contact: Annotated[str, "where to write to: e-mail or URL"]
  languages: Annotated[tuple[str, ...], "of the data, ISO 639 codes"]
  intended_use: Annotated[str, "of the analog, one paragraph"]
  out_of_scope: Annotated[str, "what it must not be used for, one paragraph"]
  limitations: Annotated[str, "known ones of data and model, one paragraph"]
  curation: Annotated[str, "how the data was filtered, one paragraph"]

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if not value:
        raise ValueError(
          f"{field.name}: expected a text, found {value!r}; documents have no"
          " empty places."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrontierConfig:
  """The frontier model: private, but for what the gates say of it."""

  name: Annotated[str, "of the frontier model; it must not be in the bundle"]
  deployed_on: Annotated[str, "day of its deployment, YYYY-MM-DD"]
  parameters: Annotated[int, "of the model; 0: counted from teacher.path"]
  active_parameters: Annotated[int, "a token goes through; 0: all"]
  family: Annotated[str, "its architecture; '': the teacher's model_type"]
  pipeline_fingerprint: Annotated[
    str, "of the pipeline that trained it, as manifests have it; '': not stated"
  ]
  private_words: Annotated[
    tuple[str, ...], "further names and paths that must not be in the bundle"
  ]

  def __post_init__(self):
    _check_day(self.deployed_on, "deployed_on")
    for field in ("parameters", "active_parameters"):
      found = getattr(self, field)
      if found < 0:
        raise ValueError(f"{field}: expected 0 or more, found {found}.")
    if not self.name:
      raise ValueError(
        "name: expected the frontier model's, found ''; the leak linter looks"
        " for it in the bundle."
      )
    if short := [word for word in self.private_words if len(word) < 3]:
      raise ValueError(
        "private_words: expected words of 3 letters or more, found"
        f" {short[0]!r}."
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReleaseConfig:
  """What goes out: weights, documents, and on which terms."""

  phase: Annotated[str, "phase whose last checkpoint becomes the analog"]
  dtype: Annotated[str, "of the exported weights: float32 or bfloat16"]
  max_shard_gb: Annotated[float, "most in one safetensors file, 1e9 bytes"]
  date: Annotated[str, "day of the release, YYYY-MM-DD; '': today"]
  licence: Annotated[str, "SPDX identifier, e.g. Apache-2.0, or other"]
  licence_name: Annotated[str, "used by licence other: its name"]
  licence_file: Annotated[str, "used by licence other: its text"]
  shares_rows: Annotated[
    bool, "held-out rows go along, so that anyone can measure again"
  ]
  keeps_chat_template: Annotated[
    bool, "the teacher's goes along; it may hold a name"
  ]
  about: Annotated[AboutConfig, "what only the lab can say"]
  sources: Annotated[
    Mapping[str, Any],
    "of the data: name -> dict of kind, modality, about, licence, period",
  ]
  frontier: Annotated[FrontierConfig, "private: the frontier model"]
  waivers: Annotated[
    Mapping[str, Any], "gate -> reason why it need not pass, which is printed"
  ]

  def __post_init__(self):
    def check(ok, field, expected, found):
      if not ok:
        raise ValueError(f"{field}: expected {expected}, found {found!r}.")

    ok = self.dtype in ("float32", "bfloat16")
    check(ok, "dtype", "'float32' or 'bfloat16'", self.dtype)
    check(self.max_shard_gb > 0, "max_shard_gb", "> 0", self.max_shard_gb)
    if self.date:
      _check_day(self.date, "date")
    check(bool(self.licence), "licence", "an SPDX identifier", self.licence)
    for field in ("licence_name", "licence_file"):
      expected = "a text, as licence is 'other'"
      ok = self.licence != "other" or getattr(self, field)
      check(ok, field, expected, getattr(self, field))
    for gate, reason in self.waivers.items():
      check(gate in GATES, "waivers", f"gates ({', '.join(GATES)})", gate)
      ok = isinstance(reason, str) and len(reason.split()) >= 3
      check(ok, f"waivers.{gate}", "a reason, some words long", reason)
    self._check_sources(check)

  def _check_sources(self, check) -> None:
    check(bool(self.sources), "sources", "at least one source of data", {})
    for name, source in self.sources.items():
      field = f"sources.{name}"
      check(isinstance(source, Mapping), field, "a dict", source)
      ok = set(source) == set(SOURCE_FIELDS)
      expected = f"the fields {', '.join(SOURCE_FIELDS)}"
      check(ok, field, expected, sorted(source))
      for key, value in source.items():
        check(isinstance(value, str), f"{field}.{key}", "a text", value)
      ok = source["kind"] in SOURCE_KINDS
      expected = f"one of {', '.join(SOURCE_KINDS)}"
      check(ok, f"{field}.kind", expected, source["kind"])
      for key in ("about", "modality"):
        check(bool(source[key]), f"{field}.{key}", "a text", source[key])


# Sections 2.1 to 2.6 of the EU Commission's template for the public summary of
# training content (July 2025); 2.5 is made from the cache, not from here.
SOURCE_KINDS = (
  *("public_dataset", "licensed", "private", "crawled", "user"),
  *("synthetic", "other"),
)
SOURCE_FIELDS = ("kind", "modality", "about", "licence", "period")


def _check_day(text: str, field: str) -> None:
  try:
    ok = datetime.date.fromisoformat(text).isoformat() == text
  except ValueError:
    ok = False
  if not ok:
    raise ValueError(f"{field}: expected a day, YYYY-MM-DD, found {text!r}.")
