"""Records of a teacher's distribution, and the loss that learns from them."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from analogjax.cache import batches, sampling
from analogjax.training import divergences, losses


class Records(NamedTuple):
  """The kept part of a distribution over the vocabulary, K ids each.

  `...` is the shape of the positions. Samples (kinds threshold and random) are
  unbiased: their mean over seeds is the distribution. For kind topk the K ids
  are the likeliest, and `tail` is the probability of all others.
  """

  ids: np.ndarray  # int32 [..., K].
  p: np.ndarray  # float32 [..., K], probabilities; 0 in slots that are empty.
  tail: np.ndarray | None  # float32 [...]; None: a sample, whose p sum to 1.
  entropy: np.ndarray  # float32 [...], of the whole distribution, nats.
  # float32 [...]. 1, or where a cache keeps only some of the positions, one
  # over the probability of being kept; 0: this one was not.
  weight: np.ndarray


def draw_records(
  logits: Any,
  *,
  kind: str = "threshold",
  tau: float = 0.04,
  num_draws: int = 50,
  top_k: int = 16,
  temperature: float = 1.0,
  key: jax.Array | int = 0,
) -> Records:
  """Draws records from a teacher's logits, as a logit cache keeps them.

  Positions are drawn independently. The same key gives the same records.

  Args:
    logits: [..., V], unnormalized; at least one position.
    kind: "threshold" keeps the ids of probability tau or more and a sample of
      the others, "random" num_draws independent draws, "topk" the top_k
      likeliest ids.
    tau: of kind threshold, 0.001 to 1; 0.04 keeps about 10 to 15 ids.
    num_draws: of kind random, 1 to 255.
    top_k: of kind topk, 1 to 1024.
    temperature: the records are of softmax(logits / temperature).
    key: a key of jax.random (threefry), or a seed.

  Returns:
    Records on the host.

  Raises:
    ValueError: a value is outside of its bounds, or logits are not finite;
      names it.

  Source: docs/cache_format.md, "What a record means".

  Example:
    >>> records = aj.draw_records(np.log([[0.5, 0.3, 0.2]]), tau=0.25)
    >>> records.ids.tolist()
    [[0, 1, 2, 0, 0]]
    >>> np.allclose(records.p, [[0.5, 0.3, 0.2, 0, 0]], atol=0.02)
    True
  """
  if not temperature > 0:
    raise ValueError(
      f"temperature: expected a number above 0, found {temperature}."
    )
  sampler = sampling.make_sampler(
    kind, tau=tau, num_draws=num_draws, top_k=top_k
  )
  logits = jnp.asarray(logits, jnp.float32)
  if not logits.ndim or not logits.size:
    raise ValueError(
      f"logits: expected [..., V] with one position or more, found shape"
      f" {list(logits.shape)}."
    )
  shape = logits.shape[:-1]
  # Each position is a separate row: [T, 1, V].
  logits_TLV = logits.reshape(-1, 1, logits.shape[-1])
  keys_T2 = _keys(key, len(logits_TLV))
  found = _make_draw(sampler, float(temperature))(logits_TLV, keys_T2)
  found = jax.device_get(found)
  entropy = np.reshape(found.entropy_BL, shape)
  if np.isnan(entropy).any():
    at = tuple(map(int, np.argwhere(np.isnan(entropy))[0]))
    raise ValueError(
      f"logits: expected finite numbers, found NaN or infinity at position"
      f" {list(at)}."
    )
  K = found.ids_BMLK.shape[-1]
  p = sampling.decode(found.codes_BMLK, sampler, found.logprobs_BMLK)
  tail = found.log_tail_BL
  return Records(
    ids=found.ids_BMLK.reshape(*shape, K),
    p=p.reshape(*shape, K),
    tail=None if tail is None else np.exp(tail).reshape(shape),
    entropy=entropy,
    weight=np.ones(shape, np.float32),
  )


def _keys(key: jax.Array | int, number: int) -> jax.Array:
  """Keys of the positions, uint32 [T, 2]."""
  if isinstance(key, int):
    key = jax.random.key(key, impl="threefry2x32")
  data = jax.random.key_data(jax.random.split(key, number))
  if data.shape != (number, 2):
    raise ValueError(
      "key: expected one key of jax.random with impl 'threefry2x32', found"
      f" one whose parts have shape {list(data.shape[1:])}."
    )
  return data


@functools.cache
def _make_draw(sampler: sampling.Sampler, temperature: float):
  """(logits_TLV, keys_T2) -> Records of `sampling`, one replica."""

  def draw(logits_TLV, keys_T2):
    labels_TL = jnp.zeros(logits_TLV.shape[:2], jnp.int32)
    return sampling.draw(
      logits_TLV,
      labels_TL,
      keys_T2,
      0,
      sampler,
      capture=sampling.Capture(),
      num_replicas=1,
      temperature=temperature,
    )

  return jax.jit(draw)


def distillation_loss(
  student: Any,
  labels: Any,
  records: Records | None = None,
  *,
  unembedding: Any = None,
  weights: Any = None,
  alpha: Any = 0.9,
  divergence: str = "forward_kl",
  mixture: float = 0.5,
  temperature: float = 1.0,
  softcap: float | None = None,
  chunk: int = 1024,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """alpha x divergence from the teacher + (1 - alpha) x next-token loss.

  The mean over the weighted positions, in nats per token. It can be
  differentiated by `student` and `unembedding`, and jitted. With hidden states
  and the unembedding, logits are computed for one chunk of positions at a time.

  Args:
    student: logits [..., V]; or, with `unembedding`, the final hidden states
      [..., D].
    labels: int [...], the next token at each position.
    records: the teacher's, from `draw_records` or a cache; None: only hard
      labels, whatever alpha is.
    unembedding: [V, D], or None.
    weights: float [...], of each position, 0 where nothing is predicted; None:
      1 everywhere.
    alpha: weight of the teacher, 0 to 1.
    divergence: "forward_kl", and with records of kind topk also "reverse_kl",
      "skew_kl", "jensen_shannon" or "total_variation".
    mixture: for skew_kl and jensen_shannon, the teacher's weight in the
      mixture.
    temperature: of the student; the records are to be drawn at the same.
    softcap: with `unembedding`, logits are softcap x tanh(logits / softcap).
    chunk: with `unembedding`, positions whose logits are in memory at a time.

  Returns:
    The loss, a float32 scalar; and metrics, float32 scalars:
    `hard_label_nats`, the cross-entropy to the labels; `teacher_nats`, to
    sampled records the cross-entropy (forward KL plus the teacher's entropy),
    to records of kind topk the divergence; `accuracy`; `label_tokens`, the sum
    of the weights.

  Raises:
    ValueError: shapes do not match, or sampled records cannot estimate the
      divergence; names them.

  Source: docs/losses.md.

  Example:
    >>> teacher, student = np.random.default_rng(0).normal(size=(2, 8, 32))
    >>> labels = teacher.argmax(-1)
    >>> records = aj.draw_records(teacher)
    >>> loss, metrics = aj.distillation_loss(student, labels, records)
    >>> sorted(metrics)
    ['accuracy', 'hard_label_nats', 'label_tokens', 'teacher_nats']
    >>> step = jax.grad(lambda x: aj.distillation_loss(x, labels, records)[0])
    >>> step(jnp.asarray(student)).shape
    (8, 32)
  """
  x, labels = jnp.asarray(student), jnp.asarray(labels, jnp.int32)
  if unembedding is not None:
    unembedding = jnp.asarray(unembedding)
  _check_shapes(x, labels, records, unembedding, weights)
  if weights is None:
    weights = jnp.ones(labels.shape)
  targets = _targets(labels, records, jnp.asarray(weights, jnp.float32))
  objective = losses.Objective(
    divergence=divergences.Divergence(name=divergence, mixture=mixture),
    temperature=float(temperature),
    softcap=softcap,
    chunk=chunk,
  )
  alpha = 0.0 if records is None else alpha
  x_BLX = x.reshape(*targets.labels_BL.shape, x.shape[-1])
  if unembedding is None:
    total, sums = losses.distillation_loss_of_logits(
      x_BLX.astype(jnp.float32), targets, alpha, objective
    )
  else:
    total, sums = losses.distillation_loss(
      x_BLX, unembedding, targets, alpha, objective
    )
  count = jnp.maximum(jnp.asarray(sums.weight), 1e-30)
  return total / count, {
    "hard_label_nats": sums.hard / count,
    "teacher_nats": sums.teacher / count,
    "accuracy": sums.correct / count,
    "label_tokens": jnp.asarray(sums.weight),
  }


def _check_shapes(x, labels, records, unembedding, weights) -> None:
  where = x.shape[:-1]

  def check(ok, name, expected, found):
    if not ok:
      raise ValueError(f"{name}: expected {expected}, found {found}.")

  check(where, "student", "[..., V] or [..., D]", f"shape {list(x.shape)}")
  parts = {"labels": labels, "weights": weights}
  if records is not None:
    p = records.p.shape
    parts |= {"records.weight": records.weight, "records.tail": records.tail}
    shapes = records.ids.shape, p
    ok = shapes == ((*where, p[-1]),) * 2
    expected = f"ids and p of shape {[*where, 'K']}"
    check(ok, "records", expected, f"{list(shapes[0])} and {list(p)}")
  for name, part in parts.items():
    if part is not None:
      found = np.shape(part)
      check(found == where, name, f"shape {list(where)}", list(found))
  if unembedding is not None:
    ok = unembedding.ndim == 2 and unembedding.shape[1] == x.shape[-1]
    found = list(unembedding.shape)
    check(ok, "unembedding", f"shape ['V', {x.shape[-1]}]", found)


def _targets(labels, records, weights) -> batches.Targets:
  """Targets with two dimensions of positions; those of a batch are kept."""
  shape = labels.shape if labels.ndim == 2 else (1, labels.size)
  if records is None:
    none = jnp.zeros((*shape, 0))
    return batches.Targets(
      labels.reshape(shape),
      weights.reshape(shape),
      jnp.zeros(shape),
      none.astype(jnp.int32),
      none,
    )
  K = records.p.shape[-1]
  tail = records.tail
  if tail is not None:
    # Where no record was kept, the tail has no weight; log 0 would be NaN.
    kept = jnp.asarray(records.weight) > 0
    tail = jnp.log(jnp.where(kept, jnp.asarray(tail), 1.0)).reshape(shape)
  return batches.Targets(
    labels.reshape(shape),
    weights.reshape(shape),
    (weights * jnp.asarray(records.weight)).reshape(shape),
    jnp.asarray(records.ids).reshape(*shape, K),
    jnp.asarray(records.p).reshape(*shape, K),
    tail,
  )
