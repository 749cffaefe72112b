"""The plan stage: what a config will cost, before anything is started.

Letters: L row length, V vocabulary, K slots of a cached record.
"""

from collections.abc import Mapping
import math
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
import rich.box
import rich.console
import rich.table

from analogjax import assemble, config, config_files, sharding
from analogjax.data import sampling
from analogjax.models import decoder, gguf, hf_folder, sizes

FILE_NAME = "plan.json"

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2}


def run(cfg: ConfigDict, workdir: Path | None) -> None:
  """Prints the plan; with a workdir it also goes to workdir/plan.json.

  A student outside the size window is reported, not refused: the stages that
  spend something refuse it.
  """
  sections = config.to_sections(cfg)
  teacher = _read_teacher_shape(sections.teacher, workdir)
  plan = make_plan(sections, teacher, _mesh_axes(sections.mesh))
  print_plan(plan, rich.console.Console())
  if workdir is not None:
    config_files.write_json(workdir / FILE_NAME, plan)


def make_plan(
  sections: config.Sections,
  teacher: decoder.DecoderConfig,
  mesh: Mapping[str, int],
) -> dict[str, Any]:
  """Every number of the plan, as JSON keeps it.

  Args:
    sections: the config.
    teacher: the teacher's shape.
    mesh: devices along each axis, all positive.
  """
  student, L = sections.student, sections.data.L
  verdict = sizes.size_window_verdict(
    sizes.count_parameters(student).total,
    sizes.count_parameters(teacher).total,
  )
  return {
    "teacher": _model(teacher, L),
    "student": _model(student, L),
    "size_window": {
      "ratio": verdict.ratio,
      "inside": verdict.inside,
      "policy": student.size_window,
      "verdict": str(verdict),
    },
    "problems": _problems(sections, teacher, mesh),
    "cache": _cache(sections),
    "phases": {name: _phase(sections, name) for name in sections.train.phases},
    "flops": _flops(sections, teacher),
    "mesh": {**mesh, "devices": math.prod(mesh.values())},
    "memory_bytes_per_device": _memory(sections, teacher, mesh),
  }


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


def _problems(
  sections: config.Sections,
  teacher: decoder.DecoderConfig,
  mesh: Mapping[str, int],
) -> list[str]:
  """What the other stages will refuse, each named by its field."""
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


def _cache(sections: config.Sections) -> dict[str, Any]:
  cache, L = sections.cache, sections.data.L
  rows = cache.held_out_rows + sections.reads_cache * cache.num_rows
  parameters = {
    "threshold": cache.tau,
    "random": cache.num_draws,
    "topk": cache.top_k,
  }
  num_slots = sampling.make_sampler(
    cache.kind,
    tau=cache.tau,
    num_draws=cache.num_draws,
    top_k=cache.top_k,
  ).num_slots
  parameter = parameters[cache.kind]
  expected = sizes.expected_record_bytes(cache.kind, parameter, L)
  return {
    "rows": rows,
    "tokens": rows * L,
    "held_out_tokens": cache.held_out_rows * L,
    "slots": num_slots,
    "bytes_per_token_in_memory": sizes.decoded_record_bytes(num_slots),
    "expected_bytes_per_token": expected,
    "expected_bytes": round(rows * L * expected),
  }


def _phase(sections: config.Sections, name: str) -> dict[str, Any]:
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
    # How often each cached row is seen; a pipeline's length is not known here.
    "epochs": rows / sections.cache.num_rows if cached else None,
  }


def _flops(sections: config.Sections, teacher: sizes.Shape) -> dict[str, int]:
  """Model FLOPs of each stage; export computes nothing."""
  student, cache, L = sections.student, sections.cache, sections.data.L
  rows = cache.held_out_rows + sections.reads_cache * cache.num_rows
  flops = {"cache": rows * L * sizes.forward_flops_per_token(teacher, L)}
  for name in sections.train.phases:
    phase = sections.train.phase[name]
    tokens = phase.num_steps * phase.batch_rows * L
    per_token = sizes.training_flops_per_token(student, L)
    if phase.runs_teacher:
      per_token += sizes.forward_flops_per_token(teacher, L)
    flops[f"train.{name}"] = tokens * per_token
  tokens = cache.held_out_rows * L
  # The full distribution of the teacher is computed again, once, on these rows.
  flops["measure"] = tokens * (
    sizes.forward_flops_per_token(teacher, L)
    + len(sections.measure.phases) * sizes.forward_flops_per_token(student, L)
  )
  return {**flops, "total": sum(flops.values())}


def _memory(
  sections: config.Sections, teacher: sizes.Shape, mesh: Mapping[str, int]
) -> dict[str, dict[str, int]]:
  """Bytes on one device: the largest arrays of each step, not its peak.

  Measuring holds the teacher as caching does, and the students beside it.
  """
  student, cache, L = sections.student, sections.cache, sections.data.L
  split, tensor = mesh["fsdp"] * mesh["tensor"], mesh["tensor"]
  row_ways = mesh["data"] * mesh["fsdp"] * mesh["expert"]
  rows = math.ceil(cache.batch_rows / row_ways)
  params = _DTYPE_BYTES[sections.teacher.dtype]
  params *= sizes.count_parameters(teacher).total
  caching = {
    "params": math.ceil(params / split),
    "logits": sizes.logits_bytes(
      teacher, rows=rows, chunk=cache.chunk, tensor=tensor
    ),
  }
  memory = {"cache": {**caching, "total": sum(caching.values())}}
  for name in sections.train.phases:
    phase = sections.train.phase[name]
    training = sizes.training_bytes(
      student,
      rows=math.ceil(phase.batch_rows / phase.microbatches / row_ways),
      L=L,
      chunk=phase.loss.chunk,
      dtype_bytes=_DTYPE_BYTES[student.dtype],
      remat=student.remat,
      split=split,
      tensor=tensor,
    )
    memory[f"train.{name}"] = {
      "params": training.params,
      "gradients": training.gradients,
      "moments": training.moments,
      "activations": training.activations,
      "logits": training.logits,
    }
    if phase.runs_teacher and sections.teacher.mesh is None:
      memory[f"train.{name}"]["teacher"] = caching["params"]
    parts = memory[f"train.{name}"]
    parts["total"] = sum(parts.values())
  return memory


def print_plan(plan: Mapping[str, Any], console: rich.console.Console) -> None:
  """Writes the plan as tables."""
  table = _table("parameters", "teacher", "student")
  for key in ("embedding", "layers", "final_norm", "head", "parameters"):
    cells = (f"{plan[model][key]:,}" for model in ("teacher", "student"))
    table.add_row("total" if key == "parameters" else key, *cells)
  console.print(table)
  window = plan["size_window"]
  colour = "green" if window["inside"] else "red"
  console.print(f"Size window: {window['verdict']}.", style=colour)
  if not window["inside"]:
    refuses = window["policy"] == "refuse"
    console.print(
      "student.size_window='refuse': the other stages will refuse this student."
      if refuses
      else "student.size_window='warn': it can be trained, not released.",
      style=colour,
    )

  cache = plan["cache"]
  table = _table("stage", "steps", "tokens", "epochs", "compute")
  flops = {name: _si(n, "FLOP") for name, n in plan["flops"].items()}
  table.add_row("cache", "", f"{cache['tokens']:,}", "", flops["cache"])
  for name, phase in plan["phases"].items():
    epochs = "" if phase["epochs"] is None else f"{phase['epochs']:.3g}"
    table.add_row(
      f"train.{name}",
      f"{phase['steps']:,}",
      f"{phase['tokens']:,}",
      epochs,
      flops[f"train.{name}"],
    )
  held_out = f"{cache['held_out_tokens']:,}"
  table.add_row("measure", "", held_out, "", flops["measure"])
  table.add_row("total", "", "", "", flops["total"])
  console.print(table)

  console.print(
    f"Cache: {cache['rows']:,} rows, {cache['slots']} slots a token;"
    f" {cache['bytes_per_token_in_memory']} bytes a token in a batch, about"
    f" {cache['expected_bytes_per_token']:.1f} on disk"
    f" ({_si(cache['expected_bytes'], 'B')})."
  )

  mesh = dict(plan["mesh"])
  devices = mesh.pop("devices")
  axes = " x ".join(f"{axis}={size}" for axis, size in mesh.items())
  table = _table(
    "per device",
    *("params", "gradients", "moments", "activations", "logits", "total"),
  )
  for stage, parts in plan["memory_bytes_per_device"].items():
    cells = [
      _si(parts[c.header], "B") if c.header in parts else ""
      for c in table.columns[1:]
    ]
    table.add_row(stage, *cells)
  console.print(table)
  noun = "device" if devices == 1 else "devices"
  console.print(f"Mesh: {axes}, {devices} {noun}. Activations: an estimate.")
  for stage, parts in plan["memory_bytes_per_device"].items():
    if "teacher" in parts:
      size = _si(parts["teacher"], "B")
      console.print(f"The total of {stage} has the live teacher, {size}.")
  for problem in plan["problems"]:
    console.print(f"Will be refused: {problem}", style="red")


def _table(first: str, *columns: str) -> rich.table.Table:
  table = rich.table.Table(
    box=rich.box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
  )
  table.add_column(first, no_wrap=True)
  for column in columns:
    table.add_column(column, justify="right")
  return table


def _si(count: float, unit: str) -> str:
  for prefix in ("", "k", "M", "G", "T", "P", "E", "Z"):
    if count < 999.5:
      return f"{count:.3g} {prefix}{unit}"
    count /= 1000
  return f"{count:,.3g} Y{unit}"


def _mesh_axes(mesh: config.MeshConfig) -> dict[str, int]:
  """Devices along each axis; -1 is filled with the devices that are here.

  Raises:
    ValueError: the devices here cannot be shared out so.
  """
  axes = {
    "data": mesh.data,
    "fsdp": mesh.fsdp,
    "expert": mesh.expert,
    "tensor": mesh.tensor,
  }
  if -1 not in axes.values():
    return axes
  # Only here: with a mesh that is given no device needs to be at hand.
  fixed = math.prod(size for size in axes.values() if size != -1)
  found = jax.device_count()
  if found % fixed:
    raise ValueError(
      f"mesh: the axes that are given ask for a multiple of {fixed} devices,"
      f" found {found} here; to plan for other machines set the size of each"
      " axis (none -1)."
    )
  return {k: found // fixed if v == -1 else v for k, v in axes.items()}


def _read_teacher_shape(
  teacher: config.TeacherConfig, workdir: Path | None
) -> decoder.DecoderConfig:
  """The teacher's shape from its Hugging Face folder, or else its GGUF file."""
  if teacher.path:
    return hf_folder.read_config(Path(teacher.path))
  if workdir is not None and (workdir / assemble.TEACHER).is_dir():
    return hf_folder.read_config(workdir / assemble.TEACHER)
  source = teacher.gguf
  assert source is not None  # TeacherConfig has checked it.
  file = gguf.find_gguf(source.package, source.file, source.sha256)
  return gguf.read_config(file)
