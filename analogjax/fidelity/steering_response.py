"""A model's response to vectors that are added to its residual stream.

A vector is added after one block, at every position. The blocks up to that one
are not affected, so they run once for all vectors and strengths. Block, vector
and strength are traced: a model has one program for prompts and one for text.

Shape letters: R prompts, B rows of a step, L positions, D width of the model, K
words, A vectors, N strengths above 0, S all strengths with 0.
"""

from collections.abc import Callable, Sequence
import functools
import math
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from analogjax.cache import batches
from analogjax.cli import progress
from analogjax.data import rows as rows_lib
from analogjax.distributed import processes, sharding
from analogjax.evaluation import models as models_lib
from analogjax.evaluation.models import Model, everywhere
from analogjax.evaluation.study import Study
from analogjax.fidelity import activations, behaviours, transfer
from analogjax.models import decoder
from analogjax.training import losses

_TEXT_POSITIONS = 64  # Positions of each row that perplexity is measured on.
_CHUNK = 1024  # Tokens of a device whose logits are in memory at a time.
_WORDS = 32  # Words are padded to a multiple of it: one program for most.


class Response(NamedTuple):
  """Scores and cost of vectors, from the most negative strength on."""

  scores_ASR: np.ndarray
  nats_AS: np.ndarray

  @property
  def curve(self) -> transfer.Curve:
    effects = transfer.odd(np.moveaxis(self.scores_ASR, 1, 0))
    costs = transfer.even(self.nats_AS.T)
    return transfer.Curve(effects.mean(1), costs.mean(1))

  @property
  def areas_A(self) -> np.ndarray:
    """Mean effect of each vector over strengths and prompts."""
    effect_NAR = transfer.odd(np.moveaxis(self.scores_ASR, 1, 0))
    w_N = transfer.norm_weights(len(effect_NAR))
    return np.einsum("N,NAR->AR", w_N, effect_NAR).mean(-1)

  @property
  def perplexity_ratio_S(self) -> np.ndarray:
    """Perplexity relative to no push, a geometric mean over the vectors."""
    middle = self.nats_AS.shape[1] // 2
    increase_S = (self.nats_AS - self.nats_AS[:, [middle]]).mean(0)
    return np.exp(np.minimum(increase_S, 700))

  def split(self, numbers: Sequence[int]) -> list["Response"]:
    """The responses to the first vectors, the next ones, and so on."""
    ends = np.cumsum(numbers)[:-1]
    pairs = zip(*(np.split(a, ends) for a in self), strict=True)
    return [Response(*pair) for pair in pairs]


def strengths(study: Study) -> np.ndarray:
  """All strengths, rising; 0 is in the middle."""
  return transfer.signed(study.options.max_strength, study.options.strengths)


def respond(
  study: Study,
  model: Model,
  texts: behaviours.Texts,
  words: behaviours.Words,
  depth: float,
  vectors_AD: np.ndarray,
) -> Response:
  """Scores after prompts, and cost on held-out text, at all strengths."""
  return Response(
    scores(study, model, texts, words, depth, vectors_AD),
    nats_per_token(study, model, depth, vectors_AD),
  )


def scores(
  study: Study,
  model: Model,
  texts: behaviours.Texts,
  words: behaviours.Words,
  depth: float,
  vectors_AD: np.ndarray,
) -> np.ndarray:
  """The behaviour's score after each prompt, [A, S, R].

  The score is the logarithm of the odds that the next token begins a word for
  the behaviour rather than one against it, in nats.
  """
  step = _make_score_step(model.cfg, study.mesh)
  ids_K, sides_2K = _pad_words(words)
  R, L = texts.rows.tokens_BL.shape
  size = _rows_per_step(study, L, R)
  found = []
  for part, here in models_lib.in_parts(texts.rows, size):
    last_R = np.resize(texts.last_R[here], size)
    last_B = sharding.put_rows(last_R, study.mesh)
    scores_ASB = _sweep(
      study,
      model,
      part,
      depth,
      vectors_AD,
      lambda *push, last_B=last_B: step(
        model.params, last_B, ids_K, sides_2K, *push
      ),
      tokens=(here.stop - here.start) * L,
      what="prompts",
    )
    found.append(scores_ASB[..., : here.stop - here.start])
  return np.concatenate(found, axis=-1)


def nats_per_token(
  study: Study, model: Model, depth: float, vectors_AD: np.ndarray
) -> np.ndarray:
  """Cross-entropy on held-out text, nats per token, [A, S].

  The text is the beginning of as many held-out rows as a step has. It is always
  the same, so that results differ only by the push.
  """
  number = study.options.batch_rows
  rows = rows_lib.Rows(
    *(field[:number, :_TEXT_POSITIONS] for field in study.test)
  )
  ((part, here),) = models_lib.in_parts(rows, number)
  step = _make_text_step(model.cfg, study.mesh)
  sums_AS2 = _sweep(
    study,
    model,
    part,
    depth,
    vectors_AD,
    lambda *push: step(model.params, *push),
    tokens=rows.tokens_BL[here].size,
    what="text",
  )
  return sums_AS2[..., 0] / sums_AS2[..., 1]


def _sweep(
  study: Study,
  model: Model,
  rows: rows_lib.Rows,
  depth: float,
  vectors_AD: np.ndarray,
  step: Callable[..., jax.Array],
  *,
  tokens: int,
  what: str,
) -> np.ndarray:
  """Results of a step on one batch for all vectors and strengths, [A, S, ...].

  Args:
    vectors_AD: the vectors; at strength 0 one result serves for all of them.
    step: (stream, batch, block, vector, strength) -> array.
    what: name of the rows, for the progress bar.
  """
  batch = sharding.put_rows(batches.from_rows(rows), study.mesh)
  block = np.int32(model.block(depth))
  pushes = [(np.zeros(model.cfg.D), 0.0)]
  pushes += [(v_D, s) for v_D in vectors_AD for s in strengths(study) if s]
  with jax.set_mesh(study.mesh):
    begin = activations.make_beginning(model.cfg, study.mesh)
    x_BLD = begin(model.params, batch, block)
    results = []
    for i, (vector_D, strength) in enumerate(pushes):
      progress.doing(f"{model.name}: push {i + 1} of {len(pushes)}, {what}")
      # Arrays: a Python number could become a constant of the program.
      push = np.asarray(vector_D, np.float32), np.float32(strength)
      # Fetched one by one: of programs that run at the same time, processes may
      # meet in their collectives in different orders, and wait for ever.
      results.append(np.asarray(step(x_BLD, batch, block, *push), np.float64))
    found = np.stack(results)
  study.count(model, len(pushes) * tokens)
  processes.stop_if_asked("measure: what was measured in full is kept")
  A = len(vectors_AD)
  each = found[1:].reshape(A, -1, *found.shape[1:])
  middle = np.broadcast_to(found[0], (A, 1, *found.shape[1:]))
  N = each.shape[1] // 2
  return np.concatenate([each[:, :N], middle, each[:, N:]], axis=1)


def _pad_words(words: behaviours.Words) -> tuple[np.ndarray, np.ndarray]:
  """ids_K, and [2, K]: 0 for the words of a side, -inf for all others."""
  number = len(words.for_K) + len(words.against_K)
  K = -(-number // _WORDS) * _WORDS
  ids_K = np.zeros(K, np.int32)
  ids_K[:number] = np.concatenate(words)
  sides_2K = np.full((2, K), -np.inf, np.float32)
  sides_2K[0, : len(words.for_K)] = 0
  sides_2K[1, len(words.for_K) : number] = 0
  return ids_K, sides_2K


def _rows_per_step(study: Study, L: int, R: int) -> int:
  """As many prompts as a step of ordinary rows has tokens; all if they fit."""
  mesh = study.mesh
  ways = math.prod(mesh.shape[axis] for axis in sharding.ACTIVATION_AXES["B"])
  tokens = study.options.batch_rows * study.test.tokens_BL.shape[1]
  most = max(1, tokens // L // ways) * ways
  return min(most, -(-R // ways) * ways)


def _finish(
  cfg: decoder.DecoderConfig,
  params: Any,
  x_BLD,
  batch,
  block,
  vector_D,
  strength,
):
  """The model, and its final hidden states after a push at `block`."""
  model = nnx.merge(decoder.graphdef(cfg), params)
  pushed_BLD = x_BLD.astype(jnp.float32) + strength * vector_D[None, None]
  x_BLD = model.run_blocks(
    pushed_BLD.astype(x_BLD.dtype), *batch[1:3], first=block + 1, last=cfg.Y
  )
  return model, model.final_norm(x_BLD)


@functools.cache
def _make_score_step(cfg: decoder.DecoderConfig, mesh: jax.sharding.Mesh):
  """(params, last_B, ids_K, sides_2K, stream, batch, push ...) -> [B]."""

  def step(params, last_B, ids_K, sides_2K, *push):
    model, x_BLD = _finish(cfg, params, *push)
    x_BD = jnp.take_along_axis(x_BLD, last_B[:, None, None], axis=1)[:, 0]
    # Only the words are unembedded, not the vocabulary.
    head_KD = jnp.take(model.head_VD, ids_K, axis=0).astype(x_BD.dtype)
    logits_BK = model.cap(
      jnp.einsum("BD,KD->BK", x_BD, head_KD, preferred_element_type=jnp.float32)
    )
    logits_2BK = logits_BK[None] + sides_2K[:, None]
    odds_2B = jax.nn.logsumexp(logits_2BK, axis=-1)
    return odds_2B[0] - odds_2B[1]

  return jax.jit(step, out_shardings=everywhere(mesh))


@functools.cache
def _make_text_step(cfg: decoder.DecoderConfig, mesh: jax.sharding.Mesh):
  """(params, stream, batch, push ...) -> sums of nats and of weights."""
  objective = losses.Objective(softcap=cfg.logit_softcap, chunk=_CHUNK)

  def step(params, x_BLD, batch, *push):
    model, x_BLD = _finish(cfg, params, x_BLD, batch, *push)
    _, sums = losses.distillation_loss(
      x_BLD, model.head_VD, batch.targets, 0.0, objective
    )
    return jnp.stack([sums.hard, sums.weight])

  return jax.jit(step, out_shardings=everywhere(mesh))
