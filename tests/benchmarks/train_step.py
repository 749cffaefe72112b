"""A training step with each loss, against hard labels with full logits.

Time as a ratio within one process, the arms taking turns, and the temporary
memory that XLA plans for the compiled step. One student (Llama-style, tied
embeddings), one batch, float32 and AdamW.

  python tests/benchmarks/train_step.py --V=49152 --V=128256 --write-docs
"""

import argparse
from collections.abc import Callable, Sequence
import dataclasses
import functools
import os
from pathlib import Path
import platform
import statistics
import time

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from analogjax.cache import batches
from analogjax.models import decoder
from analogjax.training import divergences, losses, steps

_DOCS = Path(__file__).parents[2] / "docs" / "benchmarks.md"
_BEGIN, _END = "<!-- train step: begin -->", "<!-- train step: end -->"
# Slots of a record: threshold at tau 0.04, and the top 16.
_SAMPLED, _TOPK = 26, 16
_TIME, _MEMORY = 1.02, 1 / 3  # Aims for `ours, sampled records + labels`.
_BASE = "hard labels, full logits"
_OURS = "ours: sampled records + labels"


@dataclasses.dataclass(frozen=True)
class Arm:
  """One way to compute the loss of a batch."""

  K: int
  has_tail: bool
  loss: Callable  # (x_BLD, head_VD, targets) -> a sum over tokens.


def main(argv: Sequence[str] | None = None) -> int:
  args = _arguments(argv)
  lines = []
  for V in args.V:
    lines += [*_table(V, _measure(V, args)), ""]
  text = "\n".join(lines)
  print(text)
  if args.write_docs:
    page = _DOCS.read_text(encoding="utf-8")
    head, rest = page.split(_BEGIN)
    _, tail = rest.split(_END)
    page = f"{head}{_BEGIN}\n\n{text}\n{_END}{tail}"
    _DOCS.write_text(page, encoding="utf-8")
  return 0


def _arguments(argv):
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--V", type=int, action="append")
  parser.add_argument("--D", type=int, default=128)
  parser.add_argument("--layers", type=int, default=4)
  parser.add_argument("--rows", type=int, default=8)
  parser.add_argument("--length", type=int, default=256)
  parser.add_argument("--chunk", type=int, default=256)
  parser.add_argument("--rounds", type=int, default=15)
  parser.add_argument("--write-docs", action="store_true")
  args = parser.parse_args(argv)
  args.V = args.V or [49_152]
  return args


def _arms(chunk: int) -> dict[str, Arm]:
  jensen = divergences.Divergence(name="jensen_shannon")
  return {
    _BASE: Arm(0, False, _full_logits),
    "sampled records, log_softmax of full logits": Arm(_SAMPLED, False, _naive),
    "ours: hard labels": Arm(0, False, _ours(0.0, chunk)),
    _OURS: Arm(_SAMPLED, False, _ours(0.9, chunk)),
    "ours: top 16 and tail, forward KL + labels": Arm(
      _TOPK, True, _ours(0.9, chunk)
    ),
    "ours: top 16 and tail, Jensen-Shannon + labels": Arm(
      _TOPK, True, _ours(0.9, chunk, divergence=jensen)
    ),
  }


def _ours(alpha, chunk, **changes):
  objective = losses.Objective(chunk=chunk, **changes)

  def loss(x_BLD, head_VD, targets):
    return losses.distillation_loss(x_BLD, head_VD, targets, alpha, objective)[
      0
    ]

  return loss


def _full_logits(x_BLD, head_VD, targets):
  z_BLV = decoder.unembed(x_BLD, head_VD)
  label_BL1 = jnp.take_along_axis(z_BLV, targets.labels_BL[..., None], -1)
  hard_BL = jax.nn.logsumexp(z_BLV, axis=-1) - label_BL1[..., 0]
  return jnp.sum(hard_BL * targets.weights_BL)


def _naive(x_BLD, head_VD, targets):
  logq_BLV = jax.nn.log_softmax(decoder.unembed(x_BLD, head_VD))
  picked_BLK = jnp.take_along_axis(logq_BLV, targets.ids_BLK, axis=-1)
  teacher_BL = -jnp.sum(picked_BLK * targets.p_BLK, axis=-1)
  label_BL1 = jnp.take_along_axis(logq_BLV, targets.labels_BL[..., None], -1)
  mixed_BL = 0.9 * teacher_BL - 0.1 * label_BL1[..., 0]
  return jnp.sum(mixed_BL * targets.weights_BL)


def _measure(V: int, args) -> dict[str, tuple[list[float], int]]:
  """Seconds of each round, and bytes of temporaries, by arm."""
  heads = 4
  cfg = decoder.DecoderConfig(
    **dict(V=V, D=args.D, Y=args.layers, N=heads, G=heads // 2),
    **dict(H=args.D // heads, F=3 * args.D, max_positions=args.length),
    **dict(rope_theta=1e4, rms_norm_eps=1e-5, tie_embeddings=True),
    **dict(attention_bias=False, mlp_bias=False),
  )
  tx = optax.adamw(1e-3)
  params = decoder.init_parameters(cfg, 0)
  print(f"V={V:,}: {cfg.num_parameters / 1e6:.1f} million parameters")
  compiled, temporaries, states, spent = {}, {}, {}, {}
  rng = np.random.default_rng(0)
  for name, arm in _arms(args.chunk).items():
    batch = _batch(arm, args.rows, args.length, V, rng)
    step = functools.partial(_step, arm.loss, decoder.graphdef(cfg), tx)
    # A separate state for each arm, because the step overwrites it.
    state = jax.tree.map(jnp.array, (params, tx.init(params)))
    lowered = jax.jit(step, donate_argnums=0).lower(state, batch)
    compiled[name] = functools.partial(_run, lowered.compile(), batch)
    memory = lowered.compile().memory_analysis()
    temporaries[name] = memory.temp_size_in_bytes
    states[name], spent[name] = state, []
  for i in range(args.rounds + 1):
    for name in rng.permutation(list(compiled)):
      began = time.perf_counter()
      states[name] = jax.block_until_ready(compiled[name](states[name]))
      if i:  # The first round warms up.
        spent[name].append(time.perf_counter() - began)
  return {name: (spent[name], temporaries[name]) for name in compiled}


def _run(program, batch, state):
  return program(state, batch)


def _step(loss, graphdef, tx, state, batch):
  params, opt_state = state

  def of_params(params):
    x_BLD, _ = nnx.merge(graphdef, params)(
      batch.tokens_BL, batch.segments_BL, batch.positions_BL
    )
    total = loss(x_BLD, steps.head(params, graphdef), batch.targets)
    return total / jnp.sum(batch.targets.weights_BL)

  grads = jax.grad(of_params)(params)
  updates, opt_state = tx.update(grads, opt_state, params)
  return optax.apply_updates(params, updates), opt_state


def _batch(arm: Arm, B: int, L: int, V: int, rng) -> batches.Batch:
  ones_BL = np.ones((B, L), np.float32)
  p_BLK = rng.dirichlet(np.ones(arm.K + 1), (B, L)).astype(np.float32)
  tail_BL = np.log(p_BLK[..., -1]) if arm.has_tail else None
  if arm.K and not arm.has_tail:
    p_BLK[..., 0] += p_BLK[..., -1]
  steps_BLK = rng.integers(1, V // max(arm.K, 1), (B, L, arm.K))
  batch = batches.Batch(
    tokens_BL=rng.integers(0, V, (B, L)).astype(np.int32),
    segments_BL=np.ones((B, L), np.int32),
    positions_BL=np.broadcast_to(np.arange(L, dtype=np.int32), (B, L)),
    targets=batches.Targets(
      labels_BL=rng.integers(0, V, (B, L)).astype(np.int32),
      weights_BL=ones_BL,
      teacher_weights_BL=ones_BL,
      ids_BLK=np.cumsum(steps_BLK, axis=-1).astype(np.int32),
      p_BLK=p_BLK[..., : arm.K],
      log_tail_BL=tail_BL,
    ),
  )
  return jax.device_put(batch)


def _table(V, measured):
  base, base_bytes = measured[_BASE]
  yield (
    f"V = {V:,}; {platform.machine()}, {os.cpu_count()} cores, jax"
    f" {jax.__version__}, {len(base)} rounds:"
  )
  yield ""
  yield "| step | seconds | ratio (10 % to 90 %) | temp MiB |"
  yield "|---|---|---|---|"
  for name, (spent, temporaries) in measured.items():
    ratios = sorted(a / b for a, b in zip(spent, base, strict=True))
    low, high = np.quantile(ratios, [0.1, 0.9])
    yield (
      f"| {name} | {statistics.median(spent):.3f}"
      f" | {statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})"
      f" | {temporaries / 2**20:,.0f} |"
    )
  yield ""
  spent, temporaries = measured[_OURS]
  ratio = statistics.median(a / b for a, b in zip(spent, base, strict=True))
  part = temporaries / base_bytes
  for what, found, aim in (("time", ratio, _TIME), ("memory", part, _MEMORY)):
    verdict = "met" if found <= aim else "missed"
    yield f"Aim {verdict}: {what} {found:.3f} of the base; at most {aim:.3f}."


if __name__ == "__main__":
  raise SystemExit(main())
