"""measure: what of the teacher is found in the analog and its controls.

Each part is kept in workdir/fidelity/ when it is done, so that a run that was
stopped goes on with the next one; together they are fidelity.json.
"""

from collections.abc import Callable, Collection, Mapping
import dataclasses
import functools
import hashlib
import json
from pathlib import Path
import time
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np
import tokenizers

from analogjax import (
  assemble,
  config,
  config_files,
  hosts,
  ledger,
  progress,
  sharding,
)
from analogjax.data import batches, logit_cache, pipeline, rows as rows_lib
from analogjax.fidelity import output, similarity
from analogjax.fidelity.study import RANDOM, Model, Study
from analogjax.models import decoder, hf_folder, sizes

FORMAT = "analogjax.fidelity"
FORMAT_VERSION = 2

PARTS: Mapping[str, Callable[[Study], dict[str, Any]]] = {
  "output": output.measure,
  "similarity": similarity.measure,
}


def run(
  cfg: ConfigDict,
  workdir: Path,
  *,
  quick: bool = False,
  only: Collection[str] = (),
) -> None:
  """Writes workdir/fidelity.json, but for parts that are there already.

  The teacher runs live, and divergences are dense over the vocabulary: nothing
  here depends on how the cache was sampled.

  Args:
    cfg: the config.
    workdir: with caches and trained phases.
    quick: less of everything, `MeasureConfig.quick`.
    only: names of PARTS; empty: all.

  Raises:
    ValueError: names the field or the file.
  """
  if unknown := [name for name in only if name not in PARTS]:
    raise ValueError(
      f"--only: expected one of {', '.join(PARTS)}, or several with commas,"
      f" found {unknown[0]!r}."
    )
  sections = config.to_sections(cfg)
  options = sections.measure.quick() if quick else sections.measure
  mesh = assemble.make_mesh(sections)
  sharding.check_batch_rows(options.batch_rows, mesh, "measure.batch_rows")
  teacher = assemble.open_teacher(sections, workdir)
  rows = _read_rows(sections, options, teacher, workdir)
  students, about = _open_students(sections, options, teacher, workdir, mesh)
  inputs = {
    "teacher_digest": teacher.digest,
    "teacher_dtype": teacher.cfg.dtype,
    "students": about,
    "rows": {name: _digest(part) for name, part in rows.items()},
    "options": dataclasses.asdict(options),
  }
  inputs = json.loads(json.dumps(inputs))
  folder = workdir / "fidelity"
  wanted = [name for name in PARTS if name in only or not only]
  missing = [
    name
    for name in wanted
    if hosts.first_decides(
      functools.partial(_differs, folder / f"{name}.json", inputs)
    )
  ]
  if missing:
    study = _open_study(options, teacher, students, rows, mesh)
    hosts.on_first(lambda: folder.mkdir(exist_ok=True))
    _measure(missing, study, inputs, folder, workdir)
  else:
    progress.say("measure: complete.")
  hosts.on_first(lambda: _conclude(workdir, inputs))


def _measure(
  names: list[str],
  study: Study,
  inputs: dict[str, Any],
  folder: Path,
  workdir: Path,
) -> None:
  """The parts of these names, each into its file."""
  for name in names:
    spent, before = ledger.Ledger(workdir, "measure"), dict(study.tokens)
    began = time.monotonic()
    found = PARTS[name](study)
    seconds = time.monotonic() - began
    tokens = {
      model: number - before.get(model, 0)
      for model, number in study.tokens.items()
    }
    value = {
      "inputs": inputs,
      "result": found,
      "cost": {
        "seconds": seconds,
        "device_seconds": seconds * study.mesh.size,
        "tokens": sum(tokens.values()),
      },
    }
    conclude = functools.partial(
      _keep, folder / f"{name}.json", value, spent, study, tokens
    )
    hosts.on_first(conclude)
    progress.say(
      f"measure {name}: {sum(tokens.values()):,} tokens in {seconds:.0f} s."
    )


def _keep(
  path: Path,
  value: dict[str, Any],
  spent: ledger.Ledger,
  study: Study,
  tokens: dict[str, int],
) -> None:
  config_files.write_json(path, value)
  L = study.test.tokens_BL.shape[1]
  models = {study.teacher.name: study.teacher, **study.students}
  flops = {
    name: number * sizes.forward_flops_per_token(models[name].cfg, L)
    for name, number in tokens.items()
  }
  spent.append(
    tokens=sum(tokens.values()),
    flops=sum(flops.values()),
    teacher_flops=flops.get(study.teacher.name, 0),
  )


def _differs(path: Path, inputs: dict[str, Any]) -> bool:
  """Whether a part is not there, or is of other inputs."""
  return not path.exists() or hf_folder.read_json(path)["inputs"] != inputs


def _conclude(workdir: Path, inputs: dict[str, Any]) -> None:
  """fidelity.json from the parts that there are of these inputs."""
  found = {}
  for name in PARTS:
    path = workdir / "fidelity" / f"{name}.json"
    if not _differs(path, inputs):
      found[name] = hf_folder.read_json(path)
  value = {
    "format": FORMAT,
    "format_version": FORMAT_VERSION,
    "inputs": inputs,
    "software": assemble.software_versions(),
    **{name: part["result"] for name, part in found.items()},
    "cost": {name: part["cost"] for name, part in found.items()},
  }
  path = workdir / "fidelity.json"
  if not path.exists() or hf_folder.read_json(path) != value:
    config_files.write_json(path, value)


def _read_rows(
  sections: config.Sections,
  options: config.MeasureConfig,
  teacher: assemble.Teacher,
  workdir: Path,
) -> dict[str, rows_lib.Rows]:
  """fit, test and each domain's; every process has all of them."""

  def held_out() -> rows_lib.Rows:
    cache = assemble.open_cache(sections, teacher, workdir, assemble.HELD_OUT)
    return _all_of(cache)

  def some(number: int, seed: int, **more: Any) -> rows_lib.Rows:
    source = assemble.open_rows(sections, teacher, workdir, **more)
    order = batches.PipelineOrder(source, batch_rows=number, seed=seed)
    return order.read(0)

  rows = {
    "test": hosts.together(held_out),
    "fit": hosts.together(
      lambda: some(options.fit_rows, options.seed, held_out=False)
    ),
  }
  for name, arguments in options.domains.items():
    try:
      rows[f"domain {name}"] = hosts.together(
        functools.partial(
          *(some, options.domain_rows, options.seed),
          held_out=True,
          arguments=arguments,
        )
      )
    except (ValueError, pipeline.EndOfRows) as error:
      raise ValueError(f"measure.domains.{name}: {error}") from error
  return rows


def _all_of(cache: logit_cache.LogitCache) -> rows_lib.Rows:
  """Every row of a cache, without the records."""
  step = cache.manifest.rows_per_object
  parts = [
    cache.read(np.arange(i, min(i + step, cache.manifest.num_rows))).rows
    for i in range(0, cache.manifest.num_rows, step)
  ]
  return rows_lib.Rows(*map(np.concatenate, zip(*parts, strict=True)))


def _digest(rows: rows_lib.Rows) -> dict[str, Any]:
  digests = rows_lib.rows_digests(rows)
  return {
    "number": len(digests),
    "digest": hashlib.blake2b(digests.tobytes(), digest_size=32).hexdigest(),
  }


def _open_students(
  sections: config.Sections,
  options: config.MeasureConfig,
  teacher: assemble.Teacher,
  workdir: Path,
  mesh: Mesh,
) -> tuple[dict[str, Model], dict[str, Any]]:
  """The students, the analog first, and what each of them is."""
  cfg = assemble.student_config(sections)
  students, about = {}, {}
  for phase in options.phases:
    step, params, fingerprints = assemble.read_phase(
      sections, workdir, phase, mesh
    )
    students[phase] = Model(name=phase, cfg=cfg, params=params)
    about[phase] = {"step": step, "fingerprints": fingerprints}
  for name, where in options.folders.items():
    students[name], about[name] = _read_folder(
      name, Path(where), sections, teacher, mesh
    )
  abstract = decoder.abstract_parameters(cfg)
  seed = sections.student.seed
  students[RANDOM] = Model(
    name=RANDOM,
    cfg=cfg,
    params=jax.jit(
      lambda: decoder.init_parameters(cfg, seed),
      out_shardings=sharding.state_shardings(abstract, mesh),
    )(),
  )
  about[RANDOM] = {"student": assemble.student_identity(sections)}
  analog = sections.release.phase
  first = analog if analog in students else next(iter(students))
  return {first: students.pop(first), **students}, about


def _read_folder(
  name: str,
  folder: Path,
  sections: config.Sections,
  teacher: assemble.Teacher,
  mesh: Mesh,
) -> tuple[Model, dict[str, Any]]:
  """A student from a Hugging Face folder.

  Raises:
    ValueError: a damaged folder, or a tokenizer that is not the teacher's.
  """
  field = f"measure.folders.{name}"
  cfg = hosts.together(
    lambda: hf_folder.read_config(folder, dtype=sections.student.dtype)
  )
  if cfg.V != teacher.cfg.V:
    raise ValueError(
      f"{field}: {folder} has a vocabulary of {cfg.V}, expected the teacher's"
      f" {teacher.cfg.V}: they have to share the tokenizer."
    )
  path = folder / "tokenizer.json"
  found = hosts.together(
    lambda: hf_folder.file_sha256(path) if path.is_file() else "no such file"
  )
  if found != teacher.tokenizer_digest:
    raise ValueError(
      f"{field}: {path}: expected the teacher's tokenizer"
      f" ({teacher.tokenizer_digest}), found {found}; models are compared token"
      " by token."
    )
  digest = hf_folder.folder_digest(folder)
  params = hosts.together(lambda: hf_folder.read_parameters(folder, cfg, mesh))
  return Model(name=name, cfg=cfg, params=params), {"digest": digest}


def _open_study(
  options: config.MeasureConfig,
  teacher: assemble.Teacher,
  students: dict[str, Model],
  rows: dict[str, rows_lib.Rows],
  mesh: Mesh,
) -> Study:
  params = hosts.together(
    lambda: hf_folder.read_parameters(
      teacher.folder, teacher.cfg, mesh, dtype=teacher.cfg.dtype
    )
  )
  path = str(teacher.folder / "tokenizer.json")
  return Study(
    mesh=mesh,
    teacher=Model(name="teacher", cfg=teacher.cfg, params=params),
    students=students,
    fit=rows["fit"],
    test=rows["test"],
    domains={
      name.removeprefix("domain "): part
      for name, part in rows.items()
      if name.startswith("domain ")
    },
    tokenizer=tokenizers.Tokenizer.from_file(path),
    options=options,
  )
