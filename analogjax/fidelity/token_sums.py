"""Metrics of teacher and students at each token, summed over rows.

Intervals resample rows, so only the sums of each row leave the device.

Shape letters: B rows, L positions, S positions of a chunk, V vocabulary, K
metrics, E bins of entropy, C bins of confidence, Z bins of loss, G documents of
a row.
"""

from collections.abc import Mapping
import functools
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from analogjax.cache import batches
from analogjax.distributed import sharding
from analogjax.evaluation import models as models_lib
from analogjax.models import decoder
from analogjax.training import divergences

# Metrics of a token, in the order of `RowSums.by_entropy_BKE`; the teacher has
# the first three. Agreements are fractions of one or five tokens.
METRICS = (
  "tokens",
  "cross_entropy_nats",
  "accuracy",
  "kl_to_teacher_nats",
  "jensen_shannon_nats",
  "top1_agreement",
  "top5_agreement",
)
OF_TEACHER = METRICS[:3]
ENTROPY_EDGES = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, np.inf)  # Nats.
CONFIDENCE_BINS = 15
# Nats, from 0.001 to 30. Each is 8.5 % wide, with one open bin at either end.
LOSS_EDGES = (0.0, *(1e-3 * 3e4 ** (i / 126) for i in range(127)), np.inf)
TOP = 5


class RowSums(NamedTuple):
  """Weighted sums over the positions of each row, for one model, float32."""

  by_entropy_BKE: Any  # METRICS, by the teacher's entropy.
  confidence_B3C: Any  # Weight, confidence and correct, by confidence.
  joint_B4: Any  # Teacher and model wrong; wrong, right; ...; both right.
  loss_B2Z: Any  # Weight where the teacher is wrong and right, by loss.
  documents_B2G: Any  # Weight and cross-entropy of each document.


def step(
  params: Mapping[str, nnx.State],
  batch: batches.Batch,
  *,
  cfgs: Mapping[str, decoder.DecoderConfig],
  chunk: int,
  documents: int,
) -> dict[str, RowSums]:
  """Sums of the live, dense teacher, and of each model against it.

  Args:
    params: by name; "teacher" is one of them.
    chunk: positions of a row whose logits are in memory at a time, for all
      models.
    documents: G, the most documents of any row.
  """
  names = ("teacher", *(name for name in params if name != "teacher"))
  models = {
    name: nnx.merge(decoder.graphdef(cfgs[name]), params[name])
    for name in names
  }
  hidden = {name: model(*batch[:3])[0] for name, model in models.items()}
  starts, cut = models_lib.in_chunks(batch.tokens_BL.shape[1], chunk)

  def body(sums, start):
    at = _Positions(
      cut(batch.targets.labels_BL, start),
      cut(batch.targets.weights_BL, start),
      cut(batch.segments_BL, start),
    )
    found, teacher = {}, None
    for name in names:
      z_BSV = logits(models[name], cut(hidden[name], start))
      if teacher is None:
        teacher = _teacher(z_BSV, at)
      found[name] = _row_sums(z_BSV, at, teacher, documents)
    return jax.tree.map(jnp.add, sums, found), None

  B = len(batch.tokens_BL)
  zeros = _zeros(B, documents)
  start = {name: zeros for name in names}
  return jax.lax.scan(body, start, starts)[0]


@functools.cache
def make_step(
  cfgs: tuple[tuple[str, decoder.DecoderConfig], ...],
  mesh: jax.sharding.Mesh,
  *,
  chunk: int,
  documents: int,
):
  """(params by name, batch) -> {name: RowSums}, rows where they were."""
  return jax.jit(
    functools.partial(step, cfgs=dict(cfgs), chunk=chunk, documents=documents),
    out_shardings=jax.sharding.NamedSharding(mesh, sharding.ROWS),
  )


def logits(model: decoder.Decoder, x_BSD: jax.Array) -> jax.Array:
  """Logits from a model's final hidden states, float32 [B, S, V]."""
  return model.cap(decoder.unembed(x_BSD, model.head_VD))


class _Positions(NamedTuple):
  labels_BS: jax.Array
  weights_BS: jax.Array
  segments_BS: jax.Array


class _Teacher(NamedTuple):
  logp_BSV: jax.Array
  best_BSX: jax.Array  # Its TOP likeliest ids, the likeliest first.
  wrong_BS: jax.Array
  entropy_BSE: jax.Array  # Whether its entropy is in each of the bins.


def _teacher(z_BSV, at: _Positions) -> _Teacher:
  logp_BSV = jax.nn.log_softmax(z_BSV)
  p_BSV = jnp.exp(logp_BSV)
  entropy_BS = -jnp.sum(jnp.where(p_BSV > 0, p_BSV * logp_BSV, 0), axis=-1)
  V = z_BSV.shape[-1]
  ids_11V = jnp.arange(V)[None, None]
  best = []
  # Not lax.top_k, which would gather a vocabulary that is split over the mesh.
  for _ in range(min(TOP, V)):
    best_BS = jnp.argmax(z_BSV, axis=-1)
    best.append(best_BS)
    z_BSV = jnp.where(ids_11V == best_BS[..., None], -jnp.inf, z_BSV)
  return _Teacher(
    logp_BSV,
    jnp.stack(best, axis=-1),
    best[0] != at.labels_BS,
    _in_bins(entropy_BS, ENTROPY_EDGES),
  )


def _row_sums(z_BSV, at: _Positions, teacher: _Teacher, documents) -> RowSums:
  logq_BSV = jax.nn.log_softmax(z_BSV)
  best_BS = jnp.argmax(logq_BSV, axis=-1)
  correct_BS = best_BS == at.labels_BS
  confidence_BS = jnp.exp(jnp.max(logq_BSV, axis=-1))
  labels_BS1 = at.labels_BS[..., None]
  hard_BS = -jnp.take_along_axis(logq_BSV, labels_BS1, axis=-1)[..., 0]
  of_token = (
    *(jnp.ones_like(hard_BS), hard_BS, correct_BS),
    _divergence("forward_kl", teacher.logp_BSV, logq_BSV),
    _divergence("jensen_shannon", teacher.logp_BSV, logq_BSV),
    best_BS == teacher.best_BSX[..., 0],
    _shared(logq_BSV, teacher.best_BSX),
  )
  w_BS = at.weights_BS
  metrics_BSK = jnp.stack([a * w_BS for a in of_token], axis=-1)
  right_BS = ~teacher.wrong_BS
  joint_BS4 = jnp.stack(
    [
      teacher.wrong_BS & ~correct_BS,
      teacher.wrong_BS & correct_BS,
      right_BS & ~correct_BS,
      right_BS & correct_BS,
    ],
    axis=-1,
  )
  wrong_BS2 = jnp.stack([teacher.wrong_BS, right_BS], axis=-1)
  confidence_BS3 = jnp.stack([w_BS, w_BS * confidence_BS, w_BS * correct_BS], 2)
  edges = tuple(np.linspace(0, 1, CONFIDENCE_BINS + 1)[:-1]) + (np.inf,)
  ids_11G = 1 + jnp.arange(documents)[None, None]
  is_document_BSG = at.segments_BS[..., None] == ids_11G
  return RowSums(
    _by_bin(metrics_BSK, teacher.entropy_BSE),
    _by_bin(confidence_BS3, _in_bins(confidence_BS, edges)),
    jnp.sum(joint_BS4 * w_BS[..., None], axis=1),
    _by_bin(wrong_BS2 * w_BS[..., None], _in_bins(hard_BS, LOSS_EDGES)),
    _by_bin(jnp.stack([w_BS, w_BS * hard_BS], axis=-1), is_document_BSG),
  )


def _zeros(B, documents) -> RowSums:
  by_rows = (sharding.ACTIVATION_AXES["B"],)

  def zeros(*shape):
    return sharding.pin(jnp.zeros((B, *shape)), by_rows)

  return RowSums(
    zeros(len(METRICS), len(ENTROPY_EDGES) - 1),
    zeros(3, CONFIDENCE_BINS),
    zeros(4),
    zeros(2, len(LOSS_EDGES) - 1),
    zeros(2, documents),
  )


def _divergence(name, logp_BSV, logq_BSV):
  terms_BSV = divergences.Divergence(name=name).terms(logp_BSV, logq_BSV)
  return jnp.sum(terms_BSV, axis=-1)


def _shared(logq_BSV, best_BSX):
  """The fraction of these X ids that are among the model's X likeliest.

  An id is among them if fewer than X ids are likelier; ties all count.
  """
  X = best_BSX.shape[-1]
  own_BSX = jnp.take_along_axis(logq_BSV, best_BSX, axis=-1)
  shared = [
    jnp.sum(logq_BSV > own_BSX[..., x : x + 1], axis=-1) < X for x in range(X)
  ]
  return sum(s.astype(jnp.float32) for s in shared) / X


def _in_bins(x_BS, edges):
  """Whether each value is in each bin [lower, upper), [B, S, bins]."""
  edges_11E = jnp.asarray(edges, jnp.float32)[None, None]
  # Rounding may take an entropy below 0.
  x_BS1 = jnp.maximum(x_BS, edges[0])[..., None]
  return (edges_11E[..., :-1] <= x_BS1) & (x_BS1 < edges_11E[..., 1:])


def _by_bin(x_BSK, is_in_BSE):
  """Sums over the positions of each row, [B, K, E]."""
  # Otherwise a TPU would round the numbers to bfloat16.
  precision = jax.lax.Precision.HIGHEST
  is_in_BSE = is_in_BSE.astype(jnp.float32)
  return jnp.einsum("BSK,BSE->BKE", x_BSK, is_in_BSE, precision=precision)
