"""Tests for analogjax/models/hf_import.py."""

import functools
import hashlib
import json
import math
import pathlib
import shutil
import weakref

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import tokenizers
import torch
import transformers

from analogjax.cache import batches
from analogjax.data import rows as rows_lib
from analogjax.distributed import processes, sharding
from analogjax.models import decoder, hf_export, hf_import
from analogjax.training import losses, steps
from analogjax.workdir import files

LLAMA3 = {
  "rope_parameters": {
    # With these numbers and H=8, the four planes meet all three branches: one
    # is unchanged, one interpolated, two are divided.
    **dict(rope_type="llama3", rope_theta=100.0, factor=4.0),
    **dict(low_freq_factor=1.0, high_freq_factor=4.0),
    "original_max_position_embeddings": 32,
  }
}
LINEAR = {
  "rope_parameters": dict(rope_type="linear", rope_theta=500.0, factor=2.5)
}

# Every switch is on and off at least once. L=48 is past llama3's 32 positions.
MODELS = {
  "plain": (48, {}),
  "tied_with_one_kv_head": (
    7,
    dict(tie_word_embeddings=True, num_key_value_heads=1, mlp_bias=True),
  ),
  "llama3_with_all_kv_heads": (
    48,
    dict(num_key_value_heads=4, attention_bias=True, **LLAMA3),
  ),
  "linear_with_all_biases": (
    33,
    dict(attention_bias=True, mlp_bias=True, rms_norm_eps=0.1, **LINEAR),
  ),
  "odd_sizes": (
    1,
    dict(
      **dict(vocab_size=53, hidden_size=15, intermediate_size=29),
      **dict(num_attention_heads=3, num_key_value_heads=3, head_dim=6),
      **dict(num_hidden_layers=1, tie_word_embeddings=True),
    ),
  ),
  "head_dim_by_default": (
    16,
    dict(num_attention_heads=6, num_key_value_heads=3, head_dim=None),
  ),
  "deep": (48, dict(num_hidden_layers=5, tie_word_embeddings=True, **LLAMA3)),
}
FORMATS = {
  "one_file": {},
  "sharded": dict(max_shard_size="2KB"),
  "bfloat16": dict(dtype="bfloat16"),
  "float16": dict(dtype="float16", max_shard_size="2KB"),
}


@pytest.fixture(scope="module")
def alone():
  return sharding.make_mesh({}, jax.devices()[:1])


@pytest.fixture(scope="module")
def cube():
  return sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))


@pytest.fixture(scope="module")
def tiny(write_llama, tmp_path_factory):
  """A folder that every axis of a (2, 2, 2) mesh divides; read only."""
  folder = tmp_path_factory.mktemp("tiny") / "llama"
  write_llama(
    folder,
    **dict(vocab_size=62, intermediate_size=38, max_shard_size="2KB"),
    **dict(attention_bias=True, mlp_bias=True),
  )
  return folder


def _tokens(cfg, L):
  return np.random.default_rng(0).integers(0, cfg.V, (2, L))


def _load(folder):
  return transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, trust_remote_code=False
  ).eval()


def _export(folder, cfg, params, source, **changes):
  options = dict(dtype="float32", max_shard_bytes=10**9, metadata={})
  options["keeps_chat_template"] = True
  return hf_export.write_folder(
    folder, cfg, params, tokenizer_folder=source, **options | changes
  )


def _host(params):
  return {
    "/".join(map(str, path)): np.asarray(leaf.get_value())
    for path, leaf in nnx.to_flat_state(params)
  }


def _assert_close(ours_BLV, theirs_BLV):
  assert ours_BLV.shape == theirs_BLV.shape
  assert theirs_BLV.std() > 0.5  # Or a small difference would say little.
  np.testing.assert_allclose(ours_BLV, theirs_BLV, rtol=0, atol=2e-4)


# Reading.


@pytest.mark.parametrize("storage", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(
  name, storage, tmp_path, alone, write_llama, our_logits, their_logits
):
  L, changes = MODELS[name]
  write_llama(tmp_path, **FORMATS[storage], **changes)
  num_files = len(list(tmp_path.glob("*.safetensors")))
  assert (num_files > 1) == ("max_shard_size" in FORMATS[storage])

  cfg = hf_import.read_config(tmp_path)
  params = hf_import.read_parameters(tmp_path, cfg, alone)
  theirs = _load(tmp_path)
  tokens_BL = _tokens(cfg, L)
  _assert_close(
    our_logits(cfg, params, tokens_BL), their_logits(theirs, tokens_BL)
  )
  assert cfg.num_parameters == theirs.num_parameters()


def test_an_old_config_means_the_same(
  tmp_path, alone, write_llama, our_logits, their_logits
):
  # As transformers 4 wrote it: rope_theta at the top, rope_scaling beside it.
  write_llama(tmp_path, **LLAMA3)
  config = json.loads((tmp_path / "config.json").read_text())
  rope = config.pop("rope_parameters")
  config["rope_theta"] = rope.pop("rope_theta")
  config["rope_scaling"] = rope
  (tmp_path / "config.json").write_text(json.dumps(config))
  cfg = hf_import.read_config(tmp_path)
  params = hf_import.read_parameters(tmp_path, cfg, alone)
  tokens_BL = _tokens(cfg, 48)
  theirs_BLV = their_logits(_load(tmp_path), tokens_BL)
  _assert_close(our_logits(cfg, params, tokens_BL), theirs_BLV)


def test_a_mesh_reads_the_same_numbers_each_slice_once(
  tiny, alone, cube, monkeypatch
):
  cfg = hf_import.read_config(tiny)
  expected = _host(hf_import.read_parameters(tiny, cfg, alone))

  reads, alive = [], []
  original = hf_import._Tensors.read

  def read(self, name, slices):
    x = original(self, name, slices)
    cuts = math.prod(self._slices[name].get_shape()) // x.size
    reads.append((name, tuple((s.start, s.stop) for s in slices), cuts))
    # The one before is gone: the host never holds the folder's tensors.
    assert all(ref() is None for ref in alive)
    alive[:] = [weakref.ref(x)]
    return x

  monkeypatch.setattr(hf_import._Tensors, "read", read)
  params = hf_import.read_parameters(tiny, cfg, cube)
  # Matrices are cut by fsdp and by tensor, vectors by one of them; the devices
  # along data share what was read.
  assert len({name for name, _, _ in reads}) == 2 * 16 + 3
  for name, spans, cuts in reads:
    assert cuts == 2 ** len(spans), name
    assert [n for n, _, _ in reads].count(name) == cuts, name
  assert len({(name, spans) for name, spans, _ in reads}) == len(reads)

  for path, x in _host(params).items():
    np.testing.assert_array_equal(x, expected[path], err_msg=path)
  for path, leaf in nnx.to_flat_state(params):
    letters = sharding.letters_of("/".join(map(str, path)))
    assert leaf.get_value().sharding.spec == sharding.weight_spec(letters)


def test_bfloat16_parameters_are_the_rounded_ones(tiny, alone):
  cfg = hf_import.read_config(tiny)
  whole = _host(hf_import.read_parameters(tiny, cfg, alone))
  half = _host(hf_import.read_parameters(tiny, cfg, alone, dtype="bfloat16"))
  for path, x in half.items():
    assert x.dtype == jnp.bfloat16
    np.testing.assert_array_equal(x, whole[path].astype(x.dtype), err_msg=path)


def test_a_stored_copy_of_a_tied_head_is_read_over(
  tmp_path, alone, write_llama
):
  write_llama(tmp_path, tie_word_embeddings=True)
  cfg = hf_import.read_config(tmp_path)
  expected = _host(hf_import.read_parameters(tmp_path, cfg, alone))
  tensors = _read_tensors(tmp_path)
  tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4)
  _write_tensors(tmp_path, tensors)
  found = _host(hf_import.read_parameters(tmp_path, cfg, alone))
  jax.tree.map(np.testing.assert_array_equal, found, expected)

  tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
  _write_tensors(tmp_path, tensors)
  with pytest.raises(ValueError, match="ties 'lm_head.weight' to .* differ"):
    hf_import.read_parameters(tmp_path, cfg, alone)


# Writing.


@pytest.mark.parametrize("name", MODELS)
def test_transformers_reads_our_export(
  name, tmp_path, alone, write_llama, our_logits, their_logits
):
  L, changes = MODELS[name]
  source, folder = tmp_path / "source", tmp_path / "export"
  write_llama(source, **changes)
  cfg = hf_import.read_config(source)
  params = hf_import.read_parameters(source, cfg, alone)
  report = _export(folder, cfg, params, source, max_shard_bytes=8_000)

  theirs = _load(folder)
  tokens_BL = _tokens(cfg, L)
  theirs_BLV = their_logits(theirs, tokens_BL)
  _assert_close(our_logits(cfg, params, tokens_BL), theirs_BLV)
  np.testing.assert_array_equal(
    theirs_BLV, their_logits(_load(source), tokens_BL)
  )
  assert report["parameters"] == theirs.num_parameters()
  assert hf_import.read_config(folder) == cfg


def test_an_export_is_a_whole_hugging_face_folder(
  tiny, tmp_path, alone, our_logits
):
  cfg = hf_import.read_config(tiny)
  params = hf_import.read_parameters(tiny, cfg, alone)
  folder = tmp_path / "export"
  report = _export(folder, cfg, params, tiny, metadata={"made_by": "a test"})
  assert {p.name for p in folder.iterdir()} == {
    *("config.json", "generation_config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json"),
  }
  assert set(report["files"]) == {p.name for p in folder.iterdir()}
  for name, digest in report["files"].items():
    content = (folder / name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == digest
  assert report["bytes"] == sum(p.stat().st_size for p in folder.iterdir())
  with safetensors.safe_open(folder / "model.safetensors", "numpy") as file:
    assert file.metadata() == {"format": "pt", "made_by": "a test"}

  tokenizer = transformers.AutoTokenizer.from_pretrained(
    folder, trust_remote_code=False
  )
  ids = tokenizer("the cat sat on", return_tensors="pt")
  assert ids["input_ids"].tolist() == [[2, 3, 4, 5]]
  out = _load(folder).generate(
    **ids, max_new_tokens=6, do_sample=False, eos_token_id=None
  )
  assert out.shape == (1, 10)
  # Greedy: each new token is the one that our decoder finds likeliest.
  best_BL = our_logits(cfg, params, out.numpy()).argmax(-1)
  np.testing.assert_array_equal(best_BL[:, 3:-1], out[:, 4:])


def test_a_sharded_export_has_an_index(tiny, tmp_path, alone):
  cfg = hf_import.read_config(tiny)
  params = hf_import.read_parameters(tiny, cfg, alone)
  folder = tmp_path / "export"
  _export(folder, cfg, params, tiny, max_shard_bytes=8_000)
  index = json.loads((folder / "model.safetensors.index.json").read_text())
  stored, total = {}, 0
  for path in folder.glob("*.safetensors"):
    tensors = safetensors.numpy.load_file(path)
    stored |= dict.fromkeys(tensors, path.name)
    size = sum(x.nbytes for x in tensors.values())
    assert size <= 8_000 or len(tensors) == 1
    total += size
  assert index["weight_map"] == stored
  assert len(set(stored.values())) > 3
  assert index["metadata"] == dict(
    total_size=total, total_parameters=cfg.num_parameters
  )
  again = hf_import.read_parameters(folder, cfg, alone)
  jax.tree.map(np.testing.assert_array_equal, _host(again), _host(params))


def test_export_from_a_mesh_is_the_same_bytes(tiny, tmp_path, alone, cube):
  cfg = hf_import.read_config(tiny)
  digests = []
  for name, mesh in (("alone", alone), ("cube", cube)):
    params = hf_import.read_parameters(tiny, cfg, mesh)
    digests.append(_export(tmp_path / name, cfg, params, tiny)["files"])
  assert digests[0] == digests[1]


def test_a_bfloat16_export_holds_the_nearest_numbers(tiny, tmp_path, alone):
  cfg = hf_import.read_config(tiny)
  params = hf_import.read_parameters(tiny, cfg, alone)
  folder = tmp_path / "export"
  _export(folder, cfg, params, tiny, dtype="bfloat16")
  theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
  assert theirs.dtype == torch.bfloat16  # As its config.json says.
  expected = _load(tiny).state_dict()
  for name, x in theirs.state_dict().items():
    torch.testing.assert_close(
      x, expected[name].to(torch.bfloat16), rtol=0, atol=0
    )


def test_a_transposed_view_is_caught_before_it_is_released(
  tiny, tmp_path, alone, monkeypatch
):
  cfg = hf_import.read_config(tiny)
  params = hf_import.read_parameters(tiny, cfg, alone)
  # safetensors writes the memory of an array, whatever its strides: without
  # this call a transposed weight would reach the disk in the wrong order.
  monkeypatch.setattr(np, "ascontiguousarray", lambda x: x)
  with pytest.raises(ValueError, match="did not read back as written"):
    _export(tmp_path / "export", cfg, params, tiny)
  assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("place", ["_write_checked", "_write_configs"])
def test_an_interrupted_export_leaves_the_earlier_one(
  tiny, tmp_path, alone, monkeypatch, place
):
  cfg = hf_import.read_config(tiny)
  params = hf_import.read_parameters(tiny, cfg, alone)
  folder = tmp_path / "export"
  original, calls = getattr(hf_export, place), []

  def interrupt(*args):
    calls.append(args)
    if len(calls) == (2 if place == "_write_checked" else 1):
      raise KeyboardInterrupt
    original(*args)

  with monkeypatch.context() as patch:
    patch.setattr(hf_export, place, interrupt)
    with pytest.raises(KeyboardInterrupt):
      _export(folder, cfg, params, tiny, max_shard_bytes=8_000)
  assert not folder.exists()

  before = _export(folder, cfg, params, tiny)["files"]
  calls.clear()
  with monkeypatch.context() as patch:
    patch.setattr(hf_export, place, interrupt)
    with pytest.raises(KeyboardInterrupt):
      _export(folder, cfg, params, tiny, max_shard_bytes=8_000)
  for name, digest in before.items():
    assert files.file_sha256(folder / name) == digest
  assert {p.name for p in folder.iterdir()} == set(before)

  # The next export starts anew, and replaces the old files.
  _export(folder, cfg, params, tiny, max_shard_bytes=8_000)
  assert not (folder / "model.safetensors").exists()
  assert [p.name for p in tmp_path.iterdir()] == ["export"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_not_exported(
  tiny, tmp_path, alone, bad
):
  cfg = hf_import.read_config(tiny)
  params = hf_import.read_parameters(tiny, cfg, alone)
  weight = params["blocks_Y"]["mlp"]["wdown_FD"]
  weight.set_value(weight.get_value().at[1, 2, 3].set(bad))
  message = r"'model\.layers\.1\.mlp\.down_proj\.weight' holds NaN or inf"
  with pytest.raises(ValueError, match=message):
    _export(tmp_path / "export", cfg, params, tiny)
  assert not (tmp_path / "export").exists()


def test_an_export_needs_a_tokenizer(tiny, tmp_path, alone):
  cfg = hf_import.read_config(tiny)
  params = hf_import.read_parameters(tiny, cfg, alone)
  source = shutil.copytree(tiny, tmp_path / "source")
  (source / "tokenizer.json").unlink()
  with pytest.raises(
    ValueError, match=r"tokenizer\.json: the tokenizer is mis"
  ):
    _export(tmp_path / "export", cfg, params, source)
  assert not (tmp_path / "export").exists()


# Bad input.


def _read_tensors(folder):
  tensors = {}
  for path in sorted(folder.glob("*.safetensors")):
    tensors |= safetensors.numpy.load_file(path)
  return tensors


def _write_tensors(folder, tensors):
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def _first_shard(folder):
  return min(folder.glob("*.safetensors"))


def _truncate(folder, size):
  path = _first_shard(folder)
  path.write_bytes(path.read_bytes()[:size])


def _change_tensors(change):
  def do(folder):
    path = _first_shard(folder)
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)

  return do


def _change_config(**changes):
  def do(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    config = {k: v for k, v in config.items() if v != "absent"}
    path.write_text(json.dumps(config))

  return do


def _write(name, text):
  return lambda folder: (folder / name).write_text(text)


EMBED = "model.embed_tokens.weight"
BAD_INPUT = {
  "truncated in the data": (
    lambda folder: _truncate(folder, -100),
    r"model-00001-of-\d+\.safetensors: not a whole safetensors file .* bytes",
  ),
  "truncated in the header": (
    lambda folder: _truncate(folder, 100),
    r"model-00001-of-\d+\.safetensors: not a whole safetensors file",
  ),
  "empty": (
    lambda folder: _truncate(folder, 0),
    r"model-00001-of-\d+\.safetensors: not a whole .* holds 0 bytes",
  ),
  "missing shard": (
    lambda folder: _first_shard(folder).unlink(),
    r"model-00001-of-\d+\.safetensors: the file is missing; .*index",
  ),
  "no weights": (
    lambda folder: (folder / "model.safetensors.index.json").unlink(),
    r"model\.safetensors: the file is missing",
  ),
  "index that is no JSON": (
    _write("model.safetensors.index.json", "{'a'"),
    r"index\.json: not readable as JSON",
  ),
  "missing tensor": (
    _change_tensors(lambda tensors: tensors.pop(EMBED)),
    "tensor 'model.embed_tokens.weight' is missing",
  ),
  "wrong shape": (
    _change_tensors(
      lambda tensors: tensors.update({EMBED: tensors[EMBED][:-1]})
    ),
    r"'model.embed_tokens.weight' has shape \[61, 24\]; .* asks for \[62, 24\]",
  ),
  "surplus tensor": (
    _change_tensors(
      lambda tensors: tensors.update(
        {"model.layers.0.self_attn.q_norm.weight": np.ones(8, np.float32)}
      )
    ),
    r"not have: model\.layers\.0\.self_attn\.q_norm\.weight \(1 in all\)",
  ),
  "missing bias": (_change_config(attention_bias=False), r"bias .*8 in all"),
  "other sizes": (_change_config(hidden_size=32), r"shape \[24\]; .* \[32\]"),
  "too few layers": (
    _change_config(num_hidden_layers=1),
    "layers.1.*16 in all",
  ),
  "too many layers": (
    _change_config(num_hidden_layers=3),
    r"'model\.layers\.2\..*' is missing",
  ),
  "other family": (
    _change_config(model_type="mamba"),
    r"config\.json: model_type 'mamba' is not supported; expected .* llama",
  ),
  "other activation": (
    _change_config(hidden_act="gelu"),
    r"config\.json: hidden_act 'gelu' is not supported",
  ),
  "other rope": (
    _change_config(rope_parameters=dict(rope_type="yarn", factor=4.0)),
    r"config\.json: rope type 'yarn' is not supported",
  ),
  "missing field": (
    _change_config(intermediate_size="absent"),
    r"config\.json: field 'intermediate_size' is missing",
  ),
  "no config": (
    lambda folder: (folder / "config.json").unlink(),
    r"config\.json: there is no such file",
  ),
  "config that is no JSON": (
    _write("config.json", "{'model_type': 'llama'}"),
    r"config\.json: not readable as JSON: .*line 1",
  ),
  "config that is no object": (
    _write("config.json", "[]"),
    r"config\.json: expected a JSON object",
  ),
  "no folder": (
    lambda folder: shutil.rmtree(folder),
    "expected a Hugging Face folder .* found no such folder",
  ),
}


@pytest.mark.parametrize("what", BAD_INPUT)
def test_bad_input_is_named(tiny, tmp_path, alone, what):
  damage, message = BAD_INPUT[what]
  folder = shutil.copytree(tiny, tmp_path / "copy")
  damage(folder)
  with pytest.raises(ValueError, match=message) as error:
    cfg = hf_import.read_config(folder)
    hf_import.read_parameters(folder, cfg, alone)
  assert str(folder) in str(error.value)


def test_a_mesh_that_does_not_divide_the_weights_is_named(tiny):
  cfg = hf_import.read_config(tiny)
  mesh = sharding.make_mesh(dict(tensor=4, data=2))
  # G=2 key/value heads, V=62, F=38: whichever comes first.
  with pytest.raises(ValueError, match="mesh: tensor=4 does not divide [GVF]="):
    hf_import.read_parameters(tiny, cfg, mesh)


# The digest.


def test_folder_digest_can_be_recomputed_by_hand(tiny, tmp_path):
  lines = [
    f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
    for path in tiny.iterdir()
    if path.name == "config.json" or path.suffix == ".safetensors"
  ]
  assert len(lines) > 4
  expected = hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
  assert hf_import.folder_digest(tiny) == expected

  # Another tokenizer is the same teacher; one flipped bit is another.
  folder = shutil.copytree(tiny, tmp_path / "copy")
  (folder / "tokenizer.json").write_text("{}")
  assert hf_import.folder_digest(folder) == expected
  data = bytearray(_first_shard(folder).read_bytes())
  data[-1] ^= 1
  _first_shard(folder).write_bytes(data)
  assert hf_import.folder_digest(folder) != expected


@pytest.mark.parametrize("count", [2, 3, 20])
def test_processes_share_out_the_files_of_a_folder_digest(
  tiny, monkeypatch, count
):
  expected, read = hf_import.folder_digest(tiny), []
  file, alone = files.hash_file, processes.all_gather
  monkeypatch.setattr(jax, "process_count", lambda: count)
  monkeypatch.setattr(
    files, "hash_file", lambda path: read.append(path.name) or file(path)
  )
  sent = []
  for process in range(count):
    monkeypatch.setattr(jax, "process_index", lambda p=process: p)
    monkeypatch.setattr(
      processes, "all_gather", lambda v: sent.append(v) or alone(v)
    )
    hf_import.folder_digest(tiny)
  assert sorted(read) == sorted(
    ["config.json", *(p.name for p in tiny.glob("*.safetensors"))]
  )
  names, digests = np.array(sent[::2]), np.array(sent[1::2])
  answers = iter([names, digests])
  monkeypatch.setattr(processes, "all_gather", lambda values: next(answers))
  assert hf_import.folder_digest(tiny) == expected

  names[-1] += 1  # Another list of files.
  answers = iter([names, digests])
  with pytest.raises(ValueError, match="do not see the same files"):
    hf_import.folder_digest(tiny)


def test_folder_digest_of_a_folder_without_weights(tmp_path):
  (tmp_path / "config.json").write_text("{}")
  with pytest.raises(ValueError, match=r"model\.safetensors: there is no such"):
    hf_import.folder_digest(tmp_path)


# The demo's teacher.


@pytest.fixture(scope="module")
def smollm2_params(smollm2, alone):
  cfg = hf_import.read_config(smollm2)
  return cfg, hf_import.read_parameters(smollm2, cfg, alone)


@pytest.fixture(scope="module")
def story_BL(story, smollm2_tokenizer):
  return np.asarray([smollm2_tokenizer(story)["input_ids"]])


@pytest.fixture(scope="module")
def smollm2_logits(smollm2_params, story_BL, our_logits):
  return our_logits(*smollm2_params, story_BL)


@pytest.mark.slow
def test_smollm2_logits(
  smollm2_logits, smollm2_model, smollm2_params, story_BL, their_logits
):
  assert story_BL.shape[1] >= 128
  _assert_close(smollm2_logits, their_logits(smollm2_model, story_BL))
  cfg, _ = smollm2_params
  assert cfg.num_parameters == smollm2_model.num_parameters() == 134_515_008


@pytest.mark.slow
def test_smollm2_perplexity_of_the_story(smollm2_logits, story_BL):
  logits_LV = smollm2_logits[0, :-1].astype(np.float64)
  top_L = logits_LV.max(-1)
  norm_L = top_L + np.log(np.exp(logits_LV - top_L[:, None]).sum(-1))
  rows = np.arange(len(top_L))
  nats = np.mean(norm_L - logits_LV[rows, story_BL[0, 1:]])
  assert math.exp(nats) == pytest.approx(37.94, abs=0.1)


GPL = pathlib.Path("/usr/share/common-licenses/GPL-3")


@pytest.mark.slow
@pytest.mark.skipif(
  not GPL.exists(), reason=f"needs the text {GPL}, which Debian installs"
)
def test_smollm2_perplexity_of_a_licence(smollm2, smollm2_params, alone):
  """The first 4,096 tokens, in windows of 512: 24.97 with transformers."""
  cfg, params = smollm2_params
  tokenizer = tokenizers.Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
  ids = tokenizer.encode(GPL.read_text()).ids[:4096]
  tokens_BL = np.asarray(ids, np.int32).reshape(8, 512)
  rows = rows_lib.to_rows(
    [{"tokens": t, "segments": np.ones_like(t)} for t in tokens_BL],
    L=512,
    V=cfg.V,
    first_index=0,
  )
  step = jax.jit(
    functools.partial(
      steps.eval_step,
      graphdef=decoder.graphdef(cfg),
      objective=losses.Objective(chunk=128),
    )
  )
  nats = weight = 0.0
  for i in range(0, 8, 2):
    part = rows_lib.Rows(*(field[i : i + 2] for field in rows))
    with jax.set_mesh(alone):
      sums = jax.device_get(step(params, batches.from_rows(part))).losses
    nats, weight = nats + float(sums.hard), weight + float(sums.weight)
  assert weight == 8 * 511
  assert math.exp(nats / weight) == pytest.approx(24.97, abs=0.05)


@pytest.mark.slow
def test_smollm2_export(
  smollm2, smollm2_params, smollm2_logits, story_BL, their_logits, tmp_path
):
  folder = tmp_path / "export"
  cfg, params = smollm2_params
  _export(folder, cfg, params, smollm2, max_shard_bytes=150_000_000)
  theirs = _load(folder)
  _assert_close(smollm2_logits, their_logits(theirs, story_BL))
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  ids = tokenizer("The capital of France is", return_tensors="pt")
  out = theirs.generate(**ids, max_new_tokens=1, do_sample=False)
  assert tokenizer.decode(out[0]) == "The capital of France is Paris"
  assert tokenizer.chat_template
  shutil.rmtree(folder)  # Half a gigabyte, which pytest would keep.
