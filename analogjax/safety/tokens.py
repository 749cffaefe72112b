"""A model's predictions of each true token of a row, in one pass.

Extraction, canaries and membership all use these numbers. In particular, no
text has to be generated to know whether it would come out verbatim: a greedy
continuation is right to its end exactly if the likeliest token after each true
prefix is the true one.

Shape letters: R rows, B rows of a step, L positions, S positions of a chunk, V
vocabulary.
"""

import functools
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from analogjax.cache import batches
from analogjax.data import rows as rows_lib
from analogjax.evaluation import models as models_lib
from analogjax.evaluation.models import Model, everywhere
from analogjax.models import decoder
from analogjax.safety.evaluation import Evaluation


class Said(NamedTuple):
  """Predictions of the next token at each position; undefined at the last."""

  logp: Any  # Log-probability of the true token, nats, float32 [R, L].
  greedy: Any  # Whether no token is likelier than the true one.
  mean: Any  # Mean log-probability of a token that the model draws, nats.
  spread: Any  # Standard deviation of that log-probability.


def said(evaluation: Evaluation, model: Model, rows: rows_lib.Rows) -> Said:
  """Predictions for all rows, on every process."""
  step = make_step(model.cfg, evaluation.mesh, chunk=evaluation.options.chunk)
  parts = []
  for batch, here in evaluation.batches(rows, model):
    with jax.set_mesh(evaluation.mesh):
      found = jax.device_get(step(model.params, batch))
    # The last batch may hold more rows.
    parts.append([a[: here.stop - here.start] for a in found])
  whole = Said(*(np.concatenate(some) for some in zip(*parts, strict=True)))
  if not np.isfinite(whole.logp).all():
    raise ValueError(
      f"safety: log-probabilities of {model.name} are not finite; the"
      " checkpoint is damaged, or the compute dtype overflows."
    )
  return whole


@functools.cache
def make_step(
  cfg: decoder.DecoderConfig, mesh: jax.sharding.Mesh, *, chunk: int
):
  """(params, batch) -> Said, which every process can read whole."""
  return jax.jit(
    functools.partial(step, cfg=cfg, chunk=chunk),
    out_shardings=everywhere(mesh),
  )


def step(
  params: nnx.State,
  batch: batches.Batch,
  *,
  cfg: decoder.DecoderConfig,
  chunk: int,
) -> Said:
  """Predictions for a batch; logits are in memory for `chunk` positions."""
  model = nnx.merge(decoder.graphdef(cfg), params)
  x_BLD, _ = model(*batch[:3])
  B, L = batch.tokens_BL.shape
  starts, cut = models_lib.in_chunks(L, chunk)

  def body(_, start):
    labels_BS1 = cut(batch.targets.labels_BL, start)[..., None]
    z_BSV = model.cap(decoder.unembed(cut(x_BLD, start), model.head_VD))
    # Only sums, so that no second array of the logits' size is made.
    lse_BS1 = jax.nn.logsumexp(z_BSV, axis=-1, keepdims=True)
    p_BSV, logp_BSV = jnp.exp(z_BSV - lse_BS1), z_BSV - lse_BS1
    mean_BS = jnp.sum(p_BSV * logp_BSV, axis=-1)
    off_BSV = logp_BSV - mean_BS[..., None]
    true_BS1 = jnp.take_along_axis(z_BSV, labels_BS1, axis=-1)
    found = Said(
      (true_BS1 - lse_BS1)[..., 0],
      # Not argmax, which takes as long as half of the rest on a CPU.
      true_BS1[..., 0] >= jnp.max(z_BSV, axis=-1),
      mean_BS,
      jnp.sqrt(jnp.sum(p_BSV * off_BSV**2, axis=-1)),
    )
    return None, found

  _, stacked = jax.lax.scan(body, None, starts)

  def join(a):  # [chunks, B, S] -> [B, L]
    return jnp.moveaxis(a, 0, 1).reshape(B, -1)[:, :L]

  return jax.tree.map(join, stacked)
