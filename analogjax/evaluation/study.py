"""What every measurement works with: the models, the rows and the options.

Shape letters: R rows, L positions, B rows of a step.
"""

from collections.abc import Iterator
import dataclasses
import hashlib

import jax
import numpy as np
import tokenizers

from analogjax.cache import batches
from analogjax.config.measure import MeasureConfig
from analogjax.data import rows as rows_lib
from analogjax.evaluation import models as subjects
from analogjax.evaluation.models import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
  """One measurement of students against a teacher.

  Layers are named by their depth, a part of the whole from a grid that the
  config sets: what is published says nothing of how many the teacher has.
  """

  mesh: jax.sharding.Mesh
  teacher: Model
  students: dict[str, Model]  # By name, the analog first; RANDOM is one.
  fit: rows_lib.Rows  # Of the training data: maps are fitted on these.
  test: rows_lib.Rows  # Held out: everything is measured on these.
  domains: dict[str, rows_lib.Rows]  # Further held-out rows, by domain.
  tokenizer: tokenizers.Tokenizer  # Of all models.
  options: MeasureConfig
  # Tokens that went through a model so far, by its name.
  tokens: dict[str, int] = dataclasses.field(default_factory=dict)

  @property
  def analog(self) -> Model:
    return next(iter(self.students.values()))

  def depths(self, model: Model) -> tuple[float, ...]:
    """Of the layers that are compared, rising; no block twice."""
    n = self.options.depths
    by_block = {model.block(i / n): i / n for i in range(n, 0, -1)}
    return tuple(sorted(by_block.values()))

  def rng(self, *names: str) -> np.random.Generator:
    """Random numbers that depend on the seed and these names alone."""
    return named_rng(self.options.seed, *names)

  def batches(
    self, rows: rows_lib.Rows, *models: Model
  ) -> Iterator[tuple[batches.Batch, slice]]:
    """All rows in order, on the mesh, in batches of one size.

    The last batch is filled up with copies of the last row at weight 0.

    Args:
      rows: of which every process has all.
      models: that will see them: their tokens are counted.

    Yields:
      A batch and which of the rows are in it; it may hold more.

    Raises:
      stopping.Stopped: a process was asked to stop.
    """
    L = rows.tokens_BL.shape[1]
    for batch, here in subjects.in_batches(
      rows,
      self.options.batch_rows,
      self.mesh,
      what="measure",
      who=", ".join(model.name for model in models),
    ):
      for model in models:
        self.count(model, (here.stop - here.start) * L)
      yield batch, here

  def count(self, model: Model, tokens: int) -> None:
    """Adds tokens that went through a model, for the ledger."""
    self.tokens[model.name] = self.tokens.get(model.name, 0) + tokens


def named_rng(seed: int, *names: str) -> np.random.Generator:
  """Random numbers that depend on the seed and these names alone."""
  digest = hashlib.blake2b("/".join(names).encode(), digest_size=8).digest()
  words = np.frombuffer(digest, "<u4").tolist()
  return np.random.default_rng([seed, *words])
