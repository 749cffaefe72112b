"""measure: the analog against the teacher on held-out rows.

Letters: B rows of a step, L positions.
"""

from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from analogjax import (
  assemble,
  config,
  config_files,
  hosts,
  jitted,
  ledger,
  progress,
  sharding,
  steps,
)
from analogjax.data import batches
from analogjax.models import hf_folder, sizes

FORMAT_VERSION = 1


def run(cfg: ConfigDict, workdir: Path) -> None:
  """Writes workdir/fidelity.json, unless it is there for the same models.

  The teacher runs live and the divergence is dense over the vocabulary:
  nothing here depends on how the cache was sampled.
  """
  sections = config.to_sections(cfg)
  mesh = assemble.make_mesh(sections)
  B = sections.measure.batch_rows
  sharding.check_batch_rows(B, mesh, "measure.batch_rows")
  teacher = assemble.open_teacher(sections, workdir)
  held_out = hosts.together(
    lambda: assemble.open_cache(sections, teacher, workdir, assemble.HELD_OUT)
  )
  student_cfg = assemble.student_config(sections)
  params, about = {}, {}
  for phase in sections.measure.phases:
    step, params[phase], fingerprints = assemble.read_phase(
      sections, workdir, phase, mesh
    )
    about[phase] = {"step": step, "fingerprints": fingerprints}
  inputs = {
    "teacher_digest": teacher.digest,
    "teacher_dtype": teacher.cfg.dtype,
    "held_out_rows": held_out.manifest.num_rows,
    "pipeline_fingerprint": held_out.manifest.pipeline_fingerprint,
    "students": about,
  }
  path = workdir / "fidelity.json"
  if hosts.first_decides(lambda: _is_done(path, inputs)):
    progress.say("measure: complete.")
    return

  spent = ledger.Ledger(workdir, "measure")
  teacher_params = hosts.together(
    lambda: hf_folder.read_parameters(
      teacher.folder, teacher.cfg, mesh, dtype=teacher.cfg.dtype
    )
  )
  step = jitted.make_compare_step(
    teacher.cfg, student_cfg, mesh, chunk=sections.cache.chunk
  )
  L, num_rows = sections.data.L, held_out.manifest.num_rows
  group = hosts.group(mesh)
  sums: dict[str, Any] | None = None
  with (
    jax.set_mesh(mesh),
    progress.Progress("measure", total=num_rows, unit="rows") as bar,
  ):
    for i, (batch, _) in enumerate(batches.in_order(held_out, B, group)):
      hosts.stop_if_asked("measure: in the middle, none of it is kept")
      on_mesh = hosts.put_rows(batch, mesh, group)
      out = jax.device_get(step(teacher_params, params, on_mesh))
      out = jax.tree.map(float, out)
      sums = out if sums is None else jax.tree.map(_add, sums, out)
      rows = min(B, num_rows - i * B)
      bar.advance(rows, tokens=rows * L)
  assert sums is not None

  results = {name: _means(total) for name, total in sums.items()}
  value = {
    "format": "analogjax.fidelity",
    "format_version": FORMAT_VERSION,
    "inputs": inputs,
    "output": results,
  }
  of_teacher = sizes.forward_flops_per_token(teacher.cfg, L)
  per_token = of_teacher + len(params) * sizes.forward_flops_per_token(
    student_cfg, L
  )
  tokens = num_rows * L

  def conclude() -> None:
    config_files.write_json(path, value)
    spent.append(
      tokens=tokens,
      flops=tokens * per_token,
      teacher_flops=tokens * of_teacher,
    )

  hosts.on_first(conclude)


def _is_done(path: Path, inputs: dict[str, Any]) -> bool:
  return path.exists() and hf_folder.read_json(path).get("inputs") == inputs


def _add(a: float, b: float) -> float:
  return a + b


def _means(total: steps.Comparison) -> dict[str, float]:
  weight = float(total.weight)
  return {
    "cross_entropy_nats": float(total.hard) / weight,
    "kl_to_teacher_nats": float(total.kl) / weight,
    "top1_agreement": float(total.agree) / weight,
    "accuracy": float(total.correct) / weight,
    "label_tokens": weight,
  }
