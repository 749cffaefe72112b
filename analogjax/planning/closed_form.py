"""Sizes, FLOPs and cache bytes of a config, by formula.

Letters: L row length, V vocabulary, K slots of a cached record.
"""

from collections.abc import Mapping
import math
from typing import Any

from analogjax.config import schema
from analogjax.distributed import sharding
from analogjax.models import decoder, sizes
from analogjax.planning import abstract_inputs


def make_outline(
  sections: schema.Sections, teacher: decoder.DecoderConfig
) -> dict[str, Any]:
  """Every number that does not depend on machines, as JSON values."""
  student, L = sections.student, sections.data.L
  verdict = size_window(sections, teacher)
  return {
    "teacher": _model(teacher, L),
    "student": _model(student, L),
    "size_window": {
      "ratio": verdict.ratio,
      "inside": verdict.inside,
      "policy": student.size_window,
      "verdict": str(verdict),
    },
    "cache": _cache(sections),
    "phases": {name: _phase(sections, name) for name in sections.train.phases},
    "flops": _flops(sections, teacher),
  }


def size_window(
  sections: schema.Sections, teacher: decoder.DecoderConfig
) -> sizes.SizeVerdict:
  """Whether the student has the size of an analog."""
  return sizes.size_window_verdict(
    sizes.count_parameters(sections.student).total,
    sizes.count_parameters(teacher).total,
  )


def _model(shape: sizes.Shape, L: int) -> dict[str, int]:
  counts = sizes.count_parameters(shape)
  return {
    "parameters": counts.total,
    "embedding": counts.embedding,
    "layers": counts.num_layers * counts.per_layer,
    "final_norm": counts.final_norm,
    "head": counts.head,
    "forward_flops_per_token": sizes.forward_flops_per_token(shape, L),
    "training_flops_per_token": sizes.training_flops_per_token(shape, L),
  }


def problems(
  sections: schema.Sections,
  teacher: decoder.DecoderConfig,
  mesh: Mapping[str, int],
) -> list[str]:
  """Reasons why other stages will refuse a config, each with its field."""
  student, found = sections.student, []
  if student.V != teacher.V:
    found.append(
      f"student.V: {student.V}, but the vocabulary of the teacher has"
      f" {teacher.V} entries; they must be equal."
    )
  if sections.data.L > teacher.max_positions:
    found.append(
      f"data.L: rows of {sections.data.L} tokens, but the teacher's context is"
      f" {teacher.max_positions}."
    )
  for name, shape in (("student", student), ("teacher", teacher)):
    for letter, axis in sharding.WEIGHT_AXES.items():
      size = getattr(shape, letter, None)  # No experts in a dense model.
      if size is not None and size % mesh[axis]:
        found.append(
          f"mesh.{axis}: {mesh[axis]} does not divide {letter}={size} of the"
          f" {name}."
        )
  ways = math.prod(mesh[axis] for axis in sharding.ACTIVATION_AXES["B"])
  batches = {
    "cache.batch_rows": sections.cache.batch_rows,
    "measure.batch_rows": sections.measure.batch_rows,
  }
  for name in sections.train.phases:
    phase, field = sections.train.phase[name], f"train.{name}.batch_rows"
    if phase.microbatches > 1:
      field += f" / train.{name}.microbatches"
    batches[field] = phase.batch_rows // phase.microbatches
  for field, rows in batches.items():
    if rows % ways:
      found.append(f"{field}: {rows} is not a multiple of {ways} devices.")
  return found


def _cache(sections: schema.Sections) -> dict[str, Any]:
  cache, L = sections.cache, sections.data.L
  rows = cached_rows(sections)
  num_slots = abstract_inputs.sampler(cache).num_slots
  expected = cached_token_bytes(sections)
  return {
    "rows": rows,
    "tokens": rows * L,
    "held_out_tokens": cache.held_out_rows * L,
    "slots": num_slots,
    "bytes_per_token_in_memory": sizes.decoded_record_bytes(num_slots),
    "expected_bytes_per_token": expected,
    "expected_bytes": round(rows * L * expected),
  }


def cached_rows(sections: schema.Sections) -> int:
  """Rows that are cached: those to train on and the held-out ones."""
  cache = sections.cache
  return cache.held_out_rows + sections.reads_cache * cache.num_rows


def cached_token_bytes(sections: schema.Sections) -> float:
  """Bytes of a cached token on disk, an estimate."""
  cache = sections.cache
  parameters = {
    "threshold": cache.tau,
    "random": cache.num_draws,
    "topk": cache.top_k,
  }
  parameter, L = parameters[cache.kind], sections.data.L
  of_gram = sizes.gram_bytes(cache.gram_positions, cache.gram_layers, L)
  return sizes.expected_record_bytes(cache.kind, parameter, L) + of_gram


def _phase(sections: schema.Sections, name: str) -> dict[str, Any]:
  phase = sections.train.phase[name]
  rows = phase.num_steps * phase.batch_rows
  cached = phase.rows == "cache"
  return {
    "init_from": phase.init_from,
    "rows": phase.rows,
    "alpha": phase.loss.alpha,
    "teacher": phase.loss.teacher if phase.loss.has_teacher else None,
    "steps": phase.num_steps,
    "tokens": rows * sections.data.L,
    # Passes over the cached rows; a pipeline's length is not known here.
    "epochs": rows / sections.cache.num_rows if cached else None,
  }


def _flops(sections: schema.Sections, teacher: sizes.Shape) -> dict[str, int]:
  """Model FLOPs of each stage that computes."""
  student, L = sections.student, sections.data.L
  rows = cached_rows(sections)
  flops = {"cache": rows * L * sizes.forward_flops_per_token(teacher, L)}
  for name in sections.train.phases:
    phase = sections.train.phase[name]
    tokens = phase.num_steps * phase.batch_rows * L
    per_token = sizes.training_flops_per_token(student, L)
    if phase.runs_teacher:
      per_token += sizes.forward_flops_per_token(teacher, L)
    flops[f"train.{name}"] = tokens * per_token
  flops["measure"] = measure_flops(sections, teacher)
  return {**flops, "total": sum(flops.values())}


def measure_flops(sections: schema.Sections, teacher: sizes.Shape) -> int:
  """Model FLOPs of measuring."""
  L, students = sections.data.L, len(sections.measure.phases)
  of_student = sizes.forward_flops_per_token(sections.student, L)
  # On these rows the teacher's full distribution is computed once more.
  of_teacher = sizes.forward_flops_per_token(teacher, L)
  tokens = sections.cache.held_out_rows * L
  return tokens * (of_teacher + students * of_student)
