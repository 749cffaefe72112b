"""Tests for analogjax/cache/gram_codes.py."""

import collections
import hashlib

import numpy as np
import pytest

from analogjax.cache import gram_codes
from analogjax.config import cache

B, L, M, SEED = 40, 24, 6, 3


def digests(seed=0, rows=B):
  return np.random.default_rng(seed).integers(0, 256, (rows, 32), np.uint8)


def segments(lengths, length=L):
  return np.int32([[1] * n + [0] * (length - n) for n in lengths])


def test_positions_are_those_with_the_least_numbers_of_the_digest():
  """By hand, with Python's own integers."""
  digest_132 = digests(rows=1)
  data = b"analogjax.gram" + digest_132.tobytes() + bytes([SEED, *[0] * 7])
  stream = hashlib.shake_128(data).digest(4 * L)
  numbers = [
    int.from_bytes(stream[4 * i : 4 * i + 4], "little") for i in range(L)
  ]
  tokens = [i for i in range(L) if i != 5]  # Padding in the middle.
  wanted = sorted(sorted(tokens, key=numbers.__getitem__)[:M])
  segments_1L = segments([L])
  segments_1L[0, 5] = 0
  found = gram_codes.draw(digest_132, segments_1L, M, SEED)
  np.testing.assert_array_equal(found.positions_BM[0], wanted)
  assert found.positions_BM.dtype == np.int32 and found.codes_BZP is None
  np.testing.assert_array_equal(found.weights_BM, np.ones((1, M), np.float32))


def test_a_row_has_the_same_positions_in_any_batch_and_others_by_seed():
  of_rows, lengths = digests(), np.full(B, L)
  whole = gram_codes.draw(of_rows, segments(lengths), M, SEED)
  for part in ([7], [9, 7], range(5, 20)):
    one = gram_codes.draw(of_rows[part], segments(lengths[part]), M, SEED)
    np.testing.assert_array_equal(one.positions_BM, whole.positions_BM[part])
  other = gram_codes.draw(of_rows, segments(lengths), M, SEED + 1)
  same_B = (other.positions_BM == whole.positions_BM).all(-1)
  assert not same_B.any()
  assert len({tuple(row) for row in whole.positions_BM}) == B


def test_all_tokens_are_drawn_alike_and_padding_never():
  rows, length = 4000, 15
  found = gram_codes.draw(digests(1, rows), segments([length] * rows), M, SEED)
  assert (np.diff(found.positions_BM) > 0).all()
  counts = collections.Counter(found.positions_BM.ravel().tolist())
  assert counts.keys() == set(range(length))
  # Four and a half standard deviations of a binomial with p = M / length.
  p = M / length
  bound = 4.5 * np.sqrt(rows * p * (1 - p))
  assert max(abs(n - rows * p) for n in counts.values()) < bound


def test_a_short_row_has_all_of_its_tokens():
  found = gram_codes.draw(digests(rows=3), segments([4, 0, 1]), M, SEED)
  np.testing.assert_array_equal(
    found.positions_BM, [[0, 1, 2, 3, 0, 0], [0] * 6, [0] * 6]
  )
  np.testing.assert_array_equal(
    found.weights_BM, [[1, 1, 1, 1, 0, 0], [0] * 6, [1, 0, 0, 0, 0, 0]]
  )


@pytest.mark.parametrize("Z", [1, 3])
def test_codes_are_within_half_a_step_of_the_cosines(Z):
  rng = np.random.default_rng(0)
  x_ZBMD = rng.normal(size=(Z, 5, M, 4))
  x_ZBMD /= np.linalg.norm(x_ZBMD, axis=-1, keepdims=True)
  x_ZBMD[:, 0, 1] = -x_ZBMD[:, 0, 0]
  x_ZBMD[:, 0, 2] = x_ZBMD[:, 0, 0]
  cosines_ZBMM = np.einsum("ZBMD,ZBND->ZBMN", x_ZBMD, x_ZBMD)
  codes_BZP = gram_codes.encode(cosines_ZBMM.astype(np.float32))
  assert codes_BZP.shape == (5, Z, M * (M - 1) // 2)
  assert codes_BZP.dtype == np.int8
  # Pairs (0, 1) and (0, 2) of the first row, at every depth.
  np.testing.assert_array_equal(codes_BZP[0, :, :2], [[-127, 127]] * Z)
  ones_BM = np.ones((5, M), np.float32)
  sample = gram_codes.Sample(np.zeros((5, M), int), ones_BM, codes_BZP)
  found_BZMM = np.asarray(gram_codes.decode(sample))
  error = np.abs(found_BZMM - np.moveaxis(cosines_ZBMM, 0, 1))
  assert 1 / 600 < error.max() <= 1 / 254 + 1e-6


def test_depths_are_spaced_evenly_and_end_with_the_last_block():
  assert cache.depths(2) == (0.5, 1.0)

  def blocks(number, Y):
    return [gram_codes.block_at(d, Y) for d in cache.depths(number)]

  assert blocks(1, 30) == [29]
  assert blocks(2, 30) == [14, 29]
  assert blocks(2, 4) == [1, 3]
  assert blocks(4, 4) == [0, 1, 2, 3]
  assert blocks(2, 3) == [1, 2]  # 1.5 of three layers is two of them.
  assert blocks(2, 1) == [0, 0]
  assert blocks(3, 126) == [41, 83, 125]
