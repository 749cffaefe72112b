"""Tests for analogjax/safety/membership_inference.py, without training."""

import zlib

import numpy as np
from scipy import stats

from analogjax.safety import membership_inference
from analogjax.safety.tokens import Said


def test_the_area_is_that_of_all_pairs():
  rng = np.random.default_rng(0)
  members, others = rng.normal(1, 1, 40), rng.normal(0, 1, 30)
  # Ties, too.
  members, others = np.round(members, 1), np.round(others, 1)
  exact = stats.mannwhitneyu(members, others).statistic / 40 / 30
  assert membership_inference.area_under_curve(members, others) == exact
  assert membership_inference.area_under_curve(np.ones(4), np.ones(3)) == 0.5
  assert membership_inference.area_under_curve(np.ones(4), np.zeros(3)) == 1


def test_the_rate_at_few_false_positives_by_hand():
  others = np.arange(200.0)  # Two of them may be above the bound: 197.
  members = np.asarray([196.5, 197.0, 197.5, 198.5, 300.0])
  assert membership_inference.true_positives(members, others) == 3 / 5
  # Too few others: none may be.
  assert membership_inference.true_positives(members, others[-50:]) == 1 / 5


def test_scores_by_hand():
  logp = np.asarray([[-1.0, -4.0, -2.0, -8.0, -3.0, -99.0]])
  said = Said(
    logp,
    logp > -2,
    np.full_like(logp, -2.0),
    np.asarray([[0.5, 4.0, 1.0, 2.0, 0.0, 1.0]]),
  )
  is_label = np.asarray([[1, 1, 1, 1, 1, 0]], bool)
  found = membership_inference.score(
    said, is_label, np.asarray([20.0]), min_k=0.4
  )
  assert found["loss"] == [-18 / 5] and found["zlib"] == [-18 / 20]
  assert found["min_k"] == [(-8 - 4) / 2]
  # (logp + 2) / spread: 2, -0.5, 0, -3, and one without any spread.
  assert found["min_k_plus"] == [(-1 / 1e-6 - 3) / 2]
  one = membership_inference.score(
    said, is_label, np.asarray([20.0]), min_k=0.01
  )
  assert one["min_k"] == [-8]


def test_compressed_bytes_are_of_the_text_without_padding(kit, one_device):
  made = kit.make_evaluation(one_device)
  rows = made.held_out
  found = membership_inference.zlib_bytes(made, rows)
  ids = rows.tokens_BL[3][rows.segments_BL[3] > 0]
  text = " ".join(f"w{i}" for i in ids)
  assert found[3] == len(zlib.compress(text.encode()))


def test_an_interval_holds_the_value_and_chance_where_nothing_is_known():
  rng = np.random.default_rng(1)
  same = membership_inference.separation(
    *(rng.normal(size=80) for _ in range(2)), resamples=300, rng=rng
  )
  assert same.auc.low < 0.5 < same.auc.high and same.auc.n == 160
  told = membership_inference.separation(
    rng.normal(2, 1, 80), rng.normal(0, 1, 80), resamples=300, rng=rng
  )
  assert 0.8 < told.auc.low < told.auc.value < told.auc.high <= 1
  assert told.tpr.value > 0.2 > same.tpr.value
