"""Tests for analogjax/run/ that need no teacher."""

import dataclasses
from pathlib import Path
import types

import pytest

from analogjax.cache import cache_format
from analogjax.config import loading, model, schema
from analogjax.models import families, teacher
from analogjax.run import caches, identity
from analogjax.run.run import Run
from analogjax.workdir import store

DEMO = Path(__file__).parents[2] / "configs" / "demo.py"
SCALING = dict(
  **dict(kind="llama3", factor=8.0, original_max_positions=512),
  **dict(low_freq_factor=1.0, high_freq_factor=4.0),
)


def sections(cache=None, **student):
  cfg = loading.load(DEMO, ())
  with cfg.unlocked():
    cfg.student.update(student)
    cfg.cache.update(cache or {})
    if cache:  # No loss takes every kind of record yet.
      cfg.train.distill.loss.alpha = 0.0
  return schema.to_sections(cfg)


def test_the_student_has_the_shape_of_the_config():
  found = Run(sections(), Path()).student
  assert found.num_parameters == 3_342_912  # 49,152 x 64 + 4 layers + norm.
  assert (found.D, found.Y, found.H, found.rope_scaling) == (64, 4, 16, None)


def test_the_students_rope_scaling_reaches_model_and_export():
  found = identity.student_config(sections(rope_scaling=SCALING))
  assert found.rope_scaling == model.RopeScaling(**SCALING)
  written = families.to_hf_config(found, dtype="float32")
  again = families.from_hf_config(written, dtype="float32", where="x")
  assert again == found


def test_what_changes_numbers_is_part_of_the_identity():
  before = identity.student_identity(sections())
  assert identity.student_identity(sections(rope_scaling=SCALING)) != before
  assert identity.student_identity(sections(remat="full")) == before
  assert identity.student_identity(sections(size_window="warn")) == before


# Caches.

TEACHER = teacher.Teacher(
  folder=Path("t"),
  cfg=types.SimpleNamespace(V=49_152, dtype="bfloat16"),
  digest="a teacher",
  tokenizer_digest="a tokenizer",
)


def make_manifest(held_out=False, **cache):
  return caches.manifest(
    sections(cache), TEACHER, "a pipeline", 12, held_out=held_out
  )


def test_a_cache_lies_in_the_workdir_or_where_the_config_says(tmp_path):
  place = Run(sections(), tmp_path).cache_place(caches.CACHE)
  assert place == store.Place(f"file://{tmp_path}/cache")
  where = dict(location="s3://ours/run/", s3_endpoint="http://host:9000")
  place = Run(sections(where), tmp_path).cache_place(caches.HELD_OUT)
  assert place == store.Place("s3://ours/run/held_out", "http://host:9000")


def test_a_manifest_says_what_the_config_asks_for():
  found = make_manifest(tau=0.1, seed=3, rows_per_object=16)
  assert found.sampler.tau == 0.1
  assert (found.seed, found.num_rows, found.rows_per_object) == (3, 12, 16)
  assert found.vocabulary_size == 49_152 and found.sequence_length == 256
  assert found.teacher_digest == "a teacher"
  assert found.teacher_dtype == "bfloat16"
  assert found.tokenizer_digest == "a tokenizer"
  assert found.pipeline == "analogjax.demo.docstrings:packed_rows"
  assert found.pipeline_fingerprint == "a pipeline"
  assert {"analogjax", "jax", "tensorstore"} <= found.software.keys()


@pytest.mark.parametrize(
  ("kind", "own"),
  [("threshold", "tau"), ("random", "num_draws"), ("topk", "top_k")],
)
def test_a_manifest_has_the_parameter_of_its_kind_alone(kind, own):
  """A change of another kind's parameter does not change the cache."""
  given = dict(tau=0.3, num_draws=33, top_k=13)
  found = dataclasses.asdict(make_manifest(kind=kind, **given))
  for name, value in given.items():
    assert found[name] == (value if name == own else None)
  assert getattr(make_manifest(kind=kind, **given).sampler, own) == given[own]


def test_what_is_measured_on_is_recorded_once_and_everywhere():
  given = dict(num_replicas=4, capture="entropy", capture_rate=0.2)
  train = make_manifest(**given)
  held_out = make_manifest(held_out=True, **given)
  assert (train.num_replicas, train.capture, train.capture_rate) == (
    *(4, "entropy", 0.2),
  )
  assert held_out == dataclasses.replace(
    train, num_replicas=1, capture="all", capture_rate=1.0
  )


@pytest.mark.parametrize("name", [caches.CACHE, caches.HELD_OUT])
@pytest.mark.parametrize(
  ("changed", "field"),
  [
    (dict(tau=0.1), "tau=0.04, this run has 0.1"),
    (dict(temperature=2.0), "temperature=1.0, this run has 2.0"),
    (dict(seed=5), "seed=0, this run has 5"),
    (dict(kind="topk"), "kind='threshold', this run has 'topk'"),
    (dict(num_replicas=2), "num_replicas=1, this run has 2"),
    (dict(capture="entropy"), "capture='all', this run has 'entropy'"),
    # How it was written and what it is not made of may differ.
    (dict(rows_per_object=3, num_rows=99, batch_rows=1), None),
    (dict(num_draws=3, top_k=3, capture_rate=1.0, chunk=8), None),
  ],
)
def test_a_cache_of_another_config_is_refused(name, changed, field):
  made = make_manifest(held_out=name == caches.HELD_OUT)
  cache = types.SimpleNamespace(
    manifest=made, location=store.Place("file:///w") / name
  )
  alike = field is None or (
    name == caches.HELD_OUT and field.startswith(("num_rep", "capture"))
  )
  if alike:
    caches.check_cache(sections(changed), TEACHER, cache)
    return
  with pytest.raises(cache_format.CacheError) as error:
    caches.check_cache(sections(changed), TEACHER, cache)
  assert field in str(error.value) and f"file:///w/{name}" in str(error.value)


def test_a_cache_of_another_teacher_is_refused():
  cache = types.SimpleNamespace(
    manifest=make_manifest(), location=store.Place("file:///w/cache")
  )
  other = dataclasses.replace(TEACHER, digest="another")
  message = "teacher_digest='a teacher', this run has 'another'"
  with pytest.raises(cache_format.CacheError, match=message):
    caches.check_cache(sections(), other, cache)
