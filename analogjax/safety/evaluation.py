"""Models, rows and results of the safety evaluation.

Shape letters: R rows, L positions, B rows of a step.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from analogjax.config.safety import SafetyConfig
from analogjax.data import rows as rows_lib
from analogjax.evaluation import estimates
from analogjax.evaluation.estimates import Estimate
from analogjax.evaluation.models import RANDOM, Model
from analogjax.evaluation.study import Measurement
from analogjax.safety.prompts import Prompts


class Result(NamedTuple):
  """A number of a model, for which a threshold may be set."""

  metric: str  # One of METRICS in config/safety.py.
  model: str
  value: Estimate
  text: str  # The meaning of the number; it contains nothing measured.
  variant: str = ""  # Which one, if a metric has several numbers per model.

  def to_json(self) -> dict[str, Any]:
    return {**self._asdict(), "value": self.value.to_json()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(Measurement):
  """Models, rows and options; every process holds all rows."""

  stage = "safety"

  members: rows_lib.Rows  # Rows that the analog was trained on.
  held_out: rows_lib.Rows  # From the same pipeline, but not trained on.
  teacher_only: rows_lib.Rows | None  # Only the teacher was trained on these.
  canaries: Mapping[str, Any] | None  # As the pipeline planted them.
  prompts: Mapping[str, Sequence[Prompts]]  # By side: harmful and harmless.
  options: SafetyConfig

  @functools.cached_property
  def end_tokens(self) -> frozenset[int]:
    """Tokens that end an answer."""
    added = self.tokenizer.get_added_tokens_decoder()
    return frozenset(i for i, token in added.items() if token.special)

  def models(self, part: str) -> list[Model]:
    """The models that a part measures, the analog first.

    The untrained one shows chance level, where that is unknown.
    """
    found = [
      model
      for name, model in self.students.items()
      if name != RANDOM or part in ("canaries", "membership")
    ]
    if part in self.options.teacher_parts:
      assert self.teacher is not None
      found.append(self.teacher)
    return found

  def mean(self, values: np.ndarray, *names: str) -> Estimate:
    """The mean over items, with its interval; `names` seed the draws."""
    return estimates.mean(
      values, resamples=self.options.resamples, rng=self.rng(*names)
    )


def part(results: Sequence[Result], **details: Any) -> dict[str, Any]:
  """The return value of a part, as JSON values."""
  return {"results": [r.to_json() for r in results], "details": details}


def share(hits: np.ndarray) -> Estimate:
  """The fraction of items that are hits."""
  return estimates.share(int(hits.sum()), len(hits))


def as_documents(tokens_RL: np.ndarray) -> rows_lib.Rows:
  """Token sequences as rows of one document each, without padding."""
  R, L = tokens_RL.shape
  return rows_lib.Rows(
    tokens_RL.astype(np.int32),
    np.ones((R, L), np.int32),
    np.tile(np.arange(L, dtype=np.int32), (R, 1)),
    np.ones((R, L), np.float32),
  )
