"""Tiny decoders, optimizers and meshes that most tests share.

Every other shape is another set of programs to compile: use `tiny()` unchanged
if the shape does not matter.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from analogjax.config import train
from analogjax.distributed import sharding
from analogjax.models import decoder

TINY = decoder.DecoderConfig(
  **dict(V=64, D=16, Y=2, N=4, G=2, H=4, F=32, max_positions=64),
  **dict(rope_theta=1e4, rms_norm_eps=1e-5, tie_embeddings=True),
  **dict(attention_bias=False, mlp_bias=False),
)
SMOLLM2 = dataclasses.replace(
  TINY,
  **dict(V=49152, D=576, Y=30, N=9, G=3, H=64, F=1536),
  **dict(max_positions=8192, rope_theta=1e5),
)
# What its config.json says.
SMOLLM2_JSON = {
  "model_type": "llama",
  "architectures": ["LlamaForCausalLM"],
  "vocab_size": 49152,
  "hidden_size": 576,
  "num_hidden_layers": 30,
  "num_attention_heads": 9,
  "num_key_value_heads": 3,
  "head_dim": 64,
  "intermediate_size": 1536,
  "max_position_embeddings": 8192,
  "rope_theta": 1e5,
  "rms_norm_eps": 1e-5,
  "tie_word_embeddings": True,
  "attention_bias": False,
  "mlp_bias": False,
  "hidden_act": "silu",
}
ADAMW = train.OptimizerConfig(
  learning_rate=1e-2,
  warmup_steps=1,
  schedule="constant",
  final_fraction=1.0,
  b2=0.99,
  clip_norm=0.0,
)


def tiny(**changes: Any) -> decoder.DecoderConfig:
  """A decoder of two narrow layers, with these fields changed."""
  return dataclasses.replace(TINY, **changes)


def adamw(**changes: Any) -> train.OptimizerConfig:
  """An optimizer's config, with these fields changed."""
  return dataclasses.replace(ADAMW, **changes)


def keep_gradient() -> optax.GradientTransformation:
  """An optimizer whose state after a step is that step's gradient."""
  return optax.GradientTransformation(
    init=lambda params: jax.tree.map(jnp.zeros_like, params),
    update=lambda grads, state, params: (
      jax.tree.map(jnp.zeros_like, grads),
      grads,
    ),
  )


@functools.cache
def parameters(
  cfg: decoder.DecoderConfig, seed: int = 0, *, embed=0.5, others=0.2
) -> Any:
  """Random parameters on the host, also where a decoder begins with 0 or 1.

  Args:
    seed: of all numbers.
    embed: deviation of embeddings. Large ones make a peaked distribution.
    others: deviation of the rest; norms lie around 1.
  """
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = jax.tree_util.keystr(path)
    scale = embed if "embed" in name else others
    values = scale * rng.normal(size=leaf.shape) + ("norm" in name)
    return values.astype(leaf.dtype)

  abstract = decoder.abstract_parameters(cfg)
  return jax.tree_util.tree_map_with_path(draw, abstract)


def by_name(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by their path, such as `blocks_Y/mlp/wup_DF`."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/").removesuffix(
      "/value"
    ): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


# Meshes over the eight simulated devices. A test of mesh invariance compares
# the others with the first.
ALONE = dict(data=1)
MESHES = (ALONE, dict(data=8), dict(fsdp=8), dict(data=2, fsdp=2, tensor=2))


@dataclasses.dataclass(frozen=True)
class Gpu:
  """The attributes of a device that a mesh reads."""

  id: int
  process_index: int
  slice_index: int
  platform: str = "gpu"
  device_kind: str = "NVIDIA H100"
  device_type = memory_kinds = None


def make_mesh(axes: Mapping[str, int]) -> jax.sharding.Mesh:
  """A mesh over as many devices as its axes say."""
  number = int(np.prod(list(axes.values()) or [1]))
  return sharding.make_mesh(axes, jax.devices()[:number])


def mesh_id(axes: Mapping[str, int]) -> str:
  """A mesh in the name of a test."""
  return "-".join(f"{axis}{size}" for axis, size in axes.items())


def on_mesh(axes: Mapping[str, int], fn, params: Any, *rows: Sequence) -> Any:
  """fn(params, *rows), with its arguments laid out over a mesh; on the host."""
  mesh = make_mesh(axes)
  with jax.set_mesh(mesh):
    where = sharding.state_shardings(params, mesh)
    params = jax.device_put(params, where)
    out = jax.jit(fn)(params, *sharding.put_rows(rows, mesh))
    return jax.device_get(out)
