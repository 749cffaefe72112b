"""The section `measure` of a config: what is compared, how much of it."""

from collections.abc import Mapping
import dataclasses
from typing import Annotated, Any

PARTS = ("output", "similarity", "steering", "stitching")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasureConfig:
  """What of the teacher is looked for in the students, and how hard.

  The analog is the student of release.phase; the others, and one of random
  parameters that is always there, are the controls.
  """

  parts: Annotated[
    tuple[str, ...], "of output, similarity, steering, stitching"
  ]
  phases: Annotated[tuple[str, ...], "phases whose last checkpoint is measured"]
  folders: Annotated[
    tuple[str, ...], "further students, Hugging Face folders: NAME=FOLDER"
  ]
  batch_rows: Annotated[int, "rows per step, over all devices"]
  seed: Annotated[int, "of every draw: points, permutations, resamples"]
  fit_rows: Annotated[int, "rows of the training data that maps are fitted on"]
  domains: Annotated[
    Mapping[str, Any], "name -> arguments laid over the held-out ones"
  ]
  domain_rows: Annotated[int, "rows of each domain"]
  depths: Annotated[int, "layers of each model, evenly spaced over its depth"]
  points: Annotated[int, "tokens whose activations are compared, 64 to 8192"]
  permutations: Annotated[int, "of the null of each similarity"]
  resamples: Annotated[int, "of the bootstrap of each interval"]
  behaviours: Annotated[
    tuple[str, ...], "that are steered: sentiment, refusal, or JSON files"
  ]
  max_strength: Annotated[float, "of steering, in norms of the native vector"]
  strengths: Annotated[int, "evenly spaced up to that, both ways"]
  random_vectors: Annotated[int, "norm-matched ones to compare with"]
  mapper_steps: Annotated[int, "of the autoencoder mapper; 0: not trained"]
  stitch_steps: Annotated[int, "that a stitch is trained; 0: least squares"]

  def __post_init__(self):
    def check(ok, field, expected):
      if not ok:
        found = getattr(self, field)
        raise ValueError(f"{field}: expected {expected}, found {found!r}.")

    known = bool(self.parts) and set(self.parts) <= set(PARTS)
    check(known, "parts", f"one of {', '.join(PARTS)}, or several")
    ok = len(self.phases) + len(self.folders) > 0
    check(ok, "phases", "at least one phase, or one of folders")
    unique = len(set(self.phases)) == len(self.phases)
    check(unique, "phases", "each phase once")
    taken = ["teacher", "random", *self.phases]
    for entry in self.folders:
      name, _, folder = entry.partition("=")
      ok = name.isidentifier() and bool(folder) and name not in taken
      expected = "NAME=FOLDER, each name once, none of a phase, nor teacher or"
      check(ok, "folders", f"{expected} random")
      taken.append(name)
    for name, arguments in self.domains.items():
      ok = bool(name) and isinstance(arguments, Mapping)
      check(ok, "domains", "names, each with a dict of pipeline arguments")
    counts = ("batch_rows", "fit_rows", "domain_rows", "depths", "strengths")
    for field in (*counts, "random_vectors"):
      check(getattr(self, field) >= 1, field, "a positive number")
    for field in ("mapper_steps", "stitch_steps"):
      check(getattr(self, field) >= 0, field, "0 or more")
    check(0 <= self.seed < 2**32, "seed", "0 <= seed < 2**32")
    check(64 <= self.points <= 8192, "points", "64 <= points <= 8192")
    # With fewer no p-value below 0.05 is possible.
    check(self.permutations >= 19, "permutations", "19 or more")
    check(self.resamples >= 100, "resamples", "100 or more")
    check(self.max_strength > 0, "max_strength", "> 0")

  @property
  def named_folders(self) -> dict[str, str]:
    """Further students: name -> Hugging Face folder."""
    return dict(entry.split("=", 1) for entry in self.folders)

  def quick(self) -> "MeasureConfig":
    """The same with less of everything, for a first look."""

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
