"""Opens the models and the rows of a measurement."""

from collections.abc import Iterable, Mapping
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np
import tokenizers

from analogjax.cache import batches
from analogjax.config import schema
from analogjax.data import pipeline, rows as rows_lib
from analogjax.distributed import processes, sharding
from analogjax.evaluation.models import RANDOM, Model
from analogjax.models import decoder, hf_import, teacher as teacher_lib
from analogjax.run import caches, identity
from analogjax.run.run import Run
from analogjax.workdir import files


def read_rows(
  run: Run, options: schema.MeasureConfig
) -> dict[str, rows_lib.Rows]:
  """Reads the rows `fit`, `test` and "domain NAME" of each domain.

  Every process gets all of them.
  """

  def some(field: str, **more: Any) -> rows_lib.Rows:
    number = getattr(options, field)
    field = f"measure.{field}"
    return read_some(run, number, options.seed, field=field, **more)

  rows = {
    "test": read_held_out(run),
    "fit": processes.all_or_none(lambda: some("fit_rows", held_out=False)),
  }
  for name, arguments in options.domains.items():
    try:
      rows[f"domain {name}"] = processes.all_or_none(
        functools.partial(
          some, "domain_rows", held_out=True, arguments=arguments
        )
      )
    except (ValueError, pipeline.EndOfRows) as error:
      raise ValueError(f"measure.domains.{name}: {error}") from error
  return rows


def read_held_out(run: Run) -> rows_lib.Rows:
  """Reads every held-out row, without the records, on every process."""

  def read() -> rows_lib.Rows:
    cache = run.cache(caches.HELD_OUT)
    step = cache.manifest.rows_per_object
    parts = [
      cache.read(np.arange(i, min(i + step, cache.manifest.num_rows))).rows
      for i in range(0, cache.manifest.num_rows, step)
    ]
    return rows_lib.Rows(*map(np.concatenate, zip(*parts, strict=True)))

  return processes.all_or_none(read)


def read_trained(run: Run, phase: str, number: int, seed: int) -> rows_lib.Rows:
  """Reads different rows that a phase was trained on, on every process.

  Args:
    run: with the cache, if the phase got its rows from there.
    number: how many rows; fewer are returned if the phase saw fewer.
    seed: chooses the steps of the rows; a stream gives its first rows.
  """
  section = run.config.train.phase[phase]
  steps = np.random.default_rng(seed).permutation(section.num_steps)

  def from_cache() -> rows_lib.Rows:
    cache = run.cache(caches.CACHE)
    found: dict[int, None] = {}
    for step in steps.tolist():
      if len(found) >= number:
        break
      order, _ = batches.row_order(
        step,
        batch_rows=section.batch_rows,
        num_rows=len(cache),
        seed=section.seed,
      )
      found |= dict.fromkeys(order.tolist())
    return cache.read(np.sort(np.asarray(list(found)[:number]))).rows

  def from_pipeline() -> rows_lib.Rows:
    source = run.open_rows(held_out=False)
    order = batches.PipelineOrder(
      source, batch_rows=section.batch_rows, seed=section.seed
    )
    wanted = steps if source.random_access else np.arange(section.num_steps)
    parts, seen = [], set[bytes]()
    for step in wanted.tolist():
      if len(seen) >= number:
        break
      rows = order.read(step)
      names = [digest.tobytes() for digest in rows_lib.rows_digests(rows)]
      new = [i for i, name in enumerate(names) if name not in seen]
      new = [i for i in new if names.index(names[i]) == i]
      seen |= set(names)
      parts.append([field[new] for field in rows])
    whole = map(np.concatenate, zip(*parts, strict=True))
    return rows_lib.Rows(*(field[:number] for field in whole))

  return processes.all_or_none(
    from_cache if section.rows == "cache" else from_pipeline
  )


def read_some(
  run: Run,
  number: int,
  seed: int,
  *,
  field: str,
  held_out: bool,
  arguments: Mapping[str, Any] = {},  # noqa: B006 (never written to)
) -> rows_lib.Rows:
  """Reads different rows of the pipeline; waits for no other process.

  Args:
    run: with the pipeline; its teacher has been opened.
    seed: of the row order, of which the first ones are taken.
    field: field of the config with the number, for messages.
    held_out: whether data.held_out_arguments apply.
    arguments: override the pipeline's arguments.

  Raises:
    ValueError: the pipeline has fewer.
  """
  source = run.open_rows(held_out=held_out, arguments=arguments)
  order = batches.PipelineOrder(source, batch_rows=number, seed=seed)
  rows = order.read(0)
  # At its end a pipeline restarts, and an interval would count rows twice.
  found = len(np.unique(rows_lib.rows_digests(rows), axis=0))
  if found < number:
    raise ValueError(
      f"{field}={number}: the pipeline has {found} different rows; set"
      f" {field.rpartition('.')[2]}={found} or less."
    )
  return rows


def digest(rows: rows_lib.Rows) -> dict[str, Any]:
  """Number of rows, and one digest of them all."""
  digests = rows_lib.rows_digests(rows)
  return {
    "number": len(digests),
    "digest": hashlib.blake2b(digests.tobytes(), digest_size=32).hexdigest(),
  }


def open_students(
  run: Run,
  phases: Iterable[str],
  folders: Mapping[str, str],
  *,
  section: str = "measure",
) -> tuple[dict[str, Model], dict[str, Any]]:
  """Reads the students, the analog first, onto the mesh of the run.

  Args:
    phases: the students after these.
    folders: further students: name -> Hugging Face folder.
    section: section of the config that names the folders, for messages.

  Returns:
    The students by name, the untrained one (RANDOM) last; and the identity of
    each, as JSON values.

  Raises:
    ValueError: names the field or the file.
  """
  cfg = run.student
  students, about = {}, {}
  for phase in phases:
    step, params, fingerprints = run.read_phase(phase)
    students[phase] = Model(name=phase, cfg=cfg, params=params)
    about[phase] = {"step": step, "fingerprint": fingerprint_of(fingerprints)}
  for name, where in folders.items():
    students[name], about[name] = _read_folder(
      f"{section}.folders.{name}", Path(where), run
    )
  abstract = decoder.abstract_parameters(cfg)
  seed = run.config.student.seed
  students[RANDOM] = Model(
    name=RANDOM,
    cfg=cfg,
    params=jax.jit(
      lambda: decoder.init_parameters(cfg, seed),
      out_shardings=sharding.state_shardings(abstract, run.mesh),
    )(),
  )
  about[RANDOM] = {"student": identity.student_identity(run.config)}
  analog = run.config.release.phase
  first = analog if analog in students else next(iter(students))
  return {first: students.pop(first), **students}, about


def fingerprint_of(fingerprints: Mapping[str, Any]) -> str:
  """Digest of a checkpoint's fingerprints.

  Results hold only this digest, since the fingerprints reveal how the lab
  trains.
  """
  text = json.dumps(fingerprints, sort_keys=True)
  return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()


def _read_folder(
  field: str, folder: Path, run: Run
) -> tuple[Model, dict[str, Any]]:
  """Reads a student from a Hugging Face folder.

  Raises:
    ValueError: the folder is damaged, or the tokenizer is not the teacher's.
  """
  cfg = processes.all_or_none(
    lambda: hf_import.read_config(folder, dtype=run.config.student.dtype)
  )
  teacher = run.teacher
  if cfg.V != teacher.cfg.V:
    raise ValueError(
      f"{field}: {folder} has a vocabulary of {cfg.V}, expected the teacher's"
      f" {teacher.cfg.V}: they have to share the tokenizer."
    )
  path = folder / "tokenizer.json"
  found = processes.all_or_none(
    lambda: files.file_sha256(path) if path.is_file() else "no such file"
  )
  if found != teacher.tokenizer_digest:
    raise ValueError(
      f"{field}: {path}: expected the teacher's tokenizer"
      f" ({teacher.tokenizer_digest}), found {found}; models are compared token"
      " by token."
    )
  digest = hf_import.folder_digest(folder)
  params = processes.all_or_none(
    lambda: hf_import.read_parameters(folder, cfg, run.mesh)
  )
  name = field.rpartition(".")[2]
  return Model(name=name, cfg=cfg, params=params), {"digest": digest}


def read_teacher(teacher: teacher_lib.Teacher, mesh: Mesh) -> Model:
  """Reads the teacher's weights onto a mesh."""
  params = processes.all_or_none(
    lambda: hf_import.read_parameters(
      teacher.folder, teacher.cfg, mesh, dtype=teacher.cfg.dtype
    )
  )
  return Model(name="teacher", cfg=teacher.cfg, params=params)


def read_tokenizer(teacher: teacher_lib.Teacher) -> tokenizers.Tokenizer:
  """Reads the tokenizer of all models, set to neither truncate nor pad."""
  tokenizer = tokenizers.Tokenizer.from_file(
    str(teacher.folder / "tokenizer.json")
  )
  tokenizer.no_truncation()
  tokenizer.no_padding()
  return tokenizer
