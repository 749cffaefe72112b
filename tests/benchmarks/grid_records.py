"""The teacher, run once, and the records that are drawn from it.

Shape letters (docs/glossary.md): R rows, B rows of a batch, L position, S
positions of a chunk, W teacher width, V vocabulary, K slots of a record.
"""

from collections.abc import Mapping
import functools
from pathlib import Path
from typing import NamedTuple

from flax import nnx
from grid_arms import PIPELINE, Draw, Settings, say
import jax
import jax.numpy as jnp
import numpy as np

from analogjax.cache import batches, cache_format, logit_cache, sampling
from analogjax.data import pipeline, rows as rows_lib
from analogjax.distributed import sharding
from analogjax.models import decoder, hf_import

_ROWS = 8  # Of one object: they are run, drawn and written together.


class Kept(NamedTuple):
  """The rows, and what the teacher made of them."""

  rows: rows_lib.Rows
  hidden_RLW: np.ndarray  # float32, mapped from disk.
  head_VW: np.ndarray  # float32, the teacher's unembedding.


def take(rows: rows_lib.Rows, index) -> rows_lib.Rows:
  return rows_lib.Rows(*(field[index] for field in rows))


def open_rows(s: Settings, split: str) -> pipeline.RowSource:
  V = hf_import.read_config(Path(s.teacher)).V
  arguments = {
    "tokenizer": s.teacher,
    "L": s.L,
    "split": split,
    "held_out_every": 16,
    "seed": 0,
  }
  return pipeline.open_pipeline(PIPELINE, arguments, L=s.L, V=V)


def keep(s: Settings, workdir: Path, name: str, rows: rows_lib.Rows) -> Kept:
  """Runs the teacher over rows, from where an earlier call was killed."""
  folder = Path(s.teacher)
  cfg = hf_import.read_config(folder)
  mesh = sharding.make_mesh({}, devices=jax.devices()[:1])
  params = hf_import.read_parameters(folder, cfg, mesh, dtype="float32")
  graphdef = decoder.graphdef(cfg)
  head_VW = np.asarray(nnx.merge(graphdef, params).head_VD)
  shape = (*rows.tokens_BL.shape, cfg.D)
  path, count = workdir / f"{name}.npy", workdir / f"{name}.done"
  done = int(count.read_text()) if count.exists() else 0
  mode = "r+" if done else "w+"
  hidden_RLW = np.lib.format.open_memmap(path, mode, np.float32, shape)
  assert hidden_RLW.shape == shape, f"{path} was made with other settings."

  @jax.jit
  def run(params, tokens_BL, segments_BL, positions_BL):
    model = nnx.merge(graphdef, params)
    return model(tokens_BL, segments_BL, positions_BL)[0]

  for start in range(done, shape[0], _ROWS):
    part = slice(start, start + _ROWS)
    hidden_RLW[part] = run(
      params,
      rows.tokens_BL[part],
      rows.segments_BL[part],
      rows.positions_BL[part],
    )
    hidden_RLW.flush()
    count.write_text(str(start + _ROWS))
    if start % 64 == 0:
      say(f"teacher: {name}, {start} of {shape[0]} rows")
  return Kept(rows, hidden_RLW, head_VW)


@functools.partial(jax.jit, static_argnames=("draw",))
def _draw(logits_BSV, labels_BS, keys_B2, first, *, draw: Draw):
  return sampling.draw(
    logits_BSV,
    labels_BS,
    keys_B2,
    first,
    draw.sampler,
    capture=sampling.Capture(),
    num_replicas=draw.replicas,
    temperature=1.0,
  )


def draw_all(
  s: Settings, kept: Kept, folder: Path, wanted: Mapping[Draw, int], seed: int
) -> dict[Draw, logit_cache.LogitCache]:
  """A cache for each draw, of as many rows as it is wanted for.

  What is in the folder already is not drawn again.
  """
  caches = {}
  order_V = functools.cache(lambda: np.argsort(-expected_ids(kept)))
  for draw, num_rows in wanted.items():
    # The likeliest ids are the same ones for every seed.
    part = "" if draw.sampler.kind == "topk" else f"_seed_{seed}"
    manifest = _manifest(s, draw, num_rows, seed if part else 0, kept)
    where = folder / f"{draw.name}{part}"
    caches[draw] = logit_cache.create(where, manifest, order_V)
  holes = {
    draw: {hole.start for hole in cache.holes() if hole.start < wanted[draw]}
    for draw, cache in caches.items()
  }
  labels_RL, _ = batches.labels(kept.rows)
  keys_R2 = sampling.row_keys(rows_lib.rows_digests(kept.rows), seed)
  unembed = jax.jit(decoder.unembed)
  head_VW = jnp.asarray(kept.head_VW)
  for start in sorted(set().union(*holes.values())):
    part = slice(start, min(start + _ROWS, max(wanted.values())))
    now = [draw for draw in caches if start in holes[draw]]
    found = {draw: [] for draw in now}
    for first in range(0, s.L, s.chunk):
      span = (part, slice(first, first + s.chunk))
      logits_BSV = unembed(jnp.asarray(kept.hidden_RLW[span]), head_VW)
      for draw in now:
        records = _draw(
          logits_BSV, labels_RL[span], keys_R2[part], first, draw=draw
        )
        found[draw].append(jax.device_get(records))
    for draw, pieces in found.items():
      own = slice(min(_ROWS, len(caches[draw]) - start))
      records = jax.tree.map(lambda *a: _join(*a)[own], *pieces)  # noqa: B023
      caches[draw].write(start, take(take(kept.rows, part), own), records)
  return caches


def _join(*pieces):
  """Chunks of L: [B, S], or [B, M, S, K]."""
  return np.concatenate(pieces, axis=1 if pieces[0].ndim == 2 else 2)


def _manifest(
  s: Settings, draw: Draw, num_rows: int, seed: int, kept: Kept
) -> cache_format.Manifest:
  sampler = draw.sampler
  return cache_format.Manifest(
    kind=sampler.kind,
    tau=getattr(sampler, "tau", None),
    num_draws=getattr(sampler, "num_draws", None),
    top_k=getattr(sampler, "top_k", None),
    temperature=1.0,
    num_replicas=draw.replicas,
    capture="all",
    capture_rate=1.0,
    gram_positions=0,
    gram_depths=(),
    seed=seed,
    num_rows=num_rows,
    sequence_length=s.L,
    vocabulary_size=len(kept.head_VW),
    rows_per_object=_ROWS,
    teacher_digest="",
    teacher_dtype="float32",
    tokenizer_digest="",
    pipeline=PIPELINE,
    pipeline_fingerprint="",
    software={},
  )


class Size(NamedTuple):
  """Of the first rows of a cache, all replicas."""

  bytes_per_token: float  # All that is on disk but the tokens.
  ids_per_token: float


def size_of(cache: logit_cache.LogitCache, num_rows: int) -> Size:
  objects = [part for part in cache.objects() if part.start < num_rows]
  by_array = cache.bytes_by_array(objects)
  num_tokens = objects[-1].stop * cache.manifest.sequence_length
  num_ids = sum(
    int(cache.read(part, m).num_BL.sum())
    for part in objects
    for m in range(cache.manifest.num_replicas)
  )
  return Size(
    (sum(by_array.values()) - by_array["tokens"]) / num_tokens,
    num_ids / num_tokens,
  )


def expected_ids(kept: Kept) -> np.ndarray:
  """How often the teacher expects each id in the first rows, [V]."""

  @jax.jit
  def mass(hidden_LW, head_VW):
    return jax.nn.softmax(hidden_LW @ head_VW.T).sum(0)

  head_VW = jnp.asarray(kept.head_VW)
  rows = kept.hidden_RLW[:8]
  return sum(np.asarray(mass(jnp.asarray(row), head_VW)) for row in rows)
