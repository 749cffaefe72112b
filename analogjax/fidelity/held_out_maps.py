"""Affine maps from every student to the teacher, tested on held-out rows.

The teacher runs once for all students.

Shape letters: R rows, B rows of a step, M points of a row, D width of a
student.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from analogjax.data import rows as rows_lib
from analogjax.evaluation.study import Study
from analogjax.fidelity import activations, least_squares

Pairs = dict[str, list[tuple[float, float]]]  # By student: depth, teacher's.


def nearest(mine: Sequence[float], theirs: Sequence[float]) -> list[int]:
  """For each depth the index of the nearest of the others, of two the first."""
  theirs_Q = np.asarray(theirs)
  # Rounded: 1/2 is as far from 1/3 as from 2/3.
  return [int(np.abs(theirs_Q - depth).round(6).argmin()) for depth in mine]


def measure(
  study: Study, points_RM: np.ndarray
) -> dict[str, list[dict[str, Any]]]:
  """By student, what is left unexplained at each depth.

  From a depth of the student to the same part of the teacher's, or the nearest
  that there is: nothing is chosen by its result.

  Args:
    study: rows `fit` are fitted on and rows `test` tested on.
    points_RM: points of the test rows.

  Raises:
    ValueError: a row of training data that has no tokens to fit on.
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
  pairs: Pairs = {}
  for name, student in study.students.items():
    mine = study.depths(student)
    depths = [theirs[j] for j in nearest(mine, theirs)]
    pairs[name] = list(zip(mine, depths, strict=True))
  of_fit = _moments(study, study.fit, fit_points_RM, pairs)
  of_test = _moments(study, study.test, points_RM, pairs)
  found: dict[str, list[dict[str, Any]]] = {}
  for name, depths in pairs.items():
    found[name] = []
    for i, (depth, teacher_depth) in enumerate(depths):
      map_ = least_squares.solve(of_fit[name][i], 0, 0)
      value = least_squares.unexplained(map_, of_test[name][i], 0, 0)
      found[name].append(
        {
          "student_depth": depth,
          "teacher_depth": teacher_depth,
          "unexplained": value,
        }
      )
  return found


def _moments(
  study: Study, rows: rows_lib.Rows, positions_RM: np.ndarray, pairs: Pairs
) -> dict[str, list[least_squares.Moments]]:
  """Of each pair of depths, by itself."""
  theirs = study.depths(study.teacher)
  names = list(pairs)
  of_students = [
    activations.stream(
      study, study.students[name], rows, positions_RM, [a for a, _ in some]
    )
    for name, some in pairs.items()
  ]
  of_teacher = activations.stream(
    study, study.teacher, rows, positions_RM, theirs
  )
  totals: dict[str, list[least_squares.Moments]] = {}
  for (y_QBMW, here), *xs in zip(of_teacher, *of_students, strict=True):
    for name, (x_PBMD, _) in zip(names, xs, strict=True):
      parts = []
      for i, (_, depth) in enumerate(pairs[name]):
        q = theirs.index(depth)
        x_1BMD, y_1BMW = x_PBMD[i : i + 1], y_QBMW[q : q + 1]
        parts.append(least_squares.of_batch(study, x_1BMD, y_1BMW, here))
      before = totals.get(name)
      totals[name] = (
        parts
        if before is None
        else [
          least_squares.added(a, b) for a, b in zip(before, parts, strict=True)
        ]
      )
  return totals
