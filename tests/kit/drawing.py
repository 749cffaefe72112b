"""Records drawn from logits, by one program for each set of options."""

import functools

import jax
import numpy as np

from analogjax.cache import sampling

ALL = sampling.Capture()


@functools.partial(
  jax.jit, static_argnames=("sampler", "capture", "replicas", "T")
)
def draw(
  logits_BLV,
  labels_BL,
  keys_B2,
  first=0,
  *,
  sampler,
  capture=ALL,
  replicas=1,
  T=1.0,
):
  return sampling.draw(
    logits_BLV,
    labels_BL,
    keys_B2,
    first,
    sampler,
    capture=capture,
    num_replicas=replicas,
    temperature=T,
  )


def keys(n, seed=0):
  """Keys of n rows that all differ."""
  digests_B32 = np.random.default_rng(seed).integers(0, 256, (n, 32), np.uint8)
  return sampling.row_keys(digests_B32, seed)
