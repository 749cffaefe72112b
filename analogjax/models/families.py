"""Model families: conversion of names and configs from and to Hugging Face.

One table says, for each of our parameters, which Hugging Face tensor holds it
and how that tensor's dimensions are composed of our shape letters. Import and
export both read it, so they cannot diverge.
"""

import dataclasses
from typing import Any

from analogjax.config import model
from analogjax.models import decoder


@dataclasses.dataclass(frozen=True)
class Tensor:
  """The place of a parameter in a Hugging Face checkpoint."""

  name: str  # With {} for the layer's index.
  dims: tuple[str, ...]  # ("NH", "D"): dimension 0 runs over N, then H.


_LAYER = "model.layers.{}."

# Our path -> their tensor. Paths below blocks_Y are stacked over the layers.
_LLAMA = {
  "embed_VD": Tensor("model.embed_tokens.weight", ("V", "D")),
  "final_norm/scale_D": Tensor("model.norm.weight", ("D",)),
  "unembed_VD": Tensor("lm_head.weight", ("V", "D")),
  "blocks_Y/attention_norm/scale_D": Tensor(
    _LAYER + "input_layernorm.weight", ("D",)
  ),
  "blocks_Y/mlp_norm/scale_D": Tensor(
    _LAYER + "post_attention_layernorm.weight", ("D",)
  ),
  "blocks_Y/attention/wq_DNH": Tensor(
    _LAYER + "self_attn.q_proj.weight", ("NH", "D")
  ),
  "blocks_Y/attention/wk_DGH": Tensor(
    _LAYER + "self_attn.k_proj.weight", ("GH", "D")
  ),
  "blocks_Y/attention/wv_DGH": Tensor(
    _LAYER + "self_attn.v_proj.weight", ("GH", "D")
  ),
  "blocks_Y/attention/wo_NHD": Tensor(
    _LAYER + "self_attn.o_proj.weight", ("D", "NH")
  ),
  "blocks_Y/attention/bq_NH": Tensor(_LAYER + "self_attn.q_proj.bias", ("NH",)),
  "blocks_Y/attention/bk_GH": Tensor(_LAYER + "self_attn.k_proj.bias", ("GH",)),
  "blocks_Y/attention/bv_GH": Tensor(_LAYER + "self_attn.v_proj.bias", ("GH",)),
  "blocks_Y/attention/bo_D": Tensor(_LAYER + "self_attn.o_proj.bias", ("D",)),
  "blocks_Y/mlp/wgate_DF": Tensor(_LAYER + "mlp.gate_proj.weight", ("F", "D")),
  "blocks_Y/mlp/wup_DF": Tensor(_LAYER + "mlp.up_proj.weight", ("F", "D")),
  "blocks_Y/mlp/wdown_FD": Tensor(_LAYER + "mlp.down_proj.weight", ("D", "F")),
  "blocks_Y/mlp/bgate_F": Tensor(_LAYER + "mlp.gate_proj.bias", ("F",)),
  "blocks_Y/mlp/bup_F": Tensor(_LAYER + "mlp.up_proj.bias", ("F",)),
  "blocks_Y/mlp/bdown_D": Tensor(_LAYER + "mlp.down_proj.bias", ("D",)),
}

TABLES = {"llama": _LLAMA}


def from_hf_config(config: dict[str, Any], *, dtype: str, where: str):
  """The DecoderConfig of a Hugging Face `config.json`.

  Reads both generations: `rope_parameters` (transformers 5) and `rope_theta`
  with `rope_scaling` (transformers 4). `where` is the file's name, for errors.

  Raises:
    ValueError: the decoder does not support the family or a feature, or a field
      is missing; names the field.
  """

  def size(field):
    return _integer(config, field, where)

  model_type = config.get("model_type")
  if model_type not in TABLES:
    raise ValueError(
      f"{where}: model_type {model_type!r} is not supported; expected one of"
      f" {', '.join(sorted(TABLES))}."
    )
  if config.get("hidden_act", "silu") not in ("silu", "swish"):
    raise ValueError(
      f"{where}: hidden_act {config['hidden_act']!r} is not supported;"
      " expected 'silu'."
    )
  # If a file has both, transformers reads only the first.
  rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
  theta = rope.get("rope_theta") or config.get("rope_theta") or 10_000.0
  D, N = size("hidden_size"), size("num_attention_heads")
  G_is_N = config.get("num_key_value_heads") is None
  return decoder.DecoderConfig(
    V=size("vocab_size"),
    D=D,
    Y=size("num_hidden_layers"),
    N=N,
    G=N if G_is_N else size("num_key_value_heads"),
    H=D // N if config.get("head_dim") is None else size("head_dim"),
    F=size("intermediate_size"),
    max_positions=size("max_position_embeddings"),
    rope_theta=float(theta),
    rope_scaling=_rope_scaling(rope, where),
    rms_norm_eps=_number(config, "rms_norm_eps", where),
    tie_embeddings=bool(config.get("tie_word_embeddings", False)),
    attention_bias=bool(config.get("attention_bias", False)),
    mlp_bias=bool(config.get("mlp_bias", False)),
    logit_softcap=_softcap(config, where),
    dtype=dtype,
  )


def _softcap(config: dict[str, Any], where: str) -> float | None:
  field = "final_logit_softcapping"
  if config.get(field) is None:
    return None
  return _number(config, field, where)


def _number(fields: dict[str, Any], field: str, where: str) -> float:
  return float(_positive(fields, field, where, "number"))


def _integer(fields: dict[str, Any], field: str, where: str) -> int:
  return int(_positive(fields, field, where, "integer"))


def _positive(fields: dict[str, Any], field: str, where: str, noun: str):
  """A positive number or integer from a JSON object."""
  value = fields.get(field)
  if value is None:
    raise ValueError(f"{where}: field {field!r} is missing.")
  ok = isinstance(value, int | float) and value > 0
  if not ok or (noun == "integer" and value != int(value)):
    raise ValueError(
      f"{where}: field {field!r} is {value!r}; expected a positive {noun}."
    )
  return value


def _rope_scaling(rope: dict[str, Any], where: str):
  if rope.get("partial_rotary_factor", 1.0) != 1.0:
    raise ValueError(
      f"{where}: partial_rotary_factor {rope['partial_rotary_factor']!r} is not"
      " supported; expected 1.0."
    )
  kind = rope.get("rope_type") or rope.get("type") or "default"
  if kind == "default":
    return None
  if kind not in ("llama3", "linear"):
    raise ValueError(
      f"{where}: rope type {kind!r} is not supported; expected 'default',"
      " 'linear' or 'llama3'."
    )
  values: dict[str, Any] = {"factor": _number(rope, "factor", where)}
  if kind == "llama3":
    positions = "original_max_position_embeddings"
    values |= {
      "low_freq_factor": _number(rope, "low_freq_factor", where),
      "high_freq_factor": _number(rope, "high_freq_factor", where),
      "original_max_positions": _integer(rope, positions, where),
    }
  try:
    return model.RopeScaling(kind=kind, **values)
  except ValueError as error:
    raise ValueError(f"{where}: rope scaling, {error}") from None


def to_hf_config(cfg: decoder.DecoderConfig, *, dtype: str) -> dict[str, Any]:
  """A Hugging Face `config.json` that both transformers 4 and 5 read.

  The caller adds the token ids of the tokenizer (bos, eos, pad).
  """
  rope: dict[str, Any] = {"rope_type": "default"}
  if cfg.rope_scaling is not None:
    scaling = cfg.rope_scaling
    rope = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
      rope |= {
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_positions,
      }
  # transformers 4 ignores rope_parameters and would fall back to theta 10,000,
  # hence rope_theta and rope_scaling beside it.
  old_scaling = None if cfg.rope_scaling is None else rope
  # transformers' own Llama has no such field; `from_hf_config` reads it.
  softcap = {"final_logit_softcapping": cfg.logit_softcap}
  return ({} if cfg.logit_softcap is None else softcap) | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": cfg.V,
    "hidden_size": cfg.D,
    "intermediate_size": cfg.F,
    "num_hidden_layers": cfg.Y,
    "num_attention_heads": cfg.N,
    "num_key_value_heads": cfg.G,
    "head_dim": cfg.H,
    "hidden_act": "silu",
    "max_position_embeddings": cfg.max_positions,
    "rms_norm_eps": cfg.rms_norm_eps,
    "tie_word_embeddings": cfg.tie_embeddings,
    "attention_bias": cfg.attention_bias,
    "mlp_bias": cfg.mlp_bias,
    "rope_theta": cfg.rope_theta,
    "rope_scaling": old_scaling,
    "rope_parameters": {**rope, "rope_theta": cfg.rope_theta},
    "torch_dtype": dtype,
    "use_cache": True,
  }
