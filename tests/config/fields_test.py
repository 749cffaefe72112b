"""Tests for analogjax/config/fields.py."""

import pytest

from analogjax.config import fields

KNOWN = [
  "student.D",
  "student.seed",
  "cache.tau",
  "cache.seed",
  "train.control.num_steps",
  "train.distill.num_steps",
]


@pytest.mark.parametrize(
  ("path", "first"),
  [
    ("cache.taw", "cache.tau"),
    ("student.tau", "cache.tau"),  # The right leaf in the wrong section.
    ("num_steps", "train.control.num_steps, train.distill.num_steps"),
    ("student.d", "student.D"),
    ("train.distil.num_steps", "train.distill.num_steps"),
    ("train.distill.num_step", "train.distill.num_steps"),
  ],
)
def test_suggest_names_the_nearest_first(path, first):
  text = fields.suggest(path, KNOWN)
  assert text.startswith(f"Did you mean {first}")


def test_suggest_lists_what_lies_beside_when_nothing_is_near():
  text = fields.suggest("student.zzz", KNOWN)
  assert text == "Known: student.D, student.seed."
  text = fields.suggest("qqq", KNOWN)
  assert text == "Known: student, cache, train."
