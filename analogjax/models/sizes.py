"""Parameters, FLOPs and bytes of a decoder, in closed form.

Nothing is allocated or compiled, so a plan for a model of any size takes
milliseconds and needs no accelerator. Letters as in docs/glossary.md: V
vocabulary, D model width, Y layers, N query heads, G key/value heads, H head
width, F feed-forward width, L row length, K slots of a cached record.
"""

import dataclasses
import math
from typing import Protocol

from analogjax.config.window import TIMES

FLOAT32_BYTES = 4


# tau -> bytes per token of ids, values and counts of a threshold cache on disk,
# SmolLM2-135M over English prose (3.6 nats of entropy), V = 49,152, rows of 256
# tokens (tests/benchmarks/cache.py). A teacher with less entropy takes fewer.
_MEASURED_BYTES = (
  (0.01, 60.3),
  (0.02, 36.4),
  (0.04, 21.8),
  (0.06, 16.3),
  (0.1, 11.1),
  (0.2, 6.9),
  (0.5, 4.1),
  (1.0, 2.1),
)
# The same of other kinds: per draw at 50 draws, per id at 50 ids.
_RANDOM_BYTES, _TOPK_BYTES = 0.69, 2.5

_INDEX_BYTES = 20  # Per row, in the index of one array.

# The rest of the cache on disk: token 1.9, segment 0.1, entropy 1.1 and label
# log-probability 1.0 bytes per token; per row, two digests of 32 and 16 bytes
# and 20 bytes of index for each of eleven arrays.
_REST_BYTES, _ROW_BYTES = 4.1, 268


class Shape(Protocol):
  """The fields of DecoderConfig that determine sizes."""

  @property
  def V(self) -> int: ...
  @property
  def D(self) -> int: ...
  @property
  def Y(self) -> int: ...
  @property
  def N(self) -> int: ...
  @property
  def G(self) -> int: ...
  @property
  def H(self) -> int: ...
  @property
  def F(self) -> int: ...
  @property
  def tie_embeddings(self) -> bool: ...
  @property
  def attention_bias(self) -> bool: ...
  @property
  def mlp_bias(self) -> bool: ...


def architecture(cfg: Shape) -> dict[str, int | bool]:
  """The sizes by their names in a record."""
  return {
    "layers": cfg.Y,
    "width": cfg.D,
    "heads": cfg.N,
    "kv_heads": cfg.G,
    "head_width": cfg.H,
    "feed_forward": cfg.F,
    "tied_embeddings": cfg.tie_embeddings,
  }


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParameterCounts:
  """Parameters by place; a tied head is counted with the embedding."""

  embedding: int
  attention: int  # Per layer, as are the next two.
  mlp: int
  norms: int
  num_layers: int
  final_norm: int
  head: int  # 0 if tied.

  @property
  def per_layer(self) -> int:
    return self.attention + self.mlp + self.norms

  @property
  def total(self) -> int:
    layers = self.num_layers * self.per_layer
    return self.embedding + layers + self.final_norm + self.head


def count_parameters(cfg: Shape) -> ParameterCounts:
  """Number of parameters of a decoder, by place."""
  attention = _attention_weights(cfg)
  if cfg.attention_bias:
    attention += (cfg.N + 2 * cfg.G) * cfg.H + cfg.D
  mlp = _mlp_weights(cfg)
  if cfg.mlp_bias:
    mlp += 2 * cfg.F + cfg.D
  return ParameterCounts(
    embedding=cfg.V * cfg.D,
    attention=attention,
    mlp=mlp,
    norms=2 * cfg.D,
    num_layers=cfg.Y,
    final_norm=cfg.D,
    head=0 if cfg.tie_embeddings else cfg.V * cfg.D,
  )


def forward_flops_per_token(cfg: Shape, L: int) -> int:
  """FLOPs of one token's forward pass, logits included, the mean over a row.

    2 (Y (2 D N H + 2 D G H + 3 D F) + D V)  +  Y 4 N H (L + 1) / 2

  The first part is a multiplication and an addition for every weight of a
  matrix; the embedding is a lookup and free. The second is q k and p v over the
  (L + 1) / 2 positions that a causal row lets a token see on average; documents
  packed into a row see fewer, so it is an upper bound. Norms, rotary embedding
  and softmax are left out.

  Source: Kaplan et al. 2020, arXiv:2001.08361, table 1, and Chowdhery et al.
  2022 (PaLM), arXiv:2204.02311, appendix B. There the second part is 2 Y L N H
  (Kaplan) and 4 Y L N H (PaLM, which does not halve for causality).
  """
  weights = cfg.Y * (_attention_weights(cfg) + _mlp_weights(cfg))
  weights += cfg.D * cfg.V
  return 2 * weights + cfg.Y * 2 * cfg.N * cfg.H * (L + 1)


def training_flops_per_token(cfg: Shape, L: int) -> int:
  """FLOPs of one token's forward and backward pass, 3 x the forward pass.

  The backward pass takes two products for each one of the forward pass.
  Recomputation by `remat` is not counted: these are model FLOPs.
  """
  return 3 * forward_flops_per_token(cfg, L)


def decoded_record_bytes(num_slots: int) -> int:
  """Bytes of a cached token in a batch, on the host and on its device.

  Four for each of: id and probability of a slot; token, segment, position,
  label and two weights.
  """
  return 8 * num_slots + 4 * 6


def expected_record_bytes(kind: str, parameter: float, L: int) -> float:
  """Bytes per token of a cache on disk, an estimate.

  The ids of a threshold cache follow a power law between the measured points,
  and beyond them the law of the nearest two. They hold for a teacher of 3.6
  nats of entropy at V = 49,152; entropy and tokens hardly change the rest.
  `parameter` is tau, the number of draws, or the number of ids.

  Source: measurements on SmolLM2-135M-Instruct.
  """
  rest = _REST_BYTES + _ROW_BYTES / L
  if kind != "threshold":
    each = _RANDOM_BYTES if kind == "random" else _TOPK_BYTES
    return each * parameter + rest
  points = [(math.log(x), math.log(y)) for x, y in _MEASURED_BYTES]
  x = math.log(parameter)
  upper = next((i for i, p in enumerate(points) if p[0] >= x), len(points) - 1)
  (x0, y0), (x1, y1) = points[max(upper, 1) - 1], points[max(upper, 1)]
  return math.exp(y0 + (y1 - y0) * (x - x0) / (x1 - x0)) + rest


def gram_bytes(positions: int, layers: int, L: int) -> float:
  """Bytes per token of the cosines in a cache, and of their index entries.

  Compression, which saves up to 13 % where the pairs are many, is left out.
  `positions` are those drawn of each row; 0: none.

  Source: measurements on SmolLM2-135M-Instruct.
  """
  pairs = positions * (positions - 1) // 2
  return (layers * pairs + _INDEX_BYTES) / L if pairs else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SizeVerdict:
  """A student's size against the window of 0.5 % to 5 % of its teacher."""

  student: int  # Parameters.
  teacher: int

  @property
  def ratio(self) -> float:
    return self.student / self.teacher

  @property
  def inside(self) -> bool:
    # Whole numbers: at the very ends a rounded quotient could be wrong.
    least, most = (times * self.student for times in TIMES)
    return least <= self.teacher <= most

  @property
  def window(self) -> tuple[int, int]:
    """Fewest and most parameters that are inside."""
    least, most = TIMES
    return -(-self.teacher // most), self.teacher // least

  def __str__(self) -> str:
    least, most = self.window
    where = "inside" if self.inside else "outside"
    return (
      f"the student's {self.student:,} parameters are {100 * self.ratio:.3f} %"
      f" of the teacher's {self.teacher:,}, {where} the window of 0.5 % to 5 %"
      f" ({least:,} to {most:,})"
    )


def size_window_verdict(
  student_params: int, teacher_params: int
) -> SizeVerdict:
  """Whether 0.5 % <= student / teacher <= 5 %, both ends included."""
  if student_params < 1 or teacher_params < 1:
    raise ValueError(
      f"size window: expected positive parameter counts, found"
      f" {student_params} (student) and {teacher_params} (teacher)."
    )
  return SizeVerdict(student=student_params, teacher=teacher_params)


def check_size_window(student: int, teacher: int, *, policy: str) -> str:
  """A warning if the student is outside the window, '' if it is inside.

  `policy` is config.student.size_window, "refuse" or "warn".

  Raises:
    ValueError: outside the window and the policy is to refuse.
  """
  assert policy in ("refuse", "warn"), policy
  verdict = size_window_verdict(student, teacher)
  if verdict.inside:
    return ""
  if policy == "warn":
    return f"student.size_window='warn': {verdict}; it cannot be released."
  raise ValueError(
    f"student: {verdict}. Change student.D, student.Y or student.F, or go on"
    " with --config.student.size_window=warn; it could not be released then."
  )


def _attention_weights(cfg: Shape) -> int:
  return 2 * cfg.D * cfg.N * cfg.H + 2 * cfg.D * cfg.G * cfg.H


def _mlp_weights(cfg: Shape) -> int:
  return 3 * cfg.D * cfg.F
