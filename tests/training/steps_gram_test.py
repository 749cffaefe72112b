"""Tests of Grams in analogjax/cache/gram.py and training/steps.py.

Rows use from one to all of their tokens, so a mean over rows is neither a mean
over tokens nor one over pairs.
"""

import dataclasses
import functools
import operator

import caches
from flax import nnx
import jax
import jax.numpy as jnp
from models import (
  ALONE,
  MESHES,
  keep_gradient,
  make_mesh,
  on_mesh,
  parameters,
  tiny,
)
import numpy as np
import optax
import pytest
from scipy import stats

from analogjax.cache import batches, gram, logit_cache, sampling, teacher_step
from analogjax.data import rows as rows_lib
from analogjax.distributed import sharding
from analogjax.models import decoder
from analogjax.training import losses, steps

pytestmark = pytest.mark.medium

B, L, V, M, Z, SEED = 8, 12, 64, 5, 2, 9
STUDENT = tiny(Y=4)
TEACHER = dataclasses.replace(STUDENT, D=24, Y=3, F=48)
TEACHER_BLOCKS, STUDENT_BLOCKS = (1, 2), (1, 3)  # Half way, and the end.


def make_rows():
  segments_BL = np.zeros((B, L), np.int32)
  for b, length in enumerate((12, 1, 3, 12, 2, 5, 9, 12)):
    segments_BL[b, :length] = 1
    segments_BL[b, 4:length] = 2
  tokens_BL = np.random.default_rng(0).integers(0, V, (B, L))
  return caches.rows_of(tokens_BL, segments_BL)


def without_codes():
  rows = make_rows()
  return batches.with_positions(batches.from_rows(rows), rows, M, SEED)


@functools.cache
def records(index=0):
  """The teacher's records, drawn on a mesh."""
  rows = make_rows()
  keys_B2 = sampling.row_keys(rows_lib.rows_digests(rows), SEED)
  step = functools.partial(
    teacher_step.teacher_step,
    graphdef=decoder.graphdef(TEACHER),
    sampler=sampling.Threshold(tau=0.2),
    capture=sampling.Capture(),
    num_replicas=1,
    temperature=1.0,
    chunk=5,
    gram_layers=Z,
  )
  return on_mesh(
    MESHES[index], step, parameters(TEACHER, 1), without_codes(), keys_B2
  )


def make_batch():
  batch = without_codes()
  sample = batch.gram._replace(codes_BZP=records().gram_BZP)
  return batch._replace(gram=sample)


def dense_states(cfg, params, blocks):
  """Outputs of these blocks at all positions, float64 [Z, B, L, D]."""
  rows = make_rows()

  def run(params):
    model = nnx.merge(decoder.graphdef(cfg), params)
    return model(*rows[:3], probe=operator.itemgetter("resid_post"))[1]

  return np.float64(jax.jit(run)(params))[list(blocks)]


def cosines(x_ZBLD):
  """Cosines of the drawn tokens by depth and row, float64 [n, n]."""
  sample = without_codes().gram
  out = []
  for x_BLD in x_ZBLD:
    of_rows = []
    for b in range(B):
      at = sample.positions_BM[b, sample.weights_BM[b] > 0]
      x = x_BLD[b, at] - x_BLD[b, at].mean(0)
      x /= np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
      of_rows.append(x @ x.T)
    out.append(of_rows)
  return out


def pairs_of(matrix):
  return matrix[np.triu_indices(len(matrix), 1)]


def test_the_teachers_codes_are_its_cosines():
  found = records().gram_BZP
  assert found.shape == (B, Z, M * (M - 1) // 2) and found.dtype == np.int8
  wanted = cosines(
    dense_states(TEACHER, parameters(TEACHER, 1), TEACHER_BLOCKS)
  )
  seen = []
  for z, b in np.ndindex(Z, B):
    n = len(wanted[z][b])
    codes_MM = np.zeros((M, M))
    codes_MM[np.triu_indices(M, 1)] = found[b, z]
    error = pairs_of(codes_MM[:n, :n]) / 127 - pairs_of(wanted[z][b])
    np.testing.assert_allclose(error, 0, atol=1 / 254 + 1e-5)
    assert not codes_MM[:, n:].any()
    seen.extend(pairs_of(wanted[z][b]))
  assert np.std(seen) > 0.2  # No two tokens lie alike.


@pytest.mark.parametrize("index", [1, 3])
def test_any_mesh_finds_the_same_bytes(index):
  """If products are summed over devices a cosine may be on an edge."""
  alone, split = records(0), records(index)
  for name in ("ids_BMLK", "codes_BMLK"):
    same = getattr(alone, name) == getattr(split, name)
    assert same.mean() > 0.99
  difference = split.gram_BZP.astype(int) - alone.gram_BZP
  if "tensor" not in MESHES[index]:
    assert not difference.any()
  assert (difference != 0).mean() < 0.01 and np.abs(difference).max() <= 1


def states(x_BLD):
  """A student's states of two depths at the drawn positions, [Z, B, M, D]."""
  at_BM1 = without_codes().gram.positions_BM[..., None]
  return jnp.stack([jnp.take_along_axis(x_BLD, at_BM1, 1)] * Z)


def test_rotated_states_are_at_no_distance_and_distorted_ones_are():
  """Through the bytes of a cache: only the rounding of codes remains."""
  rng = np.random.default_rng(2)
  x_BLD = rng.normal(size=(B, L, 6)).astype(np.float32)
  sample = without_codes().gram
  sample = sample._replace(codes_BZP=gram.codes(states(x_BLD), sample))
  rotation = stats.ortho_group.rvs(6, random_state=0).astype(np.float32)
  # Into a wider space, larger and elsewhere.
  moved = 3 * np.pad(x_BLD @ rotation, ((0, 0), (0, 0), (0, 4))) + 1

  @jax.jit
  def distance(x_BLD):
    total = gram.distance(states(x_BLD), sample)
    return total / gram.num_rows(sample)

  # Errors of codes are even over 1/127: their mean square is a twelfth of it.
  assert 0 < distance(moved) < 1.2 / 12 / 127**2
  stretched = x_BLD * np.linspace(0.2, 3, 6, dtype=np.float32)
  assert distance(stretched) > 0.02
  assert float(gram.num_rows(sample)) == B - 1  # One has a single token.


@functools.cache
def trainer(axes, microbatches, tx=None, **changes):
  """A step of hard labels and a Gram, whose weight is an argument."""
  cfg = dataclasses.replace(STUDENT, **changes)
  run = functools.partial(
    steps.train_step,
    graphdef=decoder.graphdef(cfg),
    tx=tx or keep_gradient(),
    alpha=optax.constant_schedule(0.0),
    objective=losses.Objective(chunk=L),
    microbatches=microbatches,
  )
  mesh = make_mesh(MESHES[axes])

  def call(state, batch, weight):
    return run(state, batch, gram_weight=weight)

  compiled = jax.jit(call)

  def on_the_mesh(state, weight):
    with jax.set_mesh(mesh):
      where = sharding.state_shardings(state, mesh)
      state = jax.device_put(state, where)
      return compiled(state, sharding.put_rows(make_batch(), mesh), weight)

  return on_the_mesh


def start(params, tx=None):
  opt_state = tx.init(params) if tx else jax.tree.map(np.zeros_like, params)
  return steps.TrainState(np.zeros((), np.int32), params, opt_state)


@functools.cache
def step(axes=0, microbatches=1, weight=0.7, **changes):
  """(gradient, metrics) of a step."""
  run = trainer(axes, microbatches, **changes)
  state, metrics = jax.device_get(run(start(parameters(STUDENT)), weight))
  return state.opt_state, metrics


def oracle():
  """The mean over rows with two tokens and over depths, float64."""
  student = cosines(dense_states(STUDENT, parameters(STUDENT), STUDENT_BLOCKS))
  codes_BZP, by_depth = records().gram_BZP, []
  for z in range(Z):
    by_row = []
    for b in range(B):
      n = len(student[z][b])
      teacher_MM = np.zeros((M, M))
      teacher_MM[np.triu_indices(M, 1)] = codes_BZP[b, z] / 127
      if n >= 2:
        difference = pairs_of(student[z][b]) - pairs_of(teacher_MM[:n, :n])
        by_row.append((difference**2).mean())
    by_depth.append(np.mean(by_row))
  assert len(by_row) == B - 1
  return np.mean(by_depth)


def test_a_step_adds_the_mean_over_rows_and_depths():
  metrics = step()[1]
  assert metrics["gram"] == pytest.approx(oracle(), rel=1e-4)
  wanted = metrics["hard_label_nats"] + 0.7 * metrics["gram"]
  assert metrics["loss_nats"] == pytest.approx(wanted, rel=1e-6)
  without = step(weight=0.0)
  assert without[1]["loss_nats"] == without[1]["hard_label_nats"]
  # All below the last block learns of it; the head does not, but embeds too.
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b).max() > 1e-5, step()[0], without[0]
  )
  found = jax.tree_util.tree_leaves_with_path(moved)
  still = [
    jax.tree_util.keystr(path) for path, is_moved in found if not is_moved
  ]
  assert len(still) == 1 and "final_norm" in still[0]


@functools.cache
def evaluation(axes, **changes):
  cfg = dataclasses.replace(STUDENT, **changes)
  run = functools.partial(
    steps.eval_step,
    graphdef=decoder.graphdef(cfg),
    objective=losses.Objective(chunk=L),
  )
  mesh = make_mesh(MESHES[axes])
  compiled = jax.jit(run)

  def call(params):
    with jax.set_mesh(mesh):
      where = sharding.state_shardings(params, mesh)
      params = jax.device_put(params, where)
      batch = sharding.put_rows(make_batch(), mesh)
      sums = jax.device_get(compiled(params, batch)).gram
    assert sums.rows == B - 1
    return float(sums.distance / sums.rows)

  return call


def test_an_evaluation_gives_sums_of_which_a_step_has_the_mean():
  found = evaluation(3)(parameters(STUDENT))
  assert found == pytest.approx(step()[1]["gram"], rel=1e-5)


def test_in_bfloat16_the_distance_is_much_the_same():
  found = evaluation(0, dtype="bfloat16")(parameters(STUDENT))
  assert found == pytest.approx(step()[1]["gram"], rel=0.05)


def test_the_gradient_is_that_of_finite_differences():
  """Along a direction through all parameters."""
  params, rng = parameters(STUDENT), np.random.default_rng(4)
  direction = jax.tree.map(
    lambda a: rng.normal(size=a.shape).astype(np.float32), params
  )

  def distance(t):
    return evaluation(0)(
      jax.tree.map(lambda a, d: a + np.float32(t) * d, params, direction)
    )

  h = 2e-3
  slope = (distance(h) - distance(-h)) / (2 * h)
  (gradient, _), (labels, _) = step(), step(weight=0.0)
  products = jax.tree.map(
    lambda a, b, d: ((np.float64(a) - b) * d).sum(), gradient, labels, direction
  )
  assert sum(jax.tree.leaves(products)) / 0.7 == pytest.approx(slope, rel=0.01)


@pytest.mark.parametrize(
  "other",
  [
    dict(axes=1, remat="full"),
    dict(axes=3, microbatches=4),
    *(
      pytest.param(dict(axes=i, **more), marks=pytest.mark.medium)
      for i, more in ((0, dict(microbatches=4)), (2, dict(remat="dots")))
    ),
  ],
  ids=str,
)
def test_meshes_microbatches_and_remat_change_nothing(other):
  (wanted, metrics), (found, others) = step(), step(**other)
  compare = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-6)
  jax.tree.map(compare, wanted, found)
  jax.tree.map(compare, metrics, others)


def test_rows_that_fill_a_batch_up_do_not_count(tmp_path):
  """In the order of a cache: five rows, in batches of two."""
  entries = logit_cache.Entries(
    rows=make_rows(),
    ids_BLK=np.zeros((B, L, 1), np.int32),
    p_BLK=np.zeros((B, L, 1), np.float32),
    log_tail_BL=None,
    **{
      f"{name}_BL": np.zeros((B, L), np.float32)
      for name in (
        *("num_head", "num", "capture_weights", "entropy", "label_logprob"),
      )
    },
    gram=make_batch().gram,
  )

  class Cache:
    """The part of a cache that `in_order` uses."""

    manifest = type("Manifest", (), {"num_rows": 5})

    def read(self, index):
      return jax.tree.map(lambda a: a[index], entries)

  samples = [batch.gram for batch, _ in batches.in_order(Cache(), 2)]
  assert [float(gram.num_rows(sample)) for sample in samples] == [1, 2, 1]


def test_a_teacher_in_the_loop_gives_the_same_codes_and_step():
  run = functools.partial(
    teacher_step.hidden_step, graphdef=decoder.graphdef(TEACHER), gram_layers=Z
  )
  batch, params = without_codes(), parameters(TEACHER, 1)
  x_BLW, codes_BZP = on_mesh(ALONE, run, params, batch)
  np.testing.assert_array_equal(codes_BZP, records().gram_BZP)
  student = parameters(STUDENT)

  def train(state, batch, x_BLW, codes_BZP):
    head_VW = np.zeros((V, TEACHER.D), np.float32)
    teacher = losses.Teacher(x_BLW, head_VW, codes_BZP)
    return steps.train_step(
      state,
      batch,
      teacher,
      graphdef=decoder.graphdef(STUDENT),
      tx=keep_gradient(),
      alpha=optax.constant_schedule(0.0),
      objective=losses.Objective(chunk=L),
      gram_weight=0.7,
      microbatches=2,
    )

  state = start(student)
  state, metrics = on_mesh(ALONE, train, state, batch, x_BLW, codes_BZP)
  assert metrics["gram"] == pytest.approx(step()[1]["gram"], rel=1e-5)
  compare = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-6)
  jax.tree.map(compare, state.opt_state, step()[0])


def test_training_with_a_weight_brings_the_grams_nearer():
  """Beside hard labels, which alone leave them apart."""

  tx = optax.adam(1e-2)
  run = trainer(0, 1, tx)

  def train(weight):
    state = start(parameters(STUDENT), tx)
    for _ in range(25):
      state, metrics = run(state, weight)
    return {name: float(value) for name, value in metrics.items()}

  first = step()[1]["gram"]
  labels, both = train(0.0), train(5.0)
  assert both["gram"] < 0.2 * min(first, labels["gram"])
  assert both["hard_label_nats"] < 0.5 * step()[1]["hard_label_nats"]


def test_only_the_drawn_positions_of_all_blocks_are_kept():
  """[Y, B, M, D] is in the program of a teacher, [Y, B, L, D] is not."""
  run = functools.partial(
    teacher_step.hidden_step, graphdef=decoder.graphdef(TEACHER), gram_layers=Z
  )
  text = jax.jit(run).lower(parameters(TEACHER, 1), without_codes()).as_text()
  Y, D = TEACHER.Y, TEACHER.D
  assert f"{Y}x{B}x{M}x{D}xf32" in text
  assert f"{Y}x{B}x{L}x{D}xf32" not in text
