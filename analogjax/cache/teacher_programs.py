"""The teacher's steps, jitted for a mesh; the stages and a plan share them."""

import functools
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from analogjax.cache import sampling, teacher_step
from analogjax.distributed import sharding
from analogjax.models import decoder


def make_teacher_step(
  cfg: decoder.DecoderConfig,
  mesh: Mesh,
  *,
  sampler: sampling.Sampler,
  capture: sampling.Capture,
  num_replicas: int,
  temperature: float,
  chunk: int,
  gram_layers: int,
):
  """(params, batch, keys_B2) -> sampling.Records; arguments as in steps.py."""
  return jax.jit(
    functools.partial(
      teacher_step.teacher_step,
      graphdef=decoder.graphdef(cfg),
      sampler=sampler,
      capture=capture,
      num_replicas=num_replicas,
      temperature=temperature,
      chunk=chunk,
      gram_layers=gram_layers,
    ),
    out_shardings=NamedSharding(mesh, sharding.ROWS),
  )


def make_expected_ids_step(
  cfg: decoder.DecoderConfig, mesh: Mesh, *, chunk: int
):
  """(params, batch) -> how often the teacher expects each id, [V]."""
  return jax.jit(
    functools.partial(
      teacher_step.expected_ids_step,
      graphdef=decoder.graphdef(cfg),
      chunk=chunk,
    ),
    out_shardings=everywhere(mesh),
  )


def make_hidden_step(
  cfg: decoder.DecoderConfig, mesh: Mesh, *, gram_layers: int
):
  """(params, batch) -> [B, L, W], Gram or None, of a live teacher."""
  return jax.jit(
    functools.partial(
      teacher_step.hidden_step,
      graphdef=decoder.graphdef(cfg),
      gram_layers=gram_layers,
    ),
    out_shardings=NamedSharding(mesh, sharding.ROWS),
  )


def shape_of(x: Any, where: Any) -> jax.ShapeDtypeStruct:
  """The shape and dtype of anything that has them, with a sharding."""
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)


def everywhere(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())
