"""Models from Hugging Face folders: logits, activations, steering.

Shape letters: B rows, L positions, D model width, V vocabulary.
"""

from collections.abc import Sequence
import dataclasses
import functools
from pathlib import Path
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from analogjax.data import rows as rows_lib
from analogjax.distributed import sharding
from analogjax.models import decoder, hf_import
from analogjax.safety import generate


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Model:
  """A model on one device; make one with `load_model`.

  Tokens are integers [L], or [B, L] for rows of one length; results have the
  same first dimensions. Each new length compiles once.
  """

  name: str  # Digest of the folder.
  config: decoder.DecoderConfig  # Sizes by shape letter.
  params: nnx.State
  tokenizer: tokenizers.Tokenizer | None  # None: the folder has none.
  mesh: jax.sharding.Mesh  # Mesh of its one device.

  @property
  def sites(self) -> list[str]:
    """Every site where activations can be read, from the input on."""
    return [
      f"block{block:02}.{point}"
      for block in range(self.config.Y)
      for point in decoder.SITE_POINTS
    ]

  @property
  def unembedding(self) -> jax.Array:
    """The output embedding [V, D]."""
    return nnx.merge(decoder.graphdef(self.config), self.params).head_VD

  def logits(self, tokens: Any, *, segments: Any = None) -> jax.Array:
    """Logits of the next token at each position, float32 [..., L, V].

    Args:
      tokens: int [L] or [B, L].
      segments: int, the same shape: the document of each token, 0 is padding;
        None: each row is one document.

    Raises:
      ValueError: the model cannot take the tokens or segments.
    """
    return self._run((), tokens, segments)

  def activations(
    self, tokens: Any, sites: Sequence[str], *, segments: Any = None
  ) -> dict[str, jax.Array]:
    """Activations at some sites, float32 [..., L, D] by site.

    Args:
      tokens: int [L] or [B, L].
      sites: from `self.sites`, such as "block03.resid_post": the residual
        stream before (`resid_pre`) and after (`resid_post`) a block, and the
        outputs of its two parts (`attn_out`, `mlp_out`).
      segments: as in `logits`.

    Raises:
      ValueError: the model does not have the site, or cannot take the tokens.
    """
    if isinstance(sites, str) or not sites:
      raise ValueError(
        f"sites: expected a list of sites such as 'block00.resid_post', found"
        f" {sites!r}."
      )
    for site in sites:
      decoder.parse_site(site, self.config.Y)
    return dict(
      zip(sites, self._run(tuple(sites), tokens, segments), strict=True)
    )

  def generate(self, tokens: Any, steps: int) -> np.ndarray:
    """The likeliest continuation, int32 [..., steps].

    It does not stop at an end token. Each new token costs one pass.

    Raises:
      ValueError: the model cannot take the tokens, or has fewer positions than
        they and the new ones need.
    """
    tokens_BL, shape = self._tokens(tokens, steps)
    B, L = tokens_BL.shape
    row_BL = np.pad(tokens_BL, ((0, 0), (0, steps)))
    arguments = _as_one_document(row_BL)
    decode = generate.make_decode(self.config, self.mesh, steps)
    with jax.set_mesh(self.mesh):
      lengths_B = np.full(B, L, np.int32)
      found = decode(self.params, *arguments, lengths_B, self._push())
    return np.asarray(found).reshape(*shape[:-1], steps)

  def _push(self) -> tuple[Any, ...] | None:
    """The change of the stream: block, vector and strength."""
    return None

  def _run(self, sites, tokens, segments):
    tokens_BL, shape = self._tokens(tokens, 0)
    arguments = _as_one_document(tokens_BL)
    if segments is not None:
      segments = np.asarray(segments)
      if segments.shape != shape or segments.dtype.kind not in "iu":
        raise ValueError(
          f"segments: expected integers of shape {list(shape)}, found"
          f" {segments.dtype} of shape {list(segments.shape)}."
        )
      segments_BL = segments.reshape(tokens_BL.shape).astype(np.int32)
      positions_BL = rows_lib.default_positions(segments_BL)
      arguments = tokens_BL, segments_BL, positions_BL
    with jax.set_mesh(self.mesh):
      run = _make_run(self.config, sites)
      found = run(self.params, *arguments, self._push())
    return jax.tree.map(lambda x: x.reshape(*shape, x.shape[-1]), found)

  def _tokens(self, tokens: Any, steps: int) -> tuple[np.ndarray, Any]:
    """Checked tokens [B, L], and their original shape."""
    tokens, cfg = np.asarray(tokens), self.config
    shape = tokens.shape
    if tokens.ndim not in (1, 2) or not tokens.size:
      raise ValueError(
        f"tokens: expected [L] or [B, L], found shape {list(shape)}."
      )
    if tokens.dtype.kind not in "iu":
      raise ValueError(f"tokens: expected integers, found {tokens.dtype}.")
    for value in (tokens.min(), tokens.max()):
      if not 0 <= value < cfg.V:
        raise ValueError(
          f"tokens: expected ids from 0 to {cfg.V - 1}, found {value}."
        )
    if shape[-1] + steps > cfg.max_positions:
      raise ValueError(
        f"tokens: expected at most {cfg.max_positions} positions, found"
        f" {shape[-1] + steps}."
      )
    return tokens.reshape(-1, shape[-1]).astype(np.int32), shape

  def __repr__(self) -> str:
    cfg = self.config
    return (
      f"<model {self.name}: {cfg.num_parameters:,} parameters, {cfg.Y} blocks,"
      f" width {cfg.D}, {cfg.dtype}>"
    )


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Steered(Model):
  """A model with a vector added to its residual stream; see `steer`."""

  site: str
  vector: np.ndarray  # float32 [D].
  strength: float

  def _push(self):
    block, _ = decoder.parse_site(self.site, self.config.Y)
    # As arrays, so that one program serves every vector, block and strength.
    return np.int32(block), self.vector, np.float32(self.strength)

  def at(self, strength: float) -> "Steered":
    """The same vector with another strength."""
    return dataclasses.replace(self, strength=float(strength))

  def dose_response(
    self,
    tokens: Any,
    ids: Sequence[int],
    against: Sequence[int],
    strengths: Sequence[float],
  ) -> np.ndarray:
    """How the next token after a prompt depends on the strength.

    The response is the logarithm of the odds that the next token is one of
    `ids` rather than one of `against`, in nats.

    Args:
      tokens: prompts, int [L] or [B, L].
      ids: tokens of one side, at least one.
      strengths: used instead of the model's own.

    Returns:
      float32 [S], or [S, B] for rows of prompts.
    """
    sides = []
    for name, side in (("ids", ids), ("against", against)):
      side = np.asarray(side)
      ok = side.ndim == 1 and side.size and side.dtype.kind in "iu"
      if not ok or side.min() < 0 or side.max() >= self.config.V:
        raise ValueError(
          f"{name}: expected a list of token ids below {self.config.V}, found"
          f" {side.tolist()}."
        )
      sides.append(side)
    found = []
    for strength in strengths:
      last = self.at(strength).logits(tokens)[..., -1, :]
      up, down = (jax.nn.logsumexp(last[..., s], axis=-1) for s in sides)
      found.append(np.asarray(up - down))
    return np.stack(found)

  def __repr__(self) -> str:
    return f"{super().__repr__()[:-1]}, {self.strength:+g} at {self.site}>"


def load_model(folder: str | Path, *, dtype: str = "float32") -> Model:
  """Loads a model from a Hugging Face folder, onto one device.

  Args:
    folder: with config.json and safetensors, of a family that a teacher may
      have; `export` of a workdir is one, and a bundle is accepted.
    dtype: "float32" or "bfloat16", of weights and computation.

  Raises:
    ValueError: the folder cannot be read; names the file and the field.

  Example:
    >>> model = aj.load_model("analog")
    >>> model.logits([5, 8, 13]).shape
    (3, 61)
    >>> found = model.activations([5, 8, 13], ["block01.resid_post"])
    >>> found["block01.resid_post"].shape
    (3, 16)
    >>> model.generate([5, 8, 13], steps=4).shape
    (4,)
  """
  folder = Path(folder)
  if not (folder / "config.json").exists() and (folder / "model").is_dir():
    folder = folder / "model"  # Of a bundle.
  config = hf_import.read_config(folder, dtype=dtype)
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  params = hf_import.read_parameters(folder, config, mesh, dtype=dtype)
  file = folder / "tokenizer.json"
  return Model(
    name=folder.name,
    config=config,
    params=params,
    tokenizer=(
      tokenizers.Tokenizer.from_file(str(file)) if file.exists() else None
    ),
    mesh=mesh,
  )


def steer(
  model: Model, vector: Any, site: str, *, strength: float = 1.0
) -> Steered:
  """Adds strength x vector to a model's residual stream, at every position.

  The result is a model too: its `logits`, `activations` and `generate` include
  the change, and `dose_response` varies the strength.

  Args:
    model: from `load_model`; it is not changed.
    vector: float [D].
    site: where it is added, as "block03.resid_post": after a block.
    strength: of the vector; may be negative.

  Raises:
    ValueError: the vector does not fit the model, the site is not after a
      block, or the model is steered already; names it.

  Example:
    >>> model = aj.load_model("analog")
    >>> vector = np.asarray(model.unembedding[7])
    >>> steered = aj.steer(model, vector, "block01.resid_post", strength=9)
    >>> int(steered.logits([5, 8, 13])[-1].argmax())
    7
    >>> curve = steered.dose_response([5, 8], [7], [3], strengths=[-9, 0, 9])
    >>> bool(curve[0] < curve[1] < curve[2])
    True
  """
  if isinstance(model, Steered):
    raise ValueError(
      f"model: expected one from load_model, found one that is steered already"
      f" at {model.site}."
    )
  _, point = decoder.parse_site(site, model.config.Y)
  if point != "resid_post":
    raise ValueError(
      f"site: expected 'blockNN.resid_post', the stream after a block, found"
      f" {site!r}."
    )
  vector = np.asarray(vector, np.float32)
  if vector.shape != (model.config.D,) or not np.isfinite(vector).all():
    raise ValueError(
      f"vector: expected {model.config.D} finite numbers, found shape"
      f" {list(vector.shape)}"
      f"{'' if np.isfinite(vector).all() else ' with NaN or infinity'}."
    )
  fields = {
    field.name: getattr(model, field.name)
    for field in dataclasses.fields(model)
  }
  return Steered(**fields, site=site, vector=vector, strength=float(strength))


def _as_one_document(tokens_BL: np.ndarray) -> tuple[np.ndarray, ...]:
  """Tokens, segments and positions."""
  ones_BL = np.ones_like(tokens_BL)
  return tokens_BL, ones_BL, rows_lib.default_positions(ones_BL)


@functools.cache
def _make_run(cfg: decoder.DecoderConfig, sites: tuple[str, ...]):
  """(params, tokens, segments, positions, push) -> logits, or activations."""
  places = [decoder.parse_site(site, cfg.Y) for site in sites]
  points = sorted({point for _, point in places})

  def run(params, tokens_BL, segments_BL, positions_BL, push):
    model = nnx.merge(decoder.graphdef(cfg), params)
    x_BLD, kept = model(
      tokens_BL,
      segments_BL,
      positions_BL,
      probe=(lambda out: {p: out[p] for p in points}) if sites else None,
      edit=None if push is None else decoder.adding(*push),
    )
    if not sites:
      return model.cap(decoder.unembed(x_BLD, model.head_VD))
    return [kept[point][block].astype(jnp.float32) for block, point in places]

  return jax.jit(run)
