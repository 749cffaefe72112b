"""A model's own vector for a behaviour, and the vectors it is compared with.

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
  fit: behaviours.Texts  # Prompts that choose the depths.
  test: behaviours.Texts  # Prompts that everything is measured on.
  words: behaviours.Words


class Contrast(NamedTuple):
  """Means of one model at the last tokens of the two sides of all pairs."""

  with_D: np.ndarray
  without_D: np.ndarray

  @property
  def vector_D(self) -> np.ndarray:
    return self.with_D - self.without_D


class Own(NamedTuple):
  """A model's own vector for a behaviour, and its effect on that model."""

  depth: float  # Depth of the largest effect on the prompts `fit`.
  contrast: Contrast  # At that depth.
  effect: estimates.Estimate  # Effect of the vector at that depth, on `test`.
  everywhere: Mapping[float, Contrast]


def prepare(study: Study, behaviour: behaviours.Behaviour) -> Prepared:
  """Tokens of a behaviour; every second prompt is for choosing depths.

  Raises:
    ValueError: the models cannot take a text or a word.
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

  The last layer is left out if there is another: a vector after it would change
  the logits without being read by any layer.
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
    response = steering_response.respond(
      study, model, part.fit, part.words, depth, vectors
    )
    cost_N = transfer.even(response.nats_AS[0])
    effect_N = transfer.odd(response.scores_ASR[0]).mean(-1)
    areas[depth] = transfer.area_within(effect_N, cost_N)
  depth = max(areas, key=lambda d: areas[d])
  vectors = found[depth].vector_D[None]
  (scores_SR,) = steering_response.scores(
    study, model, part.test, part.words, depth, vectors
  )
  name = part.behaviour.name
  effect = transfer.effect(
    transfer.Curve(transfer.odd(scores_SR), np.zeros(0)),
    resamples=study.options.resamples,
    rng=study.rng("steering", name, model.name),
  )
  return Own(depth, found[depth], effect, found)


def matched(vectors: Sequence[np.ndarray], norm: float) -> np.ndarray:
  """Vectors scaled to a norm, [A, D]; a zero vector stays zero."""
  vectors_AD = np.stack(vectors)
  norms_A1 = np.linalg.norm(vectors_AD, axis=-1, keepdims=True)
  return vectors_AD * norm / np.maximum(norms_A1, 1e-30)


def random_vectors(study: Study, behaviour: str, D: int) -> np.ndarray:
  """Random directions, [measure.random_vectors, D]."""
  rng = study.rng("random vectors", behaviour)
  return rng.normal(size=(study.options.random_vectors, D))
