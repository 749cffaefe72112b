"""The section `safety` of a config: what is tried, how hard, what may come out.

What each number means: docs/safety.md.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Annotated, Any

PARTS = ("extraction", "canaries", "membership", "refusal")

# What a threshold can be set for -> the part that measures it.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class SafetyConfig:
  """What the analog is tried with before it is released.

  The analog is the student of release.phase; the other students, and one of
  random parameters that is always there, are what its numbers are read beside.
  Thresholds hold for the analog alone.
  """

  parts: Annotated[
    tuple[str, ...], "of extraction, canaries, membership, refusal"
  ]
  phases: Annotated[tuple[str, ...], "further phases, beside release.phase"]
  folders: Annotated[
    tuple[str, ...], "further students, Hugging Face folders: NAME=FOLDER"
  ]
  teacher_parts: Annotated[
    tuple[str, ...], "of parts, those that the teacher goes through as well"
  ]
  batch_rows: Annotated[int, "rows per step, over all devices"]
  chunk: Annotated[int, "tokens of a row whose logits are held at once"]
  seed: Annotated[int, "of every draw: rows, windows, prompts, resamples"]
  resamples: Annotated[int, "of the bootstrap of each interval"]
  rows: Annotated[int, "most training rows that are tried, and held-out ones"]
  prefix_tokens: Annotated[int, "extraction: true tokens that are given"]
  suffix_tokens: Annotated[int, "extraction: tokens that have to follow"]
  attempts: Annotated[int, "extraction: samples drawn, n of (n, p)"]
  probability: Annotated[float, "extraction: that one is right, p of (n, p)"]
  canary_controls: Annotated[int, "canaries: unplanted ones to rank against"]
  min_k: Annotated[float, "membership: part of the tokens that Min-K% takes"]
  reference: Annotated[
    str, "membership: phase or folder that losses are taken against; '': none"
  ]
  teacher_only: Annotated[
    Mapping[str, Any],
    "membership: arguments over the held-out ones: rows of the teacher's alone",
  ]
  harmful: Annotated[
    tuple[str, ...], "refusal: files of prompts that should be refused"
  ]
  harmless: Annotated[
    tuple[str, ...], "refusal: files of prompts that should not be"
  ]
  prompts: Annotated[int, "refusal: most of each, drawn by seed"]
  prompt_tokens: Annotated[int, "refusal: longer prompts are left out"]
  answer_tokens: Annotated[int, "refusal: tokens of an answer that are judged"]
  template: Annotated[str, "refusal: what the models see, with {prompt} in it"]
  phrases: Annotated[
    tuple[str, ...], "refusal: further phrases that refuse, beside ours"
  ]
  thresholds: Annotated[
    Mapping[str, Any], "metric -> {at_most: x} or {at_least: x}, of the analog"
  ]

  def __post_init__(self):
    def check(ok, field, expected, found=None):
      if not ok:
        found = getattr(self, field) if found is None else found
        raise ValueError(f"{field}: expected {expected}, found {found!r}.")

    known = bool(self.parts) and set(self.parts) <= set(PARTS)
    check(known, "parts", f"one of {', '.join(PARTS)}, or several")
    ok = set(self.teacher_parts) <= set(PARTS)
    check(ok, "teacher_parts", f"some of {', '.join(PARTS)}, or none")
    unique = len(set(self.phases)) == len(self.phases)
    check(unique, "phases", "each phase once")
    taken = ["teacher", "random", *self.phases]
    for entry in self.folders:
      name, _, folder = entry.partition("=")
      ok = name.isidentifier() and bool(folder) and name not in taken
      expected = "NAME=FOLDER, each name once, none of a phase, nor teacher or"
      check(ok, "folders", f"{expected} random")
      taken.append(name)
    counts = ("batch_rows", "chunk", "rows", "prefix_tokens", "suffix_tokens")
    more = ("attempts", "prompts", "prompt_tokens", "answer_tokens")
    for field in (*counts, *more):
      check(getattr(self, field) >= 1, field, "a positive number")
    check(0 <= self.seed < 2**32, "seed", "0 <= seed < 2**32")
    check(self.resamples >= 100, "resamples", "100 or more")
    check(self.canary_controls >= 15, "canary_controls", "15 or more")
    check(0 < self.probability < 1, "probability", "0 < probability < 1")
    check(0 < self.min_k <= 1, "min_k", "0 < min_k <= 1")
    names = [*self.phases, *self.named_folders]
    ok = self.reference in ("", *names)
    expected = f"'', or of phases and folders ({', '.join(names) or 'none'})"
    check(ok, "reference", expected)
    if "refusal" in self.parts:
      for field in ("harmful", "harmless"):
        expected = "a file or more, as 'refusal' is one of parts"
        check(len(getattr(self, field)) > 0, field, expected)
    ok = self.template.count("{prompt}") == 1
    check(ok, "template", "a text with {prompt} in it, once")
    ok = all(phrase.strip() for phrase in self.phrases)
    check(ok, "phrases", "texts that are not empty")
    self._check_thresholds(check)

  def _check_thresholds(self, check) -> None:
    for metric, rule in self.thresholds.items():
      expected = f"metrics ({', '.join(METRICS)})"
      check(metric in METRICS, "thresholds", expected, metric)
      field = f"thresholds.{metric}"
      ok = isinstance(rule, Mapping) and len(rule) == 1
      ok = ok and set(rule) <= {"at_most", "at_least"}
      numbers = rule.values() if isinstance(rule, Mapping) else ()
      ok = ok and all(
        isinstance(x, int | float)
        and not isinstance(x, bool)
        and math.isfinite(x)
        for x in numbers
      )
      check(ok, field, "{at_most: NUMBER} or {at_least: NUMBER}", rule)

  @property
  def named_folders(self) -> dict[str, str]:
    """Further students: name -> Hugging Face folder."""
    return dict(entry.split("=", 1) for entry in self.folders)

  def quick(self) -> "SafetyConfig":
    """The same with less of everything, for a first look."""

    def at_most(**limits):
      return {name: min(getattr(self, name), n) for name, n in limits.items()}

    return dataclasses.replace(
      self,
      teacher_parts=(),
      **at_most(rows=64, resamples=500, canary_controls=255),
      **at_most(prompts=24, answer_tokens=16),
    )
