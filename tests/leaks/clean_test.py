"""Bundles that reveal nothing raise no alarm."""

import dataclasses
import json
import pathlib

import facts_example
import jax
import pytest
import synthetic_report
import tokenizers

from analogjax import leaks
from analogjax.bundle import record
from analogjax.config import loading, schema
from analogjax.distributed import sharding
from analogjax.documents import render
from analogjax.fidelity.report import page
from analogjax.models import decoder, hf_export
from analogjax.release import public_config

DEMO = pathlib.Path(__file__).parents[2] / "configs/demo.py"
ANALOG = decoder.DecoderConfig(
  **dict(V=4096, D=64, Y=4, N=4, G=2, H=16, F=192, max_positions=2048),
  **dict(rope_theta=1e4, rope_scaling=None, rms_norm_eps=1e-5),
  **dict(tie_embeddings=True, attention_bias=False, mlp_bias=False),
  **dict(dtype="float32"),
)
# From a file that says a little of everything.
AWKWARD = """\
# Numbers that are other things

The cache was made from 30 rows of 576 tokens; 9 files were left out, and 3 key
findings follow. Blocks of 30 tokens were dropped, as were 1,536 documents.
Batches held 8,192 tokens, and 64 prompts were tried with 30 tokens each.
Of 134,515,007 bytes 134.5 MB were text; 135 million tokens were seen, and
1.35e8 rows were not. The loss fell by 2.49 % in 30 steps, KL 0.62 nats.
Version 1.30.576 of 2026-03-30; arXiv:2403.09539, section 9, page 30.
Learning to write took 0.003 seconds. The interval is 95 %, p = 0.95.
Between 0.5 % and 5 % of the frontier model's parameters, so 20 to 200 times.
Released one to three months after deployment; see https://spdx.org/licenses/.
Use and/or not, tokens/s, 1/3; the ratio of a/b; `<br/>`, `</p>`.

{"predicateType": "https://model_signing/signature/v1.0"}

- 576 tokens, 1,536 rows, 30 s, 9 GB
- width 64, 4 layers, 4 heads, 2 key/value heads

| layers | width | heads | rows |
|---|---|---|---|
| 4 | 64 | 4 | 576 |
"""
NUMBERS = {
  "rows": [576, 1536, 30],
  "points": 1536,
  "tokens": 8192,
  "n": 30,
  "p": 0.03,
  "num_steps": 576,
  "bytes": 134_515_007,
  "offsets": [9, 30, 64, 576],
  "sha256": "30576" * 12 + "0009",
  "values": [0.0249, 0.0248, 2.49, 40.2, 134.5, 0.135],
  "architecture": {"layers": 4, "width": 64, "heads": 4, "kv_heads": 2},
  "depths": [0.25, 0.5, 0.75, 1.0, 0.333333],
}


def _clean(folder, secrets):
  found = leaks.lint(folder, secrets)
  assert not found, "\n".join(map(str, found))


def test_awkward_numbers(bundle, secrets):
  (bundle / "NUMBERS.md").write_text(AWKWARD)
  (bundle / "numbers.json").write_text(json.dumps(NUMBERS))
  _clean(bundle, secrets)


def test_the_public_part_of_the_demos_config(bundle, secrets):
  values = schema.to_values(loading.load(DEMO, []))
  numbers = leaks.settings_of(values)
  assert numbers["train.distill.optimizer.learning_rate"] == 3e-3
  public = public_config.project(values)
  (bundle / "config.json").write_text(json.dumps(public))
  private = dataclasses.replace(
    secrets, numbers=numbers, names=(values["release"]["frontier"]["name"],)
  )
  _clean(bundle, private)
  (bundle / "config.json").write_text(json.dumps(values))
  found = leaks.lint(bundle, private)
  # The name has the size in it.
  assert {x.rule for x in found} == {"name", "setting", "parameters"}


def test_settings_are_those_of_optimizers_and_mixtures():
  phase = {"optimizer": {"b2": 0.95, "name": "adamw", "clip_norm": 1.0}}
  values = {
    "train": {"phases": ("a",), "a": phase, "b": phase},
    "data": {"arguments": {"L": 8, "weights": {"web": 0.7, "code": [0.3, 0]}}},
  }
  assert leaks.settings_of(values) == {
    "train.a.optimizer.b2": 0.95,
    "data.arguments.weights.web": 0.7,
    "data.arguments.weights.code[0]": 0.3,
  }
  assert leaks.settings_of({}) == {}


@pytest.fixture(scope="module")
def of_example(secrets):
  """The secrets of the example's facts."""
  facts = facts_example.facts()
  frontier, loss = facts["frontier"], facts["training"]["phases"][1]
  model = facts["model"]
  return dataclasses.replace(
    secrets,
    parameters=frontier["parameters"],
    architecture=frontier["architecture"],
    student={
      "parameters": model["parameters"]["total"],
      "vocabulary_size": model["vocabulary_size"],
      "context_tokens": model["context_tokens"],
      **{
        name: size
        for name, size in model["architecture"].items()
        if name in leaks.DIMENSIONS
      },
    },
    names=(frontier["name"],),
    words=(frontier["teacher_digest"],),
    numbers={"learning_rate": loss["optimizer"]["learning_rate"]},
    deployed_on=frontier["deployed_on"],
    released_on=model["released_on"],
  )


def _write(folder, view, fidelity):
  made = record.project(facts_example.facts(), view)
  rendered = render.render(made, fidelity=fidelity, safety={})
  files = {"record.json": record.to_text(made), **rendered}
  for path, text in files.items():
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(text)


def test_documents_and_an_export(tmp_path, of_example, fidelity):
  _write(tmp_path, "public", fidelity)
  (tmp_path / "fidelity.json").write_text(json.dumps(fidelity))
  _export(tmp_path / "model")
  _clean(tmp_path, of_example)


def test_the_regulators_documents_are_full_of_findings(tmp_path, of_example):
  _write(tmp_path, "regulator", {})
  found = leaks.lint(tmp_path, of_example)
  rules = {leak.rule for leak in found if leak.file == "record.json"}
  assert rules == {
    *("parameters", "ratio", "architecture", "name", "date", "setting"),
    "arithmetic",
  }
  facts = {x.what for x in found if x.rule == "architecture"}
  assert len(facts) == len(of_example.architecture)


def test_a_measurement_with_its_cost_is_not_clean(
  tmp_path, of_example, fidelity
):
  value = synthetic_report.make(synthetic_report.parts())
  (tmp_path / "fidelity.json").write_text(json.dumps(value))
  (tmp_path / "page.html").write_text(page.render(fidelity))
  found = leaks.lint(tmp_path, of_example)
  assert {(x.rule, x.file) for x in found} == {("arithmetic", "fidelity.json")}


def _export(folder):
  """An exported analog, from a teacher's folder that reveals too much."""
  source = folder.parent.parent / "teacher"
  source.mkdir()
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=600, special_tokens=["<s>"], show_progress=False
  )
  tokenizer.train_from_iterator([AWKWARD, page.__doc__ or ""], trainer)
  tokenizer.save(str(source / "tokenizer.json"))
  for name, found in {
    "config.json": {"eos_token_id": 0},
    "generation_config.json": {"max_length": 8192, "eos_token_id": 0},
    "tokenizer_config.json": {
      **{"name_or_path": "/models/colossus-9", "model_max_length": 8192},
      **{"chat_template": "You are Colossus-9.", "eos_token": "<s>"},
    },
  }.items():
    (source / name).write_text(json.dumps(found))
  with jax.set_mesh(sharding.make_mesh({}, devices=jax.devices()[:1])):
    hf_export.write_folder(
      folder,
      ANALOG,
      decoder.init_parameters(ANALOG, 0),
      **dict(dtype="float32", max_shard_bytes=10**9, metadata={}),
      **dict(tokenizer_folder=source, keeps_chat_template=False),
    )
