"""The decoder, the model of both teacher and student.

Shape letters (docs/glossary.md): B batch, L position, D model width, V
vocabulary, Y layers. Stacked layers are in `blocks_Y`; one scan runs them.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
import re
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from analogjax.config import model
from analogjax.distributed import sharding
from analogjax.models import attention, layers

# Points of a block where activations can be read, in the order of computation.
SITE_POINTS = ("resid_pre", "attn_out", "mlp_out", "resid_post")

Activations = dict[str, jax.Array]  # point -> [B, L, D], in compute dtype.

# Selects the activations of each block that are kept; leaves come back with Y
# in front. At scale only a gather of some positions fits: [Y, B, M, D].
Probe = Callable[[Activations], Any]


class Edit(NamedTuple):
  """A change of the residual stream after one block."""

  block: jax.Array | int  # May be traced: one program for all blocks.
  apply: Callable[[jax.Array], jax.Array]  # Changes resid_post, [B, L, D].


def adding(
  block: jax.Array | int, vector_D: jax.Array, strength: jax.Array | float
) -> Edit:
  """Adds strength x vector_D, in float32, after a block; may be traced."""

  def apply(x_BLD):
    return x_BLD.astype(jnp.float32) + strength * vector_D[None, None]

  return Edit(block, apply)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
  """The shape of a Llama-family decoder; fields are the shape letters."""

  V: int  # Vocabulary.
  D: int  # Model width.
  Y: int  # Layers.
  N: int  # Query heads.
  G: int  # Key/value heads; must divide N.
  H: int  # Head width; even.
  F: int  # Feed-forward width.
  max_positions: int  # Longest context the model is meant for, tokens.
  rope_theta: float
  rope_scaling: model.RopeScaling | None = None
  rms_norm_eps: float
  tie_embeddings: bool
  attention_bias: bool
  mlp_bias: bool
  # Logits are cap tanh(logits / cap); None: unchanged. Students have none.
  # Source: Gemma 2, arXiv:2408.00118, section 2.
  logit_softcap: float | None = None
  dtype: str = "float32"  # Compute dtype; parameters stay float32.
  remat: str = "none"  # "none", "dots" (keep matmul outputs) or "full".
  attention: str = "auto"  # "auto", "xla", "cudnn" or "splash".

  def __post_init__(self):
    for field in ("V", "D", "Y", "N", "G", "H", "F", "max_positions"):
      if getattr(self, field) < 1:
        raise ValueError(f"{field}={getattr(self, field)} must be positive.")
    if self.N % self.G:
      raise ValueError(f"N={self.N} query heads not divisible by G={self.G}.")
    if self.H % 2:
      raise ValueError(f"H={self.H}: rotary embedding needs an even width.")
    if self.logit_softcap is not None and not self.logit_softcap > 0:
      raise ValueError(f"logit_softcap={self.logit_softcap} must be positive.")
    if self.dtype not in ("float32", "bfloat16"):
      raise ValueError(
        f"dtype: expected 'float32' or 'bfloat16', found {self.dtype!r}."
      )
    if self.remat not in ("none", "dots", "full"):
      raise ValueError(
        f"remat: expected 'none', 'dots' or 'full', found {self.remat!r}."
      )
    if self.attention not in attention.CHOICES:
      raise ValueError(
        "attention: expected 'auto', 'xla', 'cudnn' or 'splash', found"
        f" {self.attention!r}."
      )

  @property
  def num_parameters(self) -> int:
    """Parameters, tied embeddings counted once."""
    shapes = jax.tree.leaves(abstract_parameters(self))
    return sum(leaf.size for leaf in shapes)


class Block(nnx.Module):
  """One pre-norm layer: attention and MLP, each added to the stream."""

  def __init__(self, cfg: DecoderConfig, *, rngs: nnx.Rngs):
    self.attention_norm = layers.RMSNorm(cfg.D, cfg.rms_norm_eps)
    self.attention = attention.Attention(cfg, rngs=rngs)
    self.mlp_norm = layers.RMSNorm(cfg.D, cfg.rms_norm_eps)
    self.mlp = layers.MLP(cfg, rngs=rngs)

  def __call__(self, x_BLD, segments_BL, positions_BL) -> Activations:
    out = {"resid_pre": x_BLD}
    out["attn_out"] = self.attention(
      self.attention_norm(x_BLD), segments_BL, positions_BL
    )
    x_BLD = x_BLD + out["attn_out"]
    out["mlp_out"] = self.mlp(self.mlp_norm(x_BLD))
    out["resid_post"] = sharding.constrain(x_BLD + out["mlp_out"], "BLD")
    return out


class Decoder(nnx.Module):
  """Token ids to final hidden states; the loss applies the unembedding."""

  def __init__(self, cfg: DecoderConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    embed = nnx.initializers.normal(0.02)
    self.embed_VD = nnx.Param(embed(rngs.params(), (cfg.V, cfg.D)))
    if not cfg.tie_embeddings:
      self.unembed_VD = nnx.Param(embed(rngs.params(), (cfg.V, cfg.D)))
    keys_Y = jax.random.split(rngs.params(), cfg.Y)

    def make(key):
      return nnx.split(Block(cfg, rngs=nnx.Rngs(key)))[1]

    graphdef = nnx.graphdef(
      nnx.eval_shape(lambda: Block(cfg, rngs=nnx.Rngs(0)))
    )
    self.blocks_Y = nnx.merge(graphdef, jax.vmap(make)(keys_Y))
    self.final_norm = layers.RMSNorm(cfg.D, cfg.rms_norm_eps)

  def __call__(
    self,
    tokens_BL: jax.Array,
    segments_BL: jax.Array,
    positions_BL: jax.Array,
    *,
    probe: Probe | None = None,
    edit: Edit | None = None,
  ) -> tuple[jax.Array, Any]:
    """Hidden states after the final norm, and the values that the probe kept.

    Args:
      tokens_BL: int32 ids below V.
      segments_BL: int32 document of each token, 0 is padding.
      positions_BL: int32 position of each token within its document.
      probe: sees the activations of each block, by the names of SITE_POINTS.
      edit: changes `resid_post` of one block, before the probe sees it.

    Returns:
      x_BLD in the compute dtype, and the probe's values stacked over the
      layers; None without a probe.
    """
    cfg = self.cfg
    x_BLD = _look_up(self.embed_VD[...], tokens_BL, cfg.dtype)
    graphdef, blocks_Y = nnx.split(self.blocks_Y)

    def run_block(x_BLD, weights):
      return nnx.merge(graphdef, weights)(x_BLD, segments_BL, positions_BL)

    def body(x_BLD, layer):
      index, weights = layer
      out = _remat(run_block, cfg.remat)(x_BLD, weights)
      x_BLD = out["resid_post"]
      if edit is not None:
        changed_BLD = edit.apply(x_BLD).astype(x_BLD.dtype)
        x_BLD = jnp.where(index == edit.block, changed_BLD, x_BLD)
        out["resid_post"] = x_BLD
      return x_BLD, None if probe is None else probe(out)

    x_BLD, kept = jax.lax.scan(body, x_BLD, (jnp.arange(cfg.Y), blocks_Y))
    return self.final_norm(x_BLD), kept

  def embed(self, tokens_BL: jax.Array) -> jax.Array:
    """The residual stream before the first block, in the compute dtype."""
    return _look_up(self.embed_VD[...], tokens_BL, self.cfg.dtype)

  def run_blocks(
    self,
    x_BLD: jax.Array,
    segments_BL: jax.Array,
    positions_BL: jax.Array,
    *,
    first: jax.Array | int,
    last: jax.Array | int,
  ) -> jax.Array:
    """The residual stream after only the blocks first to last, [B, L, D].

    With `embed` and `final_norm` this is the model in pieces. Its gradient
    computes each block again, and holds only the stream between them.

    Args:
      x_BLD: the stream before block `first`, in the compute dtype.
      first: counted from 0; may be traced, so that one program serves all.
      last: the same; below `first`, nothing is run.
    """
    graphdef, blocks_Y = nnx.split(self.blocks_Y)

    def run_block(x_BLD, weights):
      block = nnx.merge(graphdef, weights)
      return block(x_BLD, segments_BL, positions_BL)["resid_post"]

    def body(x_BLD, index, weights):
      wanted = (first <= index) & (index <= last)
      return jax.lax.cond(
        wanted, run_block, lambda x_BLD, _: x_BLD, x_BLD, weights
      )

    # Around the condition: within it, the gradient would keep all weights.
    body = _remat(body, "full")
    return jax.lax.scan(
      lambda x_BLD, layer: (body(x_BLD, *layer), None),
      x_BLD,
      (jnp.arange(self.cfg.Y), blocks_Y),
    )[0]

  def cap(self, logits: jax.Array) -> jax.Array:
    """The model's logits from products with the rows of `head_VD`."""
    cap = self.cfg.logit_softcap
    return logits if cap is None else cap * jnp.tanh(logits / cap)

  @property
  def head_VD(self) -> jax.Array:
    """The unembedding, float32; `cap` of its products are the logits."""
    return (self.embed_VD if self.cfg.tie_embeddings else self.unembed_VD)[...]


def _look_up(embed_VD, tokens_BL, dtype):
  """Rows of the embedding in the compute dtype, [B, L, D]; NaN for invalid ids.

  On a mesh the table stays where it is: each device looks up all tokens of its
  fsdp group in its part of V and D. So tokens and [B, L, D] travel, both ways,
  instead of the table in float32 and a gradient of its size.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return jnp.take(embed_VD, tokens_BL, axis=0).astype(dtype)
  V, width = len(embed_VD), sharding.WEIGHT_AXES["D"]
  tensor, rows = sharding.WEIGHT_AXES["V"], sharding.ACTIVATION_AXES["B"]
  ways = math.prod(mesh.shape[axis] for axis in rows)
  divided = len(tokens_BL) % ways == 0  # Otherwise every device takes all rows.

  def local(embed_VD, tokens_BL):
    if divided:
      tokens_BL = jax.lax.all_gather(tokens_BL, width, tiled=True)
    own_BL = tokens_BL - jax.lax.axis_index(tensor) * len(embed_VD)
    # A negative index would count from the end.
    own_BL = jnp.where(own_BL < 0, V, own_BL)
    x_BLD = embed_VD.at[own_BL].get(mode="fill", fill_value=0).astype(dtype)
    is_id_BL1 = ((tokens_BL >= 0) & (tokens_BL < V))[..., None]
    x_BLD = jnp.where(is_id_BL1, x_BLD, jnp.nan)
    if divided:
      x_BLD = jax.lax.all_to_all(x_BLD, width, 0, 2, tiled=True)
    return jax.lax.psum(x_BLD, tensor)  # Exact: all terms but one are 0.

  return jax.shard_map(
    local,
    in_specs=(P(tensor, width), P(rows) if divided else P()),
    out_specs=P(rows) if divided else P(None, None, width),
  )(embed_VD, tokens_BL)


def _remat(fn, policy: str):
  if policy == "none":
    return fn
  save = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  return jax.checkpoint(
    fn, policy=save if policy == "dots" else None, prevent_cse=False
  )


def parse_site(site: str, Y: int) -> tuple[int, str]:
  """Block and point of a site, e.g. "block07.resid_post", in Y layers.

  Raises:
    ValueError: such a model does not have this site.
  """
  match = re.fullmatch(r"block(\d+)\.(\w+)", site)
  if not match or int(match[1]) >= Y or match[2] not in SITE_POINTS:
    raise ValueError(
      f"site {site!r}: expected 'blockNN.POINT' with NN below {Y} and POINT"
      f" one of {', '.join(SITE_POINTS)}."
    )
  return int(match[1]), match[2]


def init_parameters(cfg: DecoderConfig, seed: int) -> nnx.State:
  """Random parameters; jit it with out_shardings to create them in place."""
  return nnx.split(Decoder(cfg, rngs=nnx.Rngs(seed)))[1]


@functools.cache
def graphdef(cfg: DecoderConfig) -> nnx.GraphDef:
  """The structure that `nnx.merge` joins with parameters."""
  return nnx.graphdef(nnx.eval_shape(lambda: Decoder(cfg, rngs=nnx.Rngs(0))))


@functools.cache
def abstract_parameters(cfg: DecoderConfig) -> nnx.State:
  """Shapes and dtypes of the parameters, nothing allocated."""
  return jax.eval_shape(lambda: init_parameters(cfg, 0))


def unembed(x_BSD: jax.Array, head_VD: jax.Array) -> jax.Array:
  """Logits [B, S, V] in float32, the product in the dtype of x_BSD."""
  logits_BSV = jnp.einsum(
    "BSD,VD->BSV",
    x_BSD,
    head_VD.astype(x_BSD.dtype),
    preferred_element_type=jnp.float32,
  )
  return sharding.constrain(logits_BSV, "BLV")
