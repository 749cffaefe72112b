"""Greedy continuations of texts of different lengths, in one program.

The decoder keeps no keys and values, so each new token costs a pass over the
whole row. That is acceptable for answers of a few dozen tokens.

Shape letters: R texts, B rows of a step, L positions, D model width, V
vocabulary.
"""

from collections.abc import Sequence
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from analogjax.distributed import sharding
from analogjax.evaluation.models import Model, everywhere
from analogjax.models import decoder
from analogjax.safety.evaluation import Evaluation, as_documents

_LENGTHS = 16  # Rows are padded to a multiple, so few programs are needed.


def greedy(
  evaluation: Evaluation,
  model: Model,
  texts: Sequence[Sequence[int]],
  steps: int,
) -> np.ndarray:
  """The likeliest continuation of each text, int32 [R, steps].

  Every text has one token or more; continuations do not stop at an end token.
  """
  lengths_R = np.asarray([len(text) for text in texts], np.int32)
  L = -(-int(lengths_R.max() + steps) // _LENGTHS) * _LENGTHS
  tokens_RL = np.zeros((len(texts), L), np.int32)
  for row_L, text in zip(tokens_RL, texts, strict=True):
    row_L[: len(text)] = text
  run = make_decode(model.cfg, evaluation.mesh, steps)
  found = []
  rows = as_documents(tokens_RL)
  for batch, here in evaluation.batches(rows, model):
    # `batches` counts one pass.
    evaluation.count(model, (here.stop - here.start) * L * (steps - 1))
    wanted = here.start + np.arange(len(batch.tokens_BL))
    lengths_B = lengths_R[np.minimum(wanted, len(texts) - 1)]
    lengths_B = sharding.put_rows(lengths_B, evaluation.mesh)
    with jax.set_mesh(evaluation.mesh):
      tokens_BS = jax.device_get(run(model.params, *batch[:3], lengths_B))
    found.append(tokens_BS[: here.stop - here.start])
  return np.concatenate(found)


@functools.cache
def make_decode(
  cfg: decoder.DecoderConfig, mesh: jax.sharding.Mesh, steps: int
):
  """Compiles (params, tokens_BL, segments_BL, positions_BL, lengths_B, push).

  The program gives the new tokens, [B, steps]. `push` is None, or a block, a
  vector and a strength for `decoder.adding`.
  """

  def run(params, tokens_BL, segments_BL, positions_BL, lengths_B, push=None):
    edit = None if push is None else decoder.adding(*push)
    model = nnx.merge(decoder.graphdef(cfg), params)
    here_1L = jnp.arange(tokens_BL.shape[1])[None]

    def body(tokens_BL, i):
      x_BLD, _ = model(tokens_BL, segments_BL, positions_BL, edit=edit)
      # Later positions are not seen: attention is causal.
      last_B11 = (lengths_B + i - 1)[:, None, None]
      x_B1D = jnp.take_along_axis(x_BLD, last_B11, axis=1)
      z_B1V = model.cap(decoder.unembed(x_B1D, model.head_VD))
      new_B1 = jnp.argmax(z_B1V, axis=-1).astype(tokens_BL.dtype)
      is_next_BL = here_1L == (lengths_B + i)[:, None]
      return jnp.where(is_next_BL, new_B1, tokens_BL), new_B1[:, 0]

    _, new_SB = jax.lax.scan(body, tokens_BL, jnp.arange(steps))
    return new_SB.T

  return jax.jit(run, out_shardings=everywhere(mesh))


def to_text(tokens: np.ndarray, evaluation: Evaluation) -> str:
  """The text of one continuation, up to the first end token."""
  ids = []
  for token in tokens.tolist():
    if token in evaluation.end_tokens:
      break
    ids.append(token)
  return evaluation.tokenizer.decode(ids)
