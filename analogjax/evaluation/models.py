"""Models that are measured, and the batches of rows that they see.

Shape letters: R rows, L positions, B rows of a step.
"""

from collections.abc import Iterator
import dataclasses

from flax import nnx
import jax
import numpy as np

from analogjax.cache import batches
from analogjax.cli import progress
from analogjax.data import rows as rows_lib
from analogjax.distributed import processes, sharding
from analogjax.models import decoder

RANDOM = "random"  # The student that was never trained.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """One of the models, with its parameters where they belong."""

  name: str
  cfg: decoder.DecoderConfig
  params: nnx.State

  @property
  def graphdef(self) -> nnx.GraphDef:
    return decoder.graphdef(self.cfg)

  def block(self, depth: float) -> int:
    """The block that ends at a part of the depth, 0 < depth <= 1."""
    assert 0 < depth <= 1, depth
    return max(1, round(depth * self.cfg.Y)) - 1


def in_batches(
  rows: rows_lib.Rows,
  batch_rows: int,
  mesh: jax.sharding.Mesh,
  *,
  what: str,
  who: str = "models",
) -> Iterator[tuple[batches.Batch, slice]]:
  """All rows in order, on the mesh, in batches of one size.

  The last batch is filled up with copies of the last row at weight 0.

  Args:
    rows: of which every process has all.
    batch_rows: B.
    mesh: of the models.
    what: the stage, for the message when it is asked to stop.
    who: the models that see them, for people who watch.

  Yields:
    A batch and which of the rows are in it; it may hold more.

  Raises:
    stopping.Stopped: a process was asked to stop.
  """
  R = len(rows.tokens_BL)
  for start in range(0, R, batch_rows):
    processes.stop_if_asked(f"{what}: what was measured in full is kept")
    progress.doing(f"{who}: row {start + 1} of {R}")
    wanted = start + np.arange(batch_rows)
    part = rows_lib.Rows(*(field[np.minimum(wanted, R - 1)] for field in rows))
    weights_BL = part.weights_BL * (wanted < R)[:, None]
    batch = batches.from_rows(part._replace(weights_BL=weights_BL))
    here = slice(start, min(start + batch_rows, R))
    yield sharding.put_rows(batch, mesh), here


def everywhere(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """What every process can read whole."""
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
