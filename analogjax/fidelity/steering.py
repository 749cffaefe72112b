"""Steering transfer: does a vector found in a student steer the teacher?

A vector is the difference of two means at one depth of a model. The student's
vector is mapped to the teacher, scaled to the norm of the teacher's own vector
and added to the teacher's stream at the same depth. Effects are compared after
subtracting those of random vectors. docs/fidelity.md has the protocol.

Shape letters: D width, W width of the teacher, P depths, R prompts, A vectors
of an arm, N strengths above 0, S all of them with 0.
"""

import dataclasses
from typing import Any

import numpy as np

from analogjax.cli import progress
from analogjax.evaluation import estimates
from analogjax.evaluation.study import Study
from analogjax.fidelity import (
  behaviours,
  maps as maps_lib,
  steering_response,
  steering_vectors,
  transfer,
)

NATIVE, MAPPED, RANDOM_VECTOR = "native", "mapped", "random"
SHUFFLED, WRONG = "shuffled", "wrong_behaviour"
MATCHED = ("norm", "perplexity")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
  """Vectors of one kind that are added to the teacher."""

  kind: str
  model: str  # Where they were found.
  mapper: str | None = None
  vectors_AW: np.ndarray

  @property
  def name(self) -> str:
    words = (self.kind, self.model if self.mapper else "", self.mapper or "")
    return " ".join(filter(None, words))


def measure(study: Study) -> dict[str, Any]:
  """Every behaviour, from every student, by every mapper.

  Raises:
    ValueError: the texts or words of a behaviour do not suit the models.
  """
  loaded = behaviours.load_all(study.options.behaviours)
  prepared = {
    name: steering_vectors.prepare(study, found)
    for name, found in loaded.items()
  }
  models = [study.teacher, *study.students.values()]
  own = {
    name: {
      model.name: steering_vectors.find_own(study, model, part)
      for model in models
    }
    for name, part in prepared.items()
  }
  maps = maps_lib.Maps(study, own)
  found = {}
  for name, part in prepared.items():
    wrong = _wrong_vector(study, name, prepared, own)
    found[name] = _steer(study, part, own[name], maps, wrong)
    value = found[name]["native_effect"]["value"]
    progress.say(f"steering {name}: native effect {value:.2f} nats.")
  return {"behaviours": found, "maps": maps.to_json()}


def _wrong_vector(study, name, prepared, own) -> np.ndarray:
  """The teacher's own vector for another behaviour, at this one's depth."""
  depth = own[name][study.teacher.name].depth
  names = list(prepared)
  other = names[(names.index(name) + 1) % len(names)]
  if other != name:
    return own[other][study.teacher.name].everywhere[depth].vector_D
  # With one behaviour only, the pairs of a built-in one are used.
  other = next(n for n in behaviours.BUILT_IN if n != name)
  found = behaviours.load(other)
  sides = (
    behaviours.to_texts(
      [pair[i] for pair in found.pairs],
      study.tokenizer,
      max_positions=study.teacher.cfg.max_positions,
      source=found.source,
    )
    for i in range(2)
  )
  return steering_vectors.contrasts(study, study.teacher, *sides)[
    depth
  ].vector_D


def _make_arms(study, name, own, maps, wrong_W) -> list[Arm]:
  teacher, analog = study.teacher.name, study.analog
  native = own[teacher]
  norm = float(np.linalg.norm(native.contrast.vector_D))

  def arm(kind, model, mapper, vectors):
    vectors_AW = steering_vectors.matched(list(vectors), norm)
    return Arm(kind=kind, model=model, mapper=mapper, vectors_AW=vectors_AW)

  def depths(student):
    return own[student.name].depth, native.depth

  random_AW = steering_vectors.random_vectors(study, name, study.teacher.cfg.D)
  arms = [
    arm(NATIVE, teacher, None, [native.contrast.vector_D]),
    arm(RANDOM_VECTOR, teacher, None, random_AW),
  ]
  for student in study.students.values():
    for mapper in maps.names:
      map_ = maps.get(student, mapper, depths(student))
      vector_W = map_.direction(*own[student.name].contrast)
      arms.append(arm(MAPPED, student.name, mapper, [vector_W]))
  number = max(1, study.options.random_vectors // 2)
  shuffled = [
    map_.direction(*own[analog.name].contrast)
    for map_ in maps.shuffled(analog, depths(analog), number)
  ]
  return [
    *arms,
    arm(SHUFFLED, analog.name, SHUFFLED, shuffled),
    arm(WRONG, teacher, WRONG, [wrong_W]),
  ]


def _steer(study, part, own, maps, wrong_W) -> dict[str, Any]:
  """Results of one behaviour, as in fidelity.json."""
  name, native = part.behaviour.name, own[study.teacher.name]
  arms = _make_arms(study, name, own, maps, wrong_W)
  responses = steering_response.respond(
    study,
    study.teacher,
    part.test,
    part.words,
    native.depth,
    np.concatenate([arm.vectors_AW for arm in arms]),
  ).split([len(arm.vectors_AW) for arm in arms])
  curves = [response.curve for response in responses]
  why = transfer.why_undefined(native.effect, responses[1].areas_A, name)
  ratios = []
  for arm, curve in zip(arms[2:], curves[2:], strict=True):
    for way in MATCHED:
      resampling = dict(
        resamples=study.options.resamples,
        rng=study.rng("steering", name, arm.name, way),
      )
      if why:
        found = estimates.undefined(why, len(part.test.last_R)), None
      else:
        found = transfer.ratio(curve, curves[0], curves[1], way, **resampling)
      ratios.append(
        {
          "kind": arm.kind,
          "model": arm.model,
          "mapper": arm.mapper,
          "matched": way,
          "ratio": found[0].to_json(),
          "common_cost_nats": found[1],
        }
      )
  return {
    "depth": native.depth,
    "prompts": len(part.test.last_R),
    "pairs": len(part.behaviour.pairs),
    "native_effect": native.effect.to_json(),
    "undefined": why,
    "own": {
      model: {"depth": found.depth, "effect": found.effect.to_json()}
      for model, found in own.items()
    },
    "arms": [
      _arm_json(study, name, arm, response)
      for arm, response in zip(arms, responses, strict=True)
    ],
    "transfer": ratios,
  }


def _arm_json(
  study, name, arm: Arm, response: steering_response.Response
) -> dict[str, Any]:
  scores_ASR = response.scores_ASR
  S = scores_ASR.shape[1]
  if len(scores_ASR) > 1:  # The spread over the vectors.
    each_AS = scores_ASR.mean(-1)
    low, high = each_AS.min(0), each_AS.max(0)
  else:
    rng = study.rng("steering", name, arm.name, "scores")
    R = scores_ASR.shape[-1]
    bounds = [
      estimates.ratio_of_sums(
        scores_ASR[0, i],
        np.ones(R),
        resamples=study.options.resamples,
        rng=rng,
      )
      for i in range(S)
    ]
    low, high = ([getattr(b, side) for b in bounds] for side in ("low", "high"))
  return {
    "name": arm.name,
    "kind": arm.kind,
    "model": arm.model,
    "mapper": arm.mapper,
    "vectors": len(scores_ASR),
    "strengths": steering_response.strengths(study).tolist(),
    "score": scores_ASR.mean((0, 2)).tolist(),
    "score_low": list(map(float, low)),
    "score_high": list(map(float, high)),
    "perplexity_ratio": response.perplexity_ratio_S.tolist(),
  }
