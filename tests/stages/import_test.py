"""cache with cache.import_path: DistillKit's parquet files become our cache."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_pair

from analogjax import main
from analogjax.cache import logit_cache
from analogjax.interop.distillkit import entries as distillkit, importer

pytestmark = pytest.mark.medium

V, L, K, BITS = 384, 32, 4, 9
CODEC = dict(d=V, k=K, exact_k=K, delta_encoding=False, residual_bins=[])
P = np.float32([0.5, 0.25, 0.125, 0.0625])


def _id_bytes(ids_NK):
  bits = [
    "".join(f"{i:0{BITS}b}" for i in ids).ljust(40, "0") for ids in ids_NK
  ]
  return [[int(b[i : i + 8], 2) for i in range(0, 40, 8)] for b in bits]


@pytest.fixture
def parquet(tmp_path):
  """Ten rows; the first id of record n is the next token."""
  nested = pa.list_(pa.list_(pa.uint8()))
  rng = np.random.default_rng(0)
  rows = {"input_ids": [], "compressed_logprobs": [], "bytepacked_indices": []}
  for _ in range(10):
    tokens = rng.integers(1, V, L - 4)
    ids_NK = [[t, *((t + np.arange(1, K)) % V)] for t in tokens[1:]]
    rows["input_ids"].append(tokens.tolist())
    value = list(np.log(P).astype("<f4").tobytes())
    rows["compressed_logprobs"].append([value] * len(ids_NK))
    rows["bytepacked_indices"].append(_id_bytes(ids_NK))
  types = (pa.list_(pa.uint64()), nested, nested)
  table = pa.table(
    {
      name: pa.array(column, kind)
      for (name, column), kind in zip(rows.items(), types, strict=True)
    }
  )
  pq.write_table(table, tmp_path / "data_0.parquet")
  return tmp_path / "data_0.parquet"


def _arguments(tiny, command, workdir, parquet, *more):
  config = tiny_pair.write_config(
    workdir.parent / "imported.py",
    tiny.config,
    f"cfg.cache.update(kind='topk', top_k={K}, gram_positions=0)",
    f"cfg.cache.import_path = {str(parquet)!r}",
    f"cfg.cache.import_codec = {CODEC!r}",
  )
  more = ("--config.cache.batch_rows=8", *more)  # Eight devices.
  arguments = tiny.command(command, workdir, *more)
  arguments[1] = f"--config={config}"
  return arguments


def test_an_import_fills_the_cache_and_is_not_done_twice(
  tiny, tmp_path, parquet, capsys
):
  workdir = tmp_path / "run"
  arguments = _arguments(tiny, "cache", workdir, parquet)
  assert main.main(arguments) == 0, capsys.readouterr().err
  out = " ".join(capsys.readouterr().out.split())
  assert "ends after 10 rows; the config asks for 46" in out
  assert "270 records; 0 of them hold all mass" in out
  cache = logit_cache.open_cache(workdir / "cache")
  m = cache.manifest
  assert (m.kind, m.top_k, m.pipeline) == ("topk", K, "distillkit")
  dataset = distillkit.open_dataset(str(parquet), CODEC, L=L, V=V)
  assert m.pipeline_fingerprint == dataset.fingerprint

  got, wanted = cache.read(range(10)), dataset.read(range(10))
  np.testing.assert_array_equal(got.rows.tokens_BL, wanted.rows.tokens_BL)
  captured_BL = np.isfinite(wanted.logprobs_BLK[..., 0])
  np.testing.assert_array_equal(got.capture_weights_BL, captured_BL)
  assert captured_BL.sum() == 10 * 27
  for ids, p, found_ids, found_p in zip(
    wanted.ids_BLK[captured_BL],
    np.exp(wanted.logprobs_BLK[captured_BL]),
    got.ids_BLK[captured_BL],
    got.p_BLK[captured_BL],
    strict=True,
  ):
    assert sorted(ids) == sorted(found_ids)
    order, found_order = np.argsort(ids), np.argsort(found_ids)
    # float16: half a unit of the last place is 2^-10 of a nat below 4.
    np.testing.assert_allclose(p[order], found_p[found_order], rtol=1e-3)
  assert got.log_tail_BL is not None
  np.testing.assert_array_equal(got.log_tail_BL, wanted.log_tail_BL)
  # The next token is the likeliest id, so its log-probability is known.
  np.testing.assert_allclose(
    got.label_logprob_BL[captured_BL], np.log(0.5), atol=0.03
  )
  entropy = -(P * np.log(P)).sum() - 0.0625 * np.log(0.0625)
  np.testing.assert_allclose(got.entropy_BL[captured_BL], entropy, atol=0.03)

  stored = (workdir / "cache/id_first/c/0/0/0").stat().st_mtime_ns
  assert main.main(arguments) == 0
  assert (workdir / "cache/id_first/c/0/0/0").stat().st_mtime_ns == stored
  for action in ("--verify", "--inspect"):
    assert main.main(_arguments(tiny, "cache", workdir, parquet, action)) == 0
  report = json.loads((workdir / "cache_inspect.json").read_text())
  assert report["noise"] is None and report["ids_per_record"] == K


def test_what_does_not_fit_is_refused(tiny, tmp_path, parquet, capsys):
  more = "--config.cache.top_k=3"
  arguments = _arguments(tiny, "cache", tmp_path / "run", parquet, more)
  assert main.main(arguments) == 2
  err = capsys.readouterr().err
  assert "cache.top_k=3" in err and "have 4 ids; set cache.top_k=4" in err

  arguments = _arguments(tiny, "cache", tmp_path / "run", tmp_path / "none")
  assert main.main(arguments) == 2
  assert "cache.import_path" in capsys.readouterr().err


def test_a_next_token_that_is_not_among_the_ids_is_unknown(parquet):
  entries = distillkit.open_dataset(str(parquet), CODEC, L=L, V=V).read([0])
  entries.ids_BLK[0, 3, 0] = (entries.ids_BLK[0, 3, 0] + 9) % V
  records = importer.to_records(entries)
  assert np.isnan(records.label_logprob_BL[0, 3])
  assert np.isfinite(records.label_logprob_BL[0, :3]).all()
