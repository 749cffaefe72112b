"""The section `cache` of a config: contents and place of the logit cache."""

import dataclasses
from typing import Annotated

from analogjax.config.fields import (
  ABOVE_0,
  COUNT,
  PUBLIC,
  SEED,
  Bound,
  FreeForm,
  Private,
  Section,
  between,
  check,
  choice,
)
from analogjax.config.places import check_place

MOST_POSITIONS = 128  # 8,128 pairs per row and depth.

_MACHINES = Private("depends on the lab's machines")
_PLACE = Private("a place")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheConfig(
  Section, private="parameter of sampling, which the regulator has"
):
  """The logit cache: the teacher's distribution over the rows, sampled."""

  kind: Annotated[
    str, "kind of record", choice("threshold", "random", "topk"), PUBLIC
  ] = "threshold"
  # Below 1e-3 a record has more slots and finer codes than its format holds.
  tau: Annotated[
    float, "threshold: least probability of an entry", between(1e-3, 1)
  ] = 0.04
  num_draws: Annotated[
    int, "random: draws at each position", between(1, 255)
  ] = 50
  top_k: Annotated[
    int, "topk: likeliest ids at each position", between(1, 1024)
  ] = 16
  temperature: Annotated[
    float, "divides the teacher's logits", ABOVE_0, PUBLIC
  ] = 1.0
  num_replicas: Annotated[
    int, "independent records of each row, one for each pass", COUNT
  ] = 1
  capture: Annotated[
    str, "positions with a record", choice("all", "random", "entropy")
  ] = "all"
  capture_rate: Annotated[
    float, "random: probability of a position; entropy: that per nat"
  ] = 1.0
  gram_positions: Annotated[
    int,
    "positions of a row whose Gram matrix of activations is kept; 0: none",
    Bound(
      lambda n: n == 0 or 2 <= n <= MOST_POSITIONS,
      f"0, or 2 to {MOST_POSITIONS}",
    ),
  ] = 0
  gram_layers: Annotated[
    int, "evenly spaced depths at which the Gram is kept", COUNT
  ] = 2
  seed: Annotated[
    int,
    "seed of all draws",
    SEED,
    Private("seed of draws from a cache that is not published"),
  ] = 0
  num_rows: Annotated[int, "rows to train on", COUNT, PUBLIC]
  held_out_rows: Annotated[int, "rows to measure on", COUNT, PUBLIC]
  batch_rows: Annotated[
    int,
    "rows per step of the teacher, over all devices",
    COUNT,
    Private("what the teacher's machines hold, so its size"),
  ]
  rows_per_object: Annotated[
    int, "rows in one stored object", COUNT, Private("depends on the store")
  ] = 512
  chunk: Annotated[
    int, "tokens of a row whose logits are held at once", COUNT, _MACHINES
  ] = 256
  location: Annotated[
    str, "s3://, gs:// or a folder; '': in the workdir", _PLACE
  ] = ""
  s3_endpoint: Annotated[
    str, "URL of an S3 server; '': Amazon's", Private("a host")
  ] = ""
  write_ahead: Annotated[
    int, "objects that wait in memory to be written", COUNT, _MACHINES
  ] = 2
  import_path: Annotated[
    str, "parquet files of DistillKit to import; '': the teacher runs", _PLACE
  ] = ""
  import_codec: Annotated[
    FreeForm,
    "codec of these files; empty: the one beside them",
    Private("describes a cache that is not published"),
  ] = dataclasses.field(default_factory=dict)

  def rules(self) -> None:
    rate = self.capture_rate
    most = self.capture == "random"
    expected = "above 0" + (", and at most 1" if most else "")
    check(0 < rate and not (most and rate > 1), "capture_rate", expected, rate)
    check(
      self.rows_per_object % self.batch_rows == 0,
      "batch_rows",
      f"a divisor of rows_per_object={self.rows_per_object}",
      self.batch_rows,
    )
    check_place(self.location or "workdir", self.s3_endpoint)
    if self.import_path:
      expected = "'topk', as cache.import_path is set"
      check(self.kind == "topk", "kind", expected, self.kind)
      expected = "0, as cache.import_path is set and imports have none"
      found = self.gram_positions
      check(found == 0, "gram_positions", expected, found)

  @property
  def gram_depths(self) -> tuple[float, ...]:
    """Fractions of the teacher's depth; none if there are no positions."""
    return depths(self.gram_layers) if self.gram_positions else ()


def depths(number: int) -> tuple[float, ...]:
  """Evenly spaced fractions of a model's depth; the last one is 1."""
  return tuple(i / number for i in range(1, number + 1))
