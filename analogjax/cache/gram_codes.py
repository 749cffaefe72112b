"""Codes of the cosines between a teacher's tokens, as a cache stores them.

For some positions of each row and some depths of the teacher, the cosine
between the hidden states of every two positions (gram.py) is stored in one
byte. Positions are drawn from the row's digest, so whoever has the row knows
them and they are not stored. Depths are fractions of the whole, so they reveal
neither the number of layers nor a width.

Tokens of different documents of a row are compared too: the distance between
unlike texts is what there is to learn.

Shape letters (docs/glossary.md): B rows, L position, M positions drawn, Z
depths, P pairs of drawn positions, M (M - 1) / 2.
"""

import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from analogjax.distributed import sharding

SCALE = 127  # The code of a cosine of 1.
# Separates these draws from anything else derived from a digest.
_PURPOSE = b"analogjax.gram"


class Sample(NamedTuple):
  """The drawn positions of rows, and the teacher's code of each pair."""

  positions_BM: sharding.Array  # int32, rising; 0 after the last one.
  weights_BM: sharding.Array  # float32: 1; 0 after the last one.
  # int8, cosines times SCALE, in the order (0, 1), (0, 2), ..., (1, 2), ...
  # None: not known yet.
  codes_BZP: sharding.Array | None = None


def num_pairs(num_positions: int) -> int:
  return num_positions * (num_positions - 1) // 2


def block_at(depth: float, Y: int) -> int:
  """The block, of Y, whose output is at this fraction of the depth."""
  return max(int(depth * Y + 0.5), 1) - 1


def draw(
  digests_B32: np.ndarray, segments_BL: np.ndarray, number: int, seed: int
) -> Sample:
  """Draws positions of tokens, without replacement, all equally likely.

  The draw of a row is the same in every batch and process. Each position of a
  row has a random number, and the smallest ones are taken: little-endian uint32
  of SHAKE128 over a constant, the row's digest and the seed.

  Args:
    segments_BL: int32, 0 at padding, which is never drawn.
    number: M, at most L; a row with fewer tokens has all of them.
  """
  L, end = segments_BL.shape[1], seed.to_bytes(8, "little")
  assert number <= L, (number, L)
  random_BL = np.stack(
    [
      np.frombuffer(
        hashlib.shake_128(_PURPOSE + digest.tobytes() + end).digest(4 * L),
        "<u4",
      )
      for digest in digests_B32
    ]
  )
  is_token_BL = segments_BL > 0
  random_BL = np.where(is_token_BL, random_BL.astype(np.int64), 2**32)
  drawn_BM = np.argsort(random_BL, axis=-1, kind="stable")[:, :number]
  is_drawn_BM = np.take_along_axis(is_token_BL, drawn_BM, axis=-1)
  positions_BM = np.sort(np.where(is_drawn_BM, drawn_BM, L), axis=-1)
  is_drawn_BM = positions_BM < L
  return Sample(
    positions_BM=np.where(is_drawn_BM, positions_BM, 0).astype(np.int32),
    weights_BM=is_drawn_BM.astype(np.float32),
  )


def encode(cosines_ZBMM: jax.Array) -> jax.Array:
  """Codes of each pair, int8 [B, Z, P]; within 1 / 254 of the cosine."""
  i_P, j_P = np.triu_indices(cosines_ZBMM.shape[-1], 1)
  pairs_BZP = jnp.moveaxis(cosines_ZBMM[..., i_P, j_P], 0, 1)
  return jnp.round(pairs_BZP * SCALE).astype(jnp.int8)


def decode(sample: Sample) -> jax.Array:
  """Cosines float32 [B, Z, M, M]; the diagonal is 1."""
  assert sample.codes_BZP is not None
  number = sample.weights_BM.shape[-1]
  at_MM = np.zeros((number, number), np.int32)
  pairs = np.triu_indices(number, 1)
  at_MM[pairs] = np.arange(num_pairs(number))
  at_MM += at_MM.T
  cosines_BZMM = jnp.asarray(sample.codes_BZP)[..., at_MM] / SCALE
  return jnp.where(np.eye(number, dtype=bool), 1.0, cosines_BZMM)
