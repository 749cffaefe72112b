"""The section `measure` of a config: comparisons, and their extent."""

from collections.abc import Mapping
import dataclasses
from typing import Annotated

from analogjax.config.fields import (
  ABOVE_0,
  COUNT,
  NOT_NEGATIVE,
  PUBLIC,
  SEED,
  UNIQUE,
  FreeForm,
  Private,
  Section,
  at_least,
  between,
  check,
  check_folders,
  some_of,
)

PARTS = ("output", "similarity", "steering", "stitching")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasureConfig(Section):
  """Properties of the teacher to test for in the students.

  The analog is the student of release.phase; the others, and one of random
  parameters that is always there, are the controls.
  """

  parts: Annotated[
    tuple[str, ...], "what is measured", some_of(PARTS), PUBLIC
  ] = PARTS
  phases: Annotated[
    tuple[str, ...],
    "phases whose last checkpoint is measured",
    UNIQUE,
    PUBLIC,
  ]
  folders: Annotated[
    tuple[str, ...],
    "further students, Hugging Face folders: NAME=FOLDER",
    Private("places, and names of other models"),
  ] = ()
  batch_rows: Annotated[
    int,
    "rows per step, over all devices",
    COUNT,
    Private("what the teacher's machines hold"),
  ]
  seed: Annotated[
    int, "seed of every draw: points, permutations, resamples", SEED, PUBLIC
  ] = 0
  fit_rows: Annotated[
    int, "rows of the training data that maps are fitted on", COUNT, PUBLIC
  ] = 256
  domains: Annotated[
    FreeForm,
    "name -> arguments that replace some of the held-out ones",
    Private("names and places of data"),
  ] = dataclasses.field(default_factory=dict)
  domain_rows: Annotated[int, "rows of each domain", COUNT, PUBLIC] = 64
  depths: Annotated[
    int, "layers of each model, evenly spaced over its depth", COUNT, PUBLIC
  ] = 8
  points: Annotated[
    int, "tokens whose activations are compared", between(64, 8192), PUBLIC
  ] = 4096
  # With fewer no p-value below 0.05 is possible.
  permutations: Annotated[
    int, "permutations behind the null of each similarity", at_least(19), PUBLIC
  ] = 199
  resamples: Annotated[
    int, "resamples of the bootstrap of each interval", at_least(100), PUBLIC
  ] = 1000
  behaviours: Annotated[
    tuple[str, ...],
    "behaviours to steer: sentiment, refusal, or JSON files",
    Private("may be paths; fidelity.json names them"),
  ] = ("sentiment", "refusal")
  max_strength: Annotated[
    float,
    "greatest strength of steering, in norms of the native vector",
    ABOVE_0,
    PUBLIC,
  ] = 2.0
  strengths: Annotated[
    int, "strengths up to that, evenly spaced, both ways", COUNT, PUBLIC
  ] = 4
  random_vectors: Annotated[
    int, "random vectors of the same norm to compare with", COUNT, PUBLIC
  ] = 8
  mapper_steps: Annotated[
    int, "steps of the autoencoder mapper; 0: none", NOT_NEGATIVE, PUBLIC
  ] = 2000
  stitch_steps: Annotated[
    int, "steps that train a stitch; 0: least squares", NOT_NEGATIVE, PUBLIC
  ] = 500

  def rules(self) -> None:
    some = len(self.phases) + len(self.folders) > 0
    expected = "at least one phase, or one of folders"
    check(some, "phases", expected, self.phases)
    check_folders(self.folders, self.phases)
    for name, arguments in self.domains.items():
      ok = bool(name) and isinstance(arguments, Mapping)
      expected = "names, each with a dict of pipeline arguments"
      check(ok, "domains", expected, self.domains)

  @property
  def named_folders(self) -> dict[str, str]:
    """Further students: name -> Hugging Face folder."""
    return dict(entry.split("=", 1) for entry in self.folders)

  def quick(self) -> "MeasureConfig":
    """The options with less of everything, for a first look."""

    def at_most(**limits):
      return {name: min(getattr(self, name), n) for name, n in limits.items()}

    return dataclasses.replace(
      self,
      behaviours=self.behaviours[:1],
      domains={},
      **at_most(fit_rows=16, domain_rows=8, depths=2, points=256),
      **at_most(permutations=99, resamples=500, random_vectors=4),
      **at_most(strengths=2, mapper_steps=0, stitch_steps=0),
    )
