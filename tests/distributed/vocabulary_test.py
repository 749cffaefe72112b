"""Tests for analogjax/distributed/vocabulary.py."""

import jax
import jax.numpy as jnp
import numpy as np

from analogjax.distributed import vocabulary

ALONE = vocabulary.Split(None)


def test_the_logarithm_is_exact_to_a_few_2_to_the_minus_26():
  """More exact than float32, over all possible sums."""
  rng = np.random.default_rng(0)
  sums = np.concatenate(
    [
      (2.0 ** rng.uniform(30, 50, 5000)).astype(np.int64),
      2**30 + rng.integers(0, 1 << 20, 1000),
      2 ** np.arange(30, 51),
      2 ** np.arange(31, 51) - 1,
    ]
  )
  high, low = (sums >> 27).astype(np.int32), (sums & (1 << 27) - 1)
  found = jax.jit(vocabulary._log)(high, low.astype(np.int32))
  exact = np.log(sums / 2**30)
  np.testing.assert_allclose(np.float64(found) / 2**26, exact, atol=4e-8)
  assert (np.asarray(found)[sums == 2**30] == 0).all()


def test_product_high_equals_python():
  rng = np.random.default_rng(0)
  a, b = rng.integers(0, 2**32, (2, 1000), np.uint64)
  a[:4], b[:4] = [0, 1, 2**32 - 1, 2**32 - 1], [5, 2**32 - 1, 2**32 - 1, 1]
  found = vocabulary.product_high(a.astype(np.uint32), b.astype(np.uint32))
  wanted = [int(x) * int(y) >> 32 for x, y in zip(a, b, strict=True)]
  np.testing.assert_array_equal(found, np.array(wanted, np.uint32))


def test_sums_are_exact_up_to_2_to_the_20_ones():
  e_BLJI = np.ones((2, 1, 8192, 128), np.float32)
  e_BLJI[1] = np.random.default_rng(0).random(e_BLJI.shape[1:], np.float32)
  high_BL, low_BL = jax.jit(lambda e: vocabulary._sum(e, ALONE))(e_BLJI)
  found = np.int64(high_BL) * 2**27 + np.int64(low_BL)
  wanted = np.rint(np.float64(e_BLJI) * 2**30).astype(np.int64).sum((2, 3))
  np.testing.assert_array_equal(found, wanted)


def test_find_goes_where_the_sums_say():
  """Blocks of 0, 3, 0, 2: nothing is found in an empty one, or beyond."""
  sums_BLJ = jnp.asarray([[[0, 3, 0, 2, 0]]], jnp.int32)
  points_BLX = jnp.asarray([[[-1, 0, 2, 3, 4, 5]]], jnp.int32)
  block, within, is_here = vocabulary.find(sums_BLJ, points_BLX)
  np.testing.assert_array_equal(is_here[0, 0], [0, 1, 1, 1, 1, 0])
  np.testing.assert_array_equal(block[0, 0, 1:5], [1, 1, 3, 3])
  np.testing.assert_array_equal(within[0, 0, 1:5], [0, 2, 0, 1])


def test_shares_in_the_pass_and_in_the_search_are_the_same_bits():
  """The sum of a block equals what the search adds up within it."""
  V = 1000
  rng = np.random.default_rng(3)
  logits_BLV = np.float32(rng.normal(size=(3, 7, V)) * 4)

  @jax.jit
  def both(logits_BLV):
    logits = vocabulary.normalize(logits_BLV, 128, ALONE)
    masses = vocabulary.masses(logits, vocabulary.NEVER, ALONE)
    block_BLX = jnp.broadcast_to(jnp.arange(8)[::-1][None, None], (3, 7, 8))
    z_BLXI = vocabulary.take_blocks(logits.z_BLJI, block_BLX)
    return masses.all_BLJ, jnp.sum(logits.shares(z_BLXI), -1)[..., ::-1]

  passed, searched = both(logits_BLV)
  np.testing.assert_array_equal(passed, searched)
  total = np.asarray(passed).sum(-1)
  np.testing.assert_allclose(total, vocabulary.ONE, rtol=1e-6)
