"""Activations at some tokens of each row, read while a model runs.

Only one batch is in memory at a time: [Y, B, M, D] at the points, of which the
wanted depths [P, B, M, D] are returned. Activations of all tokens and layers
are never held together.

Shape letters: R rows, B rows of a step, L positions, M points of a row, D model
width, P depths.
"""

from collections.abc import Collection, Iterator, Sequence
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from analogjax.data import rows as rows_lib
from analogjax.distributed import sharding
from analogjax.evaluation.models import Model
from analogjax.evaluation.study import Study
from analogjax.models import decoder

# Activations at points, [P, B, M, D] on the mesh, and the rows they belong to.
Batch = tuple[jax.Array, slice]


def draw_points(
  rows: rows_lib.Rows, num_points: int, rng: np.random.Generator
) -> np.ndarray:
  """Positions of tokens in each row, int32 [R, M], rising.

  Drawn without replacement, never padding.

  Raises:
    ValueError: a row with fewer tokens than that.
  """
  positions = []
  for i, segments_L in enumerate(rows.segments_BL):
    (tokens,) = np.nonzero(segments_L)
    if len(tokens) < num_points:
      raise ValueError(
        f"measure.points: row {i} has {len(tokens)} tokens, expected at least"
        f" {num_points} in each; set fewer points, or give more rows."
      )
    positions.append(np.sort(rng.choice(tokens, num_points, replace=False)))
  return np.asarray(positions, np.int32)


def ordinary(rows: rows_lib.Rows, special: Collection[int]) -> rows_lib.Rows:
  """Marks the first token of each document and all `special` ids as padding.

  Models have sums there that are hundreds of times as large as elsewhere
  (arXiv:2402.17762), so a handful of points would make up all the variance. The
  first token attends to itself alone and has the same activation in every row.
  """
  rest = (rows.positions_BL > 0) & ~np.isin(rows.tokens_BL, list(special))
  return rows._replace(segments_BL=np.where(rest, rows.segments_BL, 0))


def special_tokens(tokenizer: tokenizers.Tokenizer) -> list[int]:
  """Ids that the tokenizer marks as special."""
  added = tokenizer.get_added_tokens_decoder()
  return sorted(i for i, token in added.items() if token.special)


def stream(
  study: Study,
  model: Model,
  rows: rows_lib.Rows,
  positions_RM: np.ndarray,
  depths: Sequence[float],
) -> Iterator[Batch]:
  """Yields resid_post at the points, float32 [P, B, M, D], batch by batch.

  Yields:
    The activations, split over the mesh by rows, and the indices of the rows.
    The last batch may hold more rows than indices; ignore the excess.

  Raises:
    ValueError: activations are not finite; names the model and the depth.
  """
  blocks = tuple(model.block(depth) for depth in depths)
  step = make_points_step(model.cfg, study.mesh, blocks)
  for batch, here in study.batches(rows, model):
    padded = np.minimum(
      here.start + np.arange(len(batch.tokens_BL)), len(positions_RM) - 1
    )
    points = sharding.put_rows(positions_RM[padded], study.mesh)
    with jax.set_mesh(study.mesh):
      x_PBMD, finite_P = step(model.params, batch, points)
    check_finite(model, depths, jax.device_get(finite_P))
    yield x_PBMD, here


def check_finite(model: Model, depths: Sequence[float], finite_P) -> None:
  """Raises a ValueError with model and depth if activations are not finite."""
  for depth, ok in zip(depths, finite_P, strict=True):
    if not ok:
      raise ValueError(
        f"measure: activations of {model.name} at depth {depth:.2f} are not"
        " finite; the checkpoint is damaged, or the compute dtype overflows."
      )


@functools.cache
def make_points_step(
  cfg: decoder.DecoderConfig, mesh: jax.sharding.Mesh, blocks: tuple[int, ...]
):
  """(params, batch, positions_BM) -> float32 [P, B, M, D], finite [P]."""
  by_rows = jax.sharding.PartitionSpec(None, sharding.ACTIVATION_AXES["B"])

  def step(params, batch, positions_BM):
    def probe(out):
      return take_points(out["resid_post"], positions_BM)

    model = nnx.merge(decoder.graphdef(cfg), params)
    _, x_YBMD = model(
      batch.tokens_BL, batch.segments_BL, batch.positions_BL, probe=probe
    )
    x_PBMD = x_YBMD[np.asarray(blocks)].astype(jnp.float32)
    return x_PBMD, jnp.isfinite(x_PBMD).all((1, 2, 3))

  return jax.jit(
    step,
    out_shardings=(
      jax.sharding.NamedSharding(mesh, by_rows),
      jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()),
    ),
  )


@functools.cache
def make_beginning(cfg: decoder.DecoderConfig, mesh: jax.sharding.Mesh):
  """(params, batch, block) -> the stream after that block, [B, L, D]."""

  def beginning(params, batch, block):
    model = nnx.merge(decoder.graphdef(cfg), params)
    return model.run_blocks(
      model.embed(batch.tokens_BL), *batch[1:3], first=0, last=block
    )

  rows = jax.sharding.NamedSharding(mesh, sharding.ROWS)
  return jax.jit(beginning, out_shardings=rows)


def take_points(x_BLD: jax.Array, positions_BM: jax.Array) -> jax.Array:
  """x at some positions of each row, [B, M, D]."""
  return jnp.take_along_axis(x_BLD, positions_BM[..., None], axis=1)
