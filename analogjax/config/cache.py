"""The section of a config about the logit cache."""

import dataclasses
import math
from typing import Annotated

from analogjax.config.fields import (
  FreeForm,
  check,
  check_choice,
  check_counts,
  check_place,
  check_seed,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheConfig:
  """What the logit cache holds, and how it is written."""

  kind: Annotated[str, "kind of record: threshold, random or topk"]
  tau: Annotated[float, "threshold: a probability of 0.001 to 1"]
  num_draws: Annotated[int, "random: draws a position, 1 to 255"]
  top_k: Annotated[int, "topk: likeliest ids a position, 1 to 1024"]
  temperature: Annotated[float, "teacher's logits are divided by it"]
  num_replicas: Annotated[int, "independent records of each row; one a pass"]
  capture: Annotated[str, "positions with a record: all, random or entropy"]
  capture_rate: Annotated[float, "random: probability; entropy: per nat"]
  gram_positions: Annotated[
    int, "positions of a row whose Gram is kept, at most 128; 0: none"
  ]
  gram_layers: Annotated[int, "evenly spaced depths at which it is kept"]
  seed: Annotated[int, "of all draws"]
  num_rows: Annotated[int, "rows to train on"]
  held_out_rows: Annotated[int, "rows to measure on"]
  batch_rows: Annotated[int, "rows per teacher step"]
  rows_per_object: Annotated[int, "rows in one stored object"]
  chunk: Annotated[int, "tokens of a row whose logits are held at once"]
  location: Annotated[str, "s3://, gs:// or folder; '': in the workdir"]
  s3_endpoint: Annotated[str, "URL of an S3 that is not Amazon's, or ''"]
  write_ahead: Annotated[int, "objects that wait in memory to be written"]
  import_path: Annotated[
    str, "DistillKit's parquet files; '': the teacher runs"
  ]
  import_codec: Annotated[
    FreeForm, "its codec; empty: the one beside the files"
  ]

  def __post_init__(self):
    check_choice(self, "kind", "threshold", "random", "topk")
    # Below 1e-3 a record has more slots and finer codes than its format holds.
    check(1e-3 <= self.tau <= 1, "tau", "0.001 <= tau <= 1", self.tau)
    draws, top_k = self.num_draws, self.top_k
    check(1 <= draws <= 255, "num_draws", "1 <= num_draws <= 255", draws)
    check(1 <= top_k <= 1024, "top_k", "1 <= top_k <= 1024", top_k)
    check_choice(self, "capture", "all", "random", "entropy")
    most = 1 if self.capture == "random" else math.inf
    ok = 0 < self.capture_rate <= most
    expected = "above 0" + (", and at most 1" if most == 1 else "")
    check(ok, "capture_rate", expected, self.capture_rate)
    check(self.temperature > 0, "temperature", "> 0", self.temperature)
    self._check_gram()
    check_seed(self)
    check_counts(self, "num_replicas", "num_rows", "held_out_rows")
    check_counts(self, "batch_rows", "rows_per_object", "chunk", "write_ahead")
    check(
      self.rows_per_object % self.batch_rows == 0,
      "batch_rows",
      f"a divisor of rows_per_object={self.rows_per_object}",
      self.batch_rows,
    )
    check_place(self.location or "workdir", self.s3_endpoint)
    expected = "'topk', as cache.import_path is set"
    check(
      not self.import_path or self.kind == "topk", "kind", expected, self.kind
    )

  def _check_gram(self) -> None:
    found, most = self.gram_positions, MOST_POSITIONS
    ok = found == 0 or 2 <= found <= most
    check(ok, "gram_positions", f"0, or 2 to {most}", found)
    expected = "0, as cache.import_path is set and what is imported has none"
    ok = not (self.import_path and found)
    check(ok, "gram_positions", expected, found)
    check_counts(self, "gram_layers")

  @property
  def gram_depths(self) -> tuple[float, ...]:
    """Parts of the teacher's depth; none where there are no positions."""
    return depths(self.gram_layers) if self.gram_positions else ()


MOST_POSITIONS = 128  # 8,128 pairs a row and depth.


def depths(number: int) -> tuple[float, ...]:
  """Evenly spaced parts of a model's depth; the last one is all of it."""
  return tuple(i / number for i in range(1, number + 1))
