"""What every part of the safety evaluation works with.

Shape letters: R rows, L positions, B rows of a step.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import hashlib
from typing import Any, NamedTuple

import jax
import numpy as np
import tokenizers

from analogjax.cache import batches
from analogjax.config.safety import SafetyConfig
from analogjax.data import rows as rows_lib
from analogjax.evaluation import models as subjects
from analogjax.evaluation.estimates import Estimate
from analogjax.evaluation.models import RANDOM, Model
from analogjax.safety.prompts import Prompts


class Result(NamedTuple):
  """One number of a model, which a threshold may be set for."""

  metric: str  # Of options.METRICS.
  model: str
  value: Estimate
  text: str  # What it is a number of; nothing measured is in it.
  variant: str = ""  # Which of several of one metric and model.

  def to_json(self) -> dict[str, Any]:
    return {**self._asdict(), "value": self.value.to_json()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """Models, rows and options; every process has all of the rows."""

  mesh: jax.sharding.Mesh
  students: dict[str, Model]  # By name, the analog first; RANDOM is one.
  teacher: Model | None  # None: it goes through no part.
  members: rows_lib.Rows  # That the analog was trained on.
  held_out: rows_lib.Rows  # Of the same pipeline, which nobody was trained on.
  teacher_only: rows_lib.Rows | None  # That the teacher alone was trained on.
  canaries: Mapping[str, Any] | None  # As the pipeline planted them.
  prompts: Mapping[str, Sequence[Prompts]]  # harmful and harmless.
  tokenizer: tokenizers.Tokenizer  # Of all models.
  end_tokens: frozenset[int]  # An answer ends before the first of them.
  options: SafetyConfig
  # Tokens that went through a model so far, by its name.
  tokens: dict[str, int] = dataclasses.field(default_factory=dict)

  @property
  def analog(self) -> Model:
    return next(iter(self.students.values()))

  def models(self, part: str) -> list[Model]:
    """Those that go through a part, the analog first.

    The one of random parameters says what is chance where that is not plain.
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

  def rng(self, *names: str) -> np.random.Generator:
    """Random numbers that depend on the seed and these names alone."""
    digest = hashlib.blake2b("/".join(names).encode(), digest_size=8).digest()
    words = np.frombuffer(digest, "<u4").tolist()
    return np.random.default_rng([self.options.seed, *words])

  def batches(
    self, rows: rows_lib.Rows, model: Model
  ) -> Iterator[tuple[batches.Batch, slice]]:
    """`subjects.in_batches` of the rows; the model's tokens are counted."""
    for batch, here in subjects.in_batches(
      rows, self.options.batch_rows, self.mesh, what="safety", who=model.name
    ):
      self.count(model, (here.stop - here.start) * rows.tokens_BL.shape[1])
      yield batch, here

  def count(self, model: Model, tokens: int) -> None:
    """Adds tokens that went through a model, for the ledger."""
    self.tokens[model.name] = self.tokens.get(model.name, 0) + tokens


def as_documents(tokens_RL: np.ndarray) -> rows_lib.Rows:
  """Token sequences as rows of one document each, without padding."""
  R, L = tokens_RL.shape
  return rows_lib.Rows(
    tokens_RL.astype(np.int32),
    np.ones((R, L), np.int32),
    np.tile(np.arange(L, dtype=np.int32), (R, 1)),
    np.ones((R, L), np.float32),
  )
