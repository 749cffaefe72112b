"""The logit caches of a config: their names and their manifests."""

import dataclasses
from typing import Any

from analogjax.cache import cache_format, logit_cache
from analogjax.config.schema import Sections
from analogjax.models.teacher import Teacher
from analogjax.run import identity

CACHE, HELD_OUT = "cache", "held_out"

DISTILLKIT = "distillkit"  # Stands for the pipeline of imported rows.


def cache_names(config: Sections) -> tuple[str, ...]:
  """Names of the caches that the stages of a config read."""
  return (CACHE, HELD_OUT) if config.reads_cache else (HELD_OUT,)


def manifest(
  config: Sections,
  teacher: Teacher,
  fingerprint: str,
  num_rows: int,
  *,
  held_out: bool,
) -> cache_format.Manifest:
  """Builds the manifest of a cache of rows with this fingerprint."""
  return cache_format.Manifest(
    **_recorded(config, held_out=held_out),
    **_origin(config, teacher, held_out=held_out),
    num_rows=num_rows,
    rows_per_object=config.cache.rows_per_object,
    pipeline_fingerprint=fingerprint,
    software=identity.software_versions(),
  )


def _recorded(config: Sections, *, held_out: bool) -> dict[str, Any]:
  """Manifest fields that describe the records of each distribution."""
  cache = config.cache
  sampled = not held_out and not cache.import_path
  return {
    "kind": cache.kind,
    # Only the parameter of this kind; a change of the others is no change.
    "tau": cache.tau if cache.kind == "threshold" else None,
    "num_draws": cache.num_draws if cache.kind == "random" else None,
    "top_k": cache.top_k if cache.kind == "topk" else None,
    "temperature": cache.temperature,
    # Held-out rows are recorded once and at every position.
    "num_replicas": cache.num_replicas if sampled else 1,
    "capture": cache.capture if sampled else "all",
    "capture_rate": cache.capture_rate if sampled else 1.0,
    "gram_positions": cache.gram_positions,
    "gram_depths": cache.gram_depths,
    "seed": cache.seed,
  }


def _origin(
  config: Sections, teacher: Teacher, *, held_out: bool
) -> dict[str, Any]:
  """Manifest fields that identify the source of rows and distributions."""
  imported = config.cache.import_path and not held_out
  return {
    "sequence_length": config.data.L,
    "vocabulary_size": teacher.cfg.V,
    "teacher_digest": teacher.digest,
    "teacher_dtype": teacher.cfg.dtype,
    "tokenizer_digest": teacher.tokenizer_digest,
    "pipeline": DISTILLKIT if imported else config.data.pipeline,
  }


def check_cache(
  config: Sections,
  teacher: Teacher,
  cache: logit_cache.LogitCache,
) -> None:
  """Refuses a cache that another config or teacher made; names the fields.

  The pipeline is not opened, since the cache holds its rows.
  """
  held_out = cache.location.name == HELD_OUT
  wanted = dataclasses.replace(
    cache.manifest,
    **_recorded(config, held_out=held_out),
    **_origin(config, teacher, held_out=held_out),
  )
  cache_format.check(cache.location, cache.manifest, wanted)
