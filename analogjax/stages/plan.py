"""plan: estimates what a config will cost, before anything is started."""

from collections.abc import Sequence
import dataclasses
import functools
import json
import math
import os
from pathlib import Path
import sys

import jax
from ml_collections import ConfigDict
import rich.console

from analogjax.config import loading, schema
from analogjax.demo import gguf
from analogjax.distributed import sharding
from analogjax.models import decoder, hf_import
from analogjax.planning import (
  closed_form,
  compile_jobs,
  formulas,
  picture,
  report,
  tables,
  topologies as topologies_lib,
)
from analogjax.run import teacher as teacher_lib

FILE_NAME, PICTURE_NAME = "plan.json", "plan.png"
USER_ERROR = 2


def run(
  cfg: ConfigDict,
  workdir: Path | None,
  *,
  topologies: Sequence[str] = (),
  searches: bool = False,
  as_json: bool = False,
  png: Path | None = None,
  refused: Sequence[str] = (),
) -> int:
  """Prints the plan; with a workdir it also goes to workdir/plan.json.

  A student outside the size window is reported, not refused: the stages that
  spend something refuse it. The same holds for a program that does not fit.

  Args:
    topologies: machines to plan for, by name; none: the mesh of the config, on
      any devices.
    searches: proposes a mesh for each topology.
    png: where the picture goes; None: into the workdir, if there is one.
    refused: preflight.problems of the stages; they are shown.

  Returns:
    The exit code: 2 if any stage will refuse the config.

  Raises:
    ValueError: the machines do not exist, or a mesh does not divide the
      config's dimensions and rows.
  """
  sections = schema.to_sections(cfg)
  report.check_prices(sections.plan)
  asked = [topologies_lib.parse(name) for name in topologies]
  teacher = _read_teacher_shape(sections.teacher, workdir)
  console = rich.console.Console()
  plan, reports, programs = closed_form.make_outline(sections, teacher), [], []
  if not asked:
    mesh = _mesh_axes(sections.mesh)
    values, programs = report.on_mesh(sections, teacher, mesh)
    plan |= values
    refused = [*plan["problems"], *refused]
  else:
    # Before the first of them is compiled, which may take minutes.
    if not searches:
      for topology in asked:
        report.on_topology(sections, teacher, topology)
    for topology in asked:
      reports.append(
        report.make_report(
          sections,
          teacher,
          topology,
          count=formulas.count_programs,
          make=_maker(topology, workdir),
          searches=searches,
        )
      )
    plan["gates"] = report.gates(sections, teacher)
    plan["topologies"] = [report.to_json(one) for one in reports]
  plan["problems"] = list(refused)
  if as_json:
    print(json.dumps(plan, indent=1))
  else:
    tables.print_outline(plan, console)
    if reports:
      tables.print_reports(reports, plan["gates"], console)
    else:
      tables.print_mesh(plan, programs, console)
    for problem in refused:
      console.print(f"Will be refused: {problem}", style="red")
  if workdir is not None:
    loading.write_json(workdir / FILE_NAME, plan)
    png = png or workdir / PICTURE_NAME
  if reports and png is not None:
    picture.draw(reports, png)
  return USER_ERROR if refused else 0


def _maker(
  topology: topologies_lib.Topology, workdir: Path | None
) -> report.Maker:
  """Compiles and keeps the results; for GPUs, counts by formulas."""
  if topology.is_gpu:
    return formulas.count_programs
  if workdir is not None:
    folder = workdir / "compiled" / "plans"
  else:
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(caches, "analogjax", "plans")

  def say(text: str) -> None:
    print(f"{topology.name}: compiled {text}", file=sys.stderr, flush=True)

  return functools.partial(compile_jobs.make_programs, folder=folder, say=say)


def _mesh_axes(mesh: schema.MeshConfig) -> dict[str, int]:
  """Devices along each axis; -1 is filled with the devices of this machine.

  Raises:
    ValueError: the mesh cannot divide these devices.
  """
  axes = dataclasses.asdict(mesh)
  if -1 not in axes.values():
    return axes  # No device needs to be here.
  found = jax.device_count()
  filled = sharding.fill_axes(axes, found)
  if -1 in filled.values():
    fixed = math.prod(size for size in axes.values() if size != -1)
    raise ValueError(
      f"mesh: the axes that are given ask for a multiple of {fixed} devices,"
      f" found {found} here; to plan for other machines set the size of each"
      " axis (none -1)."
    )
  return filled


def _read_teacher_shape(
  teacher: schema.TeacherConfig, workdir: Path | None
) -> decoder.DecoderConfig:
  """The teacher's shape from its Hugging Face folder, or else its GGUF file."""
  if teacher.path:
    return hf_import.read_config(Path(teacher.path))
  if workdir is not None and (workdir / teacher_lib.FOLDER).is_dir():
    return hf_import.read_config(workdir / teacher_lib.FOLDER)
  source = teacher.gguf
  assert source is not None  # TeacherConfig has checked it.
  file = gguf.find_gguf(source.package, source.file, source.sha256)
  return gguf.read_config(file)
