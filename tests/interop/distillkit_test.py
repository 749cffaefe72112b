"""Reading DistillKit's parquet files: rows, alignment, tails, garbage."""

import itertools
import json
import math
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analogjax.interop.distillkit import entries

V, L, K = 50, 6, 3
CODEC = dict(d=V, k=K, exact_k=K, delta_encoding=False, residual_bins=[])
LEGACY = dict(vocab_size=V, k=K, exact_k=K, polynomial_degree=0)
NESTED = pa.list_(pa.list_(pa.uint8()))
TYPES = {  # As DistillKit's sample_common.py and pack_logits.py have them.
  "input_ids": pa.list_(pa.uint64()),
  "compressed_logprobs": NESTED,
  "bytepacked_indices": NESTED,
  "attention_mask": pa.list_(pa.int64()),
  "labels": pa.list_(pa.int64()),
  "packed_indices": pa.list_(pa.list_(pa.uint64())),
  "exact_values": pa.list_(pa.list_(pa.float32())),
  "coeffs": pa.list_(pa.list_(pa.float32())),
}


def logprob_bytes(p_NK):
  return [list(np.log(p).astype("<f4").tobytes()) for p in p_NK]


def id_bytes(ids_NK):
  """Ids of 6 bits, as strings of ones and zeros."""
  bits = ["".join(f"{i:06b}" for i in ids).ljust(24, "0") for ids in ids_NK]
  return [[int(b[i : i + 8], 2) for i in (0, 8, 16)] for b in bits]


def row(tokens, first_id=0, num_records=None, **columns):
  """A row whose record n has ids first_id + n and up, and halving p."""
  N = len(tokens) - 1 if num_records is None else num_records
  ids = [[(first_id + n + k) % V for k in range(K)] for n in range(N)]
  p = [[0.5, 0.25, 0.125 / (n + 1)] for n in range(N)]
  return {
    "input_ids": tokens,
    "compressed_logprobs": logprob_bytes(p),
    "bytepacked_indices": id_bytes(ids),
    **columns,
  }


def write(path, rows, types=TYPES, **options):
  names = list(rows[0])
  table = pa.table(
    {n: pa.array([r[n] for r in rows], types.get(n)) for n in names}
  )
  path.parent.mkdir(parents=True, exist_ok=True)
  pq.write_table(table, path, **options)
  return path


def opened(path, codec=CODEC, **sizes):
  return entries.open_dataset(str(path), codec, **{"L": L, "V": V, **sizes})


def test_a_captured_row(tmp_path):
  """n tokens and n - 1 records, the first of which predicts token 1."""
  file = write(tmp_path / "a.parquet", [row([7, 8, 9, 10], first_id=48)])
  found = opened(file).read([0])
  np.testing.assert_array_equal(found.rows.tokens_BL, [[7, 8, 9, 10, 0, 0]])
  np.testing.assert_array_equal(found.rows.segments_BL, [[1, 1, 1, 1, 0, 0]])
  np.testing.assert_array_equal(found.rows.positions_BL, [[0, 1, 2, 3, 0, 0]])
  np.testing.assert_array_equal(found.rows.weights_BL, [[1, 1, 1, 1, 0, 0]])
  empty = [0, 0, 0]
  np.testing.assert_array_equal(
    found.ids_BLK, [[[48, 49, 0], [49, 0, 1], [0, 1, 2], empty, empty, empty]]
  )
  with np.errstate(divide="ignore"):
    p = [[0.5, 0.25, 0.125 / (n + 1)] for n in range(3)]
    expected = np.log([p + [empty] * 3])
  np.testing.assert_allclose(found.logprobs_BLK, expected, rtol=1e-6)
  tail = [0.125, 0.1875, 0.25 - 0.125 / 3, 1, 1, 1]
  np.testing.assert_allclose(found.log_tail_BL, [np.log(tail)], rtol=1e-6)
  dtypes = [x.dtype.name for x in found[1:4]]
  assert dtypes == ["int32", "float32", "float32"]
  assert found.counts.num_records == 3 and found.counts.num_clamped == 0
  assert math.isclose(found.counts.largest_mass, 0.875, rel_tol=1e-6)


def test_a_packed_row(tmp_path):
  """As many records as tokens; the mask numbers the documents."""
  packed = row(
    [1, 2, 3, 4, 5, 6], num_records=6, attention_mask=[1, 1, 2, 2, 2, 0]
  )
  found = opened(write(tmp_path / "a.parquet", [packed])).read([0])
  np.testing.assert_array_equal(found.rows.segments_BL, [[1, 1, 2, 2, 2, 0]])
  np.testing.assert_array_equal(found.rows.positions_BL, [[0, 1, 0, 1, 2, 0]])
  # The record of a document's end stays; that of padding goes.
  np.testing.assert_array_equal(found.ids_BLK[0, :, 0], [0, 1, 2, 3, 4, 0])
  np.testing.assert_array_equal(
    np.isfinite(found.logprobs_BLK[0, :, 0]), [1, 1, 1, 1, 1, 0]
  )
  assert found.log_tail_BL[0, 5] == 0 and found.counts.num_records == 5


def test_labels_are_weights(tmp_path):
  labelled = row([1, 2, 3, 4], labels=[-100, -100, 3, 4])
  found = opened(write(tmp_path / "a.parquet", [labelled])).read([0])
  np.testing.assert_array_equal(found.rows.weights_BL, [[0, 0, 1, 1, 0, 0]])


def test_legacy(tmp_path):
  values = np.log([[0.5, 0.25, 0.125]] * 3).astype(np.float32).tolist()
  legacy = {
    "input_ids": [1, 2, 3, 4],
    "packed_indices": [[n | 2 << 6 | 49 << 12] for n in range(3)],
    "exact_values": values,
    "coeffs": [[], [], []],
  }
  found = opened(write(tmp_path / "a.parquet", [legacy]), LEGACY).read([0])
  ids = [[0, 2, 49], [1, 2, 49], [2, 2, 49], [0] * 3, [0] * 3, [0] * 3]
  np.testing.assert_array_equal(found.ids_BLK, [ids])
  np.testing.assert_array_equal(found.logprobs_BLK[0, :3], values)
  # A library that lost the unsigned type reads the same.
  types = TYPES | {"packed_indices": pa.list_(pa.list_(pa.int64()))}
  other = write(tmp_path / "b.parquet", [legacy], types)
  np.testing.assert_array_equal(opened(other, LEGACY).read([0]).ids_BLK, [ids])


@pytest.fixture
def many(tmp_path):
  """Rows 0 to 11, in three files of row groups of two, named out of order."""
  rows = [row([i] * (2 + i % 5), first_id=i) for i in range(12)]
  for name, part in (("data_2", 0), ("data_10", 5), ("data_11", 10)):
    stop = 5 if part == 0 else 10 if part == 5 else 12
    file = tmp_path / "set" / f"{name}.parquet"
    write(file, rows[part:stop], row_group_size=2)
  return tmp_path / "set"


def test_rows_in_any_order(many):
  dataset = opened(many)
  assert dataset.num_rows == 12
  in_order = dataset.read(range(12))
  np.testing.assert_array_equal(in_order.rows.tokens_BL[:, 0], range(12))
  np.testing.assert_array_equal(in_order.ids_BLK[:, 0, 0], range(12))
  random = np.random.default_rng(0)
  for indices in (
    [11, 0, 5, 4, 5],
    [3],
    [2],
    [],
    *random.permuted([range(12)]),
  ):
    found = dataset.read(indices)
    index = np.asarray(indices, int)
    for a, b in zip(found[0], in_order[0], strict=True):
      np.testing.assert_array_equal(a, b[index])
    for a, b in zip(found[1:4], in_order[1:4], strict=True):
      np.testing.assert_array_equal(a, b[index])
  parts = [dataset.read([i]).counts for i in range(12)]
  total = list(itertools.accumulate(parts))[-1]
  assert total == in_order.counts


def test_path_may_be_a_file_or_a_glob(many):
  assert opened(many / "data_10.parquet").num_rows == 5
  assert opened(many / "data_1*.parquet").num_rows == 7


def test_other_integer_and_list_types(tmp_path, many):
  """As other writers make them: int64 bytes, large and fixed lists."""
  types = {
    "input_ids": pa.large_list(pa.int32()),
    "compressed_logprobs": pa.large_list(pa.list_(pa.int64())),
    "bytepacked_indices": pa.list_(pa.list_(pa.uint8(), 3)),
  }
  file = write(tmp_path / "a.parquet", [row([1, 2, 3]), row([4, 5])], types)
  expected = opened(
    write(tmp_path / "b.parquet", [row([1, 2, 3]), row([4, 5])])
  )
  for a, b in zip(opened(file).read([0, 1])[1:4], expected.read([0, 1])[1:4],
                  strict=True):  # fmt: skip
    np.testing.assert_array_equal(a, b)


def test_fingerprint(many, tmp_path):
  first = opened(many).fingerprint
  assert len(bytes.fromhex(first)) == 32
  assert opened(many).fingerprint == first
  other = opened(many, CODEC | dict(delta_encoding=True)).fingerprint
  assert other != first
  moved = many.rename(tmp_path / "moved")
  assert opened(moved).fingerprint == first
  part = opened(moved / "data_1*.parquet").fingerprint
  assert part != first
  write(moved / "data_11.parquet", [row([10, 10]), row([11, 12, 11])])
  assert opened(moved).fingerprint != first


def test_a_mass_above_one_is_clamped_and_counted(tmp_path):
  p = [[0.5, 0.5, 0.25], [0.5, 0.25, 0.125], [1.0, 2e-9, 1e-9]]
  lossy = row([1, 2, 3, 4]) | {"compressed_logprobs": logprob_bytes(p)}
  found = opened(write(tmp_path / "a.parquet", [lossy])).read([0])
  np.testing.assert_allclose(
    found.log_tail_BL[0, :3],
    np.log([entries.MIN_TAIL, 0.125, entries.MIN_TAIL]),
    rtol=1e-6,
  )
  np.testing.assert_allclose(
    found.logprobs_BLK[0, 0], np.log(p[0]), rtol=1e-6
  )  # As decoded, not made to fit.
  assert found.counts.num_clamped == 2 and found.counts.num_records == 3
  assert math.isclose(found.counts.largest_mass, 1.25, rel_tol=1e-6)


def test_entries_that_vllm_did_not_give(tmp_path):
  """They are minus infinity, with an arbitrary id."""
  values = np.array([-1, -2, -np.inf], "<f4")
  partial = row([1, 2]) | {
    "compressed_logprobs": [list(values.tobytes())],
    "bytepacked_indices": id_bytes([[4, 5, 63]]),
  }
  found = opened(write(tmp_path / "a.parquet", [partial])).read([0])
  np.testing.assert_array_equal(found.ids_BLK[0, 0], [4, 5, 0])
  np.testing.assert_array_equal(found.logprobs_BLK[0, 0], [-1, -2, -np.inf])
  tail = 1 - math.exp(-1) - math.exp(-2)
  assert math.isclose(found.log_tail_BL[0, 0], math.log(tail), rel_tol=1e-6)


def test_an_unreadable_record_is_none_and_counted(tmp_path):
  values = [[-1, -2, -3], [np.nan, -2, -3], [-1, np.inf, -3]]
  data = [list(np.array(v, "<f4").tobytes()) for v in values]
  broken = row([1, 2, 3, 4]) | {"compressed_logprobs": data}
  found = opened(write(tmp_path / "a.parquet", [broken])).read([0])
  assert found.counts.num_records == 1 and found.counts.num_unreadable == 2
  np.testing.assert_array_equal(found.ids_BLK[0, 1:], 0)
  np.testing.assert_array_equal(found.logprobs_BLK[0, 1:], -np.inf)
  np.testing.assert_array_equal(found.log_tail_BL[0, 1:], 0)


NAN = {"compressed_logprobs": [list(np.full(K, np.nan, "<f4").tobytes())] * 3}


@pytest.mark.parametrize(
  ("bad", "expected"),
  [
    (row([1] * 7), ["7 tokens", "expected 1 to 6", "config.data.L"]),
    (row([], num_records=0), ["0 tokens", "expected 1 to 6"]),
    (row([1, 50, 3, 4]), ["50 in 'input_ids' at 1", "expected 0 to 49"]),
    (row([1] * 4, num_records=2), ["[2, 2] records", "expected 3 or 4"]),
    (row([1] * 4, num_records=5), ["[5, 5] records", "expected 3 or 4"]),
    (
      row([1] * 4) | {"bytepacked_indices": id_bytes([[1, 2, 3]] * 4)},
      ["[4, 3] records in bytepacked_indices", "expected 3 or 4"],
    ),
    (
      row([1] * 4) | {"compressed_logprobs": [[0] * 12, [0] * 11, [0] * 12]},
      ["11 values in 'compressed_logprobs' at record 1", "expected 12"],
    ),
    (
      row([1] * 4) | {"bytepacked_indices": [[0] * 4] * 3},
      ["4 values in 'bytepacked_indices' at record 0", "expected 3"],
    ),
    (
      row([1] * 4) | {"compressed_logprobs": [[0] * 12, [0] * 12, None]},
      ["a null in 'compressed_logprobs'"],
    ),
    (row([1, None, 2, 3]), ["a null in 'input_ids'"]),
    (row([1] * 4) | NAN, ["all 3 records decode to NaN"]),
    (
      row([1] * 4) | {"bytepacked_indices": id_bytes([[1, 2, 50]] * 3)},
      ["id 50 in the record of position 0", "expected below 50"],
    ),
    (
      row([1] * 4) | {"compressed_logprobs": logprob_bytes([[0.9] * 3] * 3)},
      ["add up to 2.7", "import_codec"],
    ),
    (
      row([1] * 4, attention_mask=[1, 1, 1]),
      ["3 values in 'attention_mask'", "expected 4"],
    ),
    (
      row([1] * 4, attention_mask=[1, 1, -1, 1]),
      ["-1 in 'attention_mask' at 2"],
    ),
    (row([1] * 4, labels=[1]), ["1 values in 'labels'", "expected 4"]),
  ],
)  # fmt: skip
def test_a_bad_row_is_refused(tmp_path, bad, expected):
  """A row that cannot be corrected, with its file and its number."""
  extra = {n: [1] * 4 for n in ("attention_mask", "labels") if n in bad}
  rows = [row([1, 2, 3, 4], **extra), bad]
  write(tmp_path / "a.parquet", [rows[0]])
  file = write(tmp_path / "b.parquet", rows)
  dataset = opened(tmp_path)
  dataset.read([0, 1])
  with pytest.raises(ValueError) as e:
    dataset.read([2])
  for text in (f"{file}, row 1 (row 2 of the dataset)", *expected):
    assert text in str(e.value)
  dataset.read([0, 1])  # And the others can be read on.


def test_int_bytes_above_255_are_refused(tmp_path):
  types = TYPES | {"bytepacked_indices": pa.list_(pa.list_(pa.int64()))}
  bad = row([1, 2]) | {"bytepacked_indices": [[0, 256, 0]]}
  file = write(tmp_path / "a.parquet", [bad], types)
  with pytest.raises(ValueError, match="256 in 'bytepacked_indices' at 1"):
    opened(file).read([0])


@pytest.mark.parametrize(
  ("codec", "expected"),
  [
    (CODEC | dict(k=4, exact_k=4), "expected 16 with this codec"),
    (CODEC | dict(exact_dtype="float16"), "expected 6 with this codec"),
    (CODEC | dict(d=2**20), "expected 8 with this codec"),
    (CODEC | dict(delta_encoding=True), None),  # Cannot be told.
    (LEGACY, "there is no column 'packed_indices', 'exact_values', 'coeffs'"),
    (CODEC | dict(k=51, exact_k=51), "k=51, expected at most 50"),
  ],
)
def test_a_wrong_codec(tmp_path, codec, expected):
  file = write(tmp_path / "a.parquet", [row([1, 2, 3])])
  if expected is None:
    opened(file, codec).read([0])
    return
  with pytest.raises(ValueError) as e:
    opened(file, codec).read([0])
  assert expected in str(e.value)


def test_deltas_read_as_values_are_refused(tmp_path):
  p = [0.34, 0.33, 0.32]
  deltas = np.diff(np.log(p), prepend=0).astype("<f4")
  coded = row([1, 2]) | {"compressed_logprobs": [list(deltas.tobytes())]}
  file = write(tmp_path / "a.parquet", [coded])
  found = opened(file, CODEC | dict(delta_encoding=True)).read([0])
  np.testing.assert_allclose(found.logprobs_BLK[0, 0], np.log(p), rtol=1e-5)
  with pytest.raises(ValueError, match="position 0 add up to 2.28"):
    opened(file).read([0])


@pytest.mark.parametrize(
  ("types", "name"),
  [
    ({"input_ids": pa.list_(pa.float32())}, "input_ids"),
    ({"compressed_logprobs": pa.list_(pa.list_(pa.float32()))},
     "compressed_logprobs"),
  ],
)  # fmt: skip
def test_a_column_of_another_type_is_refused(tmp_path, types, name):
  file = write(tmp_path / "a.parquet", [row([1, 2])], TYPES | types)
  with pytest.raises(ValueError, match=f"column '{name}' is .*list.*expected"):
    opened(file)
  flat = pa.table({"input_ids": [1], "compressed_logprobs": [b"1"],
                   "bytepacked_indices": [b"1"]})  # fmt: skip
  pq.write_table(flat, file)
  with pytest.raises(ValueError, match="column 'input_ids' is int64"):
    opened(file)


def test_a_missing_column_is_named(tmp_path):
  bad = row([1, 2])
  del bad["bytepacked_indices"]
  file = write(tmp_path / "a.parquet", [bad])
  with pytest.raises(ValueError) as e:
    opened(file)
  for text in (str(file), "no column 'bytepacked_indices'", "'input_ids'"):
    assert text in str(e.value)


def test_a_cut_or_damaged_file_is_refused(tmp_path):
  file = write(tmp_path / "a.parquet", [row([1, 2, 3])])
  data = file.read_bytes()
  file.write_bytes(data[:-9])
  with pytest.raises(ValueError, match="a.parquet is not a whole parquet file"):
    opened(file)
  # A capture writes no checksums; what is broken shows in the pages' heads.
  file.write_bytes(data[:4] + b"\xff" * 40 + data[44:])
  with pytest.raises(ValueError, match="a.parquet, row 0 .*cannot be read"):
    opened(file).read([0])
  # Where there are checksums, every byte counts.
  options = dict(write_page_checksum=True, compression="none")
  file = write(tmp_path / "a.parquet", [row([1, 2, 40961])], **options)
  data = file.read_bytes().replace(b"\x01\xa0", b"\x01\xa1")
  assert data != file.read_bytes()
  file.write_bytes(data)
  with pytest.raises(ValueError, match="a.parquet, row 0 .*cannot be read"):
    opened(file, V=2**20).read([0])


def test_nothing_to_read_is_refused(tmp_path):
  with pytest.raises(ValueError, match="import_path=.*no parquet file"):
    opened(tmp_path)
  with pytest.raises(ValueError, match="import_path=.*no parquet file"):
    opened(tmp_path / "none.parquet")
  file = tmp_path / "a.parquet"
  pq.write_table(pq.read_table(write(file, [row([1, 2])])).slice(0, 0), file)
  with pytest.raises(ValueError, match="has no rows"):
    opened(file)


def test_the_capture_s_own_config(tmp_path):
  file = write(tmp_path / "a.parquet", [row([1, 2, 3])])
  with pytest.raises(ValueError, match="compression_config.yaml is not there"):
    opened(file, None)
  captured = tmp_path / "compression_config.yaml"
  captured.write_text(json.dumps(CODEC))  # JSON is YAML.
  assert opened(file, None).codec == opened(file).codec
  opened(file, CODEC | dict(d=V - 1))  # The same bits.
  with pytest.raises(ValueError) as e:
    opened(file, CODEC | dict(delta_encoding=True))
  assert "delta_encoding=True" in str(e.value)
  assert "delta_encoding=False" in str(e.value)
  captured.write_text("k: [")
  with pytest.raises(ValueError, match="compression_config.yaml: while pars"):
    opened(file, None)


@pytest.mark.parametrize("package", ["pyarrow", "yaml"])
def test_the_extra_is_named_when_it_is_missing(tmp_path, monkeypatch, package):
  file = write(tmp_path / "a.parquet", [row([1, 2, 3])])
  (tmp_path / "compression_config.yaml").write_text(json.dumps(CODEC))
  monkeypatch.setitem(sys.modules, package, None)
  with pytest.raises(
    ValueError, match=r"pip install 'analogjax\[distillkit\]'"
  ):
    opened(file)
