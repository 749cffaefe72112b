"""Tests for analogjax/training/objective.py."""

import dataclasses

import jax
import jax.numpy as jnp
from models import adamw
import numpy as np
import pytest

from analogjax.config import train
from analogjax.training import losses, objective, optimizer
from analogjax.training.divergences import Divergence

CONFIG = train.LossConfig(
  teacher="cache",
  alpha=0.8,
  alpha_schedule="constant",
  alpha_final=0.2,
  divergence="forward_kl",
  mixture=0.5,
  temperature=1.0,
  z_loss=0.0,
  gram_weight=0.0,
  exact_gradient=False,
  chunk=64,
)
OPTIMIZER = adamw(
  **dict(learning_rate=0.4, warmup_steps=3, schedule="wsd", decay_steps=4),
  final_fraction=0.25,
)


def alphas(at, **changes):
  cfg = dataclasses.replace(CONFIG, **changes)
  alpha = jax.jit(objective.make_alpha(cfg, OPTIMIZER, 20))
  return [float(alpha(jnp.asarray(step, jnp.int32))) for step in at]


def test_constant():
  assert alphas([0, 10, 20]) == pytest.approx([0.8] * 3)


def test_cosine_by_hand():
  """Half way from 0.8 to 0.2 after half of the steps; then it stays."""
  found = alphas([0, 10, 20, 25], alpha_schedule="cosine")
  assert found == pytest.approx([0.8, 0.5, 0.2, 0.2])
  quarter = 0.8 - 0.6 * (1 - np.sqrt(0.5)) / 2
  assert alphas([5], alpha_schedule="cosine") == pytest.approx([quarter])


def test_tied_to_the_learning_rate_by_hand():
  """It rises over 3 steps, stays, and falls to a quarter over the last 4."""
  found = alphas([0, 1, 3, 16, 18, 20], alpha_schedule="learning_rate")
  assert found == pytest.approx([0.2, 0.4, 0.8, 0.8, 0.5, 0.2])
  rate = optimizer.make_schedule(OPTIMIZER, 20)
  for step in range(21):
    (alpha,) = alphas([step], alpha_schedule="learning_rate")
    assert alpha == pytest.approx(0.8 * float(rate(step)) / 0.4, rel=1e-5)


@pytest.mark.parametrize(
  ("changes", "has_teacher"),
  [
    (dict(), True),
    (dict(alpha=0.0), False),
    (dict(alpha=0.0, alpha_schedule="learning_rate"), False),
    (dict(alpha=0.0, alpha_schedule="cosine"), True),
    (dict(alpha=0.0, alpha_schedule="cosine", alpha_final=0.0), False),
    (dict(alpha=0.0, gram_weight=1.0), True),
  ],
)
def test_a_teacher_is_needed_where_its_weight_is_ever_above_0(
  changes, has_teacher
):
  assert dataclasses.replace(CONFIG, **changes).has_teacher == has_teacher


def test_the_objective_has_every_field():
  cfg = dataclasses.replace(
    CONFIG,
    **dict(divergence="skew_kl", mixture=0.1, temperature=2.0, z_loss=1e-4),
    **dict(exact_gradient=True, chunk=7),
  )
  found = objective.make_objective(cfg, softcap=30.0, teacher_softcap=20.0)
  assert found == losses.Objective(
    divergence=Divergence(name="skew_kl", mixture=0.1),
    **dict(temperature=2.0, z_loss=1e-4, softcap=30.0, teacher_softcap=20.0),
    **dict(exact_gradient=True, chunk=7),
  )
