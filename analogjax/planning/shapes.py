"""Which programs a config runs, and what goes into each, as shapes.

Letters: B rows of a batch, L positions.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, Literal

import jax
from jax.sharding import Mesh, NamedSharding
import numpy as np

from analogjax.cache import sampling, teacher_programs
from analogjax.config import schema
from analogjax.distributed import sharding
from analogjax.models import decoder, sizes
from analogjax.planning import arguments
from analogjax.run import identity as run_identity, meshes
from analogjax.training import programs

Kind = Literal["cache", "train", "teacher", "eval"]

# On the devices beside that of a step: two that were read ahead
# (batches.Prefetch), and the last one, until its metrics are there.
_OTHER_BATCHES = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """A program of a stage, by name."""

  kind: Kind
  phase: str = ""  # Of training; "" for the cache.

  @property
  def stage(self) -> str:
    """As facts.Program has it: cache, train.distill, train.distill.eval."""
    if not self.phase:
      return self.kind
    end = "" if self.kind == "train" else f".{self.kind}"
    return f"train.{self.phase}{end}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
  """A step for a mesh, and what is known of it before it is compiled."""

  request: Request
  mesh: Mesh
  make: Callable[[], Any]  # The jitted function, of jitted.py.
  call: tuple[Any, ...]  # What the stage calls it with; shapes.
  arguments: dict[str, Any]  # The same by what it is.
  resident: dict[str, Any]  # What lies on the devices beside them.
  model: decoder.DecoderConfig  # Whose layers the program runs.
  rows: int  # That go through the model at a time, of all devices.
  L: int
  chunk: int  # Tokens of a device whose logits exist at a time.
  num_slots: int  # Of a position, over all replicas of its record.
  tokens: int  # Of the global batch.
  flops: float  # Model FLOPs of the global batch.

  def lower(self) -> jax.stages.Lowered:
    """The program itself; devices need not be there, but jax has to know them.

    Raises:
      ValueError: an attention kernel that cannot run on them.
    """
    with jax.set_mesh(self.mesh):
      return self.make().lower(*self.call)


def requests(sections: schema.Sections) -> list[Request]:
  """The programs that a run spends its time in, in order.

  An evaluation is one of them where a step is in parts: it holds all rows of
  the batch at once, so it may need more memory than the step.
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
  """What the program of a request depends on; JSON values.

  Equal for two phases whose programs differ in constants alone: rates, decays,
  lengths of schedules and seeds change no size. A number that may be zero, and
  then is folded away, keeps that.
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
  phase = sections.train.phase[request.phase]
  common["rows"] = phase.batch_rows
  if any(sections.train.phase[n].runs_teacher for n in sections.train.phases):
    own = sections.teacher.mesh
    common["teacher_mesh"] = own and dataclasses.asdict(own)
  if _has_live_teacher(sections, request.phase):
    common["teacher"] = of_teacher
    common["runs_teacher"] = phase.runs_teacher
  if request.kind == "teacher":
    # The student's state lies beside it.
    optimizer = phase.optimizer.name, phase.optimizer.momentum_dtype
    student = dataclasses.asdict(sections.student)
    if phase.loss.gram_weight:
      common["gram"] = cache.gram_positions, cache.gram_layers
    return common | {"student": student, "optimizer": optimizer}
  values = dataclasses.asdict(phase)
  for free in (
    *("init_from", "rows", "num_steps", "batch_rows", "seed"),
    *("checkpoint_every_steps", "keep_checkpoints", "keep_best_checkpoints"),
    *("eval_every_steps", "log_every_steps"),
  ):
    del values[free]
  for part in ("optimizer", "loss"):
    values[part] = {
      name: _coarse(name, value) for name, value in values[part].items()
    }
  student = dataclasses.asdict(sections.student)
  del student["seed"], student["size_window"]
  common |= {"student": student, "phase": values}
  if phase.reads_records or request.kind == "eval":
    common["slots"] = arguments.sampler(cache).num_slots
    common["has_tail"] = cache.kind == "topk"
    common["temperature"] = cache.temperature
  if phase.loss.gram_weight or request.kind == "eval":
    common["gram"] = cache.gram_positions, cache.gram_layers
  return common


def prepare(
  request: Request,
  sections: schema.Sections,
  teacher: decoder.DecoderConfig,
  devices: Sequence[Any],
) -> Step:
  """The same program that the stage jits, for devices that need not be there.

  Args:
    request: which one.
    sections: the config.
    teacher: its shape, with the config's dtype and attention.
    devices: all of them.

  Raises:
    ValueError: a mesh that does not match the devices, or a dimension or rows
      that it does not divide.
  """
  if request.kind == "cache":
    return _cache_step(request, sections, teacher, devices)
  student = run_identity.student_config(sections)
  mesh, teacher_mesh = meshes.make_train_meshes(sections, devices)
  meshes.check_phase_rows(sections, request.phase, mesh, teacher_mesh)
  phase = sections.train.phase[request.phase]
  training = programs.make_training(
    phase,
    student,
    mesh,
    seed=sections.student.seed,
    teacher_softcap=teacher.logit_softcap,
  )
  if request.kind == "teacher":
    return _teacher_step(request, sections, teacher, training, teacher_mesh)
  resident: dict[str, Any] = {}
  if teacher_mesh is mesh and _has_live_teacher(sections, request.phase):
    resident["teacher's parameters"] = arguments.parameters(teacher, mesh)
  if request.kind == "eval":
    return _eval_step(request, sections, training, resident)
  L, tokens = sections.data.L, phase.batch_rows * sections.data.L
  batch, live = arguments.for_phase(sections, phase, mesh), None
  inputs: dict[str, Any] = arguments.parts(training.abstract) | {"batch": batch}
  if phase.runs_teacher:
    live = arguments.live_teacher(sections, phase, teacher, mesh)
    inputs["teacher's hidden states"] = live.x_BLW
    inputs["teacher's unembedding"] = live.head_VW
    if resident:
      # The head is one of its parameters, and an argument already.
      resident = {"teacher's parameters": arguments.without_head(teacher, mesh)}
  resident["other batches"] = [batch] * _OTHER_BATCHES
  return Step(
    request=request,
    mesh=mesh,
    make=lambda: training.step,
    call=(training.abstract, batch, live),
    arguments=inputs,
    resident=resident,
    model=student,
    rows=phase.batch_rows // phase.microbatches,
    L=L,
    chunk=phase.loss.chunk,
    num_slots=batch.targets.ids_BLK.shape[-1],
    tokens=tokens,
    flops=tokens * sizes.training_flops_per_token(student, L),
  )


def _teacher_step(
  request: Request,
  sections: schema.Sections,
  teacher: decoder.DecoderConfig,
  training: programs.Training,
  mesh: Mesh,
) -> Step:
  phase, L = sections.train.phase[request.phase], sections.data.L
  params = arguments.parameters(teacher, mesh)
  batch = arguments.for_phase(sections, phase, mesh)
  shares = mesh is training.mesh
  if not shares:
    batch = batch._replace(targets=None)
  tokens, resident = phase.batch_rows * L, {}
  if shares:
    resident = arguments.parts(training.abstract)
    resident["other batches"] = [batch] * _OTHER_BATCHES
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
    rows=phase.batch_rows,
    L=L,
    chunk=0,
    num_slots=0,
    tokens=tokens,
    flops=tokens * sizes.forward_flops_per_token(teacher, L),
  )


def _eval_step(
  request: Request,
  sections: schema.Sections,
  training: programs.Training,
  resident: dict[str, Any],
) -> Step:
  phase, L = sections.train.phase[request.phase], sections.data.L
  mesh, of_student = training.mesh, arguments.parts(training.abstract)
  params = of_student.pop("parameters")
  batch = arguments.recorded(sections, phase.batch_rows, mesh)

  def make():
    return programs.make_eval_step(
      training.cfg,
      mesh,
      temperature=sections.cache.temperature,
      chunk=phase.loss.chunk,
    )

  tokens = phase.batch_rows * L
  return Step(
    request=request,
    mesh=mesh,
    make=make,
    call=(params, batch),
    arguments={"parameters": params, "batch": batch},
    resident=resident | of_student,
    model=training.cfg,
    rows=phase.batch_rows,
    L=L,
    chunk=phase.loss.chunk,
    num_slots=batch.targets.ids_BLK.shape[-1],
    tokens=tokens,
    flops=tokens * sizes.forward_flops_per_token(training.cfg, L),
  )


def bytes_of(tree: Any) -> int:
  """What a device holds of a tree of shapes with shardings."""
  return sum(
    int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def _cache_step(request, sections, teacher, devices) -> Step:
  cache, L = sections.cache, sections.data.L
  mesh = sharding.make_mesh(dataclasses.asdict(sections.mesh), devices)
  B = cache.batch_rows
  sharding.check_batch_rows(B, mesh, "cache.batch_rows")
  params = arguments.parameters(teacher, mesh)
  sampler = arguments.sampler(cache)
  where = NamedSharding(mesh, sharding.ROWS)
  batch = arguments.unlabelled(sections, B, mesh)
  keys_B2 = jax.ShapeDtypeStruct((B, 2), "uint32", sharding=where)

  def make():
    # The rows to train on; those to measure on have one replica, of every
    # position.
    return teacher_programs.make_teacher_step(
      teacher,
      mesh,
      sampler=sampler,
      capture=sampling.Capture(kind=cache.capture, rate=cache.capture_rate),
      num_replicas=cache.num_replicas,
      temperature=cache.temperature,
      chunk=cache.chunk,
      gram_layers=len(cache.gram_depths),
    )

  ways = mesh.size // mesh.shape["tensor"]
  return Step(
    request=request,
    mesh=mesh,
    make=make,
    call=(params, batch, keys_B2),
    arguments={"teacher's parameters": params, "batch": (batch, keys_B2)},
    resident={},
    model=teacher,
    rows=B,
    L=L,
    chunk=min(cache.chunk, L) * B // ways,
    num_slots=sampler.num_slots * cache.num_replicas,
    tokens=B * L,
    flops=B * L * sizes.forward_flops_per_token(teacher, L),
  )


def _has_live_teacher(sections: schema.Sections, phase: str) -> bool:
  """Whether its weights are there: from its first phase on they stay."""
  phases = sections.train.phases
  so_far = phases[: phases.index(phase) + 1]
  return any(sections.train.phase[name].runs_teacher for name in so_far)


def _coarse(name: str, value: Any) -> Any:
  """A number of a phase as far as its program depends on it."""
  if name in ("chunk", "temperature") or not isinstance(value, int | float):
    return value
  if isinstance(value, bool) or (value in (0, 1) and name != "decay_steps"):
    return value
  return "a number"
