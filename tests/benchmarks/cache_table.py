"""One line for each format: its size on disk and its quality.

Shape letters: R rows, L position, M replicas, K slots of a record.
"""

import dataclasses
from pathlib import Path
import shutil

import cache_peers as peers
import cache_quality as quality
import cache_teacher
from cache_teacher import Draw, Drawn, Text, Top
import numpy as np

from analogjax.cache import cache_format, logit_cache, sampling

TAUS = (0.01, 0.02, 0.04, 0.06, 0.1, 0.2, 0.5, 1.0)
NUM_DRAWS = 50
TOP_KS = (16, 50, 128)
CAPTURED = 0.2  # Share of the positions.
TOKENS = 1_000_000  # Divisor of a fixed cost.
RS_KD = f"random, {NUM_DRAWS} draws"
MATCHED = "threshold, variance of RS-KD-50"

_ROWS_PER_OBJECT = 32


@dataclasses.dataclass
class Line:
  """A format's line; what is unknown is None and printed as a dash."""

  name: str
  bytes_per_token: float | None = None
  bytes_without_tokens: float = 0.0
  ids: float = 0.0
  own_mass: float = 0.0
  loss: str = ""  # "", "renormalized" or "bucket".
  bias2: quality.Estimate = quality.Estimate(0.0, 0.0)
  variance: quality.Estimate = quality.Estimate(0.0, 0.0)
  ece: float = 0.0
  fixed_bytes: int = 0  # Once a cache, whatever its size.
  speed: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Stored:
  """Everything needed to write a cache of one format again."""

  manifest: cache_format.Manifest
  records: sampling.Records


@dataclasses.dataclass
class Table:
  """All lines of one text."""

  text: str
  tokens: int
  entropy: float  # Mean, nats.
  teacher_ece: float
  square: float  # Mean ||t||^2.
  lines: list[Line]
  stored: dict[str, Stored]

  def line(self, name: str) -> Line:
    return next(line for line in self.lines if line.name == name)


def measure(text: Text, folder: Path, taus: tuple[float, ...] = TAUS) -> Table:
  """Writes every format into the folder and evaluates it."""
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir(parents=True)
  top = cache_teacher.top(text)
  entropy_RL = top.records.entropy_BL
  is_token_RL = text.is_token_RL
  table = Table(
    text=text.name,
    tokens=text.rows.tokens_BL.size,
    entropy=float(entropy_RL[is_token_RL].mean()),
    teacher_ece=quality.calibration(
      top.ids_RLK, top.p_RLK, text.labels_RL, text.has_label_RL
    ),
    square=float(top.square_RL[is_token_RL].mean()),
    lines=[],
    stored={},
  )
  draws = _draws(top, is_token_RL, taus)
  for name, drawn in cache_teacher.draw_all(text, draws).items():
    draw = draws[name]
    table.lines.append(_sampled(table, text, top, folder, name, draw, drawn))
  for k in TOP_KS:
    table.lines.append(_top_k(table, text, top, folder, k))
  for peer in peers.PEERS:
    table.lines.append(_peer(text, top, folder, peer))
  table.lines.append(_rs_kd(table, text, folder))
  return table


def _draws(
  top: Top, is_token_RL: np.ndarray, taus: tuple[float, ...]
) -> dict[str, Draw]:
  threshold = lambda tau: sampling.Threshold(tau=tau)  # noqa: E731
  draws = {f"threshold, tau {tau}": Draw(threshold(tau)) for tau in taus}
  rs_kd = (1 - top.square_RL[is_token_RL]).mean() / NUM_DRAWS
  seen = top.p_RLK, top.square_RL, is_token_RL
  draws[MATCHED] = Draw(threshold(quality.matching_tau(rs_kd, *seen)))
  rate = quality.matching_rate(CAPTURED, top.records.entropy_BL, is_token_RL)
  capture = sampling.Capture(kind="entropy", rate=rate)
  draws[f"tau 0.04 at {CAPTURED:.0%} of the positions"] = Draw(
    threshold(0.04), capture
  )
  draws["tau 0.2, 3 replicas"] = Draw(threshold(0.2), num_replicas=3)
  draws[RS_KD] = Draw(sampling.Random(num_draws=NUM_DRAWS))
  return draws


def manifest(
  draw: Draw, *, R: int, L: int, V: int, rows_per_object: int
) -> cache_format.Manifest:
  """A manifest for this text; digests of teacher and text are left out."""
  sampler = draw.sampler
  return cache_format.Manifest(
    kind=sampler.kind,
    tau=getattr(sampler, "tau", None),
    num_draws=getattr(sampler, "num_draws", None),
    top_k=getattr(sampler, "top_k", None),
    temperature=1.0,
    num_replicas=draw.num_replicas,
    capture=draw.capture.kind,
    capture_rate=draw.capture.rate,
    gram_positions=0,
    gram_depths=(),
    seed=0,
    num_rows=R,
    sequence_length=L,
    vocabulary_size=V,
    rows_per_object=rows_per_object,
    teacher_digest="0" * 64,
    teacher_dtype="float32",
    tokenizer_digest="0" * 64,
    pipeline="benchmark",
    pipeline_fingerprint="0" * 64,
    software={},
  )


def write_cache(
  where: Path, m: cache_format.Manifest, rows, records, order_V: np.ndarray
) -> logit_cache.LogitCache:
  """A cache of these rows and records."""
  cache = logit_cache.create(where, m, lambda: order_V)
  for part in cache.objects():
    cut = slice(part.start, part.stop)
    cache.write(
      part.start,
      type(rows)(*(field[cut] for field in rows)),
      take(records, cut),
    )
  return cache


def take(records: sampling.Records, cut: slice) -> sampling.Records:
  return sampling.Records(*(None if a is None else a[cut] for a in records))


def replicas(records: sampling.Records, count: int) -> sampling.Records:
  """Only the first of the independent draws."""
  arrays = {
    name: getattr(records, name)[:, :count]
    for name in ("ids_BMLK", "codes_BMLK", "logprobs_BMLK")
    if getattr(records, name) is not None
  }
  return records._replace(**arrays)


def disk_bytes(where: Path) -> dict[str, int]:
  """Bytes of files: of each array's rows, and of everything else as 'fixed'."""
  total = {"fixed": 0}
  for file in where.rglob("*"):
    if file.is_file():
      name, *rest = file.relative_to(where).parts
      of_rows = rest[:1] == ["c"] and name != cache_format.ID_ORDER
      name = name if of_rows else "fixed"
      total[name] = total.get(name, 0) + file.stat().st_size
  return total


def _sampled(table, text, top, folder, name, draw, drawn: Drawn) -> Line:
  M = draw.num_replicas
  # Two draws are for the estimates; what is on disk is one, or as many as the
  # format keeps.
  stored = 1 if M == 2 else M
  shown = name
  if name == MATCHED:
    shown = f"{name}: tau {draw.sampler.tau}"
  line = Line(shown)
  both = _open(table, text, top, folder / "both", draw, drawn.records, None)
  shutil.rmtree(folder / "both", ignore_errors=True)
  where = folder / f"cache_{len(table.lines):02d}"
  kept = dataclasses.replace(draw, num_replicas=stored)
  records = replicas(drawn.records, stored)
  _open(table, text, top, where, kept, records, shown)
  _count(line, where, table.tokens)

  first = both[0]
  ids, target, p = [], [], []
  for m, entries in enumerate(both):
    ids.append(entries.ids_BLK)
    target.append(entries.p_BLK)
    p.append(align(drawn.records, drawn.p_RMLK, m, entries))
  line.bias2, line.variance = quality.moments(
    np.stack(ids),
    np.stack(target),
    np.stack(p),
    top.square_RL,
    text.is_token_RL,
    first.capture_weights_BL,
  )
  if stored > 1:  # The mean of the draws, as this many passes see it.
    line.variance = quality.Estimate(*(x / stored for x in line.variance))
  is_kept_RL = text.is_token_RL & (first.capture_weights_BL > 0)
  is_own_RLK = np.arange(ids[0].shape[-1]) < first.num_head_BL[..., None]
  own_RL = np.where(is_own_RLK, first.p_BLK, 0).sum(-1)
  line.ids = float(first.num_BL[text.is_token_RL].mean())
  line.own_mass = float(own_RL[is_kept_RL].mean())
  if isinstance(draw.sampler, sampling.Random):
    line.own_mass = 1.0  # Counts are values.
  line.ece = quality.calibration(
    first.ids_BLK,
    first.p_BLK,
    text.labels_RL,
    text.has_label_RL * first.capture_weights_BL,
  )
  return line


def align(records, p_RMLK, m: int, entries: logit_cache.Entries) -> np.ndarray:
  """The teacher's probabilities of a record's ids in the cache's order.

  Raises:
    ValueError: the cache does not give the ids that were recorded.
  """
  last = np.iinfo(np.int32).max
  ids_RLK = records.ids_BMLK[:, m]
  ids_RLK = np.where(records.codes_BMLK[:, m] > 0, ids_RLK, last)
  slot_K = np.arange(ids_RLK.shape[-1])
  found_RLK = np.where(
    slot_K < entries.num_BL[..., None], entries.ids_BLK, last
  )
  order_RLK = ids_RLK.argsort(-1, kind="stable")
  places_RLK = found_RLK.argsort(-1, kind="stable")
  if not np.array_equal(
    np.take_along_axis(ids_RLK, order_RLK, -1),
    np.take_along_axis(found_RLK, places_RLK, -1),
  ):
    raise ValueError("the cache gives other ids than were recorded")
  p_RLK = np.zeros(found_RLK.shape)
  sorted_RLK = np.take_along_axis(p_RMLK[:, m], order_RLK, -1)
  np.put_along_axis(p_RLK, places_RLK, sorted_RLK, -1)
  return p_RLK


def _open(table, text, top, where, draw, records, name):
  """Writes a cache; returns what it reads back, one set for each replica."""
  R, L = text.rows.tokens_BL.shape
  V = len(top.order_V)
  m = manifest(draw, R=R, L=L, V=V, rows_per_object=min(_ROWS_PER_OBJECT, R))
  cache = write_cache(where, m, text.rows, records, top.order_V)
  if name is not None:
    table.stored[name] = Stored(m, records)
  return [cache.read(np.arange(R), m) for m in range(draw.num_replicas)]


def _count(line: Line, where: Path, tokens: int) -> None:
  sizes = disk_bytes(where)
  line.fixed_bytes = sizes.pop("fixed")
  line.bytes_per_token = sum(sizes.values()) / tokens
  line.bytes_per_token += line.fixed_bytes / TOKENS
  line.bytes_without_tokens = line.bytes_per_token - sizes["tokens"] / tokens


def _top_k(table, text, top: Top, folder: Path, k: int) -> Line:
  line = Line(f"topk {k}", loss=peers.BUCKET)
  whole = top.records
  rest_RL = np.exp(np.float64(whole.logprobs_BMLK[:, 0, :, k:])).sum(-1)
  tail_RL = np.exp(np.float64(whole.log_tail_BL)) + rest_RL
  with np.errstate(divide="ignore"):
    records = whole._replace(
      ids_BMLK=whole.ids_BMLK[..., :k],
      codes_BMLK=whole.codes_BMLK[..., :k],
      logprobs_BMLK=whole.logprobs_BMLK[..., :k],
      log_tail_BL=np.log(tail_RL).astype(np.float32),
    )
  where = folder / f"cache_topk_{k}"
  draw = Draw(sampling.TopK(top_k=k), num_replicas=1)
  (entries,) = _open(table, text, top, where, draw, records, line.name)
  _count(line, where, table.tokens)
  p_RMLK = np.exp(np.float64(records.logprobs_BMLK))
  p_RLK = align(records, p_RMLK, 0, entries)
  _judge(line, text, top, entries.ids_BLK, entries.p_BLK, p_RLK)
  line.own_mass = float(entries.p_BLK.sum(-1)[text.is_token_RL].mean())
  return line


def _peer(text: Text, top: Top, folder: Path, peer: peers.Peer) -> Line:
  line = Line(peer.name, loss=peer.loss)
  V, tokens = len(top.order_V), text.rows.tokens_BL.size
  whole = peers.TopK(top.ids_RLK, top.logprobs_RLK, top.lse_RL, V).cut(peer.k)
  sizes = []
  for name, rows in (("bare", None), ("full", text.rows)):
    where = folder / f"peer_{peer.name.replace(' ', '_')}_{name}"
    where.mkdir()
    found = peer.write(where / "data", whole, rows)
    sizes.append(sum(disk_bytes(where).values()) / tokens / found.copies)
  line.bytes_without_tokens = sizes[0]
  line.bytes_per_token = sizes[1] if peer.holds_tokens else None
  _judge(
    line, text, top, whole.ids_RLK, found.target_RLK, top.p_RLK[..., : peer.k]
  )
  line.own_mass = float(found.p_RLK.sum(-1)[text.is_token_RL].mean())
  if "MaxText" in peer.name:  # Its file does not say how much.
    line.own_mass = float("nan")
  return line


def _judge(line: Line, text, top, ids_RLK, target_RLK, p_RLK) -> None:
  """The line of a format without randomness."""
  line.bias2, line.variance = quality.moments(
    ids_RLK[None],
    target_RLK[None],
    p_RLK[None],
    top.square_RL,
    text.is_token_RL,
  )
  line.ids = float(ids_RLK.shape[-1])
  line.ece = quality.calibration(
    ids_RLK, target_RLK, text.labels_RL, text.has_label_RL
  )


def _rs_kd(table: Table, text: Text, folder: Path) -> Line:
  """The same draws as ours, in the paper's entries."""
  ours = table.line(RS_KD)
  records = table.stored[RS_KD].records
  file = folder / "rs_kd.bin"
  entries = peers.sampled_entries(
    records.ids_BMLK[:, 0], records.codes_BMLK[:, 0]
  )
  file.write_bytes(entries)
  return dataclasses.replace(
    ours,
    name=f"RS-KD, {NUM_DRAWS} draws, entries of 3 bytes",
    bytes_per_token=None,
    bytes_without_tokens=file.stat().st_size / table.tokens,
    fixed_bytes=0,
    speed={},
  )
