"""Tests for analogjax/training/losses.py."""

import functools
import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from analogjax.cache import batches
from analogjax.training import losses

B, L, D, V = 3, 12, 8, 53


def make_targets(K, seed=0):
  """Records with a duplicate id and a negative weight in every position.

  At the positions with a weight, the teacher has none at some and more at
  others, as if only some of them were captured.
  """
  rng = np.random.default_rng(seed)
  p_BLK = rng.dirichlet(np.full(max(K, 1), 0.5), (B, L))[..., :K]
  ids_BLK = rng.integers(0, V, (B, L, K))
  if K:
    ids_BLK[..., 1] = ids_BLK[..., 0]
    p_BLK[..., -1] -= p_BLK.sum(-1) - 1 + 0.01
    p_BLK[..., 0] += 0.01
    p_BLK[..., 2], p_BLK[..., 3] = -0.02, p_BLK[..., 2] + p_BLK[..., 3] + 0.02
    np.testing.assert_allclose(p_BLK.sum(-1), 1)
  weights_BL = rng.uniform(0, 2, (B, L)) * (rng.random((B, L)) < 0.7)
  weights_BL[1] = 0  # A row of padding.
  inclusion_BL = rng.integers(60, 256, (B, L)) / 255
  captured_BL = rng.random((B, L)) < inclusion_BL
  return batches.Targets(
    labels_BL=rng.integers(0, V, (B, L)).astype(np.int32),
    weights_BL=weights_BL.astype(np.float32),
    teacher_weights_BL=np.float32(weights_BL / inclusion_BL * captured_BL),
    ids_BLK=ids_BLK.astype(np.int32),
    p_BLK=p_BLK.astype(np.float32),
  )


def make_model(scale=1.0, seed=1):
  rng = np.random.default_rng(seed)
  x_BLD = rng.normal(size=(B, L, D)).astype(np.float32)
  return x_BLD, (scale * rng.normal(size=(V, D))).astype(np.float32)


def oracle(x_BLD, head_VD, targets, alpha):
  """Dense, float64 numpy: value, LossSums, d(x), d(head), d(logits)."""
  x_BLD, head_VD = x_BLD.astype(np.float64), head_VD.astype(np.float64)
  logits_BLV = np.einsum("BLD,VD->BLV", x_BLD, head_VD)
  top_BL1 = logits_BLV.max(-1, keepdims=True)
  lse_BL1 = np.log(np.exp(logits_BLV - top_BL1).sum(-1, keepdims=True))
  logq_BLV = logits_BLV - top_BL1 - lse_BL1
  teacher_BLV = np.zeros(logits_BLV.shape)
  for b, i in np.ndindex(*targets.labels_BL.shape):
    for id_, p in zip(targets.ids_BLK[b, i], targets.p_BLK[b, i], strict=True):
      teacher_BLV[b, i, id_] += p
  label_BLV = np.eye(head_VD.shape[0])[targets.labels_BL]
  w_BL = targets.weights_BL.astype(np.float64)
  teacher_w_BL = targets.teacher_weights_BL.astype(np.float64)
  if targets.ids_BLK.shape[-1]:
    teacher_BL = -(teacher_BLV * logq_BLV).sum(-1)
  else:
    teacher_BL = np.zeros(logits_BLV.shape[:2])
  hard_BL = -(label_BLV * logq_BLV).sum(-1)
  q_BLV = np.exp(logq_BLV)
  d_BLV = alpha * teacher_w_BL[..., None] * (q_BLV - teacher_BLV)
  d_BLV += (1 - alpha) * w_BL[..., None] * (q_BLV - label_BLV)
  sums = losses.LossSums(
    hard=(w_BL * hard_BL).sum(),
    teacher=(teacher_w_BL * teacher_BL).sum(),
    correct=(w_BL * (logits_BLV.argmax(-1) == targets.labels_BL)).sum(),
    weight=w_BL.sum(),
  )
  value = alpha * sums.teacher + (1 - alpha) * sums.hard
  dx_BLD = np.einsum("BLV,VD->BLD", d_BLV, head_VD)
  dhead_VD = np.einsum("BLV,BLD->VD", d_BLV, x_BLD)
  return value, sums, dx_BLD, dhead_VD, d_BLV


@functools.partial(jax.jit, static_argnums=4)
def value_and_grad(x_BLD, head_VD, targets, alpha, chunk):
  def loss(x_BLD, head_VD):
    objective = losses.Objective(chunk=chunk)
    return losses.distillation_loss(x_BLD, head_VD, targets, alpha, objective)

  return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(x_BLD, head_VD)


@functools.partial(jax.jit, static_argnums=4)
def value_alone(x_BLD, head_VD, targets, alpha, chunk):
  objective = losses.Objective(chunk=chunk)
  return losses.distillation_loss(x_BLD, head_VD, targets, alpha, objective)


def assert_sums(found, wanted, rtol):
  for name in wanted._fields:
    np.testing.assert_allclose(
      getattr(found, name), getattr(wanted, name), rtol=rtol, err_msg=name
    )


# Chunks that divide the tokens, that do not, one chunk, and one beyond them.
@pytest.mark.parametrize(
  "chunk, K", [(4, 6), (5, 6), (36, 6), (100, 0), (5, 0)]
)
def test_value_and_gradient_equal_the_dense_oracle(chunk, K):
  x_BLD, head_VD = make_model()
  targets = make_targets(K)
  for alpha in (0.0, 0.3, 1.0) if K else (0.0,):
    value, sums, dx_BLD, dhead_VD, _ = oracle(x_BLD, head_VD, targets, alpha)
    a = np.float32(alpha)
    (found, found_sums), grads = value_and_grad(
      x_BLD, head_VD, targets, a, chunk
    )
    np.testing.assert_allclose(found, value, rtol=1e-6)
    assert_sums(found_sums, sums, rtol=1e-6)
    np.testing.assert_allclose(grads[0], dx_BLD, atol=3e-6)
    np.testing.assert_allclose(grads[1], dhead_VD, atol=1e-5)
    # Where the gradient is not asked for, another path computes the value.
    alone, alone_sums = value_alone(x_BLD, head_VD, targets, a, chunk)
    np.testing.assert_allclose(alone, value, rtol=1e-6)
    assert_sums(alone_sums, sums, rtol=1e-6)


def test_by_hand():
  """Two tokens, logits (ln 3, 0): q = (3/4, 1/4); teacher (1/2, 1/2)."""
  x_BLD = np.ones((1, 1, 1), np.float32)
  head_VD = np.array([[np.log(3)], [0]], np.float32)
  targets = batches.Targets(
    labels_BL=np.array([[1]], np.int32),
    weights_BL=np.array([[2]], np.float32),
    teacher_weights_BL=np.array([[2]], np.float32),
    ids_BLK=np.array([[[0, 1]]], np.int32),
    p_BLK=np.array([[[0.5, 0.5]]], np.float32),
  )
  (value, sums), (dx_BLD, dhead_VD) = value_and_grad(
    x_BLD, head_VD, targets, np.float32(0.5), 1
  )
  hard, teacher = np.log(4), (np.log(4 / 3) + np.log(4)) / 2
  np.testing.assert_allclose(value, hard + teacher, rtol=1e-6)
  assert_sums(sums, losses.LossSums(2 * hard, 2 * teacher, 0, 2), rtol=1e-6)
  # The target is (1/4, 3/4), so q - p = (1/2, -1/2), at weight 2.
  np.testing.assert_allclose(dhead_VD, [[1], [-1]], rtol=1e-6)
  np.testing.assert_allclose(dx_BLD, [[[np.log(3)]]], rtol=1e-6)


def test_a_dense_record_of_the_student_itself_has_no_gradient():
  x_BLD, head_VD = make_model()
  targets = make_targets(4)
  p_BLV = jax.nn.softmax(jnp.einsum("BLD,VD->BLV", x_BLD, head_VD))
  ids_BLV = np.broadcast_to(np.arange(V, dtype=np.int32), (B, L, V))
  targets = targets._replace(ids_BLK=ids_BLV, p_BLK=p_BLV)
  (value, _), grads = value_and_grad(
    x_BLD, head_VD, targets, np.float32(1), chunk=4
  )
  entropy_BL = -(p_BLV * np.log(p_BLV)).sum(-1)
  np.testing.assert_allclose(
    value, (entropy_BL * targets.teacher_weights_BL).sum(), rtol=1e-5
  )
  for grad in grads:
    np.testing.assert_allclose(grad, np.zeros_like(grad), atol=3e-6)


def test_masked_positions_count_for_nothing():
  x_BLD, head_VD = make_model()
  targets = make_targets(4)
  mask_BL = targets.weights_BL == 0
  before = value_and_grad(x_BLD, head_VD, targets, np.float32(0.3), 5)
  other = make_targets(4, seed=8)
  changed = targets._replace(
    labels_BL=np.where(mask_BL, other.labels_BL, targets.labels_BL),
    ids_BLK=np.where(mask_BL[..., None], other.ids_BLK, targets.ids_BLK),
    p_BLK=np.where(mask_BL[..., None], other.p_BLK, targets.p_BLK),
  )
  moved_BLD = np.where(mask_BL[..., None], 3 * x_BLD, x_BLD)
  after = value_and_grad(moved_BLD, head_VD, changed, np.float32(0.3), 5)
  jax.tree.map(np.testing.assert_array_equal, before, after)
  assert mask_BL.any() and (np.asarray(before[1][0])[mask_BL] == 0).all()


def test_a_teachers_weight_of_zero_leaves_the_hard_label():
  """Positions that were not captured have no record, only a label."""
  x_BLD, head_VD = make_model()
  targets = make_targets(4)
  left_BL = (targets.weights_BL > 0) & (targets.teacher_weights_BL == 0)
  assert left_BL.any() and not left_BL.all()
  other = make_targets(4, seed=8)
  changed = targets._replace(
    ids_BLK=np.where(left_BL[..., None], other.ids_BLK, targets.ids_BLK),
    p_BLK=np.where(left_BL[..., None], 0, targets.p_BLK),
  )
  before, after = (
    value_and_grad(x_BLD, head_VD, t, np.float32(0.3), 5)
    for t in (targets, changed)
  )
  jax.tree.map(np.testing.assert_array_equal, before, after)
  dx_BLD = np.asarray(before[1][0])
  assert (dx_BLD[left_BL] != 0).all()  # From the labels.
  _, (dx_BLD, _) = value_and_grad(x_BLD, head_VD, targets, np.float32(1), 5)
  assert not np.asarray(dx_BLD)[left_BL].any()


def test_the_gradient_of_captured_positions_is_unbiased():
  """Over all captures, weighted by 1 / q, it is the gradient of all positions.

  Two positions in each of two rows may be captured, with probabilities that
  differ: 16 outcomes, each with its probability, instead of a sample.
  """
  x_BLD, head_VD = make_model()
  full = make_targets(4)
  full = full._replace(teacher_weights_BL=full.weights_BL)
  inclusion_BL = np.ones((B, L))
  places = [(0, 2), (0, 7), (2, 0), (2, 5)]
  weights_BL = full.weights_BL.copy()
  for place, q in zip(places, [17 / 255, 0.4, 0.6, 254 / 255], strict=True):
    inclusion_BL[place], weights_BL[place] = q, 1.5
  full = full._replace(weights_BL=weights_BL, teacher_weights_BL=weights_BL)
  alpha = np.float32(0.7)
  wanted = value_and_grad(x_BLD, head_VD, full, alpha, 5)
  mean, total = None, 0.0
  for outcome in itertools.product([False, True], repeat=len(places)):
    captured_BL = np.ones((B, L), bool)
    captured_BL[tuple(zip(*places, strict=True))] = outcome
    chance = np.where(captured_BL, inclusion_BL, 1 - inclusion_BL).prod()
    teacher_BL = np.float32(weights_BL / inclusion_BL * captured_BL)
    targets = full._replace(teacher_weights_BL=teacher_BL)
    found = value_and_grad(x_BLD, head_VD, targets, alpha, 5)
    found = jax.tree.map(lambda a, c=chance: c * np.float64(a), found)
    mean = found if mean is None else jax.tree.map(np.add, mean, found)
    total += chance
  np.testing.assert_allclose(total, 1)
  near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  jax.tree.map(near, mean, wanted)


def test_bfloat16_hidden_states():
  """Sums stay float32; the gradients are those of logits' bfloat16 gradient.

  Logits are accumulated in float32 from the rounded inputs, so the value is
  exact to float32. d(logits) is rounded to bfloat16, 8 bits, and so is d(x).
  """
  x_BLD, head_VD = make_model()
  x_BLD = x_BLD.astype(ml_dtypes.bfloat16)
  rounded_VD = head_VD.astype(ml_dtypes.bfloat16)
  targets = make_targets(6)
  value, sums, dx_BLD, dhead_VD, d_BLV = oracle(x_BLD, rounded_VD, targets, 0.3)
  (found, found_sums), grads = value_and_grad(
    x_BLD, head_VD, targets, np.float32(0.3), 5
  )
  np.testing.assert_allclose(found, value, rtol=1e-5)
  assert_sums(found_sums, sums, rtol=1e-5)
  assert found.dtype == jnp.float32 and grads[1].dtype == jnp.float32
  assert grads[0].dtype == jnp.bfloat16
  rounding = 2.0**-8
  size_BLD = np.abs(d_BLV) @ np.abs(rounded_VD.astype(np.float64))
  size_BLD += np.abs(dx_BLD)
  error_BLD = np.abs(np.float64(grads[0]) - dx_BLD)
  assert (error_BLD <= rounding * size_BLD + 1e-6).all()
  size_VD = np.einsum(
    "BLV,BLD->VD", np.abs(d_BLV), np.abs(x_BLD.astype(np.float64))
  )
  error_VD = np.abs(np.float64(grads[1]) - dhead_VD)
  assert (error_VD <= rounding * size_VD + 1e-6).all()


def test_logits_of_magnitude_10_000():
  """A float32 logit of 1e4 has an ulp of 1e-3; nothing overflows."""
  x_BLD, head_VD = make_model(scale=3e3)
  targets = make_targets(6)
  value, sums, dx_BLD, dhead_VD, d_BLV = oracle(x_BLD, head_VD, targets, 0.3)
  assert np.abs(np.einsum("BLD,VD->BLV", x_BLD, head_VD)).max() > 1e4
  (found, found_sums), grads = value_and_grad(
    x_BLD, head_VD, targets, np.float32(0.3), 5
  )
  np.testing.assert_allclose(found, value, rtol=1e-6)
  assert_sums(found_sums, sums, rtol=1e-6)
  ulps = 8e-3
  size_BLD = np.abs(d_BLV) @ np.abs(head_VD.astype(np.float64))
  assert (np.abs(grads[0] - dx_BLD) <= ulps * size_BLD + 1e-2).all()
  np.testing.assert_allclose(grads[1], dhead_VD, atol=ulps)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_the_gradient_scales_with_the_cotangent(dtype):
  """By 1 / 1020, which bfloat16 would round by 0.4 %, always one way."""
  x_BLD, head_VD = make_model()
  x_BLD = x_BLD.astype(dtype)
  targets = make_targets(6)
  scale = np.float32(1 / 1020)

  def loss(x_BLD, head_VD):
    objective = losses.Objective(chunk=4)
    return losses.distillation_loss(x_BLD, head_VD, targets, 0.3, objective)

  # Not jitted: XLA may keep more bits than it is told to.
  _, vjp, _ = jax.vjp(loss, x_BLD, head_VD, has_aux=True)
  ones, scaled = vjp(jnp.float32(1)), vjp(scale)
  rtol = 1e-6 if dtype == np.float32 else 2**-8
  for one, other in zip(ones, scaled, strict=True):
    one, other = np.float64(one), np.float64(other)
    np.testing.assert_allclose(other, one * scale, rtol=rtol, atol=1e-12)
    # Rounding of each value averages to 0.15 %; the scale's own would not.
    factor = (other * one).sum() / (one * one).sum()
    np.testing.assert_allclose(factor, scale, rtol=2e-3)


def test_targets_and_alpha_have_no_gradient():
  x_BLD, head_VD = make_model()
  targets = make_targets(6)

  def loss(p_BLK, alpha):
    changed = targets._replace(p_BLK=p_BLK)
    objective = losses.Objective(chunk=4)
    return losses.distillation_loss(x_BLD, head_VD, changed, alpha, objective)[
      0
    ]

  grads = jax.jit(jax.grad(loss, argnums=(0, 1)))(targets.p_BLK, 0.3)
  assert not np.any(grads[0]) and not np.any(grads[1])
