"""Abstract inputs of the steps of a run: shapes, dtypes and shardings.

The code that makes batches in a run makes these from one row of zeros, so they
have the same fields and dtypes. Their values are never used.

Letters: B rows of a batch, L positions, K slots of a record, W the teacher's
width, Z depths, P pairs of positions.
"""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
import numpy as np

from analogjax.cache import batches, gram_codes, logit_cache, sampling
from analogjax.config import cache as cache_lib, schema, train
from analogjax.data.rows import Rows
from analogjax.distributed import sharding
from analogjax.models import decoder
from analogjax.training import losses, steps


def sampler(cache: cache_lib.CacheConfig) -> sampling.Sampler:
  return sampling.make_sampler(
    cache.kind, tau=cache.tau, num_draws=cache.num_draws, top_k=cache.top_k
  )


def parameters(cfg: decoder.DecoderConfig, mesh: Mesh) -> Any:
  """Parameters of a frozen teacher, in its compute dtype."""
  abstract = decoder.abstract_parameters(cfg)
  where = sharding.state_shardings(abstract, mesh)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, cfg.dtype, sharding=s),
    abstract,
    where,
  )


def without_head(cfg: decoder.DecoderConfig, mesh: Mesh) -> list[Any]:
  head = "embed_VD" if cfg.tie_embeddings else "unembed_VD"
  leaves = jax.tree_util.tree_leaves_with_path(parameters(cfg, mesh))
  return [
    x for path, x in leaves if f"'{head}'" not in jax.tree_util.keystr(path)
  ]


def parts(state: steps.TrainState) -> dict[str, Any]:
  """The trees of a state, by kind."""
  moments: dict[str, list[Any]] = {"counts": [state.step]}
  for path, x in jax.tree_util.tree_leaves_with_path(state.opt_state):
    name = jax.tree_util.keystr(path)
    which = "first moments" if ".mu" in name else "second moments"
    moments.setdefault(which if x.ndim else "counts", []).append(x)
  return {"parameters": state.params, **moments}


def live_teacher(
  sections, phase: train.PhaseConfig, teacher, mesh: Mesh
) -> losses.Teacher:
  """The output of live.LiveTeacher.hidden."""
  B, L = phase.batch_rows, sections.data.L
  rows = NamedSharding(mesh, sharding.ROWS)
  head = NamedSharding(mesh, sharding.weight_spec("VD"))
  dtype, V, W = teacher.dtype, teacher.V, teacher.D
  x_BLW: Any = jax.ShapeDtypeStruct((B, L, W), dtype, sharding=rows)
  head_VW: Any = jax.ShapeDtypeStruct((V, W), dtype, sharding=head)
  gram_BZP: Any = None
  if phase.loss.gram_weight:
    shape = B, *_gram_shape(sections)
    gram_BZP = jax.ShapeDtypeStruct(shape, "int8", sharding=rows)
  return losses.Teacher(x_BLW, head_VW, gram_BZP)


def for_phase(sections, phase: train.PhaseConfig, mesh: Mesh) -> batches.Batch:
  """The batch that the loop of a phase feeds its step."""
  B, rows = phase.batch_rows, _rows(sections.data.L)
  sample = _sample(sections, known=phase.reads_gram)
  if not phase.loss.gram_weight:
    sample = None
  if phase.reads_records:
    return _on_mesh(_recorded(sections)._replace(gram=sample), B, mesh)
  make = batches.for_live_teacher if phase.runs_teacher else batches.from_rows
  return _on_mesh(make(rows)._replace(gram=sample), B, mesh)


def recorded(sections, B: int, mesh: Mesh) -> batches.Batch:
  """A batch with everything that the cache has of its rows."""
  return _on_mesh(_recorded(sections), B, mesh)


def _recorded(sections) -> batches.Batch:
  L, cache = sections.data.L, sections.cache
  K = sampler(cache).num_slots
  zeros_1L = np.zeros((1, L), np.float32)
  entries = logit_cache.Entries(
    rows=_rows(L),
    ids_BLK=np.zeros((1, L, K), np.int32),
    p_BLK=np.zeros((1, L, K), np.float32),
    log_tail_BL=zeros_1L if cache.kind == "topk" else None,
    num_head_BL=zeros_1L,
    num_BL=zeros_1L,
    capture_weights_BL=zeros_1L,
    entropy_BL=zeros_1L,
    label_logprob_BL=zeros_1L,
    gram=_sample(sections, known=True),
  )
  return batches.from_entries(entries)


def _gram_shape(sections) -> tuple[int, int]:
  """Z and P."""
  cache = sections.cache
  return cache.gram_layers, gram_codes.num_pairs(cache.gram_positions)


def _sample(sections, *, known: bool) -> gram_codes.Sample | None:
  """Sample of one row, with codes if they are known; None if there are none."""
  number = sections.cache.gram_positions
  if not number:
    return None
  padding_1L = np.zeros((1, sections.data.L), np.int32)
  digest_132 = np.zeros((1, 32), np.uint8)
  drawn = gram_codes.draw(digest_132, padding_1L, number, 0)
  codes_1ZP = np.zeros((1, *_gram_shape(sections)), np.int8)
  return drawn._replace(codes_BZP=codes_1ZP if known else None)


def _rows(L: int) -> Rows:
  """One row on the host, from which the code of the stages makes a batch."""
  zeros_1L = np.zeros((1, L), np.int32)
  return Rows(zeros_1L, zeros_1L, zeros_1L, zeros_1L.astype(np.float32))


def _on_mesh(batch: batches.Batch, B: int, mesh: Mesh) -> batches.Batch:
  """Shapes of B rows like the given one."""
  where = NamedSharding(mesh, sharding.ROWS)

  def of(x):
    dtype = jax.dtypes.canonicalize_dtype(x.dtype)
    return jax.ShapeDtypeStruct((B, *x.shape[1:]), dtype, sharding=where)

  return jax.tree.map(of, batch)


def unlabelled(sections: schema.Sections, B: int, mesh: Mesh) -> batches.Batch:
  """The batch that the recorder feeds a teacher."""
  batch = batches.from_rows(_rows(sections.data.L))
  batch = batch._replace(gram=_sample(sections, known=False))
  return _on_mesh(batch, B, mesh)
