"""How fast records are drawn, alone and behind a teacher's forward pass.

    python tests/benchmarks/sampling.py --teacher=FOLDER

FOLDER is a Hugging Face folder of weights; without one a random teacher of
SmolLM2-135M's shape takes its place, whose records are flatter. The arms of a
comparison take turns, so that a busy machine slows both; medians are compared.
"""

import argparse
from collections.abc import Callable, Mapping
import functools
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from analogjax.cache import batches, sampling, teacher_step
from analogjax.data import rows
from analogjax.distributed import sharding
from analogjax.models import decoder, hf_import

SMOLLM2 = decoder.DecoderConfig(
  V=49_152,
  D=576,
  Y=30,
  N=9,
  G=3,
  H=64,
  F=1536,
  max_positions=8192,
  rope_theta=1e5,
  rms_norm_eps=1e-5,
  tie_embeddings=True,
  attention_bias=False,
  mlp_bias=False,
)
SAMPLERS = (
  sampling.Threshold(tau=0.04),
  sampling.Random(num_draws=50),
  sampling.TopK(top_k=50),
)
OPTIONS = dict(capture=sampling.Capture(), num_replicas=1, temperature=1.0)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--teacher", type=pathlib.Path)
  parser.add_argument("--rows", type=int, default=4)
  parser.add_argument("--length", type=int, default=256)
  parser.add_argument("--chunk", type=int, default=64)
  parser.add_argument("--repeats", type=int, default=7)
  args = parser.parse_args()

  params, cfg = teacher(args.teacher)
  batch = make_batch(args.rows, args.length, cfg.V)
  keys_B2 = np.arange(2 * args.rows, dtype=np.uint32).reshape(-1, 2)
  graphdef = decoder.graphdef(cfg)

  def bare(params, batch):
    """Hidden states and logits, the same chunks, and nothing drawn."""
    x_BLD, head_VD = teacher_step.hidden(params, batch, graphdef)

    def body(_, start):
      x_BSD = jax.lax.dynamic_slice_in_dim(x_BLD, start, args.chunk, axis=1)
      return None, jnp.max(decoder.unembed(x_BSD, head_VD), axis=-1)

    starts = jnp.arange(0, args.length, args.chunk)
    return jax.lax.scan(body, None, starts)[1]

  def first_logits(params, batch):
    x_BLD, head_VD = teacher_step.hidden(params, batch, graphdef)
    return decoder.unembed(x_BLD[:, : args.chunk], head_VD)

  tokens = args.rows * args.chunk
  logits_BLV = jax.jit(first_logits)(params, batch)
  labels_BL = jnp.zeros(logits_BLV.shape[:2], jnp.int32)
  arms = {
    f"draw, {sampler}": functools.partial(
      jax.jit(functools.partial(sampling.draw, sampler=sampler, **OPTIONS)),
      logits_BLV,
      labels_BL,
      keys_B2,
      0,
    )
    for sampler in SAMPLERS
  }
  arms["one pass of exp over the logits"] = functools.partial(
    jax.jit(lambda z: jnp.sum(jnp.exp(z - z[..., :1]), axis=-1)), logits_BLV
  )
  report(compare(arms, args.repeats), tokens)

  tokens = args.rows * args.length
  arms = {"bare forward": functools.partial(jax.jit(bare), params, batch)}
  for sampler in SAMPLERS:
    step = functools.partial(
      teacher_step.teacher_step,
      graphdef=graphdef,
      sampler=sampler,
      chunk=args.chunk,
      **OPTIONS,
    )
    arms[f"teacher_step, {sampler}"] = functools.partial(
      jax.jit(step), params, batch, keys_B2
    )
  times = compare(arms, args.repeats)
  report(times, tokens)
  for name in list(arms)[1:]:
    pairs = zip(times["bare forward"], times[name], strict=True)
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"{name}: {ratio:.3f} of the bare forward's throughput")


def teacher(folder):
  if folder is None:
    make = jax.jit(decoder.init_parameters, static_argnums=(0, 1))
    return make(SMOLLM2, 0), SMOLLM2
  cfg = hf_import.read_config(folder)
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  params = hf_import.read_parameters(folder, cfg, mesh)
  # Without the mesh, like everything else here.
  return jax.device_put(params, jax.devices()[0]), cfg


def make_batch(B, L, V):
  """Random tokens: their records are flatter than those of a text."""
  segments_BL = np.ones((B, L), np.int32)
  return batches.from_rows(
    rows.Rows(
      tokens_BL=np.random.default_rng(0).integers(0, V, (B, L), np.int32),
      segments_BL=segments_BL,
      positions_BL=np.tile(np.arange(L, dtype=np.int32), (B, 1)),
      weights_BL=np.float32(segments_BL),
    )
  )


def compare(
  arms: Mapping[str, Callable], repeats: int
) -> dict[str, list[float]]:
  """Seconds of each arm, in turns; compilation is not counted."""
  for run in arms.values():
    jax.block_until_ready(run())
  times = {name: [] for name in arms}
  for _ in range(repeats):
    for name, run in arms.items():
      start = time.perf_counter()
      jax.block_until_ready(run())
      times[name].append(time.perf_counter() - start)
  return times


def report(times: dict[str, list[float]], tokens: int) -> None:
  for name, seconds in times.items():
    rates = sorted(tokens / s for s in seconds)
    print(
      f"{name}: {statistics.median(rates):,.0f} tokens/s"
      f" ({rates[0]:,.0f} to {rates[-1]:,.0f}, {len(rates)} runs)"
    )


if __name__ == "__main__":
  main()
