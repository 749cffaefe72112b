"""Tests for analogjax/training/steps.py: values that are not finite."""

import functools

import jax
import jax.numpy as jnp
from models import tiny
import numpy as np
import optax
import pytest

from analogjax.cache import batches
from analogjax.data import rows as rows_lib
from analogjax.models import decoder
from analogjax.training import losses, steps

pytestmark = pytest.mark.medium

B, L, V, K = 4, 8, 64, 3
STUDENT = tiny()
GRAPHDEF = decoder.graphdef(STUDENT)
TX = optax.adam(1e-2)


def make_batch():
  rng = np.random.default_rng(0)
  segments_BL = np.repeat([[1, 2]], L // 2, axis=1).repeat(B, axis=0)
  rows = rows_lib.Rows(
    tokens_BL=rng.integers(0, V, (B, L)).astype(np.int32),
    segments_BL=segments_BL.astype(np.int32),
    positions_BL=rows_lib.default_positions(segments_BL),
    weights_BL=np.ones((B, L), np.float32),
  )
  batch = batches.for_live_teacher(rows)
  targets = batch.targets._replace(
    ids_BLK=rng.integers(0, V, (B, L, K)).astype(np.int32),
    p_BLK=rng.dirichlet(np.ones(K), (B, L)).astype(np.float32),
  )
  return batch._replace(targets=targets)


def with_p(batch, row, value):
  p_BLK = batch.targets.p_BLK.copy()
  p_BLK[row, 1, 0] = value
  return batch._replace(targets=batch.targets._replace(p_BLK=p_BLK))


@functools.cache
def compiled():
  return jax.jit(
    functools.partial(
      steps.train_step,
      graphdef=GRAPHDEF,
      tx=TX,
      objective=losses.Objective(chunk=4),
      alpha=optax.constant_schedule(0.5),
    )
  )


def start():
  params = decoder.init_parameters(STUDENT, 0)
  return steps.TrainState(jnp.zeros((), jnp.int32), params, TX.init(params))


def same(found, wanted):
  leaves = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
  return [bool((a == b).all()) for a, b in leaves]


# The last overflows only in the squares of the gradient.
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_a_step_that_is_not_finite_updates_nothing_and_is_counted(value):
  batch = make_batch()
  before, _ = compiled()(start(), batch)  # Moments that are not zero.
  state, values = compiled()(before, with_p(batch, 2, value))
  assert values["skipped"] == 1 and state.step == before.step + 1 == 2
  assert all(same(state.params, before.params))
  assert all(same(state.opt_state, before.opt_state))
  # The next one is the one that it would have been.
  after, values = compiled()(state, batch)
  wanted, _ = compiled()(before, batch)
  assert values["skipped"] == 0 and after.step == 3
  assert all(same(after.params, wanted.params))
  assert all(same(after.opt_state, wanted.opt_state))
  assert not any(same(after.params, before.params))


def finite_rows(params, batch, x_BLW=None):
  step = functools.partial(steps.finite_rows_step, graphdef=GRAPHDEF)
  return jax.jit(step)(params, batch, x_BLW).tolist()


def test_rows_that_are_not_finite_are_told_apart():
  params, batch = decoder.init_parameters(STUDENT, 0), make_batch()
  assert finite_rows(params, batch) == [True] * B
  bad = with_p(with_p(batch, 0, np.nan), 3, np.inf)
  assert finite_rows(params, bad) == [False, True, True, False]

  x_BLW = np.zeros((B, L, 5), np.float32)
  x_BLW[1, -1, -1] = -np.inf  # A teacher in the loop.
  assert finite_rows(params, batch, x_BLW) == [True, False, True, True]

  # A tail without mass is well; one that is not a number is not.
  tail_BL = np.zeros((B, L), np.float32)
  tail_BL[0, 0], tail_BL[2, 3] = -np.inf, np.nan
  tailed = batch._replace(targets=batch.targets._replace(log_tail_BL=tail_BL))
  assert finite_rows(params, tailed) == [True, True, False, True]


def test_a_row_that_the_student_cannot_bear_is_named():
  """One token's embedding is not finite."""
  params, batch = decoder.init_parameters(STUDENT, 0), make_batch()
  tokens_BL = np.minimum(batch.tokens_BL, V - 2)
  tokens_BL[1, 5] = V - 1
  embed_VD = params["embed_VD"]
  spoiled_VD = embed_VD.get_value().at[V - 1].set(jnp.nan)
  params["embed_VD"] = embed_VD.replace(spoiled_VD)
  batch = batch._replace(tokens_BL=tokens_BL)
  assert finite_rows(params, batch) == [True, False, True, True]
  assert not steps.all_finite(params)
  assert steps.all_finite(decoder.init_parameters(STUDENT, 0))
