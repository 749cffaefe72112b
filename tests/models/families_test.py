"""Tests for analogjax/models/families.py."""

import dataclasses
import itertools
import json

from flax import nnx
import pytest
import transformers

from analogjax.config import model as model_lib
from analogjax.distributed import sharding
from analogjax.models import decoder, families

LLAMA3 = dict(
  **dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0),
  **dict(high_freq_factor=4.0, original_max_position_embeddings=8192),
)
# The config.json of a Llama 3, as transformers 4 writes it.
OLD = dict(
  **dict(model_type="llama", hidden_act="silu", vocab_size=128256),
  **dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16),
  **dict(num_attention_heads=32, num_key_value_heads=8, head_dim=64),
  **dict(max_position_embeddings=131072, rms_norm_eps=1e-05),
  **dict(attention_bias=False, mlp_bias=False, tie_word_embeddings=True),
  **dict(rope_theta=500000.0, rope_scaling=LLAMA3, torch_dtype="bfloat16"),
)
INSIDE = decoder.DecoderConfig(
  **dict(V=128256, D=2048, Y=16, N=32, G=8, H=64, F=8192),
  **dict(max_positions=131072, rope_theta=5e5, rms_norm_eps=1e-5),
  rope_scaling=model_lib.RopeScaling(
    **dict(kind="llama3", factor=8.0, low_freq_factor=1.0),
    **dict(high_freq_factor=4.0, original_max_positions=8192),
  ),
  **dict(tie_embeddings=True, attention_bias=False, mlp_bias=False),
)


def _read(config, dtype="float32"):
  return families.from_hf_config(config, dtype=dtype, where="a/config.json")


def _new(**changes):
  """OLD as transformers 5 writes it."""
  config = OLD | dict(rope_parameters=dict(LLAMA3, rope_theta=500000.0))
  del config["rope_theta"], config["rope_scaling"]
  return config | changes


def test_both_generations_of_config_mean_the_same():
  assert _read(OLD) == INSIDE
  assert _read(_new()) == INSIDE
  bfloat16 = dataclasses.replace(INSIDE, dtype="bfloat16")
  assert _read(OLD, dtype="bfloat16") == bfloat16
  # Llama 2 and earlier wrote `type`.
  linear = _read(OLD | dict(rope_scaling=dict(type="linear", factor=2.0)))
  assert linear.rope_scaling == model_lib.RopeScaling(kind="linear", factor=2.0)


def test_a_soft_cap_is_read_and_written():
  """Absent or null means none."""
  field = "final_logit_softcapping"
  assert _read(OLD | {field: None}) == INSIDE
  capped = dataclasses.replace(INSIDE, logit_softcap=30.0)
  assert _read(OLD | {field: 30}) == capped
  written = families.to_hf_config(capped, dtype="bfloat16")
  assert written[field] == 30.0 and _read(written) == capped
  assert field not in families.to_hf_config(INSIDE, dtype="bfloat16")
  for bad in (0, -1.0, "30"):
    with pytest.raises(ValueError, match=f"'{field}' is {bad!r}; expected"):
      _read(OLD | {field: bad})


def test_what_is_left_out_has_the_default_of_transformers():
  left_out = (
    *("num_key_value_heads", "head_dim", "attention_bias", "mlp_bias"),
    *("tie_word_embeddings", "rope_theta", "rope_scaling", "hidden_act"),
  )
  config = {k: v for k, v in OLD.items() if k not in left_out}
  theirs = transformers.LlamaConfig(**config)
  assert _read(config) == dataclasses.replace(
    INSIDE,
    G=theirs.num_key_value_heads,
    H=theirs.head_dim,
    tie_embeddings=theirs.tie_word_embeddings,
    rope_theta=theirs.rope_parameters["rope_theta"],
    rope_scaling=None,
  )
  assert _read(config | dict(head_dim=None, rope_scaling=None)) == _read(config)


@pytest.mark.parametrize(
  "both",
  [
    dict(
      rope_scaling=dict(rope_type="linear", factor=2.0),
      rope_parameters=dict(rope_type="default", rope_theta=7.0),
    ),
    dict(
      rope_scaling=None,
      rope_parameters=dict(rope_type="linear", factor=3.0, rope_theta=7.0),
    ),
  ],
)
def test_two_ropes_are_read_as_transformers_reads_them(both):
  ours = _read(OLD | both)
  # transformers writes into the dictionaries that it is given.
  rope = transformers.LlamaConfig(**json.loads(json.dumps(OLD | both)))
  rope = rope.rope_parameters
  assert ours.rope_theta == rope["rope_theta"]
  assert ours.rope_scaling.kind == rope["rope_type"]
  assert ours.rope_scaling.factor == rope["factor"]


@pytest.mark.parametrize(
  "scaling",
  [
    None,
    INSIDE.rope_scaling,
    model_lib.RopeScaling(kind="linear", factor=2.0),
  ],
)
def test_what_is_written_means_the_same_to_everybody(scaling):
  cfg = dataclasses.replace(INSIDE, rope_scaling=scaling, mlp_bias=True)
  config = families.to_hf_config(cfg, dtype="float32")
  assert _read(config) == cfg

  # transformers 4 reads only these two, transformers 5 anything present.
  old = {k: v for k, v in config.items() if k != "rope_parameters"}
  assert _read(old) == cfg
  new = {
    k: v for k, v in config.items() if k not in ("rope_theta", "rope_scaling")
  }
  assert _read(new) == cfg
  ropes = [
    transformers.LlamaConfig(**json.loads(json.dumps(c))).rope_parameters
    for c in (config, old, new)
  ]
  assert ropes[0] == ropes[1] == ropes[2]
  assert ropes[0]["rope_theta"] == 500000.0


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(model_type="mixtral"), r"model_type 'mixtral' .* one of llama"),
    (dict(model_type=None), "model_type None is not supported"),
    (dict(hidden_act="gelu"), "hidden_act 'gelu' .* expected 'silu'"),
    (dict(vocab_size=None), "field 'vocab_size' is missing"),
    (dict(hidden_size="2048"), "'hidden_size' is '2048'; .* positive integer"),
    (dict(num_attention_heads=0), "'num_attention_heads' is 0; .* positive"),
    (dict(num_hidden_layers=1.5), "'num_hidden_layers' is 1.5; .* integer"),
    (dict(num_key_value_heads=0), "'num_key_value_heads' is 0"),
    (dict(rms_norm_eps=None), "field 'rms_norm_eps' is missing"),
    (
      dict(rope_scaling=dict(rope_type="dynamic", factor=2.0)),
      "rope type 'dynamic' is not supported; .* 'llama3'",
    ),
    (dict(rope_scaling=dict(type="linear")), "field 'factor' is missing"),
    (
      dict(rope_scaling=dict(rope_type="llama3", factor=8.0)),
      "field 'low_freq_factor' is missing",
    ),
    (
      dict(rope_scaling=LLAMA3 | dict(partial_rotary_factor=0.5)),
      "partial_rotary_factor 0.5 is not supported",
    ),
  ],
)
def test_what_the_decoder_cannot_do_is_named(changes, message):
  with pytest.raises(ValueError, match=message) as error:
    _read(OLD | changes)
  assert str(error.value).startswith("a/config.json: ")


@pytest.mark.parametrize(
  ("tied", "attention_bias", "mlp_bias"),
  [*itertools.product((False, True), repeat=3)],
)
def test_the_table_names_every_tensor_of_transformers(
  make_llama, tied, attention_bias, mlp_bias
):
  switches = dict(attention_bias=attention_bias, mlp_bias=mlp_bias)
  model = make_llama(tie_word_embeddings=tied, **switches)
  theirs = {name: tuple(x.shape) for name, x in model.named_parameters()}
  cfg = _read(model.config.to_dict())
  ours = {}
  for path, leaf in nnx.to_flat_state(decoder.abstract_parameters(cfg)):
    path, shape = "/".join(map(str, path)), leaf.get_value().shape
    tensor = families.TABLES["llama"][path]
    sizes = dict(zip(sharding.letters_of(path), shape, strict=True))
    assert "".join(sorted("".join(tensor.dims))) == (
      "".join(sorted(set(sizes) - {"Y"}))
    )
    for layer in range(sizes.get("Y", 1)):
      dims = []
      for dim in tensor.dims:
        size = 1
        for letter in dim:
          size *= sizes[letter]
        dims.append(size)
      ours[tensor.name.format(layer)] = tuple(dims)
  assert ours == theirs
  assert cfg.num_parameters == model.num_parameters()
