"""Tests for tests/benchmarks/cache.py: the table at toy size, peers' files."""

import importlib
import json
from pathlib import Path
import tarfile

import jax.numpy as jnp
import numpy as np
import pytest

from analogjax.data import rows as rows_lib
from analogjax.interop.distillkit import codec as distillkit_codec

V, D, L, R = 600, 16, 32, 24


@pytest.fixture
def module(monkeypatch):
  """Imports modules as the script does, from its folder."""
  monkeypatch.syspath_prepend(str(Path(__file__).parent))
  return importlib.import_module


def make_rows():
  rng = np.random.default_rng(0)
  tokens_RL = rng.integers(0, V, (R, L)).astype(np.int32)
  segments_RL = np.ones((R, L), np.int32)
  segments_RL[:, L // 2 :] = 2
  positions_RL = np.broadcast_to(np.arange(L, dtype=np.int32), (R, L)).copy()
  positions_RL[:, L // 2 :] -= L // 2
  return rows_lib.Rows(
    tokens_RL, segments_RL, positions_RL, np.ones((R, L), np.float32)
  )


@pytest.fixture
def text(module):
  rng = np.random.default_rng(1)
  return module("cache_teacher").Text(
    "toy",
    make_rows(),
    rng.normal(size=(R, L, D)).astype(np.float32),
    jnp.asarray(rng.normal(size=(V, D)), jnp.float32) * 0.7,
    lambda logits: logits,
  )


def softmax(text):
  z = np.float64(text.hidden_RLD) @ np.float64(text.head_VD).T
  p = np.exp(z - z.max(-1, keepdims=True))
  return p / p.sum(-1, keepdims=True)


@pytest.mark.slow
def test_table(module, text, tmp_path, capsys):
  for name in ("pyarrow", "torch", "array_record"):
    pytest.importorskip(name)
  table = module("cache_table").measure(text, tmp_path / "files", ())
  cache = module("cache")
  checks = cache.promises(table)
  assert all(ok for ok, what in checks if "bias" in what), checks
  assert all(ok for ok, what in checks if "is that of" in what), checks
  p = softmax(text)
  np.testing.assert_allclose(table.square, (p**2).sum(-1).mean(), rtol=1e-5)

  by_name = {line.name: line for line in table.lines}
  three = by_name["tau 0.2, 3 replicas"].variance
  top = np.sort(p, -1)[..., ::-1]
  exact = module("cache_quality").threshold_variance(
    0.2, top, (p**2).sum(-1), np.ones((R, L), bool)
  )
  assert abs(three.mean - exact / 3) < 5 * three.error
  fifty = by_name["random, 50 draws"].variance
  assert abs(fifty.mean - (1 - table.square) / 50) < 5 * fifty.error
  # topk: what is missing, by hand; values are float16.
  missing = (top[..., 128:] ** 2).sum(-1).mean()
  for name in ("topk 128", "Megatron-LM dev, K=128"):
    np.testing.assert_allclose(by_name[name].bias2.mean, missing, rtol=0.05)
  share = top[..., :128] / top[..., :128].sum(-1, keepdims=True)
  missing += ((share - top[..., :128]) ** 2).sum(-1).mean()
  found = by_name["MaxText, K=128"].bias2.mean
  np.testing.assert_allclose(found, missing, rtol=1e-3)
  entries = by_name["RS-KD, 50 draws, entries of 3 bytes"]
  np.testing.assert_allclose(entries.bytes_without_tokens, 3 * entries.ids)

  for line in table.lines:
    assert 0 < line.bytes_without_tokens < 2000, line
  assert json.loads(json.dumps(cache.to_json(table, checks)))["tokens"] == R * L
  assert len(cache.markdown(table)) == 2 + len(table.lines)


@pytest.mark.slow
def test_speeds(module, text, tmp_path):
  teacher, tables = module("cache_teacher"), module("cache_table")
  speed, sampling = module("cache_speed"), module("analogjax.cache.sampling")
  draw = teacher.Draw(sampling.Threshold(tau=0.1), num_replicas=1)
  records = teacher.draw_all(text, {"": draw})[""].records
  m = tables.manifest(draw, R=R, L=L, V=V, rows_per_object=8)
  stored = {"a": tables.Stored(m, records)}
  found = speed.time_store(stored, text.rows, np.arange(V), tmp_path, 1)
  assert set(found["a"]) == {
    f"{what} {by}" for what in speed.WAYS for by in ("cpu", "clock")
  }
  rows, cut = speed.shorter(text.rows, records, L // 2)
  assert rows.tokens_BL.shape == (2 * R, L // 2)
  np.testing.assert_array_equal(rows.tokens_BL[1], text.rows.tokens_BL[0, 16:])
  np.testing.assert_array_equal(cut.ids_BMLK[3, 0], records.ids_BMLK[1, 0, 16:])
  np.testing.assert_array_equal(cut.entropy_BL[3], records.entropy_BL[1, 16:])


def test_variance_of_a_threshold(module):
  quality = module("cache_quality")
  p = np.array([[[0.5, 0.3, 0.1, 0.1]]])
  square, there = (p**2).sum(-1), np.ones((1, 1), bool)
  # tau 0.4: the head is 0.5; of the tail one id at weight 0.5 is drawn.
  levels = module("analogjax.cache.sampling").head_levels(0.4)
  levels = levels[levels > 0]
  low, high = levels[levels < 0.5].max(), levels[levels > 0.5].min()
  rounding = (high - 0.5) * (0.5 - low)
  expected = 0.5**2 - (0.3**2 + 2 * 0.1**2) + 2 * rounding
  found = quality.threshold_variance(0.4, p, square, there)
  np.testing.assert_allclose(found, expected)


def test_calibration(module):
  quality = module("cache_quality")
  ids = np.array([[[1, 2], [1, 2]]])
  p = np.array([[[0.75, 0.25], [0.75, 0.25]]])
  ones = np.ones((1, 2))
  right = quality.calibration(ids, p, np.array([[1, 5]]), ones)
  np.testing.assert_allclose(right, 0.25)
  only = quality.calibration(ids, p, np.array([[1, 5]]), np.array([[1.0, 0]]))
  np.testing.assert_allclose(only, 0.25)


def test_capture_rate(module):
  quality = module("cache_quality")
  entropy = np.random.default_rng(0).exponential(2, (4, 100))
  there = np.ones((4, 100), bool)
  rate = quality.matching_rate(0.2, entropy, there)
  kept = np.clip(rate * entropy, 1 / 255, 1).mean()
  np.testing.assert_allclose(kept, 0.2, atol=1e-3)


def test_protobuf(module):
  peers = module("cache_peers")
  # Example{Features{"a": Int64List[1, 300]}}, by hand from the wire format.
  inside = bytes([0x0A, 3, 1, 0xAC, 2])
  entry = bytes([0x0A, 1, ord("a"), 0x12, 7, 0x1A, 5]) + inside
  expected = bytes([0x0A, 14, 0x0A, 12]) + entry
  assert peers.example({"a": np.array([1, 300])}) == expected
  assert peers.varints(np.array([-1])) == b"\xff" * 9 + b"\x01"
  assert peers.varints(np.array([0, 127, 128])) == b"\x00\x7f\x80\x01"


def test_megatron_file(module, tmp_path):
  pytest.importorskip("pyarrow")
  torch = pytest.importorskip("torch")
  import io

  import pyarrow

  peers = module("cache_peers")
  rng = np.random.default_rng(0)
  ids = rng.integers(0, 2**17, (3, 4, 16)).astype(np.int32)
  logprobs = -rng.exponential(size=ids.shape).astype(np.float32)
  top = peers.TopK(ids, logprobs, np.zeros((3, 4), np.float32), 2**17)
  for packed in (False, True):
    peers.megatron(packed)(tmp_path / "a", top, None)
    with tarfile.open(tmp_path / "a.tar") as tar:
      assert tar.getnames() == ["_meta.json", "0.pt.zst"]
      data = tar.extractfile("0.pt.zst").read()
    with pyarrow.input_stream(io.BytesIO(data), compression="zstd") as stream:
      found = torch.load(io.BytesIO(stream.read()), weights_only=True)
    (low,), (bit,) = found["indices_low"], found["bit_17"]
    bit = np.unpackbits(bit.numpy(), axis=-1) if packed else bit.numpy()
    again = bit.astype(int) << 16 | low.numpy().astype(int)
    np.testing.assert_array_equal(again.swapaxes(0, 1), ids)


def test_distillkit_file(module, tmp_path):
  pq = pytest.importorskip("pyarrow.parquet")
  pytest.importorskip("torch")
  peers = module("cache_peers")
  rng = np.random.default_rng(0)
  rows = make_rows()
  ids = rng.permuted(np.tile(np.arange(V), (R, L, 1)), axis=-1)[..., :50]
  logprobs = -np.sort(rng.gamma(4, size=ids.shape), -1).astype(np.float32)
  top = peers.TopK(ids, logprobs, np.zeros((R, L), np.float32), V)
  codec = peers.budget(V)
  found = peers.distillkit(peers.budget)(tmp_path / "a", top, rows)
  table = pq.read_table(tmp_path / "a.parquet")
  assert table["input_ids"].to_pylist() == rows.tokens_BL.tolist()
  values, packed = (
    np.array(table[name].to_pylist()[1], np.uint8)
    for name in ("compressed_logprobs", "bytepacked_indices")
  )
  again, decoded = codec.decode(packed, values)
  np.testing.assert_array_equal(again, ids[1])
  np.testing.assert_allclose(np.exp(np.float64(decoded)), found.p_RLK[1])
  assert isinstance(codec, distillkit_codec.Codec)
  assert np.abs(decoded - logprobs[1]).mean() < 0.5


def test_docs_are_written_between_marks(module, tmp_path):
  put = module("docs_page").put
  file = tmp_path / "a.md"
  file.write_text(
    "before\n<!-- cache: begin -->\nold\n<!-- cache: end -->\n.\n"
  )
  put(file, "cache", "new")
  text = file.read_text()
  assert "\nold\n" not in text and "\nnew\n" in text
  assert text.startswith("before\n") and text.endswith("-->\n.\n")
  file.write_text("nothing")
  with pytest.raises(ValueError, match="once each"):
    put(file, "cache", "new")


def test_ratio_of_speeds(module, capsys):
  import time

  alternate = module("cache_speed").alternate
  ratio, ratios = alternate(
    lambda: time.sleep(0.02), lambda: time.sleep(0.01), 3
  )
  assert len(ratios) == 3 and 0.3 < ratio < 0.8
