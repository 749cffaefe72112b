"""Runs a teacher over texts once, then recomputes its logits by chunk.

Final hidden states stay on disk, so that a rerun does not need the teacher.

Shape letters (docs/glossary.md): R rows, L position, S positions of a chunk, D
width, V vocabulary, M replicas, K slots of a record.
"""

from collections.abc import Callable, Iterator
import dataclasses
import functools
from pathlib import Path
import re
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from analogjax.cache import sampling
from analogjax.data import pipeline, rows as rows_lib
from analogjax.distributed import sharding
from analogjax.models import decoder, hf_import

_CHUNK = 256  # Positions whose logits are held at once.
_ORDER_TOKENS = 2048  # What the ids are ordered by; the demo takes as many.
TOP_K = 128


class Text(NamedTuple):
  """Rows of one text, and the output of the teacher's last layer for them."""

  name: str
  rows: rows_lib.Rows
  hidden_RLD: np.ndarray
  head_VD: Any
  cap: Callable[[jax.Array], jax.Array]

  @property
  def labels_RL(self) -> np.ndarray:
    return np.roll(self.rows.tokens_BL, -1, axis=1)

  @property
  def is_token_RL(self) -> np.ndarray:
    return self.rows.segments_BL > 0

  @property
  def has_label_RL(self) -> np.ndarray:
    """Positions whose next token is of the same document."""
    segments_RL = self.rows.segments_BL
    has_RL = np.zeros(segments_RL.shape, bool)
    has_RL[:, :-1] = segments_RL[:, 1:] == segments_RL[:, :-1]
    return has_RL & (segments_RL > 0)


class Top(NamedTuple):
  """The likeliest part of the teacher's distribution, exact, on the host."""

  ids_RLK: np.ndarray  # int32, the likeliest first.
  logprobs_RLK: np.ndarray  # float32.
  lse_RL: np.ndarray  # float32; logit = log-probability + lse.
  square_RL: np.ndarray  # float64, ||t||^2.
  order_V: np.ndarray  # All ids, the likeliest first.
  records: sampling.Records  # Of sampling.TopK.

  @property
  def p_RLK(self) -> np.ndarray:
    return np.exp(self.logprobs_RLK.astype(np.float64))


@dataclasses.dataclass(frozen=True)
class Draw:
  """Records to draw."""

  sampler: sampling.Sampler
  capture: sampling.Capture = sampling.Capture()
  num_replicas: int = 2


class Drawn(NamedTuple):
  """Records, and the teacher's own probability of their ids."""

  records: sampling.Records
  p_RMLK: np.ndarray  # float32; 0 in empty slots.


def open_text(
  name: str,
  teacher: Path,
  workdir: Path,
  make_rows: Callable[[int], rows_lib.Rows],
  dtype: str = "float32",
) -> Text:
  """A text whose hidden states are in the workdir, or computed now.

  Args:
    name: of the files; identifies the rows.
    teacher: a Hugging Face folder.
    make_rows: the rows, from the vocabulary size.
  """
  cfg = hf_import.read_config(teacher, dtype=dtype)
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  params = hf_import.read_parameters(teacher, cfg, mesh, dtype=dtype)
  model = nnx.merge(decoder.graphdef(cfg), params)
  rows_file, file = workdir / f"{name}_rows.npz", workdir / f"{name}.npy"
  if not rows_file.exists():
    workdir.mkdir(parents=True, exist_ok=True)
    np.savez(rows_file, **make_rows(cfg.V)._asdict())
  with np.load(rows_file) as saved:
    rows = rows_lib.Rows(**saved)
  if not file.exists():
    step = jax.jit(functools.partial(_hidden, decoder.graphdef(cfg)))
    parts = []
    for r in range(len(rows.tokens_BL)):
      one = (a[r : r + 1] for a in rows[:3])
      parts.append(np.asarray(step(params, *one), np.float32))
      print(f"{name}: teacher, row {r + 1}", flush=True)
    whole = file.with_suffix(".part.npy")
    np.save(whole, np.concatenate(parts))
    whole.rename(file)
  return Text(
    name, rows, np.load(file, mmap_mode="r"), model.head_VD, model.cap
  )


def _hidden(graphdef, params, tokens_BL, segments_BL, positions_BL):
  x_BLD, _ = nnx.merge(graphdef, params)(tokens_BL, segments_BL, positions_BL)
  return x_BLD


def docstring_rows(
  teacher: Path, num_rows: int, L: int, V: int
) -> rows_lib.Rows:
  """The demo's text: documentation of installed packages."""
  arguments = dict(
    tokenizer=str(teacher),
    split="train",
    end_token="<|endoftext|>",
    held_out_every=16,
    seed=0,
    L=L,
  )
  spec = "analogjax.demo.docstrings:packed_rows"
  source = pipeline.open_pipeline(spec, arguments, L=L, V=V)
  return source.read(range(num_rows))


def brown_rows(
  folder: Path, tokenizer: Path, num_rows: int, L: int
) -> rows_lib.Rows:
  """English prose: files ca01 to cr09 of the Brown corpus, word/TAG.

  Whole rows of one document each, at most two per document, over all genres.
  """
  files = sorted(folder.glob("c[a-r][0-9][0-9]"))
  if not files:
    raise ValueError(f"--brown={folder}: no files ca01 to cr09 there.")
  encoder = tokenizers.Tokenizer.from_file(str(tokenizer))
  rows: list[list[int]] = []
  stride = max(1, 2 * len(files) // num_rows)
  for start in range(stride):
    for file in files[start::stride]:
      ids = encoder.encode(_prose(file.read_text("latin-1"))).ids
      rows += [ids[i * L : i * L + L] for i in range(min(2, len(ids) // L))]
      if len(rows) >= num_rows:
        break
    if len(rows) >= num_rows:
      break
  if len(rows) < num_rows:
    raise ValueError(f"--rows={num_rows}: {folder} has {len(rows)} of {L}.")
  tokens_RL = np.array(rows[:num_rows], np.int32)
  ones_RL = np.ones_like(tokens_RL)
  positions_RL = np.broadcast_to(np.arange(L, dtype=np.int32), ones_RL.shape)
  return rows_lib.Rows(
    tokens_RL, ones_RL, positions_RL.copy(), ones_RL.astype(np.float32)
  )


def _prose(tagged: str) -> str:
  text = " ".join(word.rsplit("/", 1)[0] for word in tagged.split())
  text = re.sub(r" ([.,;:!?)])", r"\1", text).replace("( ", "(")
  return text.replace("`` ", '"').replace(" ''", '"')


def top(text: Text, top_k: int = TOP_K) -> Top:
  """The likeliest ids at each position, and other exact values."""
  sampler = sampling.TopK(top_k=top_k)
  order_rows = max(1, _ORDER_TOKENS // text.hidden_RLD.shape[1])

  @jax.jit
  def step(logits_BSV, labels_BS, keys_B2, first, is_token_BS):
    records = _draw(
      logits_BSV, labels_BS, keys_B2, first, Draw(sampler, num_replicas=1)
    )
    lse_BS = jax.nn.logsumexp(logits_BSV, axis=-1)
    p_BSV = jnp.exp(logits_BSV - lse_BS[..., None])
    mass_V = jnp.sum(jnp.where(is_token_BS[..., None], p_BSV, 0), (0, 1))
    return records, lse_BS, jnp.sum(p_BSV * p_BSV, axis=-1), mass_V

  pieces, mass_V = [], 0.0
  for r, first, logits_BSV, around in _chunks(text):
    part = slice(first, first + logits_BSV.shape[1])
    is_token_BS = text.is_token_RL[r : r + 1, part]
    *piece, mass = jax.device_get(step(logits_BSV, *around, is_token_BS))
    pieces.append(piece)
    if r < order_rows:
      mass_V = mass_V + mass
  records, lse_RL, square_RL = _join(pieces, len(text.hidden_RLD))
  return Top(
    ids_RLK=records.ids_BMLK[:, 0],
    logprobs_RLK=records.logprobs_BMLK[:, 0],
    lse_RL=lse_RL,
    square_RL=square_RL.astype(np.float64),
    order_V=np.argsort(-mass_V, kind="stable"),
    records=records,
  )


def draw_all(text: Text, draws: dict[str, Draw]) -> dict[str, Drawn]:
  """Records of every kind, from the same logits."""
  steps = {
    name: jax.jit(functools.partial(_draw_and_look, draw=draw))
    for name, draw in draws.items()
  }
  pieces: dict[str, list[Any]] = {name: [] for name in draws}
  for _, _, logits_BSV, around in _chunks(text):
    for name, step in steps.items():
      pieces[name].append(jax.device_get(step(logits_BSV, *around)))
  R = len(text.hidden_RLD)
  return {name: Drawn(*_join(parts, R)) for name, parts in pieces.items()}


def _draw_and_look(logits_BSV, labels_BS, keys_B2, first, *, draw):
  records = _draw(logits_BSV, labels_BS, keys_B2, first, draw)
  B, M, S, K = records.ids_BMLK.shape
  ids_BSX = jnp.moveaxis(records.ids_BMLK, 1, 2).reshape(B, S, M * K)
  z_BSX = jnp.take_along_axis(logits_BSV, ids_BSX, axis=-1)
  lse_BS1 = jax.nn.logsumexp(logits_BSV, axis=-1, keepdims=True)
  p_BSMK = jnp.exp(z_BSX - lse_BS1).reshape(B, S, M, K)
  p_BMSK = jnp.moveaxis(p_BSMK, 2, 1)
  return records, jnp.where(records.codes_BMLK > 0, p_BMSK, 0)


def _draw(logits_BSV, labels_BS, keys_B2, first, draw):
  return sampling.draw(
    logits_BSV,
    labels_BS,
    keys_B2,
    first,
    draw.sampler,
    capture=draw.capture,
    num_replicas=draw.num_replicas,
    temperature=1.0,
  )


def _chunks(
  text: Text,
) -> Iterator[tuple[int, int, jax.Array, tuple[Any, ...]]]:
  """(row, first position, logits [1, S, V], labels, key and position)."""
  keys_R2 = sampling.row_keys(rows_lib.rows_digests(text.rows), 0)
  L = text.hidden_RLD.shape[1]
  S = min(_CHUNK, L)
  if L % S:
    raise ValueError(f"--length={L}: expected a multiple of {S}.")
  project = jax.jit(lambda x, head: text.cap(decoder.unembed(x, head)))
  head_VD = jnp.asarray(text.head_VD)
  for r in range(len(text.hidden_RLD)):
    for first in range(0, L, S):
      x_BSD = np.array(text.hidden_RLD[r : r + 1, first : first + S])
      labels_BS = text.labels_RL[r : r + 1, first : first + S]
      around = (labels_BS, keys_R2[r : r + 1], np.int32(first))
      yield r, first, project(x_BSD, head_VD), around


def _join(pieces: list[Any], R: int) -> Any:
  """Chunks [1, S], [1, M, S, K] -> [R, L], [R, M, L, K]."""

  def join(*parts):
    axis = 2 if parts[0].ndim == 4 else 1
    n = len(parts) // R
    whole = [np.concatenate(parts[i : i + n], axis) for i in range(0, R * n, n)]
    return np.concatenate(whole)

  return jax.tree.map(join, *pieces)
