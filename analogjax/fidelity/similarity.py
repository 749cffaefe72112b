"""Similarity: whether students and teacher represent tokens alike.

Nothing here is causal. Every number is reported with its null distribution: a
number that unrelated models also reach says nothing.

Shape letters: R rows, L positions, M points of a row, N = R x M points or
tokens of the vocabulary, D width of a model, P depths of a student, Q of the
teacher, C orders of the rows.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from analogjax.cli import progress
from analogjax.distributed import processes
from analogjax.evaluation.models import Model, everywhere
from analogjax.evaluation.study import Study
from analogjax.fidelity import activations, kernels, least_squares, permutation
from analogjax.models import decoder

# Metric -> the statistic that compares the output of `_reduce` for it.
METRICS: Mapping[str, Callable[..., np.ndarray]] = {
  "mutual_knn": permutation.inner_products,
  "unbiased_cka": permutation.inner_products,
  "procrustes": permutation.nuclear_norms,
}
# Fewer rows have too few orders, fewer tokens too few pairs.
LEAST_ROWS, LEAST_TOKENS = 8, 64
_BYTES = 1 << 30  # Bytes of one model's activations that are held at a time.

Streams = dict[str, list[activations.Batch]]  # By model, all of its depths.


def measure(study: Study) -> dict[str, Any]:
  """Every student against the teacher: layers, unembeddings, affine maps.

  Raises:
    ValueError: there are too few rows, points or tokens, or activations are not
      finite or the same at every point. Names the model or the field.
  """
  R = len(study.test.tokens_BL)
  if R < LEAST_ROWS:
    raise ValueError(
      f"measure: similarity needs at least {LEAST_ROWS} held-out rows, found"
      f" {R}: its null permutes whole rows; set cache.held_out_rows higher."
    )
  models = (study.teacher, *study.students.values())
  special = activations.special_tokens(study.tokenizer)
  points_RM = activations.draw_points(
    activations.ordinary(study.test, special),
    -(-study.options.points // R),
    study.rng("similarity", "points"),
  )
  orders_CR = permutation.draw_orders(
    R, study.options.permutations, study.rng("similarity", "orders")
  )
  streams: Streams = {}
  teacher, kept = represent(study, study.teacher, points_RM, streams)
  kept_of, found = {"teacher": kept}, {}
  for name, student in study.students.items():
    own, kept_of[name] = represent(study, student, points_RM, streams)
    found[name] = {
      metric: _between(study, student, metric, own, teacher, orders_CR)
      for metric in METRICS
    }
    del own
  del teacher
  return {
    "points": points_RM.size,
    "permutations": study.options.permutations,
    "depths": {model.name: list(study.depths(model)) for model in models},
    "models": found,
    "variance_in_components": kept_of,
    "embeddings": _embeddings(study),
    "maps": _maps(study, points_RM, streams),
  }


def represent(
  study: Study,
  model: Model,
  points_RM: np.ndarray,
  streams: Streams | None = None,
) -> tuple[dict[str, np.ndarray], list[float]]:
  """The representations of a model that the metrics compare, at each depth.

  Activations are held for as many depths at a time as fit into 1 GiB over all
  devices, at least one. Each depth leaves two kernels of [N, N] and [N,
  COMPONENTS] on the host. If all depths fit at once they stay in `streams`, so
  that the model need not run again.

  Returns:
    Representations by metric, [P, N, ...]; and the fraction of the variance in
    the components.

  Raises:
    ValueError: activations are the same at every point.
  """
  R, N = len(points_RM), points_RM.size
  at_a_time = max(1, _BYTES // (4 * N * model.cfg.D))
  depths = study.depths(model)
  found: list[dict[str, np.ndarray]] = []
  kept: list[float] = []
  for some in _groups(depths, at_a_time):
    stream = list(activations.stream(study, model, study.test, points_RM, some))
    if streams is not None and len(some) == len(depths):
      streams[model.name] = stream
    parts = tuple(x_PBMD for x_PBMD, _ in stream)
    for i, depth in enumerate(some):
      with jax.set_mesh(study.mesh):
        out = jax.device_get(_make_reduce(study.mesh, R)(parts, i))
      reduced, part, constant = out
      if constant:
        raise ValueError(
          f"measure: activations of {model.name} at depth {depth:.2f} are the"
          f" same at all {N} points, so that no similarity is defined; the"
          " checkpoint is damaged, or the held-out rows repeat one token."
        )
      found.append(reduced)
      kept.append(float(part))
  return {m: np.stack([one[m] for one in found]) for m in METRICS}, kept


def _groups(items: Sequence, at_a_time: int) -> list[Sequence]:
  starts = range(0, len(items), at_a_time)
  return [items[i : i + at_a_time] for i in starts]


@functools.cache
def _make_reduce(mesh: Mesh, R: int):
  """([P, B, M, D] of all batches, p) -> by metric, variance, constant?"""

  def step(parts, p):
    # The last batch may hold more rows than there are.
    x_RMD = jnp.concatenate([x_PBMD[p] for x_PBMD in parts])[:R]
    x_ND = x_RMD.reshape(-1, x_RMD.shape[-1])
    return *reduce(x_ND), kernels.is_constant(x_ND)

  return jax.jit(step, out_shardings=everywhere(mesh))


def reduce(x_ND: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
  """Input of each metric, and the variance that the components keep."""
  scores_NE, kept = kernels.principal(x_ND)
  return {
    "mutual_knn": kernels.neighbours(x_ND),
    "unbiased_cka": kernels.covariances(x_ND),
    "procrustes": scores_NE,
  }, kept


def compare(
  metric: str,
  left: np.ndarray,
  right: np.ndarray,
  orders_CU: np.ndarray,
  mesh: Mesh,
) -> np.ndarray:
  """One metric over all pairs of depths and all orders, [C, P, Q].

  `orders_CU` are from `permutation.draw_orders`; the first is unchanged.
  """
  by_right = []
  for q, one in enumerate(right):
    progress.doing(f"{metric} against chance: depth {q + 1} of {len(right)}")
    processes.stop_if_asked("measure: what was measured in full is kept")
    by_right.append(METRICS[metric](left, one, orders_CU, mesh))
  return np.stack(by_right, axis=-1)


def greatest(found_CPQ: np.ndarray) -> dict[str, Any]:
  """The best pair of depths, calibrated.

  The pair was chosen, so the null also takes the best pair of every order. A
  fixed pair's null would be beaten by chance, more often with more pairs.
  """
  best_C = found_CPQ.max((1, 2))
  return permutation.calibrated(best_C[0], best_C[1:])


def _between(
  study: Study,
  student: Model,
  metric: str,
  own: dict[str, np.ndarray],
  teacher: dict[str, np.ndarray],
  orders_CR: np.ndarray,
) -> dict[str, Any]:
  found_CPQ = compare(
    metric, own[metric], teacher[metric], orders_CR, study.mesh
  )
  mine, theirs = study.depths(student), study.depths(study.teacher)
  # Rounded, so that the first of equals is chosen on every mesh.
  p, q = np.unravel_index(found_CPQ[0].round(4).argmax(), found_CPQ.shape[1:])
  return {
    "matrix": found_CPQ[0].tolist(),
    "best": {"student_depth": mine[p], "teacher_depth": theirs[q]},
    **greatest(found_CPQ),
  }


def _embeddings(study: Study) -> dict[str, Any]:
  """Similarity of the unembeddings of tokens that are in the held-out rows."""
  rows = study.test
  tokens_N = np.unique(rows.tokens_BL[rows.segments_BL > 0])
  if len(tokens_N) < LEAST_TOKENS:
    raise ValueError(
      f"measure: the held-out rows have {len(tokens_N)} different tokens,"
      f" expected at least {LEAST_TOKENS} to compare unembeddings."
    )
  rng = study.rng("similarity", "tokens")
  N = min(len(tokens_N), study.options.points)
  tokens_N = np.sort(rng.choice(tokens_N, N, replace=False))
  orders_CN = permutation.draw_orders(N, study.options.permutations, rng)

  def kernel_of(model):
    step = _make_cosines(model.cfg, study.mesh)
    with jax.set_mesh(study.mesh):
      return jax.device_get(step(model.params, tokens_N))

  teacher_NN = kernel_of(study.teacher)
  found = {}
  for name, student in study.students.items():
    found_C1 = permutation.inner_products(
      kernel_of(student)[None], teacher_NN, orders_CN, study.mesh
    )
    found[name] = {
      **permutation.calibrated(found_C1[0, 0], found_C1[1:, 0]),
      "tokens": N,
    }
  return found


@functools.cache
def _make_cosines(cfg: decoder.DecoderConfig, mesh: Mesh):
  def step(params, tokens_N):
    head_VD = nnx.merge(decoder.graphdef(cfg), params).head_VD
    # The mean row adds the same to all logits of a position, and so does not
    # change the model.
    return kernels.cosines(jnp.take(head_VD, tokens_N, axis=0))

  return jax.jit(step, out_shardings=everywhere(mesh))


def nearest(mine: Sequence[float], theirs: Sequence[float]) -> list[int]:
  """Index of the nearest other depth, for each depth; of equals, the first."""
  theirs_Q = np.asarray(theirs)
  # Rounded: 1/2 is as far from 1/3 as from 2/3.
  return [int(np.abs(theirs_Q - depth).round(6).argmin()) for depth in mine]


def _maps(
  study: Study, points_RM: np.ndarray, streams: Streams
) -> dict[str, list[dict[str, Any]]]:
  """Variance that an affine map leaves unexplained, by student.

  Maps go from each depth of the student to the same depth of the teacher, or
  the nearest one, so nothing is chosen by its result. They are fitted on the
  rows `fit` and tested on the rows `test`.

  Args:
    streams: activations there, of the models for which they were kept.

  Raises:
    ValueError: a row of training data has no tokens to fit on.
  """
  special = activations.special_tokens(study.tokenizer)
  fit = activations.ordinary(study.fit, special)
  shortest = int(np.min(np.sum(fit.segments_BL > 0, axis=1)))
  D = max(student.cfg.D for student in study.students.values())
  wanted = -(-least_squares.POINTS_PER_INPUT * D // len(fit.tokens_BL))
  fit_points_RM = activations.draw_points(
    fit, max(1, min(wanted, shortest)), study.rng("maps", "points")
  )
  theirs = study.depths(study.teacher)
  pairs = {
    (name, i): (name, slice(i, i + 1), slice(q, q + 1))
    for name, student in study.students.items()
    for i, q in enumerate(nearest(study.depths(student), theirs))
  }

  def moments(rows, positions_RM, kept):
    def stream(model):
      return kept.get(model.name) or activations.stream(
        study, model, rows, positions_RM, study.depths(model)
      )

    students = {name: stream(model) for name, model in study.students.items()}
    return least_squares.of_several(
      study, students, stream(study.teacher), pairs
    )

  of_fit = moments(study.fit, fit_points_RM, {})
  of_test = moments(study.test, points_RM, streams)
  found: dict[str, list[dict[str, Any]]] = {}
  for (name, i), (_, _, q) in pairs.items():
    map_ = least_squares.solve(of_fit[name, i], 0, 0)
    found.setdefault(name, []).append(
      {
        "student_depth": study.depths(study.students[name])[i],
        "teacher_depth": theirs[q.start],
        "unexplained": least_squares.unexplained(map_, of_test[name, i], 0, 0),
      }
    )
  return found
