"""Whether programs fit into a device, and which change of a config would help.

A change is proposed only after it was computed: `Make` gives the programs of a
changed config, in closed form or by the compiler.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import re
from typing import Any

from analogjax.config import schema, train
from analogjax.models import decoder
from analogjax.planning import closed_form, topologies
from analogjax.planning.program_cost import ProgramCost
from analogjax.planning.topologies import Topology

Make = Callable[[schema.Sections], list[ProgramCost]]
Changes = Mapping[str, Any]  # Dotted path of a field -> its value.

_LEAST_CHUNK = 16  # Tokens.
REMAT = ("none", "dots", "full")  # The mildest first.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remedy:
  """A change after which a program fits."""

  changes: Changes
  memory_bytes: float  # Bytes that the program takes then.
  factor: float  # Factor by which the counted bytes were scaled.
  note: str  # Side effects of the change.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
  """One program against the memory of a device."""

  stage: str
  memory_bytes: float | None  # None: the compiler did not say.
  limit_bytes: float
  fits: bool
  said: str  # By the compiler, if it refused.
  remedies: tuple[Remedy, ...] = ()


def limit_bytes(sections: schema.Sections, topology: Topology) -> float:
  """Bytes of a device that one program may take."""
  return topology.chip.memory_bytes * sections.plan.memory_fraction


def check(program: ProgramCost, limit: float) -> Fit:
  """Whether a program fits; does not look for remedies."""
  needed = needed_bytes(program)
  return Fit(
    stage=program.stage,
    memory_bytes=needed,
    limit_bytes=limit,
    fits=not program.too_large and needed is not None and needed <= limit,
    said=program.too_large,
  )


def needed_bytes(program: ProgramCost) -> float | None:
  """Peak memory, also of a program that the compiler refused.

  libtpu 0.0.52 writes "Used 101.20G of 95.74G hbm", or "total memory required
  for HLO temporaries (47.98G) exceeds available HBM (15.75G)"; its G is 2**30.
  """
  if not program.too_large:
    return program.memory_bytes
  whole = re.search(r"[Uu]sed ([\d.]+)([MG]) of ", program.too_large)
  temporary = re.search(r"temporaries \(([\d.]+)([MG])\)", program.too_large)
  match = whole or temporary
  if match is None:
    return None
  said = float(match[1]) * {"M": 2.0**20, "G": 2.0**30}[match[2]]
  if whole:
    return said
  return said + program.argument_bytes + program.resident_bytes


def remedies(
  sections: schema.Sections,
  teacher: decoder.DecoderConfig,
  topology: Topology,
  program: ProgramCost,
  make: Make,
) -> tuple[Remedy, ...]:
  """Changes of one kind each that make a program fit, the mildest first.

  If `make` counts less for the present config than the program takes, its
  figures for a changed one are scaled up in proportion. `sections` is the
  config with its mesh filled in.
  """
  limit = limit_bytes(sections, topology)
  present = _of_stage(make(sections), program.stage)
  before = present and needed_bytes(present)
  # Refused without a number: it takes more than there is.
  needed = needed_bytes(program) or topology.chip.memory_bytes
  factor = max(1.0, needed / before) if before else 1.0
  found = []
  for note, options in _options(sections, topology, program.stage):
    for changes in options:
      try:
        changed = with_changes(sections, changes)
      except ValueError:
        continue  # The config has a rule against it.
      if closed_form.problems(
        changed, teacher, dataclasses.asdict(changed.mesh)
      ):
        continue
      after = _of_stage(make(changed), program.stage)
      size = after and needed_bytes(after)
      if size is not None and size * factor <= limit:
        found.append(
          Remedy(
            changes=changes,
            memory_bytes=size * factor,
            factor=factor,
            note=note,
          )
        )
        break
  return tuple(found)


def _of_stage(
  programs: Sequence[ProgramCost], stage: str
) -> ProgramCost | None:
  return next((p for p in programs if p.stage == stage), None)


def _options(
  sections: schema.Sections, topology: Topology, stage: str
) -> Iterator[tuple[str, Sequence[Changes]]]:
  """(side effects, the changes of a kind, the mildest first)."""
  field, phase = "", None
  if stage.startswith("train."):
    field = ".".join(stage.split(".")[:2])  # Its evaluation has a name more.
    phase = sections.train.phase[stage.split(".")[1]]

  def each(path, values):
    return [{path: value} for value in values]

  if stage == "cache":
    cache = sections.cache
    yield "", each("cache.chunk", _halves(cache.chunk, _LEAST_CHUNK))
    yield "", each("cache.batch_rows", _halves(cache.batch_rows, 1))
    if sections.teacher.dtype == "float32":
      note = "changes the records: the teacher rounds more coarsely"
      yield note, each("teacher.dtype", ["bfloat16"])
  elif phase is not None:
    remat = REMAT[REMAT.index(sections.student.remat) + 1 :]
    yield "computes more", each("student.remat", remat)
    chunks = _halves(phase.loss.chunk, _LEAST_CHUNK)
    yield "", each(f"{field}.loss.chunk", chunks)
    parts = [phase.microbatches * 2**i for i in range(1, 11)]
    yield "", each(f"{field}.microbatches", parts)
  meshes = topologies.meshes(topology)
  yield (
    "for every stage",
    [{f"mesh.{axis}": n for axis, n in mesh.items()} for mesh in meshes],
  )
  if phase is not None:
    rows = _halves(phase.batch_rows, 1)
    yield "changes the training", each(f"{field}.batch_rows", rows)


def _halves(number: int, least: int) -> list[int]:
  found = []
  while number % 2 == 0 and number // 2 >= least:
    number //= 2
    found.append(number)
  return found


def with_changes(section: Any, changes: Changes) -> Any:
  """The config, or a section of it, with fields set by dotted path.

  Raises:
    ValueError: a rule of the config forbids it.
  """
  # At once, section by section: half of the changes may give an invalid mesh.
  new: dict[str, Any] = {}
  inner: dict[str, dict[str, Any]] = {}
  for path, value in changes.items():
    head, _, rest = path.partition(".")
    if rest:
      inner.setdefault(head, {})[rest] = value
    else:
      new[head] = value
  if isinstance(section, train.TrainConfig):  # Its phases have names.
    phases = dict(section.phase)
    for name, fields in inner.items():
      phases[name] = with_changes(phases[name], fields)
    return dataclasses.replace(section, phase=phases, **new)
  for name, fields in inner.items():
    new[name] = with_changes(getattr(section, name), fields)
  return dataclasses.replace(section, **new)
