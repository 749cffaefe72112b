"""Students, batches and training steps for the benchmarks."""

from typing import Any

from jax.sharding import Mesh
import numpy as np
import optax

from analogjax.cache import batches
from analogjax.config import train
from analogjax.models import decoder
from analogjax.training import losses, optimizer as optim, programs

V = 128_256  # The vocabulary of Llama 3.
_SLOTS = {"hard": 0, "threshold": 26, "topk": 16, "live": 0}  # K of a record.
KINDS = tuple(_SLOTS)

# Shapes of SmolLM2-135M, Llama-3.2-1B and -3B and Llama-3.1-8B.
SHAPES = {
  "135M": dict(D=576, Y=30, N=9, G=3, H=64, F=1536, tie_embeddings=True),
  "1B": dict(D=2048, Y=16, N=32, G=8, H=64, F=8192, tie_embeddings=True),
  "3B": dict(D=3072, Y=28, N=24, G=8, H=128, F=8192, tie_embeddings=True),
  "8B": dict(D=4096, Y=32, N=32, G=8, H=128, F=14_336, tie_embeddings=False),
}


def config(name: str, **changes: Any) -> decoder.DecoderConfig:
  """The decoder of a name; remat, attention and similar fields are changes."""
  fields = dict(
    V=V,
    max_positions=8192,
    rope_theta=5e5,
    rms_norm_eps=1e-5,
    attention_bias=False,
    mlp_bias=False,
    dtype="bfloat16",
  )
  return decoder.DecoderConfig(**{**fields, **SHAPES[name], **changes})


def make_batch(kind: str, B: int, L: int, V: int = V) -> batches.Batch:
  """Rows of two documents with records of a kind, on the host."""
  K = _SLOTS[kind]
  rng = np.random.default_rng(0)
  ones_BL = np.ones((B, L), np.float32)
  segments_BL = 1 + (np.arange(L) >= L // 3).astype(np.int32)
  positions_BL = np.arange(L) - (segments_BL == 2) * (L // 3)
  # Probabilities that fall with the rank, and one for what is not named.
  p_K = 1 / np.arange(1.0, K + 2)
  p_K /= p_K.sum()
  log_tail_BL = np.log(p_K[-1]) * ones_BL if kind == "topk" else None
  p_K = p_K[:K] / (1 if kind == "topk" else p_K[:K].sum())
  steps_BLK = rng.integers(1, V // max(K, 1) + 1, (B, L, K))
  return batches.Batch(
    tokens_BL=rng.integers(0, V, (B, L)).astype(np.int32),
    segments_BL=np.broadcast_to(segments_BL, (B, L)),
    positions_BL=np.broadcast_to(positions_BL, (B, L)).astype(np.int32),
    targets=batches.Targets(
      labels_BL=rng.integers(0, V, (B, L)).astype(np.int32),
      weights_BL=ones_BL,
      teacher_weights_BL=ones_BL * (kind != "hard"),
      ids_BLK=(np.cumsum(steps_BLK, axis=-1) - 1).astype(np.int32),
      p_BLK=np.broadcast_to(p_K, (B, L, K)).astype(np.float32),
      log_tail_BL=log_tail_BL,
    ),
  )


def training(
  cfg: decoder.DecoderConfig,
  mesh: Mesh,
  objective: losses.Objective,
  *,
  microbatches: int = 1,
  alpha: float = 0.9,
) -> programs.Training:
  """A training step as a phase makes it; alpha is 0 for hard labels."""
  optimizer = train.OptimizerConfig(
    name="adamw",
    learning_rate=1e-4,
    warmup_steps=100,
    schedule="wsd",
    decay_steps=100,
    final_fraction=0.0,
    b1=0.9,
    b2=0.95,
    eps=1e-8,
    muon_momentum=0.95,
    momentum_dtype="float32",
    weight_decay=0.1,
    clip_norm=1.0,
  )
  return programs.Training(
    cfg=cfg,
    mesh=mesh,
    tx=optim.make_optimizer(optimizer, num_steps=1000),
    objective=objective,
    alpha=optax.constant_schedule(alpha),
    microbatches=microbatches,
  )
