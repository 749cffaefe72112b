"""The teacher, run once, and the records that are drawn from it.

Shape letters (docs/glossary.md): R rows, B rows of a batch, L position, S
positions of a chunk, W teacher width, V vocabulary, K slots of a record.
"""

from collections.abc import Mapping, Sequence
import functools
from pathlib import Path
import tempfile
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from knee_arms import PIPELINE, Draw, Settings, say
import numpy as np

from analogjax import losses, sharding
from analogjax.data import (
  batches,
  cache_format,
  logit_cache,
  pipeline,
  rows as rows_lib,
  sampling,
)
from analogjax.models import decoder, hf_folder


class Kept(NamedTuple):
  """The rows, and what the teacher made of them."""

  rows: rows_lib.Rows
  hidden_RLW: np.ndarray  # float32, mapped from disk.
  head_VW: np.ndarray  # float32, the teacher's unembedding.


class Records(NamedTuple):
  """Records of R rows on the host."""

  ids_RLK: np.ndarray
  codes_RLK: np.ndarray  # uint8; of "topk" float16 log-probabilities.
  p_RLK: np.ndarray  # float32.
  entropy_RL: np.ndarray  # float16, of the teacher, nats.
  label_logprob_RL: np.ndarray  # float16.


def take(rows: rows_lib.Rows, index) -> rows_lib.Rows:
  return rows_lib.Rows(*(field[index] for field in rows))


def open_rows(s: Settings, split: str) -> pipeline.RowSource:
  V = hf_folder.read_config(Path(s.teacher)).V
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
  cfg = hf_folder.read_config(folder)
  mesh = sharding.make_mesh({}, devices=jax.devices()[:1])
  params = hf_folder.read_parameters(folder, cfg, mesh, dtype="float32")
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

  for start in range(done, shape[0], 8):
    part = slice(start, start + 8)
    hidden_RLW[part] = run(
      params,
      rows.tokens_BL[part],
      rows.segments_BL[part],
      rows.positions_BL[part],
    )
    hidden_RLW.flush()
    count.write_text(str(start + 8))
    if start % 64 == 0:
      say(f"teacher: {name}, {start} of {shape[0]} rows")
  return Kept(rows, hidden_RLW, head_VW)


# Records. What draws and decodes them is one pair of functions.


@functools.partial(jax.jit, static_argnames=("kind", "value"))
def _draw(logits_BSV, labels_BS, keys_B2, first, *, kind: str, value: float):
  sampler = sampling.Threshold(tau=value if kind == "threshold" else 1.0)
  records = sampling.draw(
    logits_BSV,
    labels_BS,
    keys_B2,
    first,
    sampler,
    capture=sampling.Capture(),
    num_replicas=1,
    temperature=1.0,
  )
  slots = records.ids_BMLK[:, 0], records.codes_BMLK[:, 0]
  if kind == "topk":  # Renormalised, as most do.
    logits_BSK, ids_BSK = jax.lax.top_k(logits_BSV, int(value))
    slots = ids_BSK, jax.nn.log_softmax(logits_BSK)
  return *slots, records.entropy_BL, records.label_logprob_BL


def _decode(draw: Draw, codes_RLK: np.ndarray) -> np.ndarray:
  if draw.kind == "topk":
    return np.exp(codes_RLK.astype(np.float32))
  return sampling.decode(codes_RLK, sampling.Threshold(tau=draw.value))


def draw_all(
  s: Settings, kept: Kept, wanted: Mapping[Draw, int], seed: int
) -> dict[Draw, Records]:
  """The records of each draw, for as many rows as it is wanted for."""
  labels_RL, _ = batches.labels(kept.rows)
  digests_R32 = rows_lib.rows_digests(kept.rows)
  keys = {
    draw: sampling.row_keys(digests_R32, 1000 * seed + draw.replica)
    for draw in wanted
  }
  pieces = {draw: [] for draw in wanted}
  unembed = jax.jit(losses.unembed)
  head_VW = jnp.asarray(kept.head_VW)
  for start in range(0, max(wanted.values(), default=0), 8):
    part = slice(start, start + 8)
    now = [draw for draw, num_rows in wanted.items() if start < num_rows]
    found = {draw: [] for draw in now}
    for first in range(0, s.L, s.chunk):
      span = (part, slice(first, first + s.chunk))
      logits_BSV = unembed(jnp.asarray(kept.hidden_RLW[span]), head_VW)
      for draw in now:
        got = _draw(
          logits_BSV,
          labels_RL[span],
          keys[draw][part],
          first,
          kind=draw.kind,
          value=draw.value,
        )
        found[draw].append(jax.device_get(got))
    for draw, chunks in found.items():
      joined = [np.concatenate(c, axis=1) for c in zip(*chunks, strict=True)]
      pieces[draw].append(joined)
  out = {}
  for draw, of_rows in pieces.items():
    fields = [np.concatenate(x) for x in zip(*of_rows, strict=True)]
    ids, codes, *rest = fields
    codes = codes.astype(np.float16 if draw.kind == "topk" else np.uint8)
    used = int((codes != 0).any((0, 1)).sum())
    ids, codes = ids[..., :used], codes[..., :used]
    entropy_RL, label_RL = (x.astype(np.float16) for x in rest)
    out[draw] = Records(ids, codes, _decode(draw, codes), entropy_RL, label_RL)
  return out


def bytes_per_token(
  rows: rows_lib.Rows,
  draw: Draw,
  replicas: Sequence[Records],
  expected_V: np.ndarray,
) -> float:
  """Bytes on disk a token: all that a cache of these rows has but the tokens.

  Args:
    rows: of the cache.
    draw: what the replicas are draws of.
    replicas: its records, of at least these rows.
    expected_V: how often each id is expected; gives the order of the ids.
  """
  R, L = rows.tokens_BL.shape
  is_topk = draw.kind == "topk"
  manifest = cache_format.Manifest(
    kind=draw.kind,
    tau=None if is_topk else draw.value,
    num_draws=None,
    top_k=int(draw.value) if is_topk else None,
    temperature=1.0,
    num_replicas=len(replicas),
    capture="all",
    capture_rate=1.0,
    seed=0,
    num_rows=R,
    sequence_length=L,
    vocabulary_size=len(expected_V),
    rows_per_object=R,
    teacher_digest="",
    teacher_dtype="float32",
    tokenizer_digest="",
    pipeline=PIPELINE,
    pipeline_fingerprint="",
    software={},
  )
  K = manifest.sampler.num_slots

  def slots(values):
    values_RMLK = np.stack([v[:R] for v in values], axis=1)
    free = K - values_RMLK.shape[-1]
    return np.pad(values_RMLK, ((0, 0), (0, 0), (0, 0), (0, free)))

  # Replicas that were cut to the slots they use: as wide as the widest.
  used = max(r.ids_RLK.shape[-1] for r in replicas)

  def widened(a_RLK):
    return np.pad(a_RLK, ((0, 0), (0, 0), (0, used - a_RLK.shape[-1])))

  ids = slots([widened(r.ids_RLK) for r in replicas])
  codes = slots([widened(r.codes_RLK) for r in replicas])
  first = replicas[0]
  records = sampling.Records(
    ids_BMLK=ids,
    codes_BMLK=(np.ones_like(ids) if is_topk else codes).astype(np.uint8),
    logprobs_BMLK=codes.astype(np.float32) if is_topk else None,
    log_tail_BL=np.full((R, L), -1, np.float32) if is_topk else None,
    entropy_BL=first.entropy_RL[:R].astype(np.float32),
    label_logprob_BL=first.label_logprob_RL[:R].astype(np.float32),
    inclusion_BL=np.full((R, L), sampling.ALWAYS, np.uint8),
  )
  with tempfile.TemporaryDirectory() as folder:
    order_V = np.argsort(-expected_V, kind="stable")
    cache = logit_cache.create(folder, manifest, lambda: order_V)
    cache.write(0, rows, records)
    sizes = cache.bytes_by_array(cache.objects())
  return (sum(sizes.values()) - sizes["tokens"]) / (R * L)


def expected_ids(kept: Kept) -> np.ndarray:
  """How often the teacher expects each id in the first rows, [V]."""

  @jax.jit
  def mass(hidden_LW, head_VW):
    return jax.nn.softmax(hidden_LW @ head_VW.T).sum(0)

  head_VW = jnp.asarray(kept.head_VW)
  rows = kept.hidden_RLW[:8]
  return sum(np.asarray(mass(jnp.asarray(row), head_VW)) for row in rows)
