"""The programs that a run executes, with the shapes of their inputs.

Letters: B rows of a batch, L positions.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, Literal

import jax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding
import numpy as np

from analogjax.cache import sampling, teacher_programs
from analogjax.config import schema
from analogjax.distributed import sharding
from analogjax.models import decoder, sizes
from analogjax.planning import abstract_inputs
from analogjax.run import identity as run_identity, meshes as run_meshes
from analogjax.training import programs as training_programs

Kind = Literal["cache", "train", "teacher", "eval"]
Mesh = Any  # jax.sharding.Mesh or AbstractMesh.

# Batches on the devices beside that of a step: two that were read ahead
# (batches.Prefetch), and the last one, until its metrics arrive.
_OTHER_BATCHES = 3

# Fields of a phase that do not change a program.
_NOT_IN_A_PROGRAM = """
  init_from rows num_steps batch_rows seed checkpoint_every_steps
  keep_checkpoints keep_best_checkpoints eval_every_steps log_every_steps
""".split()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """A program of a stage, by name."""

  kind: Kind
  phase: str = ""  # Name of a training phase; "" for the cache.

  @property
  def stage(self) -> str:
    """Its name in a plan: cache, train.distill, train.distill.eval."""
    if not self.phase:
      return self.kind
    end = "" if self.kind == "train" else f".{self.kind}"
    return f"train.{self.phase}{end}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
  """A step on a mesh, and facts about it that are known before compilation."""

  request: Request
  mesh: Mesh
  make: Callable[[], Any]  # The jitted function that the stage runs.
  call: tuple[Any, ...]  # Shapes of the arguments in the stage.
  arguments: dict[str, Any]  # The same by name.
  resident: dict[str, Any]  # Trees on the devices beside the arguments.
  model: decoder.DecoderConfig  # Whose layers the program runs.
  batch_rows: int  # Over all devices.
  parts: int = 1  # Microbatches, one after another.
  L: int
  chunk: int  # Tokens of a device whose logits are in memory at a time.
  num_slots: int  # Slots of a position, over all replicas of its record.

  @property
  def rows(self) -> int:
    """Rows that go through the model at a time, over all devices."""
    return self.batch_rows // self.parts

  @property
  def tokens(self) -> int:
    return self.batch_rows * self.L

  @property
  def flops(self) -> int:
    """Model FLOPs of the global batch."""
    if self.request.kind == "train":
      return self.tokens * sizes.training_flops_per_token(self.model, self.L)
    return self.tokens * sizes.forward_flops_per_token(self.model, self.L)

  def lower(self) -> jax.stages.Lowered:
    """The program, not compiled yet; its mesh must have devices.

    Raises:
      ValueError: an attention kernel cannot run on them.
    """
    with jax.set_mesh(self.mesh):
      return self.make().lower(*self.call)


def requests(sections: schema.Sections) -> list[Request]:
  """The programs in which a run spends its time, in order.

  A phase with a live teacher has a program of the teacher before its own. A
  phase with microbatches has one of its evaluation after it: that holds all
  rows of the batch at once, so it may need more memory than the step.
  """
  found = [Request(kind="cache")]
  for name in sections.train.phases:
    phase = sections.train.phase[name]
    if phase.runs_teacher:
      found.append(Request(kind="teacher", phase=name))
    found.append(Request(kind="train", phase=name))
    if phase.microbatches > 1:
      found.append(Request(kind="eval", phase=name))
  return found


def identity(
  request: Request, sections: schema.Sections, teacher: decoder.DecoderConfig
) -> dict[str, Any]:
  """Everything that the program of a request depends on, as JSON values.

  Two phases have the same identity if their programs differ only in constants:
  rates, decays, lengths of schedules and seeds change no size. Whether a number
  is zero does count, because XLA folds zeros away.
  """
  cache = sections.cache
  common = {
    "kind": request.kind,
    "L": sections.data.L,
    "mesh": dataclasses.asdict(sections.mesh),
  }
  of_teacher = dataclasses.asdict(teacher)
  if request.kind == "cache":
    fields = ("kind", "tau", "num_draws", "top_k", "temperature", "chunk")
    fields += ("num_replicas", "capture", "batch_rows")
    fields += ("gram_positions", "gram_layers")
    values = {field: getattr(cache, field) for field in fields}
    return common | {"teacher": of_teacher, "cache": values}
  phase, own = sections.train.phase[request.phase], sections.teacher.mesh
  is_eval = request.kind == "eval"
  live = _has_live_teacher(sections, request.phase)
  gram = cache.gram_positions, cache.gram_layers
  student = dataclasses.asdict(sections.student)
  del student["seed"], student["size_window"]
  values = dataclasses.asdict(phase)
  for field in _NOT_IN_A_PROGRAM:
    del values[field]
  for part in ("optimizer", "loss"):
    values[part] = {
      name: _coarse(name, value) for name, value in values[part].items()
    }
  if request.kind == "teacher":
    # The student's state is on the devices too, but its step does not run.
    values = phase.optimizer.name, phase.optimizer.momentum_dtype
  records = None
  if phase.reads_records or is_eval:
    slots = abstract_inputs.sampler(cache).num_slots
    records = slots, cache.kind == "topk", cache.temperature
  return common | {
    "rows": phase.batch_rows,
    "student": student,
    "phase": values,
    "teacher": of_teacher if live else None,
    "runs_teacher": phase.runs_teacher,
    "teacher_mesh": own and dataclasses.asdict(own),
    "gram": gram if phase.loss.gram_weight or is_eval else None,
    "records": records,
  }


def meshes(
  request: Request, sections: schema.Sections, devices: Sequence[Any]
) -> tuple[Mesh, Mesh]:
  """The mesh of a program and that of a live teacher, over devices.

  Raises:
    ValueError: the mesh does not match the devices.
  """
  if request.kind != "cache":
    return run_meshes.make_train_meshes(sections, devices)
  mesh = sharding.make_mesh(dataclasses.asdict(sections.mesh), devices)
  return mesh, mesh


def abstract_meshes(
  sections: schema.Sections, kind: str, platform: str
) -> tuple[Mesh, Mesh]:
  """Meshes without devices, for programs that are never compiled.

  Args:
    sections: the config, no axis of its meshes -1.
    platform: "tpu", "gpu" or "cpu".
  """

  def make(axes: schema.MeshConfig):
    return AbstractMesh(
      tuple(getattr(axes, axis) for axis in sharding.MESH_AXES),
      sharding.MESH_AXES,
      (AxisType.Auto,) * len(sharding.MESH_AXES),
      abstract_device=AbstractDevice(
        device_kind=kind, num_cores=None, platform=platform
      ),
    )

  return make(sections.mesh), make(sections.teacher.mesh or sections.mesh)


def prepare(
  request: Request,
  sections: schema.Sections,
  teacher: decoder.DecoderConfig,
  mesh: Mesh,
  teacher_mesh: Mesh,
) -> Step:
  """The program that a stage jits, for devices that need not be present.

  Args:
    teacher: its shape, with the config's dtype and attention.
    mesh: of `meshes` or `abstract_meshes`.

  Raises:
    ValueError: the mesh does not divide a dimension or the rows.
  """
  if request.kind == "cache":
    return _cache_step(request, sections, teacher, mesh)
  student = run_identity.student_config(sections)
  run_meshes.check_phase_rows(sections, request.phase, mesh, teacher_mesh)
  phase = sections.train.phase[request.phase]
  training = training_programs.make_training(
    phase,
    student,
    mesh,
    seed=sections.student.seed,
    teacher_softcap=teacher.logit_softcap,
  )
  if request.kind == "teacher":
    return _teacher_step(request, sections, teacher, training, teacher_mesh)
  resident: dict[str, Any] = {}
  if sections.teacher.mesh is None and _has_live_teacher(
    sections, request.phase
  ):
    resident["teacher's parameters"] = abstract_inputs.parameters(teacher, mesh)
  if request.kind == "eval":
    return _eval_step(request, sections, training, resident)
  batch, live = abstract_inputs.for_phase(sections, phase, mesh), None
  arguments = abstract_inputs.parts(training.abstract) | {"batch": batch}
  if phase.runs_teacher:
    live = abstract_inputs.live_teacher(sections, phase, teacher, mesh)
    arguments["teacher's hidden states"] = live.x_BLW
    arguments["teacher's unembedding"] = live.head_VW
    if resident:
      # The head is one of its parameters, and already an argument.
      resident = {
        "teacher's parameters": abstract_inputs.without_head(teacher, mesh)
      }
  resident["other batches"] = [batch] * _OTHER_BATCHES
  return Step(
    request=request,
    mesh=mesh,
    make=lambda: training.step,
    call=(training.abstract, batch, live),
    arguments=arguments,
    resident=resident,
    model=student,
    batch_rows=phase.batch_rows,
    parts=phase.microbatches,
    L=sections.data.L,
    chunk=phase.loss.chunk,
    num_slots=batch.targets.ids_BLK.shape[-1],
  )


def _teacher_step(
  request: Request,
  sections: schema.Sections,
  teacher: decoder.DecoderConfig,
  training: training_programs.Training,
  mesh: Mesh,
) -> Step:
  phase = sections.train.phase[request.phase]
  params = abstract_inputs.parameters(teacher, mesh)
  batch, resident = abstract_inputs.for_phase(sections, phase, mesh), {}
  if sections.teacher.mesh is None:
    resident = abstract_inputs.parts(training.abstract)
    resident["other batches"] = [batch] * _OTHER_BATCHES
  else:
    batch = batch._replace(targets=None)
  return Step(
    request=request,
    mesh=mesh,
    make=lambda: teacher_programs.make_hidden_step(
      teacher, mesh, gram_layers=sections.cache.gram_layers
    ),
    call=(params, batch),
    arguments={"teacher's parameters": params, "batch": batch},
    resident=resident,
    model=teacher,
    batch_rows=phase.batch_rows,
    L=sections.data.L,
    chunk=0,
    num_slots=0,
  )


def _eval_step(
  request: Request,
  sections: schema.Sections,
  training: training_programs.Training,
  resident: dict[str, Any],
) -> Step:
  phase, mesh = sections.train.phase[request.phase], training.mesh
  of_student = abstract_inputs.parts(training.abstract)
  params = of_student.pop("parameters")
  batch = abstract_inputs.recorded(sections, phase.batch_rows, mesh)
  return Step(
    request=request,
    mesh=mesh,
    make=lambda: training_programs.make_eval_step(
      training.cfg,
      mesh,
      temperature=sections.cache.temperature,
      chunk=phase.loss.chunk,
    ),
    call=(params, batch),
    arguments={"parameters": params, "batch": batch},
    resident=resident | of_student,
    model=training.cfg,
    batch_rows=phase.batch_rows,
    L=sections.data.L,
    chunk=phase.loss.chunk,
    num_slots=batch.targets.ids_BLK.shape[-1],
  )


def _cache_step(
  request: Request,
  sections: schema.Sections,
  teacher: decoder.DecoderConfig,
  mesh: Mesh,
) -> Step:
  cache, L = sections.cache, sections.data.L
  B = cache.batch_rows
  sharding.check_batch_rows(B, mesh, "cache.batch_rows")
  params = abstract_inputs.parameters(teacher, mesh)
  sampler = abstract_inputs.sampler(cache)
  batch = abstract_inputs.unlabelled(sections, B, mesh)
  rows = NamedSharding(mesh, sharding.ROWS)
  keys_B2 = jax.ShapeDtypeStruct((B, 2), "uint32", sharding=rows)
  return Step(
    request=request,
    mesh=mesh,
    # Over the training rows. Held-out rows have one replica and records at
    # every position.
    make=lambda: teacher_programs.make_teacher_step(
      teacher,
      mesh,
      sampler=sampler,
      capture=sampling.Capture(kind=cache.capture, rate=cache.capture_rate),
      num_replicas=cache.num_replicas,
      temperature=cache.temperature,
      chunk=cache.chunk,
      gram_layers=len(cache.gram_depths),
    ),
    call=(params, batch, keys_B2),
    arguments={"teacher's parameters": params, "batch": (batch, keys_B2)},
    resident={},
    model=teacher,
    batch_rows=B,
    L=L,
    chunk=min(cache.chunk, L) * B // (mesh.size // mesh.shape["tensor"]),
    num_slots=sampler.num_slots * cache.num_replicas,
  )


def bytes_of(tree: Any) -> int:
  """Bytes that a device holds of a tree of shapes with shardings."""
  return sum(
    int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def _has_live_teacher(sections: schema.Sections, phase: str) -> bool:
  """Whether its weights are on the device; they stay after its first phase."""
  phases = sections.train.phases
  so_far = phases[: phases.index(phase) + 1]
  return any(sections.train.phase[name].runs_teacher for name in so_far)


def _coarse(name: str, value: Any) -> Any:
  """A number of a phase, reduced to what its program depends on."""
  if name in ("chunk", "temperature") or not isinstance(value, int | float):
    return value
  if isinstance(value, bool) or (value in (0, 1) and name != "decay_steps"):
    return value
  return "a number"
