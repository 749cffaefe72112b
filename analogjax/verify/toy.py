"""Makes a toy of a run: the decisions of its published config at tiny sizes.

What a bundle's config withholds (teacher, data, optimizer, machines) and what
would take too long (widths, layers, steps, rows) is replaced here. The rest
comes from the bundle.
"""

from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import tokenizers

from analogjax.config import defaults
from analogjax.models import families

END_TOKEN = "<|endoftext|>"
MOST_STEPS = 4

# Letters as in docs/glossary.md.
_SIZES = dict(V=257, D=16, Y=2, N=4, H=8, F=32)
_TEACHER = dict(D=32, Y=3, N=4, G=2, H=8, F=64)
_L, _ROWS = 32, 8
_DOCUMENTS, _WORDS = 200, 12
# Fields of the student that a toy shares with the bundle.
_TAKEN = (
  "seed",
  "rope_theta",
  "rms_norm_eps",
  "tie_embeddings",
  "attention_bias",
  "mlp_bias",
  "dtype",
)
# Counts of the safety evaluation.
_FEW = (
  "batch_rows",
  "chunk",
  "rows",
  "prefix_tokens",
  "suffix_tokens",
  "attempts",
)

STAND_INS = (
  "the teacher: a random one, of 3 layers",
  "the data: random words",
  "the optimizer, its schedule and the weight of the teacher: usual ones",
  f"sizes: {_SIZES}, rows of {_L} tokens, at most {MOST_STEPS} steps a phase",
  "the mesh: one device",
)


def values(
  public: Mapping[str, Any], folder: Path, taught: Mapping[str, bool]
) -> dict[str, Any]:
  """Returns the config of a toy run, as plain values.

  Args:
    folder: where `write_inputs` puts the toy's teacher and text.
    taught: phase -> whether it learns from a teacher.
  """
  student, cache, released = (
    public[name] for name in ("student", "cache", "release")
  )
  cfg: Any = defaults.config(public["train"]["phases"])
  cfg.teacher.update(path=str(folder / "teacher"), dtype="float32")
  cfg.teacher.attention = cfg.student.attention = "xla"
  cfg.student.update({name: student[name] for name in _TAKEN})
  cfg.student.update(_SIZES, max_positions=2 * _L, remat="none")
  # The same kind of attention: as many key/value heads as queries, or fewer.
  cfg.student.G = _SIZES["N"] if student["G"] == student["N"] else 2
  cfg.student.size_window = "warn"
  cfg.data.update(L=_L, pipeline="analogjax.data.text:jsonl")
  text = dict(path=str(folder / "text.jsonl"), tokenizer="{teacher}", L=_L)
  cfg.data.arguments = text | dict(end_token=END_TOKEN, split="train")
  cfg.data.arguments.update(held_out_every=4, seed=0)
  cfg.data.held_out_arguments = dict(split="held_out")
  cfg.cache.update(kind=cache["kind"], temperature=cache["temperature"])
  cfg.cache.update(num_rows=2 * _ROWS, held_out_rows=_ROWS, batch_rows=_ROWS)
  cfg.cache.update(rows_per_object=_ROWS, chunk=_L, num_draws=8, top_k=8)
  for name in cfg.train.phases:
    _fill_phase(cfg.train[name], public["train"][name], taught[name])
    cfg.train[name].loss.temperature = cache["temperature"]
  cfg.measure.update(phases=(released["phase"],), parts=("output",))
  cfg.measure.update(batch_rows=_ROWS, fit_rows=_ROWS, resamples=100)
  # The toy's safety does not matter: no prompts and no thresholds.
  cfg.safety.update(parts=("extraction",), teacher_parts=(), resamples=100)
  cfg.safety.update(dict.fromkeys(_FEW, 1))
  _fill_release(cfg.release, released)
  cfg.mesh.fsdp = 1
  return cfg.to_dict()


def _fill_phase(phase: Any, public: Mapping[str, Any], is_taught: bool) -> None:
  steps = min(public["num_steps"], MOST_STEPS)
  phase.update({name: public[name] for name in ("init_from", "rows", "seed")})
  phase.update(num_steps=steps, batch_rows=4, log_every_steps=1)
  phase.update(checkpoint_every_steps=steps, eval_every_steps=steps)
  phase.loss.update(teacher=public["loss"]["teacher"], chunk=2 * _L)
  phase.loss.alpha = 0.9 if is_taught else 0.0
  phase.optimizer.update(learning_rate=1e-2, warmup_steps=0)


def _fill_release(release: Any, public: Mapping[str, Any]) -> None:
  """Sets a well-known licence, so that no file that a bundle names is read."""
  release.update(phase=public["phase"], dtype=public["dtype"])
  release.licence = "Apache-2.0"
  about = ("name", "version", "provider", "contact", "intended_use")
  about += ("out_of_scope", "limitations", "curation")
  release.about.update(dict.fromkeys(about, "a toy"), languages=("en",))
  words = dict(kind="synthetic", modality="text", about="Random words.")
  release.sources = dict(words=words | dict(licence="", period=""))
  release.frontier.update(name="a toy", deployed_on="2026-01-01")


def write_inputs(folder: Path, student: Mapping[str, Any]) -> None:
  """Writes the toy's teacher, of the student's family, and its text.

  The bytes are the same every time.
  """
  teacher = folder / "teacher"
  teacher.mkdir()
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocab=_vocabulary(), merges=[])
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  tokenizer.add_special_tokens([END_TOKEN])
  tokenizer.save(str(teacher / "tokenizer.json"))
  _write_json(
    teacher / "tokenizer_config.json",
    {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_TOKEN},
  )
  config = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": student["V"],
    "hidden_size": _TEACHER["D"],
    "num_hidden_layers": _TEACHER["Y"],
    "num_attention_heads": _TEACHER["N"],
    "num_key_value_heads": _TEACHER["G"],
    "head_dim": _TEACHER["H"],
    "intermediate_size": _TEACHER["F"],
    "hidden_act": "silu",
    "max_position_embeddings": 4 * _L,
    "rms_norm_eps": student["rms_norm_eps"],
    "rope_theta": student["rope_theta"],
    "tie_word_embeddings": True,
    "eos_token_id": 0,
  }
  _write_json(teacher / "config.json", config)
  rng = np.random.default_rng(0)
  sizes = {**_TEACHER, "V": student["V"]}
  safetensors.numpy.save_file(
    _weights(sizes, rng),
    teacher / "model.safetensors",
    metadata={"format": "pt"},
  )
  words = ["".join(map(chr, rng.integers(97, 123, 4))) for _ in range(64)]
  lines = [
    json.dumps({"text": " ".join(rng.choice(words, _WORDS))}) + "\n"
    for _ in range(_DOCUMENTS)
  ]
  (folder / "text.jsonl").write_text("".join(lines), encoding="utf-8")


def _vocabulary() -> dict[str, int]:
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  return {token: i for i, token in enumerate([END_TOKEN, *alphabet])}


def _weights(
  sizes: Mapping[str, int], rng: np.random.Generator
) -> dict[str, np.ndarray]:
  """Draws all tensors of a Llama without biases and with a tied head."""
  found = {}
  for path, tensor in families.TABLES["llama"].items():
    name = path.rsplit("/", 1)[-1]
    if name == "unembed_VD" or name.startswith("b"):
      continue
    shape = [int(np.prod([sizes[c] for c in dim])) for dim in tensor.dims]
    for layer in range(sizes["Y"] if "blocks_Y" in path else 1):
      # Norms are about 1; the rest is large enough for a head and a tail.
      drawn = rng.standard_normal(shape) / np.sqrt(shape[-1])
      if name == "scale_D":
        drawn = np.ones(shape)
      if name == "embed_VD":
        drawn *= 4
      found[tensor.name.format(layer)] = drawn.astype(np.float32)
  return found


def _write_json(path: Path, value: Any) -> None:
  path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
