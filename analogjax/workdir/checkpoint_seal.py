"""Digests and checksums that prove that a checkpoint is unchanged."""

from collections.abc import Iterable, Mapping
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def seal(facts: Mapping[str, Any]) -> dict[str, Any]:
  """Facts as they come back from JSON, with their digest."""
  facts = json.loads(json.dumps(facts))
  return {**facts, "sha256": _digest(facts)}


def unseal(facts: Mapping[str, Any]) -> dict[str, Any]:
  """The facts without the digest; ValueError if they were changed."""
  facts = dict(facts)
  if facts.pop("sha256", None) != _digest(facts):
    raise ValueError("its facts are missing, or not what was written")
  return facts


def _digest(facts: Mapping[str, Any]) -> str:
  text = json.dumps(facts, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def checksums(state: Any) -> dict[str, int]:
  """Path -> sum of the words of an array, modulo 2**32.

  The sums are the same on every mesh, and change with any word or bit.
  """
  leaves = jax.tree_util.tree_leaves_with_path(state)
  names = (
    jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in leaves
  )
  sums = np.asarray(_sum_words([leaf for _, leaf in leaves]))
  return dict(zip(names, sums.tolist(), strict=True))


@jax.jit
def _sum_words(leaves: Iterable[jax.Array]) -> jax.Array:
  def sum_words(x):
    word = jnp.uint16 if x.dtype.itemsize == 2 else jnp.uint32
    words = jax.lax.bitcast_convert_type(x, word)
    return jnp.sum(words, dtype=jnp.uint32)

  # One array, so one transfer.
  return jnp.stack([sum_words(x) for x in leaves])
