"""A model's own vectors of a behaviour, and what vectors do to a model.

Shape letters: D width, P depths, R prompts, A vectors, N strengths above 0, S
all of them with 0.
"""

from collections.abc import Mapping, Sequence
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from analogjax.evaluation import estimates
from analogjax.evaluation.models import Model, everywhere
from analogjax.evaluation.study import Study
from analogjax.fidelity import (
  activations,
  behaviours,
  steering_response,
  transfer,
)


class Prepared(NamedTuple):
  """A behaviour as tokens."""

  behaviour: behaviours.Behaviour
  with_: behaviours.Texts
  without: behaviours.Texts
  fit: behaviours.Texts  # Prompts that choose the depths,
  test: behaviours.Texts  # and those that everything is measured on.
  words: behaviours.Words


class Contrast(NamedTuple):
  """Means of one model at the last tokens of the two sides of all pairs."""

  with_D: np.ndarray
  without_D: np.ndarray

  @property
  def vector_D(self) -> np.ndarray:
    return self.with_D - self.without_D


class Own(NamedTuple):
  """What a model has of a behaviour by itself."""

  depth: float  # Where its own vector does most, on the prompts for that.
  contrast: Contrast  # There.
  effect: estimates.Estimate  # Of the vector there, on the others.
  everywhere: Mapping[float, Contrast]


class Response(NamedTuple):
  """What an arm does to the teacher."""

  scores_ASR: np.ndarray
  nats_AS: np.ndarray

  @property
  def curve(self) -> transfer.Curve:
    effects = transfer.odd(np.moveaxis(self.scores_ASR, 1, 0))
    costs = transfer.even(self.nats_AS.T)
    return transfer.Curve(effects.mean(1), costs.mean(1))


def prepare(study: Study, behaviour: behaviours.Behaviour) -> Prepared:
  """A behaviour as tokens; every second prompt is for choosing depths.

  Raises:
    ValueError: texts or words that the models cannot take.
  """
  models = [study.teacher, *study.students.values()]
  to_texts = functools.partial(
    behaviours.to_texts,
    tokenizer=study.tokenizer,
    max_positions=min(model.cfg.max_positions for model in models),
    source=behaviour.source,
  )
  return Prepared(
    behaviour,
    to_texts([pair[0] for pair in behaviour.pairs]),
    to_texts([pair[1] for pair in behaviour.pairs]),
    to_texts(behaviour.prompts[0::2]),
    to_texts(behaviour.prompts[1::2]),
    behaviours.to_words(behaviour, study.tokenizer),
  )


def candidates(study: Study, model: Model) -> tuple[float, ...]:
  """Depths where a vector may be added.

  Not after the last layer, if there is another: there it would change the
  logits, and nothing of the model would read it.
  """
  depths = study.depths(model)
  return depths[:-1] or depths


def contrasts(
  study: Study,
  model: Model,
  with_: behaviours.Texts,
  without: behaviours.Texts,
) -> dict[float, Contrast]:
  """The means at the last tokens, at each candidate depth."""
  depths = candidates(study, model)
  means = []
  for texts in (with_, without):
    total_PD = np.zeros((len(depths), model.cfg.D))
    for x_PBMD, here in activations.stream(
      study, model, texts.rows, texts.last_R[:, None], depths
    ):
      weights_B = np.arange(x_PBMD.shape[1]) < here.stop - here.start
      with jax.set_mesh(study.mesh):
        total_PD += jax.device_get(
          _make_sum(study.mesh)(x_PBMD, np.float32(weights_B))
        )
    means.append(total_PD / len(texts.last_R))
  return {
    depth: Contrast(with_D, without_D)
    for depth, with_D, without_D in zip(depths, *means, strict=True)
  }


@functools.cache
def _make_sum(mesh):
  return jax.jit(
    lambda x_PBMD, weights_B: jnp.einsum("PBMD,B->PD", x_PBMD, weights_B),
    out_shardings=everywhere(mesh),
  )


def find_own(study: Study, model: Model, part: Prepared) -> Own:
  """The model's own vector, at the depth where it steers the model most.

  Strengths that break the model do not count for the choice.
  """
  found = contrasts(study, model, part.with_, part.without)
  areas = {}
  for depth, contrast in found.items():
    vectors = contrast.vector_D[None]
    scores_ASR = _scores(study, model, part.fit, part.words, depth, vectors)
    nats_AS = _nats(study, model, depth, vectors)
    cost_N = transfer.even(nats_AS[0])
    effect_N = transfer.odd(scores_ASR[0]).mean(-1)
    areas[depth] = transfer.area_within(effect_N, cost_N)
  depth = max(areas, key=lambda d: areas[d])
  vectors = found[depth].vector_D[None]
  scores_ASR = _scores(study, model, part.test, part.words, depth, vectors)
  curve = transfer.Curve(transfer.odd(scores_ASR[0]), np.zeros(0))
  name = part.behaviour.name
  effect = transfer.effect(
    curve,
    resamples=study.options.resamples,
    rng=study.rng("steering", name, model.name),
  )
  return Own(depth, found[depth], effect, found)


def respond(
  study: Study,
  model: Model,
  part: Prepared,
  depth: float,
  vectors_AD: np.ndarray,
) -> Response:
  """Scores and cost of vectors in a model, at all strengths."""
  return Response(
    _scores(study, model, part.test, part.words, depth, vectors_AD),
    _nats(study, model, depth, vectors_AD),
  )


def _nats(study, model, depth, vectors_AD) -> np.ndarray:
  """[A, S]."""
  pushes = _pushes(study, model, depth, vectors_AD)
  found = steering_response.nats_per_token(study, model, pushes)
  return _with_middle(found, len(vectors_AD))


def strengths(study: Study) -> np.ndarray:
  options = study.options
  return transfer.signed(options.max_strength, options.strengths)


def _scores(study, model, texts, words, depth, vectors_AD) -> np.ndarray:
  """[A, S, R]; without a push all vectors are one."""
  pushes = _pushes(study, model, depth, vectors_AD)
  found = steering_response.scores(study, model, texts, words, pushes)
  return _with_middle(found, len(vectors_AD))


def _pushes(study, model, depth, vectors_AD) -> list[steering_response.Push]:
  """None, then all strengths but 0 of each vector."""
  block = model.block(depth)
  return [steering_response.no_push(model)] + [
    steering_response.Push(block, vector_D, float(strength))
    for vector_D in vectors_AD
    for strength in strengths(study)
    if strength
  ]


def _with_middle(found: np.ndarray, A: int) -> np.ndarray:
  """What `_pushes` gave, [A, S, ...]."""
  each = found[1:].reshape(A, -1, *found.shape[1:])
  middle = np.broadcast_to(found[0], (A, 1, *found.shape[1:]))
  N = each.shape[1] // 2
  return np.concatenate([each[:, :N], middle, each[:, N:]], axis=1)


def area(scores_ASR: np.ndarray) -> np.ndarray:
  """Mean effect over strengths and prompts, [A]."""
  effect_NAR = transfer.odd(np.moveaxis(scores_ASR, 1, 0))
  w_N = transfer.norm_weights(len(effect_NAR))
  return np.einsum("N,NAR->AR", w_N, effect_NAR).mean(-1)


def matched(vectors: Sequence[np.ndarray], norm: float) -> np.ndarray:
  """Vectors brought to a norm, [A, D]; one of zeros stays."""
  vectors_AD = np.stack(vectors)
  norms_A1 = np.linalg.norm(vectors_AD, axis=-1, keepdims=True)
  return vectors_AD * norm / np.maximum(norms_A1, 1e-30)


def random_vectors(study: Study, behaviour: str, D: int) -> np.ndarray:
  """Directions without preference, [measure.random_vectors, D]."""
  rng = study.rng("random vectors", behaviour)
  return rng.normal(size=(study.options.random_vectors, D))
