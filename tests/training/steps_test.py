"""Tests for analogjax/training/steps.py."""

import functools

import caches
import jax
from jax.sharding import NamedSharding, PartitionSpec as P
from models import (
  ALONE,
  MESHES,
  adamw,
  keep_gradient,
  make_mesh,
  mesh_id,
  on_mesh,
  parameters,
  tiny,
)
import numpy as np
import optax
import pytest
from scipy import stats

from analogjax.cache import batches, logit_cache, sampling, teacher_step
from analogjax.distributed import sharding
from analogjax.models import decoder
from analogjax.training import losses, optimizer, steps

pytestmark = pytest.mark.medium

B, L, V = 8, 10, 64
CHUNK = 4  # Does not divide L.
SAMPLER = sampling.Threshold(tau=0.2)
NUM_STEPS = 3

STUDENT = tiny(attention_bias=True)
OPTIMIZER = optimizer.make_optimizer(adamw(eps=1e-6), NUM_STEPS)
teacher_params = functools.partial(parameters, STUDENT, 1, embed=0.6)
student_params = functools.partial(parameters, STUDENT, embed=0.02)


@functools.cache
def make_batch():
  """Rows with very different numbers of tokens, and records of a teacher."""
  rng = np.random.default_rng(0)
  segments_BL = np.zeros((B, L), np.int32)
  for b in range(B):
    segments_BL[b, : b + 3] = 1
    segments_BL[b, 4 : b + 3] = 2
  rows = caches.rows_of(rng.integers(0, V, (B, L)), segments_BL)
  p_BLK = rng.dirichlet(np.full(5, 0.5), (B, L)).astype(np.float32)
  ids_BLK = rng.integers(0, V, (B, L, 5)).astype(np.int32)
  # About a third of the positions was not captured; the others weigh more.
  inclusion_BL = rng.integers(100, 256, (B, L)) / np.float32(255)
  captured_BL = rng.random((B, L)) < inclusion_BL
  entries = logit_cache.Entries(
    rows=rows,
    ids_BLK=ids_BLK,
    p_BLK=p_BLK * captured_BL[..., None],
    log_tail_BL=None,
    num_head_BL=captured_BL * 5,
    num_BL=captured_BL * 5,
    capture_weights_BL=captured_BL / inclusion_BL,
    entropy_BL=np.zeros((B, L), np.float32),
    label_logprob_BL=np.zeros((B, L), np.float32),
  )
  return batches.from_entries(entries)


def keys(seed=0):
  digests_B32 = np.random.default_rng(1).integers(0, 256, (B, 32), np.uint8)
  return sampling.row_keys(digests_B32, seed)


@functools.cache
def logprobs(model):
  """Dense log-probabilities [B, L, V] in float64, one device."""
  params = teacher_params() if model == "teacher" else student_params()
  batch = make_batch()
  hidden = jax.jit(
    functools.partial(teacher_step.hidden, graphdef=decoder.graphdef(STUDENT))
  )
  x_BLD, head_VD = map(np.float64, hidden(params, batch))
  logits_BLV = np.einsum("BLD,VD->BLV", x_BLD, head_VD)
  top_BL1 = logits_BLV.max(-1, keepdims=True)
  shifted_BLV = logits_BLV - top_BL1
  return shifted_BLV - np.log(np.exp(shifted_BLV).sum(-1, keepdims=True))


def train_step(tx, alpha, chunk=CHUNK, **more):
  return functools.partial(
    steps.train_step,
    graphdef=decoder.graphdef(STUDENT),
    tx=tx,
    alpha=optax.constant_schedule(alpha),
    objective=losses.Objective(chunk=chunk),
    **more,
  )


def start(tx):
  """A train state before its first step, on the host."""
  params = student_params()
  opt_state = jax.tree.map(
    lambda leaf: np.zeros(leaf.shape, leaf.dtype),
    jax.eval_shape(tx.init, params),
  )
  return steps.TrainState(np.zeros((), np.int32), params, opt_state)


@functools.cache
def train(index):
  """NUM_STEPS of Adam on a mesh: the state, and the metrics by step."""
  mesh = make_mesh(MESHES[index])
  with jax.set_mesh(mesh):
    state = start(OPTIMIZER)
    shardings = sharding.state_shardings(state, mesh)
    state = jax.device_put(state, shardings)
    step = jax.jit(
      train_step(OPTIMIZER, 0.7),
      donate_argnums=0,
      out_shardings=(shardings, NamedSharding(mesh, P())),
    )
    batch = sharding.put_rows(make_batch(), mesh)
    metrics, before = [], state
    with jax.transfer_guard("disallow"):
      for _ in range(NUM_STEPS):
        state, values = step(state, batch)
        metrics.append(values)
    metrics = [jax.tree.map(float, values) for values in metrics]
  return state, metrics, step._cache_size(), before, shardings


@pytest.mark.parametrize("index", range(1, 4), ids=lambda i: mesh_id(MESHES[i]))
def test_a_mesh_changes_where_arrays_live_and_nothing_else(index):
  alone, alone_metrics, *_ = train(0)
  split, split_metrics, *_ = train(index)
  for one, many in zip(alone_metrics, split_metrics, strict=True):
    assert one.keys() == many.keys()
    for name in one:
      np.testing.assert_allclose(one[name], many[name], rtol=1e-5, err_msg=name)
  assert alone_metrics[0]["loss_nats"] > alone_metrics[-1]["loss_nats"]
  compare = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  jax.tree.map(
    compare, jax.device_get(alone.params), jax.device_get(split.params)
  )
  assert int(split.step) == NUM_STEPS


@pytest.mark.parametrize("index", range(4), ids=lambda i: mesh_id(MESHES[i]))
def test_the_state_is_donated_and_compiled_once(index):
  state, _, programs, before, shardings = train(index)
  assert programs == 1
  leaves = jax.tree.leaves(before.params)
  assert leaves and all(leaf.is_deleted() for leaf in leaves)
  jax.tree.map(
    lambda leaf, wanted: (
      leaf.sharding.is_equivalent_to(wanted, leaf.ndim)
      or pytest.fail(f"{leaf.sharding} is not {wanted}")
    ),
    state,
    shardings,
  )


@pytest.mark.parametrize("index", [0, 1], ids=lambda i: mesh_id(MESHES[i]))
def test_losses_are_means_over_the_tokens_of_the_whole_batch(index):
  """Each of 8 devices has its own row, with 1 to 8 predictions."""
  metrics = train(index)[1][0]
  targets = make_batch().targets
  logq_BLV = logprobs("student")
  hard_BL = -np.take_along_axis(logq_BLV, targets.labels_BL[..., None], -1)
  hard_BL = hard_BL[..., 0]
  logq_BLK = np.take_along_axis(logq_BLV, targets.ids_BLK, axis=-1)
  teacher_BL = -(logq_BLK * targets.p_BLK).sum(-1)
  w_BL, teacher_w_BL = targets.weights_BL, targets.teacher_weights_BL
  assert (teacher_w_BL[w_BL > 0] == 0).any() and (teacher_w_BL > w_BL).any()
  count_B = w_BL.sum(-1)
  assert count_B.min() > 0 and count_B.max() >= 4 * count_B.min()
  hard_BL, teacher_BL = hard_BL * w_BL, teacher_BL * teacher_w_BL

  assert metrics["label_tokens"] == w_BL.sum()
  for name, sum_BL in (
    ("hard_label_nats", hard_BL),
    ("teacher_nats", teacher_BL),
    ("loss_nats", 0.7 * teacher_BL + 0.3 * hard_BL),
  ):
    # One count for all: of the labels, wherever there is a record.
    mean = sum_BL.sum() / w_BL.sum()
    np.testing.assert_allclose(metrics[name], mean, rtol=1e-5)
    mean_of_means = (sum_BL.sum(-1) / count_B).mean()
    assert abs(mean_of_means / mean - 1) > 1e-4


DRAW = dict(capture=sampling.Capture(), num_replicas=2, temperature=1.0)


@functools.cache
def records(index):
  step = functools.partial(
    teacher_step.teacher_step,
    graphdef=decoder.graphdef(STUDENT),
    sampler=SAMPLER,
    chunk=CHUNK,
    **DRAW,
  )
  return on_mesh(MESHES[index], step, teacher_params(), make_batch(), keys())


def test_teacher_step_draws_from_the_whole_rows_logits():
  """Chunked over L, with a padded last chunk, or in one piece."""
  found = records(0)
  logp_BLV = logprobs("teacher")
  labels_BL = make_batch().targets.labels_BL
  whole = jax.jit(functools.partial(sampling.draw, sampler=SAMPLER, **DRAW))(
    np.float32(logp_BLV), labels_BL, keys(), 0
  )
  # The logits differ by rounding (1e-6), which may flip an id or a code that
  # is on the edge: fewer than one in a hundred.
  for name in ("ids_BMLK", "codes_BMLK"):
    same = getattr(found, name) == np.asarray(getattr(whole, name))
    assert same.mean() >= 0.99, name
  p_BLV = np.exp(logp_BLV)
  np.testing.assert_allclose(
    found.entropy_BL, -(p_BLV * logp_BLV).sum(-1), atol=2e-5
  )
  label_BL1 = np.take_along_axis(logp_BLV, labels_BL[..., None], axis=-1)
  is_label_BL = make_batch().targets.weights_BL > 0
  np.testing.assert_allclose(
    found.label_logprob_BL, label_BL1[..., 0] * is_label_BL, atol=5e-5
  )
  # The teacher is no flat one, or the draws would show little.
  assert 0.3 < found.entropy_BL.mean() < 3


def test_teacher_step_on_another_mesh():
  """Ids and codes flip where rounding decides: fewer than 1 in 100."""
  alone, split = records(0), records(3)
  for name in ("ids_BMLK", "codes_BMLK"):
    same = getattr(alone, name) == getattr(split, name)
    assert same.mean() >= 0.99, (name, same.mean())
  np.testing.assert_allclose(alone.entropy_BL, split.entropy_BL, atol=2e-5)
  np.testing.assert_allclose(
    alone.label_logprob_BL, split.label_logprob_BL, atol=5e-5
  )


def test_eval_step_adds_up_what_train_step_divides():
  step = functools.partial(
    steps.eval_step,
    graphdef=decoder.graphdef(STUDENT),
    objective=losses.Objective(chunk=CHUNK),
  )
  sums = on_mesh(ALONE, step, student_params(), make_batch()).losses
  metrics = train(0)[1][0]
  assert sums.weight == metrics["label_tokens"]
  for name in ("hard", "teacher"):
    metric = metrics["hard_label_nats" if name == "hard" else "teacher_nats"]
    np.testing.assert_allclose(
      getattr(sums, name) / sums.weight, metric, rtol=1e-5
    )


@pytest.mark.parametrize(
  ("axes", "parts"), [({}, 2), (dict(data=2, tensor=2), 4)], ids=str
)
def test_microbatches_give_the_update_of_the_whole_batch(axes, parts):
  def run(microbatches):
    step = train_step(keep_gradient(), 0.7, microbatches=microbatches)
    mesh = make_mesh(axes)
    with jax.set_mesh(mesh):
      state = start(keep_gradient())
      batch = sharding.put_rows(make_batch(), mesh)
      state, metrics = jax.device_get(jax.jit(step)(state, batch))
    return state.opt_state, metrics

  (whole, metrics), (pieces, others) = run(1), run(parts)
  compare = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
  jax.tree.map(compare, whole, pieces)
  jax.tree.map(compare, metrics, others)


# The gradient of a cached step.


@functools.cache
def gradient_step():
  return jax.jit(train_step(keep_gradient(), 0.9, chunk=L))


def gradient(ids_BLK, p_BLK):
  """Leaf by leaf, float64, the gradient of train_step on these records."""
  batch = make_batch()
  # Filled up to one K, so that one program serves all.
  fill = ((0, 0), (0, 0), (0, V - ids_BLK.shape[-1]))
  targets = batch.targets._replace(
    teacher_weights_BL=batch.targets.weights_BL,  # A record everywhere.
    ids_BLK=np.pad(ids_BLK, fill),
    p_BLK=np.pad(np.float32(p_BLK), fill),
  )
  state = start(keep_gradient())
  state, _ = gradient_step()(state, batch._replace(targets=targets))
  leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(state.opt_state))
  return {
    jax.tree_util.keystr(path): np.float64(leaf).ravel()
    for path, leaf in leaves
  }


def p_value(samples_NX, estimate_X, wanted_X):
  """Chance of an error this large in the mean of the samples.

  The squared error of an unbiased mean over its expectation is a weighted sum
  of chi-squares; Satterthwaite's approximation gives it one number of degrees
  of freedom, from the samples' own covariance.
  """
  N = len(samples_NX)
  centred_NX = samples_NX - samples_NX.mean(0)
  gram_NN = centred_NX @ centred_NX.T / (N - 1)
  variance = np.trace(gram_NN)
  freedom = variance**2 / (gram_NN**2).sum()
  ratio = ((estimate_X - wanted_X) ** 2).sum() / (variance / N)
  return stats.chi2.sf(ratio * freedom, freedom)


def test_the_expected_gradient_of_a_cached_step_is_the_dense_teachers():
  """Records drawn with 300 independent seeds, against K = V.

  Every leaf's mean must lie within its standard error, and the gradient of
  the renormalised top K, with as many ids or more, must not: it is biased.
  """
  N, alpha = 300, 1e-3
  logp_BLV = np.float32(logprobs("teacher"))
  p_BLV = np.exp(logprobs("teacher"))
  every_BLV = np.broadcast_to(np.arange(V, dtype=np.int32), (B, L, V))
  wanted = gradient(every_BLV, p_BLV)

  draw = jax.jit(functools.partial(sampling.draw, sampler=SAMPLER, **DRAW))
  labels_BL = make_batch().targets.labels_BL
  K = SAMPLER.num_slots
  samples = []
  for seed in range(N):
    out = jax.device_get(draw(logp_BLV, labels_BL, keys(seed), 0))
    p_BMLK = sampling.decode(out.codes_BMLK, SAMPLER)
    samples.append(gradient(out.ids_BMLK[:, 0], p_BMLK[:, 0]))

  top_BLK = np.argsort(-p_BLV, axis=-1)[..., :K].astype(np.int32)
  top_p_BLK = np.take_along_axis(p_BLV, top_BLK, axis=-1)
  topk = gradient(top_BLK, top_p_BLK / top_p_BLK.sum(-1, keepdims=True))

  assert len(wanted) > 10
  for name in wanted:
    samples_NX = np.stack([sample[name] for sample in samples])
    sampled = p_value(samples_NX, samples_NX.mean(0), wanted[name])
    biased = p_value(samples_NX, topk[name], wanted[name])
    assert sampled > alpha / len(wanted), (name, sampled)
    assert biased < 1e-9, (name, biased)


def test_a_batch_without_weight_has_no_gradient():
  """All padding: the loss is 0, and so is the gradient; not NaN."""
  batch = make_batch()
  targets = batch.targets._replace(
    weights_BL=np.zeros((B, L), np.float32),
    teacher_weights_BL=np.zeros((B, L), np.float32),
    ids_BLK=np.zeros((B, L, V), np.int32),
    p_BLK=np.zeros((B, L, V), np.float32),
  )
  state = start(keep_gradient())
  state, metrics = gradient_step()(state, batch._replace(targets=targets))
  assert metrics["loss_nats"] == 0 and metrics["grad_norm"] == 0
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))


def test_no_records_no_metric_of_a_teacher():
  """K = 0: the input of the pretrain phase and the control."""
  batch = make_batch()
  none = np.zeros((B, L, 0))
  targets = batch.targets._replace(
    ids_BLK=none.astype(np.int32), p_BLK=none.astype(np.float32)
  )
  state = start(keep_gradient())
  step = train_step(keep_gradient(), 0.0)
  _, metrics = jax.eval_shape(step, state, batch._replace(targets=targets))
  assert set(metrics) == set(train(0)[1][0]) - {"teacher_nats", "alpha"}
