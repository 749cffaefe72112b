"""Trains the student that a benchmark's arms share.

Shape letters (docs/glossary.md): B rows of a batch, L position, D student
width, W teacher width, V vocabulary, K slots of a record.
"""

from collections.abc import Mapping
import functools
from pathlib import Path

from grid_arms import Arm, Draw, Settings, draw_of
from grid_records import Kept, take
import jax
import jax.numpy as jnp
import numpy as np
import optax

from analogjax.cache import batches, logit_cache, teacher_step
from analogjax.config import train as train_lib
from analogjax.data import rows as rows_lib
from analogjax.models import decoder
from analogjax.training import (
  losses,
  objective as objectives,
  optimizer as optim,
  steps,
)


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


def optimizer_config(
  learning_rate: float, num_steps: int, *, fall: bool
) -> train_lib.OptimizerConfig:
  """As in configs/demo.py."""
  return train_lib.OptimizerConfig(
    name="adamw",
    learning_rate=learning_rate,
    warmup_steps=min(10, num_steps // 4),
    schedule="wsd",
    decay_steps=num_steps * 3 // 8 if fall else 0,
    final_fraction=0.1 if fall else 1.0,
    b1=0.9,
    b2=0.95,
    muon_momentum=0.95,
    eps=1e-8,
    momentum_dtype="float32",
    weight_decay=0.1,
    clip_norm=1.0,
  )


def loss_config(s: Settings, arm: Arm) -> train_lib.LossConfig:
  return train_lib.LossConfig(
    teacher="live" if arm.kind == "dense" else "cache",
    alpha=arm.alpha,
    alpha_schedule=arm.alpha_schedule,
    alpha_final=arm.alpha,
    divergence=arm.divergence,
    mixture=0.5,
    temperature=1.0,
    z_loss=0.0,
    gram_weight=0.0,
    exact_gradient=False,
    chunk=s.chunk * s.batch_rows,
  )


@functools.cache
def make_step(
  cfg: decoder.DecoderConfig,
  optimizer: train_lib.OptimizerConfig,
  num_steps: int,
  objective: losses.Objective | None,
):
  """The optimizer, and (state, batch, alpha, teacher) -> state, compiled.

  Without an objective, `both_renormalised`.
  """
  graphdef = decoder.graphdef(cfg)
  tx = optim.make_optimizer(optimizer, num_steps)

  def step(state, batch, alpha, teacher):
    return steps.train_step(
      state,
      batch,
      teacher,
      graphdef=graphdef,
      tx=tx,
      objective=objective,
      alpha=lambda _: alpha,
    )[0]

  def step_of_both(state, batch, alpha, teacher):
    del teacher
    grads = jax.grad(both_renormalised)(state.params, batch, alpha, graphdef)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    return steps.TrainState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      opt_state=opt_state,
    )

  run = step if objective else step_of_both
  return tx, jax.jit(run, donate_argnums=0)


def both_renormalised(
  params, batch: batches.Batch, alpha: jax.Array | float, graphdef
) -> jax.Array:
  """alpha x KL over the K ids alone + (1 - alpha) x hard labels; a mean.

  Each side is made to sum to one over the K ids, so that the KL has no gradient
  by the student's logits at all others.

  Source: MaxText 2026-08, Tunix 0.1.7 (LogitStrategy, distill_top_k).
  """
  x_BLD, _ = teacher_step.hidden_step(params, batch, graphdef=graphdef)
  head_VD = steps.head(params, graphdef)
  targets = batch.targets
  z_BLK = jnp.einsum("BLD,BLKD->BLK", x_BLD, head_VD[targets.ids_BLK])
  logq_BLK = jax.nn.log_softmax(z_BLK)
  p_BLK = targets.p_BLK  # Stretched already.
  kl_BLK = jax.scipy.special.xlogy(p_BLK, p_BLK) - p_BLK * logq_BLK
  w_BL = targets.weights_BL
  hard, _ = losses.distillation_loss(
    x_BLD, head_VD, targets, 0.0, losses.Objective(chunk=w_BL.shape[1])
  )
  total = alpha * jnp.sum(kl_BLK.sum(-1) * w_BL) + (1 - alpha) * hard
  return total / jnp.maximum(jnp.sum(w_BL), 1)


def stretched(batch: batches.Batch) -> batches.Batch:
  """Records that sum to one, as if there were no other ids."""
  p_BLK = batch.targets.p_BLK
  p_BLK = p_BLK / p_BLK.sum(-1, keepdims=True)
  targets = batch.targets._replace(p_BLK=p_BLK, log_tail_BL=None)
  return batch._replace(targets=targets)


def new_state(params, tx) -> steps.TrainState:
  # A copy: the step is given its state to overwrite.
  params = jax.tree.map(jnp.array, params)
  return steps.TrainState(
    step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params)
  )


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
  objective = objectives.make_objective(loss_config(s, Arm(kind="hard")))
  optimizer = optimizer_config(s.pretrain_learning_rate, num_steps, fall=False)
  tx, step = make_step(cfg, optimizer, num_steps, objective)
  state = new_state(params, tx)
  for i in range(num_steps):
    order = dict(batch_rows=s.batch_rows, num_rows=num_rows, seed=seed)
    index, _ = batches.row_order(i, **order)
    batch = batches.from_rows(take(rows, index))
    state = step(state, batch, np.float32(0), None)
  np.savez(path, *map(np.asarray, jax.tree.leaves(state.params)))
  return state.params


def train(
  s: Settings,
  arm: Arm,
  params,
  kept: Kept,
  caches: Mapping[Draw, logit_cache.LogitCache],
  *,
  seed: int,
  learning_rate: float,
):
  """The student's parameters after one arm."""
  if arm.kind == "start":
    return params
  num_rows = s.rows * arm.data
  cfg = student_config(s, len(kept.head_VW))
  optimizer = optimizer_config(learning_rate, s.num_steps, fall=True)
  loss = loss_config(s, arm)
  objective = objectives.make_objective(loss)
  if arm.renormalised == "both":
    objective = None
  tx, step = make_step(cfg, optimizer, s.num_steps, objective)
  alpha = objectives.make_alpha(loss, optimizer, s.num_steps)
  state = new_state(params, tx)
  head_VW = jnp.asarray(kept.head_VW) if arm.kind == "dense" else None
  draw = draw_of(arm)
  for i in range(s.num_steps):
    order = dict(batch_rows=s.batch_rows, num_rows=num_rows, seed=seed + 1)
    index, passes = batches.row_order(i, **order)
    teacher = None
    if draw is not None:
      entries = caches[draw].read(index, passes % arm.replicas)
      batch = batches.from_entries(entries)
    elif arm.kind == "dense":
      batch = batches.for_live_teacher(take(kept.rows, index))
      x_BLW = jnp.asarray(kept.hidden_RLW[index])
      teacher = losses.Teacher(x_BLW=x_BLW, head_VW=head_VW)
    else:
      batch = batches.from_rows(take(kept.rows, index))
    if arm.renormalised:
      batch = stretched(batch)
    state = step(state, batch, np.float32(alpha(i)), teacher)
  return jax.block_until_ready(state.params)
