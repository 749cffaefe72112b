"""A vector added to a model's residual stream, and what the model says then.

It is added after one block, at every position from the first on. Block, vector
and strength are traced: a model has one program for prompts and one for text,
whatever is added where.

Shape letters: R prompts, B rows of a step, L positions, D width of the model,
K words, S pushes.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from analogjax.cache import batches
from analogjax.cli import progress
from analogjax.data import rows as rows_lib
from analogjax.distributed import processes, sharding
from analogjax.evaluation.models import Model, everywhere
from analogjax.evaluation.study import Study
from analogjax.fidelity import behaviours
from analogjax.models import decoder
from analogjax.training import losses

_TEXT_POSITIONS = 64  # Of each row whose perplexity is taken.
_CHUNK = 1024  # Tokens of a device whose logits exist at a time.
_WORDS = 32  # Words are filled up to a multiple of it: one program for most.


@dataclasses.dataclass(frozen=True)
class Push:
  """What is added after a block: strength x vector."""

  block: int
  vector_D: np.ndarray  # float32.
  strength: float


def scores(
  study: Study,
  model: Model,
  texts: behaviours.Texts,
  words: behaviours.Words,
  pushes: Sequence[Push],
) -> np.ndarray:
  """The behaviour's score after each prompt under each push, [pushes, R].

  The score is the logarithm of the odds that the next token begins a word for
  the behaviour rather than one against it, in nats.
  """
  step = _make_score_step(model.cfg, study.mesh)
  ids_K, sides_2K = _fill_up(words)
  R, L = texts.rows.tokens_BL.shape
  size = _rows_per_step(study, L, R)
  found = []
  for part, here in _parts(texts.rows, size):
    batch = sharding.put_rows(batches.from_rows(part), study.mesh)
    last_R = np.resize(texts.last_R[here], size)
    last_B = sharding.put_rows(last_R, study.mesh)
    scores_SB = []
    with jax.set_mesh(study.mesh):
      for i, push in enumerate(pushes):
        progress.doing(f"{model.name}: push {i + 1} of {len(pushes)}, prompts")
        scores_SB.append(
          step(model.params, batch, last_B, ids_K, sides_2K, *_traced(push))
        )
      scores_SB = np.asarray(jax.device_get(scores_SB), np.float64)
    found.append(scores_SB[:, : here.stop - here.start])
    study.count(model, len(pushes) * (here.stop - here.start) * L)
  processes.stop_if_asked("measure: what was measured in full is kept")
  return np.concatenate(found, axis=1)


def nats_per_token(
  study: Study, model: Model, pushes: Sequence[Push]
) -> np.ndarray:
  """Cross-entropy on held-out text under each push, nats per token.

  The text is the beginning of as many held-out rows as a step has: always the
  same, so that differences between pushes are of the pushes.
  """
  number = study.options.batch_rows
  rows = rows_lib.Rows(
    *(field[:number, :_TEXT_POSITIONS] for field in study.test)
  )
  ((part, here),) = _parts(rows, number)
  batch = sharding.put_rows(batches.from_rows(part), study.mesh)
  step = _make_text_step(model.cfg, study.mesh)
  with jax.set_mesh(study.mesh):
    sums = []
    for i, push in enumerate(pushes):
      progress.doing(f"{model.name}: push {i + 1} of {len(pushes)}, text")
      sums.append(step(model.params, batch, *_traced(push)))
    sums = np.asarray(jax.device_get(sums), np.float64)
  study.count(model, len(pushes) * rows.tokens_BL[here].size)
  processes.stop_if_asked("measure: what was measured in full is kept")
  return sums[:, 0] / sums[:, 1]


def no_push(model: Model) -> Push:
  return Push(0, np.zeros(model.cfg.D, np.float32), 0.0)


def _traced(push: Push):
  """As arrays: a Python number could become a part of the program."""
  return (
    np.int32(push.block),
    np.asarray(push.vector_D, np.float32),
    np.float32(push.strength),
  )


def _fill_up(words: behaviours.Words) -> tuple[np.ndarray, np.ndarray]:
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


def _parts(
  rows: rows_lib.Rows, size: int
) -> Iterator[tuple[rows_lib.Rows, slice]]:
  """Rows by `size`; the last part is filled up with rows of weight 0."""
  R = len(rows.tokens_BL)
  for start in range(0, R, size):
    wanted = start + np.arange(size)
    part = rows_lib.Rows(*(field[np.minimum(wanted, R - 1)] for field in rows))
    weights_BL = part.weights_BL * (wanted < R)[:, None]
    here = slice(start, min(start + size, R))
    yield part._replace(weights_BL=weights_BL), here


def _run(cfg, params, batch, block, vector_D, strength):
  """Final hidden states of the model under a push."""
  model = nnx.merge(decoder.graphdef(cfg), params)
  x_BLD, _ = model(
    batch.tokens_BL,
    batch.segments_BL,
    batch.positions_BL,
    edit=decoder.adding(block, vector_D, strength),
  )
  return model, x_BLD


@functools.cache
def _make_score_step(cfg: decoder.DecoderConfig, mesh: jax.sharding.Mesh):
  """(params, batch, last_B, ids_K, sides_2K, push ...) -> float32 [B]."""

  def step(params, batch, last_B, ids_K, sides_2K, block, vector_D, strength):
    model, x_BLD = _run(cfg, params, batch, block, vector_D, strength)
    x_BD = jnp.take_along_axis(x_BLD, last_B[:, None, None], axis=1)[:, 0]
    # The words alone are unembedded, not the vocabulary.
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
  """(params, batch, push ...) -> sums of nats and of weights."""
  objective = losses.Objective(softcap=cfg.logit_softcap, chunk=_CHUNK)

  def step(params, batch, block, vector_D, strength):
    model, x_BLD = _run(cfg, params, batch, block, vector_D, strength)
    _, sums = losses.distillation_loss(
      x_BLD, model.head_VD, batch.targets, 0.0, objective
    )
    return jnp.stack([sums.hard, sums.weight])

  return jax.jit(step, out_shardings=everywhere(mesh))
