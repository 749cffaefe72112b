"""A toy run with the decisions of a published config: every size is a stand-in.

What a bundle's config withholds (teacher, data, optimizer, machines) or what
would take too long (widths, layers, steps, rows) has a value here; what is left
is taken from the bundle. `values` says which is which.
"""

from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import tokenizers

from analogjax.models import families

END_TOKEN = "<|endoftext|>"
MOST_STEPS = 4

# Letters as in docs/glossary.md.
_SIZES = dict(V=257, D=16, Y=2, N=4, H=8, F=32)
_TEACHER = dict(D=32, Y=3, N=4, G=2, H=8, F=64)
_L, _ROWS = 32, 8
_DOCUMENTS, _WORDS = 200, 12

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
  """The config of a toy run, as plain values.

  Args:
    public: the checked part of a bundle's config, of `reproduce.check_config`.
    folder: where `write_inputs` puts the toy's teacher and text.
    taught: phase -> whether it learns from a teacher.
  """
  student, train = public["student"], public["train"]
  phases = train["phases"]
  return {
    "teacher": {
      "path": str(folder / "teacher"),
      "sha256": "",
      "gguf": None,
      "dtype": "float32",
      "attention": "xla",
      "mesh": None,
    },
    "student": {
      **_SIZES,
      # Its kind of attention: as many key/value heads as queries, or fewer.
      "G": _SIZES["N"] if student["G"] == student["N"] else 2,
      **{
        field: student[field]
        for field in ("seed", "rope_theta", "rms_norm_eps", "tie_embeddings")
      },
      **{f: student[f] for f in ("attention_bias", "mlp_bias", "dtype")},
      "max_positions": 2 * _L,
      "rope_scaling": None,
      "remat": "none",
      "attention": "xla",
      "size_window": "warn",
    },
    "data": {
      "L": _L,
      "pipeline": "analogjax.data.text:jsonl",
      "arguments": {
        "path": str(folder / "text.jsonl"),
        "tokenizer": "{teacher}",
        "L": _L,
        "end_token": END_TOKEN,
        "split": "train",
        "held_out_every": 4,
        "seed": 0,
      },
      "held_out_arguments": {"split": "held_out"},
    },
    "cache": _cache(public["cache"]),
    "train": {
      "phases": phases,
      "location": "",
      "s3_endpoint": "",
      **{
        name: _phase(train[name], taught[name], public["cache"]["temperature"])
        for name in phases
      },
    },
    "measure": _measure(public["release"]["phase"]),
    "safety": _safety(),
    "release": _release(public["release"]),
    "watch": {
      "skipped_steps": 10,
      "spike_sigmas": 8.0,
      "stall_seconds": 60.0,
      "give_up_seconds": 0.0,
    },
    "plan": _plan(),
    "mesh": {"data": 1, "fsdp": 1, "expert": 1, "tensor": 1},
  }


def write_inputs(folder: Path, student: Mapping[str, Any]) -> None:
  """The toy's teacher, of the student's family, and its text.

  The same bytes every time.

  Args:
    folder: into which they go.
    student: the section of `values`.
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
  """Every tensor of a Llama without biases and with a tied head."""
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


def _cache(public: Mapping[str, Any]) -> dict[str, Any]:
  return {
    "kind": public["kind"],
    "tau": 0.05,
    "num_draws": 8,
    "top_k": 8,
    "temperature": public["temperature"],
    "num_replicas": 1,
    "capture": "all",
    "capture_rate": 1.0,
    "gram_positions": 0,
    "gram_layers": 1,
    "seed": 0,
    "num_rows": 2 * _ROWS,
    "held_out_rows": _ROWS,
    "batch_rows": _ROWS,
    "rows_per_object": _ROWS,
    "chunk": _L,
    "location": "",
    "s3_endpoint": "",
    "write_ahead": 1,
    "import_path": "",
    "import_codec": {},
  }


def _phase(
  public: Mapping[str, Any], is_taught: bool, temperature: float
) -> dict[str, Any]:
  steps = min(public["num_steps"], MOST_STEPS)
  return {
    "init_from": public["init_from"],
    "rows": public["rows"],
    "num_steps": steps,
    "batch_rows": 4,
    "microbatches": 1,
    "seed": public["seed"],
    "loss": {
      "teacher": public["loss"]["teacher"],
      "alpha": 0.9 if is_taught else 0.0,
      "alpha_schedule": "constant",
      "alpha_final": 0.0,
      "divergence": "forward_kl",
      "mixture": 0.5,
      "temperature": temperature,
      "z_loss": 0.0,
      "gram_weight": 0.0,
      "exact_gradient": False,
      "chunk": 2 * _L,
    },
    "optimizer": {
      "name": "adamw",
      "learning_rate": 1e-2,
      "warmup_steps": 0,
      "schedule": "wsd",
      "decay_steps": 0,
      "final_fraction": 0.1,
      "b1": 0.9,
      "b2": 0.95,
      "eps": 1e-8,
      "muon_momentum": 0.95,
      "momentum_dtype": "float32",
      "weight_decay": 0.1,
      "clip_norm": 1.0,
    },
    "checkpoint_every_steps": steps,
    "keep_checkpoints": 1,
    "keep_best_checkpoints": 0,
    "eval_every_steps": steps,
    "log_every_steps": 1,
  }


def _measure(phase: str) -> dict[str, Any]:
  return {
    "parts": ["output"],
    "phases": [phase],
    "folders": [],
    "batch_rows": _ROWS,
    "seed": 0,
    "fit_rows": _ROWS,
    "domains": {},
    "domain_rows": 1,
    "depths": 1,
    "points": 64,
    "permutations": 19,
    "resamples": 100,
    "behaviours": ["sentiment"],
    "max_strength": 1.0,
    "strengths": 1,
    "random_vectors": 2,
    "mapper_steps": 0,
    "stitch_steps": 0,
  }


def _safety() -> dict[str, Any]:
  """No prompts and no thresholds: a toy is not tried."""
  counts = ("batch_rows", "chunk", "rows", "prefix_tokens", "suffix_tokens")
  counts += ("attempts", "prompts", "prompt_tokens", "answer_tokens")
  texts = ("folders", "phases", "teacher_parts", "harmful", "harmless")
  return {
    "parts": ["extraction"],
    **{name: [] for name in (*texts, "phrases")},
    **dict.fromkeys(counts, 1),
    "seed": 0,
    "resamples": 100,
    "probability": 0.5,
    "canary_controls": 15,
    "min_k": 0.2,
    "reference": "",
    "teacher_only": {},
    "template": "{prompt}",
    "thresholds": {},
  }


def _release(public: Mapping[str, Any]) -> dict[str, Any]:
  """No file that a bundle names is read: the licence is one that is known."""
  about = ("name", "version", "provider", "contact", "intended_use")
  about += ("out_of_scope", "limitations", "curation")
  return {
    "phase": public["phase"],
    "dtype": public["dtype"],
    "max_shard_gb": 1.0,
    "date": "",
    "licence": "Apache-2.0",
    "licence_name": "",
    "licence_file": "",
    "shares_rows": False,
    "keeps_chat_template": False,
    "about": {**dict.fromkeys(about, "a toy"), "languages": ["en"]},
    "sources": {
      "words": {
        **dict(kind="synthetic", modality="text", about="Random words."),
        **dict(licence="", period=""),
      }
    },
    "frontier": {
      **dict(name="a toy", deployed_on="2026-01-01", family=""),
      **dict(parameters=0, active_parameters=0, pipeline_fingerprint=""),
      "private_words": [],
    },
    "waivers": {},
  }


def _plan() -> dict[str, Any]:
  fields = ("cache_months", "dollars_per_gb_month", "dollars_per_million_reads")
  fields += ("dollars_per_million_writes", "hosting_months")
  fields += ("hosting_egress_gb", "dollars_per_egress_gb")
  return {
    "efficiency": 1.0,
    "memory_fraction": 1.0,
    "pue": 1.0,
    **dict.fromkeys(fields, 0.0),
    "cpu": {"dollars_per_hour": 0.0, "watts": 0.0},
  }


def _write_json(path: Path, value: Any) -> None:
  path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
