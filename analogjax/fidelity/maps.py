"""The maps of every student to the teacher, for steering."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from analogjax.evaluation.models import Model
from analogjax.evaluation.study import Study
from analogjax.fidelity import mappers
from analogjax.fidelity.steering_vectors import Own

_TEST_STEPS = 4  # Batches of held-out rows that maps are tested on.


class Maps:
  """The maps of every student to the teacher, at the chosen depths.

  This object keeps the activations at those depths.
  """

  def __init__(self, study: Study, own: Mapping[str, Mapping[str, Own]]):
    """Runs the models over the rows; maps are fitted on demand.

    `own` has the vectors of each behaviour, by model.
    """
    self._study = study
    self._fitted: dict[tuple[Any, ...], mappers.Map] = {}
    few = study.options.batch_rows * _TEST_STEPS
    test = type(study.test)(*(field[:few] for field in study.test))
    self._kept: dict[str, Any] = {}
    for name, rows in (("fit", study.fit), ("test", test)):
      points = mappers.draw_points(study, rows, name)
      for model in [study.teacher, *study.students.values()] if own else []:
        depths = sorted({part[model.name].depth for part in own.values()})
        kept = mappers.keep(study, model, rows, points, depths)
        self._kept[f"{name} {model.name}"] = kept

  @property
  def names(self) -> tuple[str, ...]:
    """Names of the mappers; one that is not trained is left out."""
    trained = self._study.options.mapper_steps > 0
    return mappers.MAPPERS if trained else mappers.MAPPERS[:-1]

  def get(self, student: Model, mapper: str, depths: tuple[float, float]):
    """The map from the student's depth to the teacher's."""
    key = (student.name, mapper, *(() if mapper == "embedding" else depths))
    if key not in self._fitted:
      self._fitted[key] = self._fit(student, mapper, depths)
    return self._fitted[key]

  def shuffled(
    self, student: Model, depths: tuple[float, float], number: int
  ) -> list[mappers.Map]:
    """Affine maps fitted on shuffled pairs."""
    rng = self._study.rng("steering shuffled", student.name)
    fit, test = self._pairs(student, depths)
    return [
      mappers.fit_affine(self._study, fit, test, rng) for _ in range(number)
    ]

  def to_json(self) -> dict[str, Any]:
    """{student: {mapper: quality}}, means over the depths used."""
    out: dict[str, Any] = {}
    for (name, mapper, *_), found in self._fitted.items():
      part = out.setdefault(name, {}).setdefault(mapper, [])
      part.append((found.unexplained, found.cosine))
    return {
      name: {
        mapper: dict(
          zip(("unexplained", "cosine"), np.mean(all_, 0).tolist(), strict=True)
        )
        for mapper, all_ in part.items()
      }
      for name, part in out.items()
    }

  def _fit(self, student, mapper, depths) -> mappers.Map:
    if mapper == "embedding":
      return mappers.fit_embedding(self._study, student)
    fit, test = self._pairs(student, depths)
    if mapper == "affine":
      return mappers.fit_affine(self._study, fit, test)
    return mappers.fit_autoencoder(self._study, student.name, fit, test)

  def _pairs(self, student, depths) -> tuple[mappers.Pairs, mappers.Pairs]:
    names = (student.name, self._study.teacher.name)
    fit, test = (
      mappers.pair(
        self._study,
        *(
          self._kept[f"{rows} {name}"][depth]
          for name, depth in zip(names, depths, strict=True)
        ),
      )
      for rows in ("fit", "test")
    )
    return fit, test
