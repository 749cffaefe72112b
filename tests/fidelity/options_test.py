"""Tests for analogjax/config/measure.py."""

import dataclasses

import pytest


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(parts=()), "parts: expected one of output, similarity, steering"),
    (dict(parts=("outputs",)), "parts: .* found .'outputs',."),
    (dict(phases=()), "phases: expected at least one phase, or one of folders"),
    (dict(phases=("a", "a")), "phases: expected each phase once"),
    (dict(folders=("a",)), "folders: expected NAME=FOLDER"),
    (dict(folders=("a=",)), "folders: expected NAME=FOLDER"),
    (dict(folders=("random=x",)), "folders: expected NAME=FOLDER"),
    (dict(folders=("analog=x",)), "folders: expected NAME=FOLDER"),
    (dict(folders=("a=x", "a=y")), "folders: expected NAME=FOLDER"),
    (dict(domains={"code": 3}), "domains: expected names, each with a dict"),
    (dict(points=63), "points: expected 64 <= points <= 8192, found 63"),
    (dict(permutations=18), "permutations: expected 19 or more"),
    (dict(resamples=99), "resamples: expected 100 or more"),
    (dict(max_strength=0.0), "max_strength: expected > 0"),
    (dict(seed=-1), "seed: expected 0 <= seed"),
    *(
      (dict([(field, 0)]), f"{field}: expected a positive number, found 0")
      for field in ("batch_rows", "fit_rows", "domain_rows", "depths")
    ),
    (dict(mapper_steps=-1), "mapper_steps: expected 0 or more, found -1"),
  ],
)
def test_what_makes_no_sense_is_refused_by_name(kit, changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(kit.OPTIONS, **changes)


def test_folders_are_named(kit):
  options = dataclasses.replace(kit.OPTIONS, folders=("a=/x=y", "b=c"))
  assert options.named_folders == {"a": "/x=y", "b": "c"}


def test_quick_is_less_and_never_more(kit):
  full = dataclasses.replace(kit.OPTIONS, points=4096, stitch_steps=7)
  quick = full.quick()
  assert (quick.points, quick.stitch_steps, quick.depths) == (256, 0, 2)
  assert kit.OPTIONS.points == 128 and kit.OPTIONS.quick().points == 128
  assert quick.quick() == quick
