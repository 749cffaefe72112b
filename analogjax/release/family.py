"""Compares the architecture families of two models, by their config.json.

An allow-list defines a family. Widths, layers and numbers of heads differ
between an analog and its frontier model, and are private.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
  """Properties that two models share or not."""

  same: tuple[str, ...]
  different: tuple[str, ...]
  unknown: tuple[str, ...]  # One of the two does not say.
  # Property -> (of the analog, of the frontier model).
  values: Mapping[str, tuple[str, str]]

  @property
  def is_one_family(self) -> bool:
    return not self.different and "model type" in self.same


def compare(
  analog: Mapping[str, Any], frontier: Mapping[str, Any]
) -> Comparison:
  """Compares two Hugging Face `config.json`.

  A property that neither states is left out. One that only one of them states
  is unknown, and does not count as a difference.

  Source: "Require Frontier AI Labs To Release Small Analog Models": "identical
  or closely matching architecture families".
  """
  same, different, unknown, values = [], [], [], {}
  for name, find in _PROPERTIES.items():
    ours, theirs = find(analog), find(frontier)
    if ours is None and theirs is None:
      continue
    values[name] = (ours or "", theirs or "")
    if ours is None or theirs is None:
      unknown.append(name)
    else:
      (same if ours == theirs else different).append(name)
  return Comparison(
    same=tuple(same),
    different=tuple(different),
    unknown=tuple(unknown),
    values=values,
  )


def _model_type(config: Mapping[str, Any]) -> str | None:
  return _word(config, "model_type")


def _activation(config: Mapping[str, Any]) -> str | None:
  fields = ("hidden_act", "hidden_activation", "activation_function")
  return _word(config, *fields)


def _word(config: Mapping[str, Any], *fields: str) -> str | None:
  for field in fields:
    value = config.get(field)
    if isinstance(value, str) and value:
      return {"swish": "silu"}.get(value.lower(), value.lower())
  return None


def _norm(config: Mapping[str, Any]) -> str | None:
  # The field's name identifies the kind; its value is a rounding guard.
  if config.get("rms_norm_eps") is not None:
    return "RMS norm"
  named = ("layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon")
  if any(config.get(field) is not None for field in named):
    return "layer norm"
  return None


def _positions(config: Mapping[str, Any]) -> str | None:
  if config.get("alibi"):
    return "ALiBi"
  rotary = ("rope_theta", "rope_parameters", "rotary_dim", "rope_scaling")
  rotary += ("rotary_emb_base", "rotary_pct")
  if any(config.get(field) is not None for field in rotary):
    return "rotary"
  return None


def _attention(config: Mapping[str, Any]) -> str | None:
  if config.get("kv_lora_rank"):
    return "latent"
  heads = config.get("num_attention_heads")
  if not isinstance(heads, int):
    return None
  shared = config.get("num_key_value_heads")
  if shared is None or shared == heads:
    return "multi-head"
  return "grouped-query"


def _window(config: Mapping[str, Any]) -> str | None:
  if config.get("use_sliding_window") is False:
    return "whole context"
  window = config.get("sliding_window") or config.get("layer_types")
  is_sliding = isinstance(window, int) or "sliding" in str(window)
  return "sliding window" if window and is_sliding else "whole context"


def _experts(config: Mapping[str, Any]) -> str | None:
  fields = ("num_local_experts", "num_experts", "n_routed_experts")
  numbers = [config.get(field) for field in fields]
  some = any(isinstance(number, int) and number > 1 for number in numbers)
  return "mixture of experts" if some else "dense"


_PROPERTIES: Mapping[str, Callable[[Mapping[str, Any]], str | None]] = {
  "model type": _model_type,
  "norm": _norm,
  "activation": _activation,
  "positions": _positions,
  "attention": _attention,
  "span of attention": _window,
  "feed-forward": _experts,
}
