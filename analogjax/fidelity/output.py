"""Output fidelity: the students' predictions compared with the teacher's.

All numbers come from sums over rows (token_sums.py). Intervals resample rows,
because the tokens of a row are not independent. Every interval uses the same
resamples, so that two models differ only in their predictions.

Shape letters: R rows, K metrics, E bins of entropy, C bins of confidence, Z
bins of loss, N documents, S resamples; `...` resamples, or nothing.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
import numpy as np

from analogjax.data import rows as rows_lib
from analogjax.evaluation import estimates
from analogjax.evaluation.estimates import Estimate
from analogjax.evaluation.models import Model, everywhere
from analogjax.evaluation.study import Study
from analogjax.fidelity import token_sums
from analogjax.fidelity.token_sums import RowSums

CHUNK = 64  # Positions of a row whose logits are in memory at a time.


def measure(study: Study) -> dict[str, Any]:
  """The section "output" of fidelity.json, on held-out rows and by domain.

  Every model has its metrics, also by the teacher's entropy and by domain, and
  its reliability. Students also report whether they fail where the teacher
  does.
  """
  parts = {"": study.test, **study.domains}
  documents = max(int(rows.segments_BL.max()) for rows in parts.values())
  sums = {
    name: _stream(study, rows, max(documents, 1))
    for name, rows in parts.items()
  }
  models = {}
  for name, whole in sums[""].items():
    of_teacher = sums[""]["teacher"]
    models[name] = {
      "metrics": _metrics(study, whole, of_teacher),
      "by_entropy": _by_entropy(study, whole, of_teacher),
      "by_domain": {
        domain: _metrics(study, part[name], part["teacher"])
        for domain, part in sums.items()
        if domain
      },
      "reliability": _reliability(whole),
    }
    if name != "teacher":
      models[name]["outcomes"] = _outcomes(study, whole, of_teacher)
  return {"models": models}


def _stream(
  study: Study, rows: rows_lib.Rows, documents: int
) -> dict[str, RowSums]:
  """Every model's sums over all rows, float64, on every process."""
  models: list[Model] = [study.teacher, *study.students.values()]
  step = token_sums.make_step(
    tuple((model.name, model.cfg) for model in models),
    study.mesh,
    chunk=CHUNK,
    documents=documents,
  )
  params = {model.name: model.params for model in models}
  whole = jax.jit(lambda x: x, out_shardings=everywhere(study.mesh))
  parts = []
  for batch, here in study.batches(rows, *models):
    with jax.set_mesh(study.mesh):
      found = jax.device_get(whole(step(params, batch)))
    number = here.stop - here.start
    # The last batch may hold more rows.
    parts.append(jax.tree.map(lambda a, n=number: np.float64(a[:n]), found))
  return jax.tree.map(lambda *some: np.concatenate(some), *parts)


def _bootstrap(
  study: Study,
  statistic: Callable[[np.ndarray], np.ndarray],
  *by_row: np.ndarray,
) -> Estimate:
  """The estimate of a statistic of sums over rows.

  Args:
    statistic: takes sums over rows [..., X] and returns a number for each.
    *by_row: terms of the sums, [R, X] each; joined along X.
  """
  x_RX = np.concatenate([a.reshape(len(a), -1) for a in by_row], axis=1)
  R = len(x_RX)

  def of_draws(draws_SR):
    counts_SR = np.zeros((len(draws_SR), R))
    np.add.at(counts_SR, (np.arange(len(draws_SR))[:, None], draws_SR), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
      return statistic(counts_SR @ x_RX)

  return estimates.bootstrap(
    of_draws,
    R,
    resamples=study.options.resamples,
    rng=study.rng("output"),
  )


def _mean(study: Study, top_R: np.ndarray, tokens_R: np.ndarray) -> Estimate:
  if not tokens_R.sum():
    return estimates.undefined("no token is there", len(tokens_R))
  found = _bootstrap(
    study, lambda x: x[..., 0] / x[..., 1], top_R[:, None], tokens_R[:, None]
  )
  if found.value is None:
    return found._replace(why="too few rows have such tokens")
  return found


def _token_metrics(
  study: Study, x_RK: np.ndarray, of_teacher_RK: np.ndarray | None
) -> dict[str, Estimate]:
  """Means over tokens; `of_teacher_RK` is None for the teacher itself."""
  tokens_R = x_RK[:, 0]
  names = (
    token_sums.METRICS if of_teacher_RK is not None else token_sums.OF_TEACHER
  )
  out = {
    name: _mean(study, x_RK[:, k], tokens_R)
    for k, name in enumerate(names)
    if name != "tokens"
  }
  if of_teacher_RK is not None:
    k = names.index("cross_entropy_nats")
    gap_R = x_RK[:, k] - of_teacher_RK[:, k]
    out["cross_entropy_gap_nats"] = _mean(study, gap_R, tokens_R)
  return out


def _metrics(
  study: Study, model: RowSums, teacher: RowSums
) -> dict[str, dict[str, Any]]:
  of_teacher_RK = None
  if model is not teacher:
    of_teacher_RK = teacher.by_entropy_BKE.sum(-1)
  out = _token_metrics(study, model.by_entropy_BKE.sum(-1), of_teacher_RK)
  out["expected_calibration_error"] = _bootstrap(
    study, calibration_error, model.confidence_B3C
  )
  return {name: estimate.to_json() for name, estimate in out.items()}


def _by_entropy(
  study: Study, model: RowSums, teacher: RowSums
) -> list[dict[str, Any]]:
  out = []
  edges = [None if math.isinf(x) else x for x in token_sums.ENTROPY_EDGES]
  for e in range(len(edges) - 1):
    x_RK = model.by_entropy_BKE[..., e]
    of_teacher_RK = None
    if model is not teacher:
      of_teacher_RK = teacher.by_entropy_BKE[..., e]
    metrics = _token_metrics(study, x_RK, of_teacher_RK)
    out.append(
      {
        "from": edges[e],
        "to": edges[e + 1],
        "tokens": float(x_RK[:, 0].sum()),
        "metrics": {name: x.to_json() for name, x in metrics.items()},
      }
    )
  return out


def calibration_error(x: np.ndarray) -> np.ndarray:
  """Mean of |confidence - accuracy| over bins, weighted by their tokens.

  Source: Guo et al., arXiv:1706.04599, eq. 3. It is never below 0, so few
  tokens in a bin make it larger.

  `x` has weight, confidence and correct of each bin, [..., 3 C].
  """
  weight, confidence, correct = np.split(x, 3, axis=-1)
  return np.abs(confidence - correct).sum(-1) / weight.sum(-1)


def _reliability(model: RowSums) -> list[dict[str, float]]:
  return [
    {
      "confidence": confidence / weight,
      "accuracy": correct / weight,
      "tokens": weight,
    }
    for weight, confidence, correct in model.confidence_B3C.sum(0).T.tolist()
    if weight
  ]


def _outcomes(
  study: Study, model: RowSums, teacher: RowSums
) -> dict[str, dict[str, Any]]:
  """Whether a student fails where the teacher fails."""
  out = {
    "kappa": _bootstrap(study, kappa, model.joint_B4),
    "auc": _bootstrap(study, area_under_curve, model.loss_B2Z),
    "spearman": _documents(study, model, teacher),
  }
  why = {
    "kappa": "the models are always right, or always wrong",
    "auc": "the teacher is always right, or always wrong",
    "spearman": "fewer than 3 documents, or of equal losses",
  }
  return {
    name: found._replace(why=why[name] if found.value is None else "").to_json()
    for name, found in out.items()
  }


def kappa(x: np.ndarray) -> np.ndarray:
  """Agreement of two models on right and wrong, beyond chance.

  Source: Cohen, A coefficient of agreement for nominal scales (1960).

  Args:
    x: [..., 4] weights of both wrong, one and the other right, both right.
  """
  wrong, mine, yours, right = np.moveaxis(x, -1, 0)
  total = wrong + mine + yours + right
  agree = (wrong + right) / total
  chance = (mine + right) * (yours + right) + (wrong + yours) * (wrong + mine)
  chance = chance / total**2
  return (agree - chance) / (1 - chance)


def area_under_curve(x: np.ndarray) -> np.ndarray:
  """Probability that a token the teacher gets wrong has the larger loss.

  The mean is over all pairs of a token that the teacher gets wrong and one that
  it gets right. Pairs in the same bin of loss count half, so binning changes
  the result by at most half of the pairs that share a bin.

  Source: Hanley and McNeil (1982), the area under the ROC curve as a Wilcoxon
  statistic.

  Args:
    x: [..., 2 Z] weights where the teacher is wrong, and right, by loss.
  """
  wrong, right = np.split(x, 2, axis=-1)
  below = np.cumsum(right, axis=-1) - right / 2
  return (wrong * below).sum(-1) / (wrong.sum(-1) * right.sum(-1))


def _documents(study: Study, model: RowSums, teacher: RowSums) -> Estimate:
  """Rank correlation of the two models' mean losses of documents."""
  rows_N, at_N = np.nonzero(teacher.documents_B2G[:, 0])

  def losses(sums):
    weight_N, loss_N = sums.documents_B2G[rows_N, :, at_N].T
    return loss_N / weight_N

  x_N, y_N = losses(model), losses(teacher)
  R = len(teacher.documents_B2G)
  if len(rows_N) < 3:
    return estimates.undefined("fewer than 3 documents", R)

  def of_draws(draws_SR):
    found = []
    for draws_R in draws_SR:  # One by one: there may be many documents.
      counts_R = np.bincount(draws_R, minlength=R)
      found.append(spearman(x_N, y_N, counts_R[rows_N]))
    return np.asarray(found)

  return estimates.bootstrap(
    of_draws, R, resamples=study.options.resamples, rng=study.rng("output")
  )


def spearman(x_N: np.ndarray, y_N: np.ndarray, counts_N: np.ndarray) -> float:
  """Rank correlation of items with multiplicities; ties share ranks.

  Source: Spearman, The proof and measurement of association between two things
  (1904).
  """
  ranks = []
  for a_N in (x_N, y_N):
    _, group_N = np.unique(a_N, return_inverse=True)
    of_group = np.bincount(group_N, counts_N)
    ranks.append((np.cumsum(of_group) - (of_group - 1) / 2)[group_N])
  total = counts_N.sum()
  p_N, q_N = (r_N - (r_N @ counts_N) / total for r_N in ranks)
  with np.errstate(divide="ignore", invalid="ignore"):
    spread = np.sqrt((counts_N @ p_N**2) * (counts_N @ q_N**2))
    return float(counts_N @ (p_N * q_N) / spread)
