"""The folder of a finished run, which the examples of the docstrings open."""

import json
import shutil

from bundle_fixtures import fidelity, made  # noqa: F401
import pytest
import small_cache
import tiny_bundle
import torch
import transformers


def write_llama(folder, *, dtype="float32"):
  """Writes a tiny Llama with transformers; `tiny_bundle.CFG` by shape."""
  cfg = tiny_bundle.CFG
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=cfg.V,
    hidden_size=cfg.D,
    num_hidden_layers=cfg.Y,
    num_attention_heads=cfg.N,
    num_key_value_heads=cfg.G,
    intermediate_size=cfg.F,
    max_position_embeddings=cfg.max_positions,
    initializer_range=0.5,
  )
  model = transformers.LlamaForCausalLM(config).to(getattr(torch, dtype))
  model.save_pretrained(folder)
  return model.float().eval()


@pytest.fixture(scope="session")
def analog(tmp_path_factory):
  """(folder of a tiny Llama, the same in transformers); read only."""
  folder = tmp_path_factory.mktemp("models") / "analog"
  return folder, write_llama(folder)


@pytest.fixture
def desk(tmp_path, monkeypatch, analog, made, fidelity):  # noqa: F811
  """Where the examples run."""
  bundle, key, *_ = made
  small_cache.write(tmp_path / "runs/demo/cache")
  shutil.copytree(analog[0], tmp_path / "analog")
  shutil.copytree(bundle, tmp_path / "runs/demo/bundle")
  shutil.copyfile(key.with_suffix(".pub"), tmp_path / "demo.key.pub")
  (tmp_path / "runs/demo/fidelity.json").write_text(json.dumps(fidelity))
  monkeypatch.chdir(tmp_path)
  return tmp_path
