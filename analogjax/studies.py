"""Opens a study: the models, rows and options of a config and its workdir."""

from collections.abc import Collection
import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np
import tokenizers

from analogjax import assemble, config, hosts, sharding
from analogjax.data import batches, logit_cache, pipeline, rows as rows_lib
from analogjax.fidelity import behaviours
from analogjax.fidelity.study import RANDOM, Model, Study
from analogjax.models import decoder, hf_folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sources:
  """What a study is of; the teacher's weights are read when it is opened."""

  options: config.MeasureConfig
  mesh: Mesh
  teacher: assemble.Teacher
  rows: dict[str, rows_lib.Rows]  # fit, test and "domain NAME".
  students: dict[str, Model]  # By name, the analog first.
  inputs: dict[str, Any]  # All that results depend on, as JSON values.

  def open(self) -> Study:
    return _open_study(
      self.options, self.teacher, self.students, self.rows, self.mesh
    )


def look(
  sections: config.Sections, options: config.MeasureConfig, workdir: Path
) -> Sources:
  """Finds and checks everything but the teacher's weights.

  Args:
    sections: the config.
    options: those of its section `measure`, or fewer.
    workdir: with caches and trained phases.

  Raises:
    ValueError: names the field or the file.
  """
  loaded = hosts.together(lambda: behaviours.load_all(options.behaviours))
  mesh = assemble.make_mesh(sections)
  sharding.check_batch_rows(options.batch_rows, mesh, "measure.batch_rows")
  teacher = assemble.open_teacher(sections, workdir)
  rows = _read_rows(sections, options, teacher, workdir)
  students, about = _open_students(sections, options, teacher, workdir, mesh)
  analog = next(iter(students))
  inputs = {
    "analog": analog,
    "controls": controls_of(sections, students, analog),
    "random": RANDOM,
    "teacher_digest": teacher.digest,
    "teacher_dtype": teacher.cfg.dtype,
    "students": about,
    "rows": {name: _digest(part) for name, part in rows.items()},
    "behaviours": {name: part.digest for name, part in loaded.items()},
    "options": published(options),
  }
  return Sources(
    options=options,
    mesh=mesh,
    teacher=teacher,
    rows=rows,
    students=students,
    inputs=json.loads(json.dumps(inputs)),
  )


def published(options: config.MeasureConfig) -> dict[str, Any]:
  """The options as they are published: names and digests, no paths.

  Folders, behaviours and the rows of domains have their digests elsewhere in
  the inputs.
  """
  values = dataclasses.asdict(options)
  values["folders"] = sorted(options.named_folders)
  values["domains"] = sorted(options.domains)
  values["behaviours"] = [Path(name).name for name in options.behaviours]
  return values


def controls_of(
  sections: config.Sections, students: Collection[str], analog: str
) -> list[str]:
  """Students that never saw the teacher; of folders nothing else is known."""

  def taught(phase: str) -> bool:
    section = sections.train.phase[phase]
    before = section.init_from
    return section.loss.has_teacher or (bool(before) and taught(before))

  return [
    name
    for name in students
    if name not in (analog, RANDOM)
    and (name in sections.measure.named_folders or not taught(name))
  ]


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

  def some(field: str, **more: Any) -> rows_lib.Rows:
    number = getattr(options, field)
    source = assemble.open_rows(sections, teacher, workdir, **more)
    order = batches.PipelineOrder(source, batch_rows=number, seed=options.seed)
    rows = order.read(0)
    # At its end a pipeline begins anew, and an interval would count rows twice.
    found = len(np.unique(rows_lib.rows_digests(rows), axis=0))
    if found < number:
      raise ValueError(
        f"measure.{field}={number}: the pipeline has {found} different rows;"
        f" set {field}={found} or less."
      )
    return rows

  rows = {
    "test": hosts.together(held_out),
    "fit": hosts.together(lambda: some("fit_rows", held_out=False)),
  }
  for name, arguments in options.domains.items():
    try:
      rows[f"domain {name}"] = hosts.together(
        functools.partial(
          *(some, "domain_rows"),
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
    # Of what a restart must share: in full it says how the lab trains.
    text = json.dumps(fingerprints, sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=32).hexdigest()
    about[phase] = {"step": step, "fingerprint": digest}
  for name, where in options.named_folders.items():
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
  tokenizer = tokenizers.Tokenizer.from_file(
    str(teacher.folder / "tokenizer.json")
  )
  tokenizer.no_truncation()
  tokenizer.no_padding()
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
    tokenizer=tokenizer,
    options=options,
  )
