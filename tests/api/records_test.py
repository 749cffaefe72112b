"""Tests for analogjax/api/records.py, against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import analogjax as aj

V = 40


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def logits(*shape, seed=0):
  return 2 * np.random.default_rng(seed).normal(size=(*shape, V))


def dense(records):
  """Records as distributions [..., V]."""
  out = np.zeros((*records.ids.shape[:-1], V))
  for at in np.ndindex(*records.ids.shape):
    out[at[:-1]][records.ids[at]] += records.p[at]
  return out


@pytest.mark.medium
@pytest.mark.parametrize(
  "options",
  [dict(kind="threshold", tau=0.1), dict(kind="random", num_draws=8)],
  ids=["threshold", "random"],
)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_mean_of_samples_is_the_distribution(options, temperature):
  x, n = logits(), 20_000
  many = np.broadcast_to(x, (n, V))
  found = aj.draw_records(many, temperature=temperature, **options)
  samples, p = dense(found), softmax(x / temperature)
  np.testing.assert_allclose(samples.sum(-1), 1, atol=1e-5)
  error = samples.std(0) / np.sqrt(n)
  z = (samples.mean(0) - p) / np.maximum(error, 1e-6)
  # The largest of 40 normal numbers is above 4.5 once in 3,700 times.
  assert np.abs(z).max() < 4.5 and error.max() > 1e-4
  entropy = -(p * np.log(p)).sum()
  np.testing.assert_allclose(found.entropy, entropy, rtol=1e-4)
  assert found.tail is None and (found.weight == 1).all()


def test_the_top_k_are_the_likeliest_and_the_tail_is_the_rest():
  x = logits(2, 3)
  found, p = aj.draw_records(x, kind="topk", top_k=5), softmax(x)
  order = np.argsort(-p, axis=-1)[..., :5]
  np.testing.assert_array_equal(np.sort(found.ids), np.sort(order))
  kept = np.take_along_axis(p, found.ids, axis=-1)
  np.testing.assert_allclose(found.p, kept, rtol=1e-5)
  np.testing.assert_allclose(found.tail, 1 - kept.sum(-1), rtol=1e-4)


def test_the_key_decides():
  x = np.broadcast_to(logits(), (6, V))
  draw = lambda key: aj.draw_records(x, key=key).ids  # noqa: E731
  np.testing.assert_array_equal(draw(3), draw(3))
  np.testing.assert_array_equal(draw(3), draw(jax.random.key(3)))
  assert (draw(3) != draw(4)).any()
  ids = draw(3)
  assert (ids[0] != ids[1:]).any()  # Positions have draws of their own.


def reference(x, labels, records, weights, alpha, divergence, temperature):
  """The loss in float64, of dense distributions."""
  logq = x - np.log(np.exp(x).sum(-1, keepdims=True))
  hard = -np.take_along_axis(logq, labels[..., None], -1)[..., 0]
  logq = x / temperature
  logq = logq - np.log(np.exp(logq).sum(-1, keepdims=True))
  t, q = dense(records), np.exp(logq)
  if records.tail is None:
    teacher = -(t * logq).sum(-1)
  else:
    # The named ids, and everything else as one bin.
    named = np.zeros(t.shape, bool)
    np.put_along_axis(named, records.ids, True, -1)
    t = np.where(named, t, 0)
    t = np.append(t, records.tail[..., None], -1)
    rest = np.where(named, 0, q).sum(-1, keepdims=True)
    q = np.append(np.where(named, q, 1), rest, -1)
    named = np.append(named, np.ones((*named.shape[:-1], 1), bool), -1)
    a, b = (t, q) if divergence == "forward_kl" else (q, t)
    a, b = np.where(named, a, 1), np.where(named, b, 1)
    teacher = (a * np.log(a / b)).sum(-1)
  total = alpha * temperature**2 * teacher * records.weight
  total = total + (1 - alpha) * hard
  w = weights / weights.sum()
  return (w * total).sum(), (w * hard).sum(), (w * teacher).sum()


@pytest.mark.medium
@pytest.mark.parametrize(
  ("kind", "divergence", "temperature"),
  [
    ("threshold", "forward_kl", 1.0),
    ("random", "forward_kl", 2.0),
    ("topk", "forward_kl", 1.0),
    ("topk", "reverse_kl", 2.0),
  ],
)
def test_the_loss_is_that_of_float64(kind, divergence, temperature):
  records = aj.draw_records(
    logits(2, 7), kind=kind, temperature=temperature, top_k=5
  )
  rng = np.random.default_rng(5)
  x_BLD, head_VD = rng.normal(size=(2, 7, 6)), rng.normal(size=(V, 6))
  labels, weights = rng.integers(0, V, (2, 7)), rng.uniform(0, 2, (2, 7))
  weights[0, 2] = 0
  options = dict(alpha=0.7, divergence=divergence, temperature=temperature)
  x = x_BLD @ head_VD.T
  expected = reference(x, labels, records, weights, **options)

  def of_logits(x):
    return aj.distillation_loss(x, labels, records, weights=weights, **options)

  def of_states(x_BLD, head_VD):
    return aj.distillation_loss(
      *(x_BLD, labels, records),
      **dict(unembedding=head_VD, weights=weights, chunk=4),
      **options,
    )

  x32, x_BLD, head_VD = map(jnp.float32, (x, x_BLD, head_VD))
  for loss, metrics in (of_logits(x32), jax.jit(of_states)(x_BLD, head_VD)):
    found = loss, metrics["hard_label_nats"], metrics["teacher_nats"]
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    hits = (x.argmax(-1) == labels) * weights
    np.testing.assert_allclose(
      metrics["accuracy"], hits.sum() / weights.sum(), rtol=1e-5
    )
    np.testing.assert_allclose(
      metrics["label_tokens"], weights.sum(), rtol=1e-6
    )
  # The gradient, by the chain rule and by differences.
  d_BLV, _ = jax.grad(of_logits, has_aux=True)(x32)
  (dx, dhead), _ = jax.grad(of_states, (0, 1), has_aux=True)(x_BLD, head_VD)
  np.testing.assert_allclose(dx, d_BLV @ head_VD, atol=1e-6)
  expected_head = jnp.einsum("BLV,BLD->VD", d_BLV, x_BLD)
  np.testing.assert_allclose(dhead, expected_head, atol=1e-5)
  direction = rng.normal(size=x.shape)
  up, down = (
    reference(x + s * direction, labels, records, weights, **options)[0]
    for s in (1e-5, -1e-5)
  )
  slope = float((np.asarray(d_BLV, np.float64) * direction).sum())
  np.testing.assert_allclose(slope, (up - down) / 2e-5, rtol=1e-4)


def test_without_records_it_is_the_cross_entropy():
  x, labels = logits(5), np.arange(5)
  loss, metrics = aj.distillation_loss(x, labels)
  expected = -np.log(softmax(x)[labels, labels]).mean()
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  assert metrics["teacher_nats"] == 0


@pytest.mark.medium
def test_a_position_without_a_record_counts_for_its_label_alone():
  x, labels = logits(4, seed=1), np.arange(4)
  records = aj.draw_records(logits(4), kind="topk", top_k=3)
  records = records._replace(weight=np.float32([1, 0, 1, 1]))
  records.tail[1] = 0
  found = jax.grad(lambda x: aj.distillation_loss(x, labels, records)[0])(
    jnp.float32(x)
  )
  q = softmax(x[1])
  q[1] -= 1
  np.testing.assert_allclose(found[1], 0.1 * q / 4, atol=1e-6)


RECORDS = aj.Records(
  ids=np.zeros((3, 2), np.int32),
  p=np.full((3, 2), 0.5, np.float32),
  tail=None,
  entropy=np.zeros(3, np.float32),
  weight=np.ones(3, np.float32),
)


@pytest.mark.parametrize(
  ("call", "expected"),
  [
    (lambda: aj.draw_records([[1.0, np.nan]]), "logits: .* position \\[0\\]"),
    (lambda: aj.draw_records(3.0), "logits: .* shape \\[\\]"),
    (lambda: aj.draw_records(np.zeros((0, 4))), "logits: .* \\[0, 4\\]"),
    (lambda: aj.draw_records([1.0, 2.0], tau=2), "tau"),
    (lambda: aj.draw_records([1.0, 2.0], kind="top"), "kind: .* 'top'"),
    (lambda: aj.draw_records([1.0], kind="topk", top_k=2), "top_k"),
    (lambda: aj.draw_records([1.0, 2.0], temperature=0), "temperature"),
    (
      lambda: aj.draw_records([1.0], key=jax.random.key(0, impl="rbg")),
      "key: .*threefry2x32",
    ),
    (
      lambda: aj.distillation_loss(np.zeros((3, V)), [1, 2]),
      "labels: expected shape \\[3\\], found \\[2\\]",
    ),
    (
      lambda: aj.distillation_loss(np.zeros((2, V)), [1, 2], RECORDS),
      "records: expected ids and p of shape \\[2, 'K'\\]",
    ),
    (
      lambda: aj.distillation_loss(
        np.zeros((3, V)), [1, 2, 3], RECORDS, weights=[1.0]
      ),
      "weights: expected shape \\[3\\], found \\[1\\]",
    ),
    (
      lambda: aj.distillation_loss(
        np.zeros((3, 4)), [1, 2, 3], RECORDS, unembedding=np.zeros((V, 5))
      ),
      "unembedding: expected shape \\['V', 4\\], found \\[40, 5\\]",
    ),
    (
      lambda: aj.distillation_loss(
        np.zeros((3, V)), [1, 2, 3], RECORDS, divergence="reverse_kl"
      ),
      "divergence 'reverse_kl': sampled records",
    ),
  ],
)
def test_wrong_input_is_refused_by_name(call, expected):
  with pytest.raises(ValueError, match=expected):
    call()
