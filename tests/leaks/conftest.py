"""Shared fixtures of the leak linter's tests: private facts and a small bundle.

The pair is the demo's in size and shape; the bundle has one file of each kind,
and says nothing that is private.
"""

import json

from bundle_fixtures import fidelity  # noqa: F401
import numpy as np
import pytest
import safetensors.numpy

from analogjax import leaks

N, SMALL = 134_515_008, 3_342_912
TOKENS = 81_920
SECRETS = leaks.Secrets(
  parameters=N,
  architecture={
    **{"layers": 30, "width": 576, "heads": 9, "kv_heads": 3},
    **{"head_width": 64, "feed_forward": 1536, "context_tokens": 8192},
  },
  student={
    **{"parameters": SMALL, "vocabulary_size": 49_152, "layers": 4},
    **{"width": 64, "heads": 4, "kv_heads": 2, "head_width": 16},
    **{"feed_forward": 192, "context_tokens": 2048},
  },
  names=("Colossus2-135M-Instruct",),
  words=("Colossus", "nyx"),
  paths=("ckpt/final-7",),
  numbers={
    **{"optimizer.learning_rate": 3e-3, "optimizer.b2": 0.95},
    **{"optimizer.weight_decay": 0.1, "mixture.web": 0.62},
  },
  deployed_on="2026-03-31",
  released_on="2026-05-31",
)

CONFIG = {
  **{"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4},
  **{"num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 192},
  **{"max_position_embeddings": 2048, "vocab_size": 49_152},
}
# Public bounds of the teacher's pass: 20 to 200 times the analog.
RANGE = {
  "low": 2 * 20 * SMALL * TOKENS,
  "high": 2 * 200 * SMALL * TOKENS,
}


def _row(
  step, stage, *, of_teacher=False, hours=None, dollars=None, flops=None
):
  return {
    **{"step": step, "stages": [stage], "of_teacher": of_teacher},
    **{"device_hours": hours, "dollars": dollars, "flops": flops},
  }


RECORD = {
  "format": "analogjax.record",
  "data": {"train_tokens": TOKENS, "row_tokens": 256},
  "distillation": {"cached_tokens": TOKENS},
  "cost": {
    "rows": [
      _row(
        *("Train analog model from scratch", "train/pretrain"),
        **{"hours": 0.02, "dollars": 0.25, "flops": 6.2 * SMALL * TOKENS},
      ),
      _row("Teacher inference", "cache", of_teacher=True, flops=RANGE),
    ]
  },
}
PAGE = "<html><body><p>The analog, in short.</p></body></html>\n"
CARD = """\
---
license: apache-2.0
---

# The analog

It has 3,342,912 parameters in 4 layers of width 64, and was trained on 81,920
tokens. See [the licence](LICENSE) and https://arxiv.org/abs/2403.09539.
"""
COST = """\
# Cost

| Step | Device-hours | Dollars |
|---|---|---|
| Train analog model from scratch | 0.02 | $0.25 |
"""


@pytest.fixture(scope="session")
def secrets():
  return SECRETS


def save(folder, name, tensors, metadata=None):
  safetensors.numpy.save_file(tensors, folder / name, metadata=metadata)


@pytest.fixture
def bundle(tmp_path):
  """A folder without any leak, to plant one in."""
  folder = tmp_path / "bundle"
  (folder / "model").mkdir(parents=True)
  rng = np.random.default_rng(0)
  tensors = {
    name: rng.normal(size=shape).astype(np.float32)
    for name, shape in {
      "model.embed_tokens.weight": (300, 64),
      "model.layers.3.mlp.down_proj.weight": (64, 192),
    }.items()
  }
  save(folder, "model/model.safetensors", tensors, {"format": "pt"})
  for name, text in {
    "model/config.json": json.dumps(CONFIG),
    "model/README.md": CARD,
    "record.json": json.dumps(RECORD),
    "COST.md": COST,
    "page.html": PAGE,
  }.items():
    (folder / name).write_text(text)
  return folder
