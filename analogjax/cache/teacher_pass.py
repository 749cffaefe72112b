"""Runs the teacher on a mesh: rows in, records out.

Letters: B rows of a teacher step, L positions, V vocabulary.
"""

import functools

import jax
from jax.sharding import Mesh
import numpy as np

from analogjax.cache import batches, cache_format, sampling, teacher_programs
from analogjax.config.cache import CacheConfig
from analogjax.data.rows import Rows, rows_digests
from analogjax.distributed import processes
from analogjax.models import hf_import, teacher as teacher_lib


class Recorder:
  """Runs teacher steps; reads the weights before the first one."""

  def __init__(
    self, options: CacheConfig, mesh: Mesh, teacher: teacher_lib.Teacher
  ):
    self.mesh = mesh
    self.group = processes.group(mesh)
    self.batch_rows = self.group.rows_of(options.batch_rows)
    self.cfg, self._teacher = teacher.cfg, teacher
    self._chunk = options.chunk

  def load(self) -> None:
    """Reads the weights, unless they are loaded."""
    self._params  # noqa: B018 (a cached property)

  def record(self, rows: Rows, manifest: cache_format.Manifest):
    """Starts a teacher step; `processes.fetch_rows` gets the records.

    Args:
      rows: at most batch_rows rows of this group; copies of the last row fill
        the batch, so that all steps share one program.
    """
    rows = Rows(*(_fill_up(field, self.batch_rows) for field in rows))
    keys_B2 = sampling.row_keys(rows_digests(rows), manifest.seed)
    step = self._step(
      manifest.sampler,
      sampling.Capture(kind=manifest.capture, rate=manifest.capture_rate),
      manifest.num_replicas,
      manifest.temperature,
      len(manifest.gram_depths),
    )
    batch = batches.from_rows(rows)
    if number := manifest.gram_positions:
      batch = batches.with_positions(batch, rows, number, manifest.seed)
    on_mesh = processes.put_rows((batch, keys_B2), self.mesh, self.group)
    with jax.set_mesh(self.mesh):
      records = step(self._params, *on_mesh)
    processes.start_fetch(records)
    return records

  def id_order(self, rows: Rows) -> np.ndarray:
    """All ids, int64 [V], by falling expected count in these rows.

    Ids of equal mass keep their order.
    """
    rows = Rows(*(_fill_up(field, self.batch_rows) for field in rows))
    batch = batches.from_rows(rows)
    on_mesh = processes.put_rows(batch, self.mesh, self.group)
    step = teacher_programs.make_expected_ids_step(
      self._teacher.cfg, self.mesh, chunk=self._chunk
    )
    with jax.set_mesh(self.mesh):
      mass_V = np.asarray(step(self._params, on_mesh))
    # NaN of a broken teacher sorts last; `check_finite` then names the row.
    return np.argsort(-mass_V, kind="stable")

  @functools.cached_property
  def _params(self):
    cfg = self._teacher.cfg
    return hf_import.read_parameters(
      self._teacher.folder, cfg, self.mesh, dtype=cfg.dtype
    )

  @functools.cache  # noqa: B019 (lives as long as the process)
  def _step(self, sampler, capture, num_replicas, temperature, gram_layers):
    return teacher_programs.make_teacher_step(
      self._teacher.cfg,
      self.mesh,
      sampler=sampler,
      capture=capture,
      num_replicas=num_replicas,
      temperature=temperature,
      chunk=self._chunk,
      gram_layers=gram_layers,
    )


def check_finite(records: sampling.Records, row_indices: np.ndarray) -> None:
  """Refuses records of NaN or infinite logits; names the row."""
  finite_B = np.isfinite(records.entropy_BL).all(axis=-1)
  if not finite_B.all():
    raise ValueError(
      f"cache: the teacher's logits for row {row_indices[np.argmin(finite_B)]}"
      " are NaN or infinite; nothing of its object was written. Check the"
      " checkpoint and teacher.dtype."
    )


def _fill_up(field: np.ndarray, rows: int) -> np.ndarray:
  missing = rows - len(field)
  return np.concatenate([field, np.repeat(field[-1:], missing, axis=0)])
