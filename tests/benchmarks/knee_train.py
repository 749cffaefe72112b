"""Trains the student of knee.py, and compares it with the teacher.

Shape letters (docs/glossary.md): B rows of a batch, L position, S positions of
a chunk, D student width, W teacher width, V vocabulary, K slots of a record.
"""

from collections.abc import Mapping, Sequence
import functools
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from knee_arms import Arm, Draw, Settings, draws_of
from knee_records import Kept, Records, take
import numpy as np

from analogjax import losses, optim, steps
from analogjax.data import batches, rows as rows_lib
from analogjax.models import decoder

# Slots are padded to one of these, so that few steps are compiled.
SLOTS = (16, 32, 64, 128, 256, 512, 1024)


def student_config(s: Settings, V: int) -> decoder.DecoderConfig:
  return decoder.DecoderConfig(
    V=V,
    D=s.D,
    Y=s.Y,
    N=s.N,
    G=s.N // 2,
    H=s.D // s.N,
    F=s.F,
    max_positions=2048,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
    tie_embeddings=True,
    attention_bias=False,
    mlp_bias=False,
  )


def optimizer(learning_rate: float, num_steps: int, *, fall: bool):
  """As in configs/demo.py."""
  cfg = optim.OptimizerConfig(
    name="adamw",
    learning_rate=learning_rate,
    warmup_steps=min(10, num_steps // 4),
    schedule="wsd",
    decay_steps=num_steps * 3 // 8 if fall else 0,
    final_fraction=0.1 if fall else 1.0,
    b1=0.9,
    b2=0.95,
    eps=1e-8,
    muon_momentum=0.95,
    momentum_dtype="float32",
    weight_decay=0.1,
    clip_norm=1.0,
  )
  return optim.make_optimizer(cfg, num_steps)


def new_state(params, tx) -> steps.TrainState:
  # A copy: the step is given its state to overwrite.
  params = jax.tree.map(jnp.array, params)
  return steps.TrainState(
    step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params)
  )


@functools.cache
def sparse_step(
  s: Settings, V: int, learning_rate: float, num_steps: int, fall
):
  graphdef = decoder.graphdef(student_config(s, V))
  tx = optimizer(learning_rate, num_steps, fall=fall)

  def step(state, batch, alpha):
    return steps.train_step(
      state,
      batch,
      graphdef=graphdef,
      tx=tx,
      objective=losses.Objective(chunk=s.chunk),
      alpha=lambda _: alpha,
    )[0]

  return tx, jax.jit(step, donate_argnums=0)


@functools.cache
def dense_step(s: Settings, V: int, learning_rate: float, num_steps: int):
  graphdef = decoder.graphdef(student_config(s, V))
  tx = optimizer(learning_rate, num_steps, fall=True)

  def loss_fn(params, batch, target_BLW, target_head_VW):
    model = nnx.merge(graphdef, params)
    x_BLD, _ = model(batch.tokens_BL, batch.segments_BL, batch.positions_BL)
    head_VD = model.head_VD
    fixed_x, fixed_head = jax.lax.stop_gradient((x_BLD, head_VD))
    w_BL = batch.targets.weights_BL
    dx_BLD, dhead_VD = _dense_gradient(
      fixed_x, fixed_head, target_BLW, target_head_VW, w_BL, s.chunk
    )
    # Its gradient is that of the dense cross-entropy; its value is not.
    surrogate = jnp.sum(dx_BLD * x_BLD) + jnp.sum(dhead_VD * head_VD)
    return surrogate / jnp.maximum(w_BL.sum(), 1)

  def step(state, batch, target_BLW, target_head_VW):
    grads = jax.grad(loss_fn)(state.params, batch, target_BLW, target_head_VW)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params: Any = jax.tree.map(jnp.add, state.params, updates)
    return steps.TrainState(
      step=state.step + 1, params=params, opt_state=opt_state
    )

  return tx, jax.jit(step, donate_argnums=0)


def _dense_gradient(x_BLD, head_VD, target_BLW, target_head_VW, w_BL, chunk):
  """Gradients of the cross-entropy to the whole teacher: q - p."""
  B, L = w_BL.shape

  def body(dhead_VD, start):
    def cut(a):
      return jax.lax.dynamic_slice_in_dim(a, start, chunk, axis=1)

    x_BSD = cut(x_BLD)
    q_BSV = jax.nn.softmax(losses.unembed(x_BSD, head_VD))
    p_BSV = jax.nn.softmax(losses.unembed(cut(target_BLW), target_head_VW))
    d_BSV = (q_BSV - p_BSV) * cut(w_BL)[..., None]
    dhead_VD += jnp.einsum("BSV,BSD->VD", d_BSV, x_BSD)
    return dhead_VD, jnp.einsum("BSV,VD->BSD", d_BSV, head_VD)

  dhead_VD, dx = jax.lax.scan(
    body, jnp.zeros_like(head_VD), jnp.arange(0, L, chunk)
  )
  return jnp.moveaxis(dx, 0, 1).reshape(B, L, -1), dhead_VD


def make_batch(
  rows: rows_lib.Rows, index: np.ndarray, records: Sequence[Records]
) -> batches.Batch:
  """The rows at `index`; records[i] are read for row index[i]."""
  batch = batches.from_rows(take(rows, index))
  L = batch.tokens_BL.shape[1]
  used = max((r.ids_RLK.shape[-1] for r in records), default=0)
  K = next(size for size in SLOTS if size >= used)
  ids_BLK = np.zeros((len(index), L, K), np.int32)
  p_BLK = np.zeros((len(index), L, K), np.float32)
  for i, (row, r) in enumerate(zip(index, records, strict=False)):
    k = r.ids_RLK.shape[-1]
    ids_BLK[i, :, :k], p_BLK[i, :, :k] = r.ids_RLK[row], r.p_RLK[row]
  targets = batch.targets._replace(
    ids_BLK=ids_BLK,
    p_BLK=p_BLK,
    teacher_weights_BL=batch.targets.weights_BL,
  )
  return batch._replace(targets=targets)


def pretrained(
  s: Settings, workdir: Path, rows: rows_lib.Rows, V: int, seed: int
):
  """The start of every arm of this seed: hard labels on other rows."""
  cfg = student_config(s, V)
  params = decoder.init_parameters(cfg, seed)
  tree = jax.tree.structure(params)
  path = workdir / f"start_{seed}.npz"
  if path.exists():
    with np.load(path) as saved:
      leaves = [saved[name] for name in saved.files]
    return jax.tree.unflatten(tree, leaves)
  num_rows = len(rows.tokens_BL)
  num_steps = num_rows // s.batch_rows
  tx, step = sparse_step(s, V, s.pretrain_learning_rate, num_steps, False)
  state = new_state(params, tx)
  for i in range(num_steps):
    order = dict(batch_rows=s.batch_rows, num_rows=num_rows, seed=seed)
    index = batches.row_order(i, **order)[0]
    state = step(state, make_batch(rows, index, []), np.float32(0))
  np.savez(path, *map(np.asarray, jax.tree.leaves(state.params)))
  return state.params


def train(
  s: Settings,
  arm: Arm,
  params,
  kept: Kept,
  records: Mapping[Draw, Records],
  *,
  seed: int,
  learning_rate: float,
):
  """The student's parameters after one arm."""
  num_rows = s.rows * arm.data
  V = len(kept.head_VW)
  common = (s, V, learning_rate, s.num_steps)
  is_dense = arm.kind == "dense"
  tx, step = dense_step(*common) if is_dense else sparse_step(*common, True)
  state = new_state(params, tx)
  head_VW = jnp.asarray(kept.head_VW) if is_dense else None
  for i in range(s.num_steps):
    order = dict(batch_rows=s.batch_rows, num_rows=num_rows, seed=seed + 1)
    index = batches.row_order(i, **order)[0]
    if is_dense:
      batch = make_batch(kept.rows, index, [])
      state = step(state, batch, kept.hidden_RLW[index], head_VW)
      continue
    epochs = (i * s.batch_rows + np.arange(len(index))) // num_rows
    read = []
    if arm.kind != "hard":
      draws = draws_of(arm)
      read = [records[draws[e % arm.replicas]] for e in epochs]
    batch = make_batch(kept.rows, index, read)
    state = step(state, batch, np.float32(arm.alpha))
  return jax.block_until_ready(state.params)


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
    logp_BSV = jax.nn.log_softmax(losses.unembed(hidden_BSW, head_VW))
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
  """The student against the teacher on held-out rows, dense, per token."""
  run = _compare(s, held_out[0].p_BLV.shape[-1])
  sums = np.zeros(4)
  for piece in held_out:
    sums += np.asarray(run(params, piece), np.float64)
  kl, hard, agree, weight = sums.tolist()
  return {
    "kl": kl / weight,
    "cross_entropy": hard / weight,
    "agreement": agree / weight,
  }


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

      logits_BSV = losses.unembed(cut(x_BLD), head_VD)
      lse_BS = jax.nn.logsumexp(logits_BSV, axis=-1)
      taken_BS2 = jnp.take_along_axis(logits_BSV, cut(wanted_BL2), axis=-1)
      agree_BS = taken_BS2[..., 1] >= logits_BSV.max(-1)
      return None, (lse_BS, lse_BS - taken_BS2[..., 0], agree_BS)

    _, pieces = jax.lax.scan(body, None, jnp.arange(0, s.L, s.chunk))
    lse_BL, hard_BL, agree_BL = (
      jnp.moveaxis(x, 0, 1).reshape(labels_BL.shape) for x in pieces
    )
    kl_BL = lse_BL - teacher_BL - piece.entropy_BL
    w_BL = batch.targets.weights_BL
    values = (kl_BL, hard_BL, agree_BL, jnp.ones_like(w_BL))
    return jnp.stack([jnp.sum(v * w_BL) for v in values])

  return run
