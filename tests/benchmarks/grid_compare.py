"""The student against the teacher's whole distribution, on held-out rows.

Shape letters (docs/glossary.md): B rows of a batch, L position, S positions of
a chunk, D student width, W teacher width, V vocabulary.
"""

from collections.abc import Sequence
import functools
from typing import NamedTuple

from flax import nnx
from grid_arms import Settings
from grid_records import Kept, take
from grid_train import student_config
import jax
import jax.numpy as jnp
import numpy as np

from analogjax.cache import batches
from analogjax.models import decoder

BINS = 15  # Of the calibration error.


class HeldOut(NamedTuple):
  """One batch of held-out rows, with the whole distribution of the teacher."""

  batch: batches.Batch
  p_BLV: jax.Array  # float32.
  entropy_BL: jax.Array  # float32, nats.
  best_BL: jax.Array  # int32, the likeliest token.


def hold(s: Settings, kept: Kept) -> list[HeldOut]:
  """Held-out batches; at 4 V bytes a token no evaluation runs the teacher."""

  @jax.jit
  def distribution(hidden_BSW, head_VW):
    logp_BSV = jax.nn.log_softmax(decoder.unembed(hidden_BSW, head_VW))
    p_BSV = jnp.exp(logp_BSV)
    return p_BSV, -jnp.sum(p_BSV * logp_BSV, axis=-1), logp_BSV.argmax(-1)

  head_VW = jnp.asarray(kept.head_VW)
  out = []
  for start in range(0, len(kept.hidden_RLW), s.batch_rows):
    index = np.arange(start, start + s.batch_rows)
    hidden_BLW = jnp.asarray(kept.hidden_RLW[index])
    batch = batches.from_rows(take(kept.rows, index))
    out.append(HeldOut(batch, *distribution(hidden_BLW, head_VW)))
  return out


def evaluate(s: Settings, params, held_out: Sequence[HeldOut]):
  """Means per token: KL and cross-entropy in nats, over all ids.

  "agreement": how often both find the same token likeliest. "ece": expected
  calibration error of the student's likeliest token against the next one.
  """
  run = _compare(s, held_out[0].p_BLV.shape[-1])
  sums, gap_bins = np.zeros(4), np.zeros(BINS)
  for piece in held_out:
    more, more_bins = run(params, piece)
    sums += np.asarray(more, np.float64)
    gap_bins += np.asarray(more_bins, np.float64)
  kl, hard, agree, weight = sums.tolist()
  return {
    "kl": kl / weight,
    "cross_entropy": hard / weight,
    "agreement": agree / weight,
    "ece": float(np.abs(gap_bins).sum()) / weight,
  }


def calibration_gaps(confidence, is_correct, weights) -> jax.Array:
  """Sums of weight x (confidence - is_correct), by confidence, float32 [15].

  Source: expected calibration error of Guo et al., arXiv:1706.04599, eq. 3.
  """
  place = jnp.minimum((confidence * BINS).astype(int), BINS - 1)
  gap = weights * (confidence - is_correct)
  return jnp.zeros(BINS).at[place].add(gap)


@functools.cache
def _compare(s: Settings, V: int):
  graphdef = decoder.graphdef(student_config(s, V))

  @jax.jit
  def run(params, piece):
    batch = piece.batch
    model = nnx.merge(graphdef, params)
    x_BLD, _ = model(batch.tokens_BL, batch.segments_BL, batch.positions_BL)
    head_VD = model.head_VD
    # The teacher's mean logit under the student: x is linear in the head.
    mean_BLD = jnp.einsum("BLV,VD->BLD", piece.p_BLV, head_VD)
    teacher_BL = jnp.sum(x_BLD * mean_BLD, axis=-1)
    labels_BL = batch.targets.labels_BL
    wanted_BL2 = jnp.stack([labels_BL, piece.best_BL], axis=-1)

    def body(_, start):
      def cut(a):
        return jax.lax.dynamic_slice_in_dim(a, start, s.chunk, axis=1)

      logits_BSV = decoder.unembed(cut(x_BLD), head_VD)
      lse_BS = jax.nn.logsumexp(logits_BSV, axis=-1)
      taken_BS2 = jnp.take_along_axis(logits_BSV, cut(wanted_BL2), axis=-1)
      top_BS = logits_BSV.max(-1)
      label_BS, agree_BS = jnp.moveaxis(taken_BS2, -1, 0)
      is_best = (label_BS >= top_BS, agree_BS >= top_BS)
      confidence_BS = jnp.exp(top_BS - lse_BS)
      return None, (lse_BS, lse_BS - label_BS, confidence_BS, *is_best)

    _, pieces = jax.lax.scan(body, None, jnp.arange(0, s.L, s.chunk))
    lse_BL, hard_BL, confidence_BL, correct_BL, agree_BL = (
      jnp.moveaxis(x, 0, 1).reshape(labels_BL.shape) for x in pieces
    )
    kl_BL = lse_BL - teacher_BL - piece.entropy_BL
    w_BL = batch.targets.weights_BL
    values = (kl_BL, hard_BL, agree_BL, jnp.ones_like(w_BL))
    gaps = calibration_gaps(confidence_BL, correct_BL, w_BL)
    return jnp.stack([jnp.sum(v * w_BL) for v in values]), gaps

  return run
