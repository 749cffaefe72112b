"""Tests for tests/benchmarks/knee.py: the whole script, at toy size."""

import importlib
import json
from pathlib import Path

import jax
import pytest
import tokenizers

from analogjax import sharding
from analogjax.models import decoder, hf_folder

TEACHER = decoder.DecoderConfig(
  V=384,
  D=16,
  Y=1,
  N=2,
  G=1,
  H=8,
  F=32,
  max_positions=128,
  rope_theta=1e4,
  rms_norm_eps=1e-5,
  tie_embeddings=True,
  attention_bias=False,
  mlp_bias=False,
)


@pytest.fixture
def teacher(tmp_path):
  source = tmp_path / "tokenizer"
  source.mkdir()
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  vocabulary = {x: i for i, x in enumerate(["<|endoftext|>", *alphabet])}
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocab=vocabulary, merges=[])
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  tokenizer.add_special_tokens(["<|endoftext|>"])
  tokenizer.save(str(source / "tokenizer.json"))
  (source / "config.json").write_text("{}")
  params = decoder.init_parameters(TEACHER, 0)
  embed = params["embed_VD"]
  params["embed_VD"] = embed.replace(embed.get_value() * 20)
  with jax.set_mesh(sharding.make_mesh({}, devices=jax.devices()[:1])):
    hf_folder.write_folder(
      tmp_path / "teacher",
      TEACHER,
      params,
      dtype="float32",
      max_shard_bytes=10**9,
      tokenizer_folder=source,
      metadata={},
    )
  return tmp_path / "teacher"


def run(teacher, workdir, *more):
  knee = importlib.import_module("knee")
  arguments = [f"--teacher={teacher}", f"--workdir={workdir}"]
  arguments += "--rows=8 --held_out_rows=4 --pretrain_rows=8 --L=32".split()
  arguments += "--D=8 --Y=1 --learning_rate=0.01".split()
  knee.main([*arguments, *more])
  lines = (workdir / "results.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_the_whole_script(teacher, tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(str(Path(__file__).parent))
  workdir = tmp_path / "knee"
  names = ["hard", "dense", "tau 0.2, 3 replicas"]
  arms = f"--arms={';'.join(names)}"
  first = run(teacher, workdir, arms, "--seeds=1")
  assert [line["arm"] for line in first] == names
  summary = json.loads((workdir / "knee.json").read_text())
  kept = {entry["arm"]: entry["kept"] for entry in summary}
  assert kept["hard"] == 0 and kept["dense"] == 1
  hard, dense, replicas = first
  assert dense["kl"] < hard["kl"]
  assert 3 <= replicas["ids_per_token"] <= 18
  assert replicas["cache_bytes"] == 8 * 32 * replicas["bytes_per_token"]
  assert (workdir / "knee.png").exists() and (workdir / "knee.md").exists()

  # Killed before the last line: it alone is trained again, to the same end.
  results = workdir / "results.jsonl"
  lines = results.read_text().splitlines(keepends=True)
  results.write_text("".join(lines[:-1]))
  again = run(teacher, workdir, arms, "--seeds=1")
  assert again[:-1] == first[:-1]
  assert again[-1]["kl"] == pytest.approx(replicas["kl"], rel=1e-6)
