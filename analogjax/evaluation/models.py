"""Measured models, and the batches of rows that they see.

Shape letters: R rows, L positions, B rows of a step.
"""

from collections.abc import Callable, Iterator
import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from analogjax.cache import batches
from analogjax.cli import progress
from analogjax.data import rows as rows_lib
from analogjax.distributed import processes, sharding
from analogjax.models import decoder

RANDOM = "random"  # The student that was never trained.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """A model, with its parameters on their devices."""

  name: str
  cfg: decoder.DecoderConfig
  params: nnx.State

  @property
  def graphdef(self) -> nnx.GraphDef:
    return decoder.graphdef(self.cfg)

  def block(self, depth: float) -> int:
    """The block that ends at a fraction of the depth, 0 < depth <= 1."""
    assert 0 < depth <= 1, depth
    return max(1, round(depth * self.cfg.Y)) - 1


def in_parts(
  rows: rows_lib.Rows, size: int
) -> Iterator[tuple[rows_lib.Rows, slice]]:
  """All rows in parts of one size, and the rows of each part.

  The last part is padded with copies of the last row at weight 0.
  """
  R = len(rows.tokens_BL)
  for start in range(0, R, size):
    wanted = start + np.arange(size)
    part = rows_lib.Rows(*(field[np.minimum(wanted, R - 1)] for field in rows))
    weights_BL = part.weights_BL * (wanted < R)[:, None]
    here = slice(start, min(start + size, R))
    yield part._replace(weights_BL=weights_BL), here


def in_batches(
  rows: rows_lib.Rows,
  batch_rows: int,
  mesh: jax.sharding.Mesh,
  *,
  what: str,
  who: str = "models",
) -> Iterator[tuple[batches.Batch, slice]]:
  """`in_parts` on the mesh; `what` and `who` are for messages.

  Raises:
    stopping.Stopped: a process was asked to stop.
  """
  R = len(rows.tokens_BL)
  for part, here in in_parts(rows, batch_rows):
    processes.stop_if_asked(f"{what}: what was measured in full is kept")
    progress.doing(f"{who}: row {here.start + 1} of {R}")
    yield sharding.put_rows(batches.from_rows(part), mesh), here


def in_chunks(
  L: int, chunk: int
) -> tuple[jax.Array, Callable[[Any, jax.Array], jax.Array]]:
  """Starts of chunks of L positions, and a function that cuts arrays there.

  The function takes [B, L, ...] and a start, and pads the last chunk with 0. So
  logits are in memory for one chunk of positions at a time.
  """
  chunk = min(chunk, L)
  pad = -L % chunk

  def cut(a_BL, start):
    a_BL = jnp.pad(a_BL, ((0, 0), (0, pad)) + ((0, 0),) * (a_BL.ndim - 2))
    return jax.lax.dynamic_slice_in_dim(a_BL, start, chunk, axis=1)

  return jnp.arange(0, L + pad, chunk), cut


def everywhere(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """The sharding of arrays that every process can read whole."""
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
