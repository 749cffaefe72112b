"""The teacher's steps: records, expected counts of ids, and hidden states.

Shape letters (docs/glossary.md): B batch, M replicas, L position, S positions
of a chunk, V vocabulary, K slots of a record, W model width of the teacher, Z
depths, P pairs.
"""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from analogjax.cache import batches, gram, sampling
from analogjax.models import decoder


def teacher_step(
  params: nnx.State,
  batch: batches.Batch,
  keys_B2: jax.Array,
  *,
  graphdef: nnx.GraphDef,
  sampler: sampling.Sampler,
  capture: sampling.Capture,
  num_replicas: int,
  temperature: float,
  chunk: int,
  gram_layers: int = 1,
) -> sampling.Records:
  """The teacher's records for one batch of rows.

  Args:
    batch: rows; inputs, labels, and positions of `gram` if cosines are wanted.
    num_replicas: M, independent draws of each record.
    temperature: the records are of softmax(logits / temperature).
    chunk: positions of a row whose logits are in memory at a time, [B, S, V].
    gram_layers: Z, depths at which cosines are taken.
  """
  x_BLD, head_VD, states_ZBMD = states(params, batch, graphdef, gram_layers)
  L = x_BLD.shape[1]
  chunk = min(chunk, L)
  pad = -L % chunk
  # Chunks run along L, so rows stay on the devices that hold them.
  x_BLD = jnp.pad(x_BLD, ((0, 0), (0, pad), (0, 0)))
  labels_BL = jnp.pad(batch.targets.labels_BL, ((0, 0), (0, pad)))

  def body(_, start):
    x_BSD = jax.lax.dynamic_slice_in_dim(x_BLD, start, chunk, axis=1)
    labels_BS = jax.lax.dynamic_slice_in_dim(labels_BL, start, chunk, axis=1)
    return None, sampling.draw(
      logits(x_BSD, head_VD, params, graphdef),
      labels_BS,
      keys_B2,
      start,
      sampler,
      capture=capture,
      num_replicas=num_replicas,
      temperature=temperature,
    )

  starts = jnp.arange(0, L + pad, chunk)
  _, pieces = jax.lax.scan(body, None, starts)

  def join(piece):
    # [L / S, B, M, S, K] -> [B, M, L, K], [L / S, B, S] -> [B, L].
    axis = 2 if piece.ndim == 5 else 1
    whole = jnp.moveaxis(piece, 0, axis)
    shape = *whole.shape[:axis], L + pad, *whole.shape[axis + 2 :]
    return jax.lax.slice_in_dim(whole.reshape(shape), 0, L, axis=axis)

  records = jax.tree.map(join, pieces)
  # Where nothing is predicted the label is a filler.
  is_label_BL = batch.targets.weights_BL > 0
  label_logprob_BL = jnp.where(is_label_BL, records.label_logprob_BL, 0.0)
  records = records._replace(label_logprob_BL=label_logprob_BL)
  if batch.gram is not None:
    records = records._replace(gram_BZP=gram.codes(states_ZBMD, batch.gram))
  return records


def expected_ids_step(
  params: nnx.State,
  batch: batches.Batch,
  *,
  graphdef: nnx.GraphDef,
  chunk: int,
) -> jax.Array:
  """The teacher's expected count of each id in these rows, float32 [V]."""
  x_BLD, head_VD = hidden(params, batch, graphdef)
  L = x_BLD.shape[1]
  chunk = min(chunk, L)
  pad = -L % chunk
  x_BLD = jnp.pad(x_BLD, ((0, 0), (0, pad), (0, 0)))
  is_token_BL = jnp.pad(batch.segments_BL > 0, ((0, 0), (0, pad)))

  def body(mass_V, start):
    x_BSD = jax.lax.dynamic_slice_in_dim(x_BLD, start, chunk, axis=1)
    is_token_BS = jax.lax.dynamic_slice_in_dim(is_token_BL, start, chunk, 1)
    p_BSV = jax.nn.softmax(logits(x_BSD, head_VD, params, graphdef))
    mass_V += jnp.sum(jnp.where(is_token_BS[..., None], p_BSV, 0), (0, 1))
    return mass_V, None

  starts = jnp.arange(0, L + pad, chunk)
  return jax.lax.scan(body, jnp.zeros(head_VD.shape[0]), starts)[0]


def hidden_step(
  params: nnx.State,
  batch: batches.Batch,
  *,
  graphdef: nnx.GraphDef,
  gram_layers: int = 1,
) -> tuple[jax.Array, jax.Array | None]:
  """Final hidden states [B, L, W] of a live teacher, and its Gram.

  These travel to the student's devices instead of logits: with the teacher's
  unembedding they hold its whole distribution. The Gram is int8 [B, Z, P]; None
  if the batch has no positions for it.
  """
  x_BLW, _, states_ZBMW = states(params, batch, graphdef, gram_layers)
  if batch.gram is None:
    return x_BLW, None
  return x_BLW, gram.codes(states_ZBMW, batch.gram)


def logits(x_BSD, head_VD, params, graphdef):
  """Logits of a model that is sampled."""
  logits_BSV = decoder.unembed(x_BSD, head_VD)
  return nnx.merge(graphdef, params).cap(logits_BSV)


def hidden(params, batch, graphdef):
  """Final hidden states and the unembedding."""
  return states(params, batch._replace(gram=None), graphdef)[:2]


def states(
  params, batch, graphdef, gram_layers=None
) -> tuple[jax.Array, jax.Array, Any]:
  """Output of `hidden`, and the states [Z, B, M, D] for a Gram, or None.

  Args:
    batch: with `gram`, if these states are wanted.
    gram_layers: Z; None: the teacher's number.
  """
  model, sample = nnx.merge(graphdef, params), batch.gram
  x_BLD, states_YBMD = model(
    batch.tokens_BL,
    batch.segments_BL,
    batch.positions_BL,
    probe=None if sample is None else gram.probe(sample),
  )
  if sample is None:
    return x_BLD, model.head_VD, None
  if gram_layers is None:
    gram_layers = sample.codes_BZP.shape[1]
  return x_BLD, model.head_VD, gram.at_depths(states_YBMD, gram_layers)
