"""Tests for analogjax/safety/extraction.py."""

import dataclasses

import numpy as np
import pytest

from analogjax.safety import extraction, generate


def test_windows_are_of_one_document_each(kit, one_device):
  made = kit.make_evaluation(one_device)
  rows = made.members
  found = extraction.draw_windows(made, rows, "training")
  assert found.tokens.shape == (20, 10)  # Only the first document is as long.
  starts = []
  for row, window in zip(rows.tokens_BL, found.tokens, strict=True):
    places = [i for i in range(kit.L - 9) if (row[i : i + 10] == window).all()]
    starts += places
  assert len(starts) == 20 and min(starts) == 0 and max(starts) == 4
  again = extraction.draw_windows(made, rows, "training")
  np.testing.assert_array_equal(found.tokens, again.tokens)


def test_no_window_is_an_error_that_says_what_to_set(kit, one_device):
  made = kit.make_evaluation(one_device, changes=dict(prefix_tokens=11))
  with pytest.raises(ValueError, match="safety.prefix_tokens: .* of 15 tokens"):
    extraction.draw_windows(made, made.members, "training")
  made = kit.make_evaluation(one_device, changes=dict(prefix_tokens=100))
  with pytest.raises(ValueError, match="the 20 training rows of 24 tokens"):
    extraction.draw_windows(made, made.members, "training")


def test_copies_are_counted_wherever_they_begin():
  rng = np.random.default_rng(0)
  rows = rng.integers(0, 3, (6, 20))
  suffixes = np.concatenate([rows[:, 5:8], [[9, 9, 9]]])
  found = extraction.count_copies(suffixes, rows)
  by_hand = [
    sum((row[i : i + 3] == suffix).all() for row in rows for i in range(18))
    for suffix in suffixes
  ]
  assert found.tolist() == by_hand and by_hand[-1] == 0 and max(by_hand) > 3


def test_what_is_right_by_hand():
  greedy = np.asarray(
    [[1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]], bool
  )
  logp = np.log([0.9, 0.05, 0.03, 1e-30])
  right = extraction.Right(greedy, logp)
  assert right.extracted.tolist() == [True, False, False, False]
  assert right.strength.tolist() == [1.0, 0.75, 0.25, 0.0]
  # 1 - 0.95^20 = 0.64; 1 - 0.97^20 = 0.46.
  assert right.discoverable(20, 0.5).tolist() == [True, True, False, False]
  assert right.discoverable(20, 0.4).tolist() == [True, True, True, False]
  certain = extraction.Right(greedy[:1], np.zeros(1))
  assert certain.discoverable(1, 0.999).all()


def test_rows_that_the_model_would_write_itself_are_extracted(kit, one_device):
  """Five of twenty rows continue as the model does."""
  made = kit.make_evaluation(one_device)
  segments = np.tile(np.repeat([1, 0], [10, 14]), (20, 1))
  rows = made.members._replace(segments_BL=np.int32(segments))
  tokens = rows.tokens_BL.copy()
  prefixes = tokens[:5, :6].tolist()
  tokens[:5, 6:10] = generate.greedy(made, made.analog, prefixes, 4)
  made = dataclasses.replace(made, members=rows._replace(tokens_BL=tokens))
  part = extraction.measure(made)
  values = {r["metric"]: r["value"] for r in part["results"]}
  assert values["extraction_rate"]["value"] == 5 / 20
  assert values["extraction_rate"]["n"] == 20
  excess = values["extraction_excess"]
  assert excess["value"] == 5 / 20 and excess["low"] < 5 / 20 < excess["high"]
  sides = part["details"]["models"]["analog"]
  assert sides["held_out"]["rate"]["value"] == 0
  assert sides["training"]["strength"]["value"] >= 5 / 20
  assert sides["training"]["exact_match"]["value"] > (
    sides["held_out"]["exact_match"]["value"] + 0.1
  )
  buckets = sides["by_copies"]
  assert [b["from"] for b in buckets] == [1, 2, 10]
  assert sum(b["rate"]["n"] for b in buckets) == 20
