"""Builds the meshes of a config: of the student, and of a live teacher."""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import jax
from jax.sharding import Mesh

from analogjax.config.schema import Sections
from analogjax.distributed import sharding


def make_train_meshes(
  config: Sections, devices: Sequence[Any] | None = None
) -> tuple[Mesh, Mesh]:
  """Returns the mesh of the student and the mesh of a live teacher.

  They are the same mesh, unless a live teacher has `teacher.mesh`: then the
  teacher gets the last devices, and the student the rest. `devices` are all
  devices, by default those of this process's jax.

  Raises:
    ValueError: too few devices, or several processes.
  """
  phases = (config.train.phase[name] for name in config.train.phases)
  own = config.teacher.mesh
  student_axes = dataclasses.asdict(config.mesh)
  if own is None or not any(phase.runs_teacher for phase in phases):
    mesh = sharding.make_mesh(student_axes, devices)
    return mesh, mesh
  axes = dataclasses.asdict(own)
  devices = list(jax.devices() if devices is None else devices)
  number = math.prod(axes.values())
  if jax.process_count() > 1:
    raise ValueError(
      "teacher.mesh: devices of its own need a single process, found"
      f" {jax.process_count()}; set teacher.mesh=None, and the teacher shares"
      " the student's."
    )
  if number >= len(devices):
    raise ValueError(
      f"teacher.mesh: {number} devices for the teacher leave none of the"
      f" {len(devices)} for the student; make it smaller, or set"
      " teacher.mesh=None, and the teacher shares the student's."
    )
  student = sharding.make_mesh(student_axes, devices[:-number])
  return student, sharding.make_mesh(axes, devices[-number:])


def check_phase_rows(
  config: Sections, name: str, mesh: Mesh, teacher_mesh: Mesh
) -> None:
  """Refuses a phase whose rows the meshes cannot split evenly.

  Raises:
    ValueError: names the field.
  """
  phase, field = config.train.phase[name], f"train.{name}.batch_rows"
  if phase.runs_teacher:
    sharding.check_batch_rows(phase.batch_rows, teacher_mesh, field)
  if phase.microbatches > 1:
    field += f" / train.{name}.microbatches"
  rows = phase.batch_rows // phase.microbatches
  sharding.check_batch_rows(rows, mesh, field)
