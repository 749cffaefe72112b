"""Tests of the divergences in analogjax/training/losses.py.

Against a reference in float64 that builds whole distributions and leaves the
gradient to JAX.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from analogjax.cache import batches
from analogjax.config import train
from analogjax.training import losses
from analogjax.training.divergences import Divergence

B, L, D, V, K, W = 2, 10, 8, 41, 5, 6
ALPHA = np.float32(0.6)
SHAPES = dict(B=B, L=L, V=V)


def make(seed=0, V=V, K=K, dtype=np.float32, scale=1.0):
  """(x, head, targets of kind topk, teacher) with masks and bare positions."""
  rng = np.random.default_rng(seed)
  x_BLD = rng.normal(size=(B, L, D)).astype(dtype)
  head_VD = (scale * rng.normal(size=(V, D))).astype(np.float32)
  teacher = losses.Teacher(
    x_BLW=rng.normal(size=(B, L, W)).astype(dtype),
    head_VW=rng.normal(size=(V, W)).astype(np.float32),
  )
  t_BLV = np.float64(teacher.x_BLW) @ np.float64(teacher.head_VW).T
  t_BLV = np.exp(t_BLV - np.logaddexp.reduce(t_BLV, -1, keepdims=True))
  order_BLV = np.argsort(-t_BLV, axis=-1)
  ids_BLK, rest_BLX = order_BLV[..., :K], order_BLV[..., K:]
  p_BLK = np.take_along_axis(t_BLV, ids_BLK, -1)
  with np.errstate(divide="ignore"):
    log_tail_BL = np.log(np.take_along_axis(t_BLV, rest_BLX, -1).sum(-1))
  weights_BL = rng.uniform(0.5, 2, (B, L)) * (rng.random((B, L)) < 0.8)
  captured_BL = rng.random((B, L)) < 0.7
  # As the cache has it: no ids and no mass where nothing was captured.
  ids_BLK = np.where(captured_BL[..., None], ids_BLK, 0)
  p_BLK = np.where(captured_BL[..., None], p_BLK, 0)
  targets = batches.Targets(
    labels_BL=rng.integers(0, V, (B, L)).astype(np.int32),
    weights_BL=weights_BL.astype(np.float32),
    teacher_weights_BL=np.float32(weights_BL * captured_BL / 0.7),
    ids_BLK=ids_BLK.astype(np.int32),
    p_BLK=p_BLK.astype(np.float32),
    log_tail_BL=np.where(captured_BL, log_tail_BL, 0).astype(np.float32),
  )
  return x_BLD, head_VD, targets, teacher


def divergence_of(d, t, q):
  """The divergence by its definition, over the last axis; 0 log 0 = 0."""

  def kl(a, b):
    safe = jnp.where(a > 0, a, 1.0)
    return jnp.sum(jnp.where(a > 0, a * (jnp.log(safe) - jnp.log(b)), 0), -1)

  m = d.mixture * t + (1 - d.mixture) * q
  return {
    "forward_kl": lambda: kl(t, q),
    "reverse_kl": lambda: kl(q, t),
    "skew_kl": lambda: kl(t, m),
    "jensen_shannon": lambda: d.mixture * kl(t, m) + (1 - d.mixture) * kl(q, m),
    "total_variation": lambda: jnp.abs(t - q).sum(-1) / 2,
  }[d.name]()


def reference(x_BLD, head_VD, targets, alpha, objective, teacher=None):
  """Whole distributions, bins merged by a matrix of zeros and ones."""
  T = objective.temperature

  def logits(x, head, softcap):
    z = jnp.einsum("BLD,VD->BLV", x, head)[..., : objective.V]
    return z if softcap is None else softcap * jnp.tanh(z / softcap)

  z_BLV = logits(x_BLD, head_VD, objective.softcap)
  q_BLV = jax.nn.softmax(z_BLV / T)
  if teacher is not None:
    t_BLV = logits(teacher.x_BLW, teacher.head_VW, objective.teacher_softcap)
    of_teacher_BL = divergence_of(
      objective.divergence, jax.nn.softmax(t_BLV / T), q_BLV
    )
  else:
    one_BLKV = jax.nn.one_hot(targets.ids_BLK, q_BLV.shape[-1])
    one_BLKV *= (targets.p_BLK > 0)[..., None]
    named_BLK = jnp.einsum("BLKV,BLV->BLK", one_BLKV, q_BLV)
    rest_BL = jnp.sum(q_BLV * (1 - one_BLKV.sum(-2)), axis=-1)
    t_BLX = jnp.concatenate(
      [targets.p_BLK, jnp.exp(targets.log_tail_BL)[..., None]], axis=-1
    )
    q_BLX = jnp.concatenate([named_BLK, rest_BL[..., None]], axis=-1)
    # An empty slot is no bin.
    q_BLX = jnp.where(t_BLX > 0, q_BLX, 0.0)
    q_BLX = jnp.where((t_BLX == 0) & (q_BLX == 0), 1e-300, q_BLX)
    t_BLX = jnp.where(t_BLX == 0, 1e-300, t_BLX)
    of_teacher_BL = divergence_of(objective.divergence, t_BLX, q_BLX)
  logq_BLV = jax.nn.log_softmax(z_BLV)
  labels_BL1 = targets.labels_BL[..., None]
  hard_BL = -jnp.take_along_axis(logq_BLV, labels_BL1, -1)[..., 0]
  lse_BL = jax.nn.logsumexp(z_BLV, axis=-1)
  w_BL = targets.weights_BL
  teacher = jnp.sum(targets.teacher_weights_BL * of_teacher_BL)
  value = alpha * T**2 * teacher + (1 - alpha) * jnp.sum(w_BL * hard_BL)
  value += objective.z_loss * jnp.sum(w_BL * lse_BL**2)
  return value, (teacher, jnp.sum(w_BL * hard_BL))


def compare(
  x_BLD, head_VD, targets, objective, teacher=None, *, rtol=1e-5, alpha=ALPHA
):
  """Value, sums and gradients equal the reference's, in float64."""
  found_of = jax.jit(
    jax.value_and_grad(losses.distillation_loss, (0, 1), has_aux=True),
    static_argnums=4,
  )
  (value, sums), grads = found_of(
    x_BLD, head_VD, targets, alpha, objective, teacher
  )

  def double(tree):
    return jax.tree.map(
      lambda a: (
        np.float64(a)
        if np.issubdtype(np.asarray(a).dtype, np.floating)
        or a.dtype == ml_dtypes.bfloat16
        else a
      ),
      tree,
    )

  # The product takes the head in the dtype of the hidden states.
  head_VD = head_VD.astype(x_BLD.dtype)
  if teacher is not None:
    head_VW = teacher.head_VW.astype(teacher.x_BLW.dtype)
    teacher = teacher._replace(head_VW=head_VW)
    teacher = double(teacher)
  with jax.enable_x64(True):
    wanted = jax.value_and_grad(reference, (0, 1), has_aux=True)(
      double(x_BLD),
      double(head_VD),
      double(targets),
      np.float64(alpha),
      objective,
      teacher,
    )
    (value64, (teacher64, hard64)), grads64 = jax.tree.map(np.asarray, wanted)
  np.testing.assert_allclose(value, value64, rtol=rtol)
  np.testing.assert_allclose(sums.teacher, teacher64, rtol=rtol, atol=1e-6)
  np.testing.assert_allclose(sums.hard, hard64, rtol=rtol)
  dx_BLD, dhead_VD = grads
  size = np.linalg.norm(grads64[1])
  assert np.linalg.norm(dhead_VD - grads64[1]) <= rtol * size
  error_BLD = np.abs(np.float64(dx_BLD) - grads64[0])
  bound = rtol * np.abs(grads64[0]).max()
  if dx_BLD.dtype == ml_dtypes.bfloat16:  # Rounded once, at the very end.
    bound = bound + 2.0**-8 * np.abs(grads64[0])
  assert (error_BLD <= bound).all(), error_BLD.max()
  return value, sums, grads


DIVERGENCES = [
  Divergence(),
  Divergence(name="reverse_kl"),
  Divergence(name="skew_kl", mixture=0.1),
  Divergence(name="jensen_shannon", mixture=0.3),
  Divergence(name="total_variation"),
]
by_name = pytest.mark.parametrize(
  "divergence", DIVERGENCES, ids=lambda d: d.name
)

CHANGES = {
  "plain": {},
  "z-loss": dict(z_loss=1e-2),
  "soft cap": dict(softcap=3.0),
  "temperature": dict(temperature=2.0),
  "padded": dict(V=V - 4),
  "all": dict(z_loss=1e-2, softcap=3.0, temperature=0.5, V=V - 4),
}


# Every divergence in a plain setting and with all at once, two in between.
by_change = pytest.mark.parametrize(
  "divergence, change",
  [
    (divergence, change)
    for change in CHANGES
    for divergence in DIVERGENCES
    if change in ("plain", "all") or divergence in DIVERGENCES[:4:3]
  ],
  ids=lambda value: getattr(value, "name", value),
)


@by_change
def test_records_with_a_tail(divergence, change):
  objective = losses.Objective(
    divergence=divergence, chunk=7, **CHANGES[change]
  )
  V_ = objective.V or V
  x_BLD, head_VD, targets, _ = make(V=V_)
  head_VD = np.concatenate([head_VD, np.full((V - V_, D), 9.0, np.float32)])
  _, _, grads = compare(x_BLD, head_VD, targets, objective)
  assert not np.any(grads[1][V_:])


@by_change
def test_a_teacher_in_the_loop(divergence, change):
  objective = losses.Objective(
    divergence=divergence, chunk=7, **CHANGES[change]
  )
  V_ = objective.V or V
  x_BLD, head_VD, targets, teacher = make(V=V_)
  head_VD = np.concatenate([head_VD, np.full((V - V_, D), 9.0, np.float32)])
  # Padded differently, and with its own cap.
  head_VW = np.concatenate([teacher.head_VW, np.ones((1, W), np.float32)])
  if V_ == V:
    head_VW = teacher.head_VW
  teacher = teacher._replace(head_VW=head_VW)
  objective = dataclasses.replace(objective, teacher_softcap=objective.softcap)
  compare(x_BLD, head_VD, targets, objective, teacher)


@by_name
def test_with_all_ids_named_it_is_the_divergence_from_the_live_teacher(
  divergence,
):
  x_BLD, head_VD, targets, teacher = make(K=V)
  weights_BL = targets.teacher_weights_BL
  objective = losses.Objective(divergence=divergence, chunk=6)
  value, sums, grads = compare(x_BLD, head_VD, targets, objective)
  found = jax.value_and_grad(losses.distillation_loss, (0, 1), has_aux=True)(
    x_BLD, head_VD, targets, ALPHA, objective, teacher
  )
  np.testing.assert_allclose(found[0][0], value, rtol=1e-5)
  np.testing.assert_allclose(found[0][1].teacher, sums.teacher, rtol=1e-4)
  for one, other in zip(found[1], grads, strict=True):
    np.testing.assert_allclose(one, other, atol=2e-5)
  assert (weights_BL > 0).any()


@by_name
def test_a_student_that_equals_the_teacher_is_stationary(divergence):
  """With the whole mass outside counted, unlike where K are renormalised."""
  _, _, targets, teacher = make()
  objective = losses.Objective(divergence=divergence)
  for live in (None, teacher):
    (value, sums), grads = jax.value_and_grad(
      losses.distillation_loss, (0, 1), has_aux=True
    )(teacher.x_BLW, teacher.head_VW, targets, 1.0, objective, live)
    np.testing.assert_allclose(value, 0, atol=1e-5)
    assert 0 <= sums.teacher + 1e-5
    if divergence.name != "total_variation":  # Which has a kink there.
      for grad in grads:
        np.testing.assert_allclose(grad, np.zeros_like(grad), atol=1e-5)


@pytest.mark.parametrize("tail", [1e-7, 1e-12, 1e-30])
@by_name
def test_a_tail_of_almost_nothing(divergence, tail):
  """Teacher and student have tiny tails: 1 - sum would have no digit left."""
  x_BLD, head_VD, targets, _ = make()
  keep_BL = targets.teacher_weights_BL > 0
  p_BLK = targets.p_BLK / np.maximum(targets.p_BLK.sum(-1, keepdims=True), 1e-9)
  targets = targets._replace(
    p_BLK=p_BLK,
    log_tail_BL=np.full((B, L), np.log(tail), np.float32),
    ids_BLK=np.broadcast_to(np.arange(K, dtype=np.int32), (B, L, K)),
    teacher_weights_BL=np.where(keep_BL, 1, 0).astype(np.float32),
  )
  # The student's tail: logits of the other ids fall to log(tail).
  x_BLD[..., 0] = 1
  head_VD[K:] = 0
  head_VD[K:, 0] = np.log(tail / (V - K))
  objective = losses.Objective(divergence=divergence, chunk=20)
  compare(x_BLD, head_VD, targets, objective)


@by_name
@pytest.mark.parametrize("live", [False, True], ids=["record", "live"])
def test_bfloat16_within_1e_5_of_float64(divergence, live):
  x_BLD, head_VD, targets, teacher = make(dtype=ml_dtypes.bfloat16)
  objective = losses.Objective(
    divergence=divergence, chunk=7, z_loss=1e-3, exact_gradient=True
  )
  compare(
    x_BLD, head_VD, targets, objective, teacher if live else None, rtol=1e-5
  )


def test_bfloat16_sampled_records_within_1e_5_of_float64():
  x_BLD, head_VD, targets, _ = make(dtype=ml_dtypes.bfloat16, K=V)
  sampled = targets._replace(log_tail_BL=None)
  objective = losses.Objective(chunk=7, exact_gradient=True)
  found = jax.value_and_grad(losses.distillation_loss, (0, 1), has_aux=True)
  (value, _), grads = found(x_BLD, head_VD, sampled, ALPHA, objective)
  # All ids with their probabilities: cross-entropy = divergence + entropy.
  p_BLK = np.float64(targets.p_BLK)
  entropy_BL = -(p_BLK * np.log(np.where(p_BLK > 0, p_BLK, 1))).sum(-1)
  entropy = (entropy_BL * targets.teacher_weights_BL).sum()
  other, _, other_grads = compare(x_BLD, head_VD, targets, objective)
  np.testing.assert_allclose(value, other + ALPHA * entropy, rtol=1e-5)
  np.testing.assert_allclose(grads[1], other_grads[1], rtol=1e-4, atol=1e-5)


def test_the_default_rounds_the_gradient_of_bfloat16_and_no_more():
  """exact_gradient makes a difference; otherwise it would be useless."""
  x_BLD, head_VD, targets, _ = make(dtype=ml_dtypes.bfloat16)
  with pytest.raises(AssertionError):
    compare(x_BLD, head_VD, targets, losses.Objective())
  compare(x_BLD, head_VD, targets, losses.Objective(), rtol=6e-3)


def test_merging_bins_only_lowers_a_divergence():
  """Data processing: monotone in K, up to the divergence over all ids."""
  for divergence in DIVERGENCES:
    found = []
    for k in (1, 3, 10, V):
      x_BLD, head_VD, targets, _ = make(K=k)
      objective = losses.Objective(divergence=divergence)
      _, sums = losses.distillation_loss(
        x_BLD, head_VD, targets, 1.0, objective
      )
      found.append(float(sums.teacher))
    assert (np.diff(found) >= -1e-5).all(), (divergence, found)


def test_sampled_records_take_no_divergence_that_is_not_linear():
  x_BLD, head_VD, targets, _ = make()
  sampled = targets._replace(log_tail_BL=None)
  for divergence in DIVERGENCES[1:]:
    objective = losses.Objective(divergence=divergence)
    with pytest.raises(ValueError, match="topk"):
      losses.distillation_loss(x_BLD, head_VD, sampled, ALPHA, objective)


def test_no_gradient_of_a_nonlinear_divergence_is_linear_in_the_teacher():
  """The reason: the mean gradient over samples is not that of their mean."""
  logq_K = np.log(np.float32([0.7, 0.2, 0.1]))
  one, other = np.float32([0.5, 0.4, 0.1]), np.float32([0.1, 0.1, 0.8])

  def gradient(divergence, t_K):
    _, slope_K = divergence.slopes(jnp.log(t_K), jnp.asarray(logq_K))
    return slope_K - jnp.exp(logq_K) * slope_K.sum()

  for divergence in DIVERGENCES:
    mean = (gradient(divergence, one) + gradient(divergence, other)) / 2
    of_mean = gradient(divergence, (one + other) / 2)
    is_linear = np.allclose(mean, of_mean, atol=1e-6)
    assert is_linear == (divergence.name in train.LINEAR)


def test_by_hand():
  """Teacher (1/2, 1/2), student (3/4, 1/4), in nats."""
  logt, logq = np.log(np.float32([0.5, 0.5])), np.log(np.float32([0.75, 0.25]))

  def of(name, mixture=0.5):
    divergence = Divergence(name=name, mixture=mixture)
    return float(divergence.terms(jnp.asarray(logt), jnp.asarray(logq)).sum())

  log = np.log
  np.testing.assert_allclose(
    of("forward_kl"), log(2 / 3) / 2 + log(2) / 2, rtol=1e-6
  )
  np.testing.assert_allclose(
    of("reverse_kl"), 0.75 * log(1.5) + 0.25 * log(0.5), rtol=1e-6
  )
  np.testing.assert_allclose(of("total_variation"), 0.25, rtol=1e-6)
  m = (0.625, 0.375)  # Half and half.
  kl_t = log(0.5 / m[0]) / 2 + log(0.5 / m[1]) / 2
  kl_q = 0.75 * log(0.75 / m[0]) + 0.25 * log(0.25 / m[1])
  np.testing.assert_allclose(of("skew_kl"), kl_t, rtol=1e-5)
  np.testing.assert_allclose(of("jensen_shannon"), (kl_t + kl_q) / 2, rtol=1e-5)
  # A mixture that is almost all student makes skew KL the forward KL.
  np.testing.assert_allclose(of("skew_kl", 1e-6), of("forward_kl"), rtol=1e-4)


@by_name
def test_zeros_of_both_add_nothing(divergence):
  logt = jnp.log(jnp.float32([0.5, 0.5, 0.0]))
  logq = jnp.log(jnp.float32([0.75, 0.25, 0.0]))
  terms, slopes = divergence.slopes(logt, logq)
  shorter, fewer = divergence.slopes(logt[:2], logq[:2])
  np.testing.assert_allclose(terms, [*shorter, 0], rtol=1e-6)
  np.testing.assert_allclose(slopes, [*fewer, 0], rtol=1e-6)


@pytest.mark.parametrize(
  "values, message",
  [
    (dict(name="kl"), "divergence: expected forward_kl"),
    (dict(mixture=1.0), "mixture: expected 0 < mixture < 1, found 1.0"),
  ],
)
def test_a_divergence_that_is_none_is_refused(values, message):
  with pytest.raises(ValueError, match=message):
    Divergence(**values)


def test_masked_positions_may_hold_anything():
  x_BLD, head_VD, targets, teacher = make()
  objective = losses.Objective(divergence=DIVERGENCES[1], chunk=7)
  found = functools.partial(
    jax.value_and_grad(losses.distillation_loss, (0, 1), has_aux=True),
    alpha=ALPHA,
    objective=objective,
  )
  off_BL = (targets.weights_BL == 0) & (targets.teacher_weights_BL == 0)
  assert off_BL.any()
  other = make(seed=5)[2]
  changed = jax.tree.map(
    lambda new, old: np.where(
      off_BL.reshape(off_BL.shape + (1,) * (old.ndim - 2)), new, old
    ),
    other._replace(
      weights_BL=targets.weights_BL * 0,
      teacher_weights_BL=targets.weights_BL * 0,
    ),
    targets,
  )
  for live in (None, teacher):
    before = found(x_BLD, head_VD, targets, teacher=live)
    after = found(x_BLD, head_VD, changed, teacher=live)
    jax.tree.map(np.testing.assert_array_equal, before, after)
