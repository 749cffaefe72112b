"""The context of every measurement: the models, the rows and the options.

Shape letters: R rows, L positions, B rows of a step.
"""

from collections.abc import Iterator
import dataclasses
import hashlib
from typing import ClassVar

import jax
import numpy as np
import tokenizers

from analogjax.cache import batches
from analogjax.config.measure import MeasureConfig
from analogjax.config.safety import SafetyConfig
from analogjax.data import rows as rows_lib
from analogjax.evaluation import models as models_lib
from analogjax.evaluation.models import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
  """Models and options of a measurement; counts the tokens it runs."""

  stage: ClassVar[str]

  mesh: jax.sharding.Mesh
  teacher: Model | None  # None: no part needs it.
  students: dict[str, Model]  # By name, the analog first; RANDOM is one.
  tokenizer: tokenizers.Tokenizer  # Tokenizer of all models.
  options: MeasureConfig | SafetyConfig
  # Tokens that went through a model so far, by its name.
  tokens: dict[str, int] = dataclasses.field(default_factory=dict)

  @property
  def analog(self) -> Model:
    return next(iter(self.students.values()))

  def rng(self, *names: str) -> np.random.Generator:
    """Random numbers that depend only on the seed and these names."""
    digest = hashlib.blake2b("/".join(names).encode(), digest_size=8).digest()
    words = np.frombuffer(digest, "<u4").tolist()
    return np.random.default_rng([self.options.seed, *words])

  def batches(
    self, rows: rows_lib.Rows, *models: Model
  ) -> Iterator[tuple[batches.Batch, slice]]:
    """All rows in order, on the mesh, in batches of one size.

    The last batch is padded with copies of the last row at weight 0.

    Args:
      rows: every process holds all of them.
      *models: those that will see the rows; their tokens are counted.

    Yields:
      A batch, and the slice of the rows in it; it may hold more.

    Raises:
      stopping.Stopped: a process was asked to stop.
    """
    L = rows.tokens_BL.shape[1]
    for batch, here in models_lib.in_batches(
      rows,
      self.options.batch_rows,
      self.mesh,
      what=self.stage,
      who=", ".join(model.name for model in models),
    ):
      for model in models:
        self.count(model, (here.stop - here.start) * L)
      yield batch, here

  def count(self, model: Model, tokens: int) -> None:
    """Adds tokens that went through a model, for the ledger."""
    self.tokens[model.name] = self.tokens.get(model.name, 0) + tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study(Measurement):
  """One measurement of students against a teacher.

  Layers are named by their depth, a fraction from a grid that the config sets,
  so results do not reveal how many layers the teacher has.
  """

  stage = "measure"

  teacher: Model
  fit: rows_lib.Rows  # Training rows that maps are fitted on.
  test: rows_lib.Rows  # Held-out rows that everything is measured on.
  domains: dict[str, rows_lib.Rows]  # Further held-out rows, by domain.
  options: MeasureConfig

  def depths(self, model: Model) -> tuple[float, ...]:
    """Depths of the compared layers, rising; no block twice."""
    n = self.options.depths
    by_block = {model.block(i / n): i / n for i in range(n, 0, -1)}
    return tuple(sorted(by_block.values()))
