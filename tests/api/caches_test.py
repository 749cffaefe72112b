"""Tests for analogjax/api/caches.py."""

import numpy as np
import pytest
import small_cache

import analogjax as aj

R, L = small_cache.R, small_cache.L


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


@pytest.mark.medium
def test_rows_are_what_was_written(tmp_path):
  rows = small_cache.write(tmp_path / "cache")
  cache = aj.open_cache(tmp_path / "cache")
  assert len(cache) == R and cache.manifest.tau == 0.04
  assert str(tmp_path) in repr(cache) and "8 rows of 16 tokens" in repr(cache)
  found = cache[:]
  np.testing.assert_array_equal(found.tokens, rows.tokens_BL)
  np.testing.assert_array_equal(found.segments, rows.segments_BL)
  np.testing.assert_array_equal(found.positions, rows.positions_BL)
  # The last token of a document predicts nothing, and padding neither.
  expected = np.float32([1] * 8 + [0] + [1] * 5 + [0, 0])
  np.testing.assert_array_equal(found.weights, np.tile(expected, (R, 1)))
  labels = np.where(expected[:-1] > 0, rows.tokens_BL[:, 1:], 0)
  kept = found.labels[:, :-1] * (expected[:-1] > 0)
  np.testing.assert_array_equal(kept, labels)


def test_indices_slices_and_the_iterator_agree(tmp_path):
  small_cache.write(tmp_path / "cache")
  cache = aj.open_cache(str(tmp_path / "cache"))
  every, one_by_one = cache[0:R], list(cache)
  assert len(one_by_one) == R

  def equal(a, b):
    for x, y in zip([*a[:-1], *a.records], [*b[:-1], *b.records], strict=True):
      np.testing.assert_array_equal(x, y)

  for i, row in enumerate(one_by_one):
    assert row.tokens.shape == (L,) and row.records.p.shape == (L, 26)
    equal(row, cache[i])
    equal(row, cache[i - R])
    np.testing.assert_array_equal(row.records.ids, every.records.ids[i])
  np.testing.assert_array_equal(cache[6:1:-2].tokens, every.tokens[6:1:-2])
  with pytest.raises(IndexError):
    cache[R]


@pytest.mark.parametrize("kind", ["threshold", "random", "topk"])
def test_records_are_of_the_teacher(tmp_path, kind):
  small_cache.write(tmp_path / "cache", kind)
  records = aj.open_cache(tmp_path / "cache")[:].records
  p = softmax(small_cache.teacher_logits())
  entropy = -(p * np.log(p)).sum(-1)
  np.testing.assert_allclose(records.entropy, entropy, atol=0.03)
  total = records.p.sum(-1)
  if kind == "topk":
    top = np.sort(p, axis=-1)[..., -5:].sum(-1)
    np.testing.assert_allclose(total, top, rtol=0.02)
    np.testing.assert_allclose(records.tail, 1 - top, rtol=0.02)
  else:
    assert records.tail is None
    np.testing.assert_allclose(total, 1, atol=1e-5)


def test_positions_that_were_not_kept_weigh_nothing(tmp_path):
  small_cache.write(tmp_path / "cache", capture="random", capture_rate=0.5)
  records = aj.open_cache(tmp_path / "cache")[:].records
  kept = records.weight > 0
  assert 0.3 < kept.mean() < 0.7 and not records.p[~kept].any()
  np.testing.assert_allclose(records.weight[kept], 2, rtol=0.01)


@pytest.mark.medium
def test_a_row_of_the_cache_goes_into_the_loss(tmp_path):
  small_cache.write(tmp_path / "cache")
  rows = aj.open_cache(tmp_path / "cache")[:4]
  x = np.random.default_rng(0).normal(size=(4, L, small_cache.V))
  loss, metrics = aj.distillation_loss(
    x, rows.labels, rows.records, weights=rows.weights, alpha=1.0
  )
  logq = np.log(softmax(x))
  named = np.take_along_axis(logq, rows.records.ids, -1)
  teacher = -(rows.records.p * named).sum(-1)
  expected = (teacher * rows.weights).sum() / rows.weights.sum()
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  assert metrics["label_tokens"] == rows.weights.sum()


def test_what_is_no_cache_is_refused_by_name(tmp_path):
  with pytest.raises(ValueError, match="no-cache.*there is no logit cache"):
    aj.open_cache(tmp_path / "no-cache")
  small_cache.write(tmp_path / "cache")
  (tmp_path / "cache/values/c/1/0/0").unlink()
  cache = aj.open_cache(tmp_path / "cache")
  assert cache[3].tokens.shape == (L,)
  with pytest.raises(ValueError, match="row 4"):
    cache[4]
