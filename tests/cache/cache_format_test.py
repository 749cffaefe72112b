"""docs/cache_format.md describes the caches that analogjax/cache writes.

The page's reader, which uses only zarr, reads the same as ours.
"""

import functools
import hashlib
import json
from pathlib import Path
import re
import shutil
import types

import jax
import numpy as np
import pytest
import zarr

from analogjax.cache import cache_format, logit_cache, record_codec, sampling
from analogjax.data import rows as rows_lib

PAGE = Path(__file__).parents[2] / "docs" / "cache_format.md"

# Enough ids for gaps of one, two and four bytes.
V, L, R, M = 70_000, 24, 6, 2
GRAM = 20  # Positions: more than the tokens of a row that is padded.
ORDER = np.random.default_rng(3).permutation(V)
KINDS = {
  "threshold": dict(tau=0.09, num_draws=None, top_k=None),
  "random": dict(tau=None, num_draws=9, top_k=None),
  "topk": dict(tau=None, num_draws=None, top_k=5),
}
CAPTURE = sampling.Capture(kind="entropy", rate=0.08)


def make_rows():
  """Five rows: packed, padded, with their own weights and positions."""
  rng = np.random.default_rng(0)
  segments_BL = np.sort(rng.integers(1, 4, (5, L)))
  segments_BL[1, -5:] = 0
  weights_BL = np.ones((5, L), np.float32)
  weights_BL[3, ::3] = 0.5
  rows = rows_lib.Rows(
    tokens_BL=rng.integers(0, V, (5, L), dtype=np.int32),
    segments_BL=segments_BL.astype(np.int32),
    positions_BL=rows_lib.default_positions(segments_BL),
    weights_BL=weights_BL * (segments_BL > 0),
  )
  rows.positions_BL[2] += 100  # A row that begins in the middle of a document.
  return rows


@pytest.fixture(scope="module", params=KINDS)
def cache(request, tmp_path_factory):
  rows = make_rows()
  manifest = cache_format.Manifest(
    **dict(kind=request.param, **KINDS[request.param], temperature=1.0),
    **dict(num_replicas=M, capture=CAPTURE.kind, capture_rate=CAPTURE.rate),
    **dict(seed=7, sequence_length=L, vocabulary_size=V, rows_per_object=5),
    **dict(num_rows=R),  # The last one is never written.
    **dict(gram_positions=GRAM, gram_depths=(0.5, 1.0)),
    **dict(teacher_digest="t", teacher_dtype="float32", tokenizer_digest="t"),
    **dict(pipeline="a:b", pipeline_fingerprint="f", software={}),
  )
  rng = np.random.default_rng(1)
  logits_BLV = rng.normal(size=(5, L, V)).astype(np.float32)
  likely_BLN = rng.integers(0, V, (5, L, 30))
  peaks_BLN = rng.normal(size=likely_BLN.shape) * 3 + 9
  np.put_along_axis(logits_BLV, likely_BLN, peaks_BLN, axis=-1)
  logits_BLV[0, 0, 5:7] = 200, 199.5  # No tail is left beside these.
  draw = functools.partial(
    sampling.draw,
    sampler=manifest.sampler,
    capture=CAPTURE,
    num_replicas=M,
    temperature=1.0,
  )
  keys_B2 = sampling.row_keys(rows_lib.rows_digests(rows), 7)
  records = jax.jit(draw)(logits_BLV, rows.tokens_BL, keys_B2, 0)
  folder = tmp_path_factory.mktemp("doc") / "cache"
  made = logit_cache.create(folder, manifest, lambda: ORDER)
  codes_BZP = rng.integers(-127, 128, (5, 2, GRAM * (GRAM - 1) // 2), np.int8)
  records = jax.device_get(records)._replace(gram_BZP=codes_BZP)
  made.write(0, rows, records)
  return made


@pytest.fixture
def read_row(of_page):
  return of_page.read_row


@pytest.fixture
def of_page():
  text = PAGE.read_text("utf-8")
  [source] = re.findall(r"^```python file=.*?\n(.*?)^```$", text, re.M | re.S)
  module = types.ModuleType("read_cache")
  exec(compile(source, PAGE.name, "exec"), module.__dict__)
  return module


def folder_of(cache):
  return Path(cache.location.url.removeprefix("file://"))


@pytest.mark.parametrize("replica", range(M))
def test_the_reader_of_the_page_reads_what_ours_reads(cache, read_row, replica):
  entries = cache.read(range(5), replica)
  lengths = set()
  for row in range(5):
    tokens, segments, positions, capture_weights, records = read_row(
      folder_of(cache), row, replica
    )
    np.testing.assert_array_equal(tokens, entries.rows.tokens_BL[row])
    np.testing.assert_array_equal(segments, entries.rows.segments_BL[row])
    np.testing.assert_array_equal(positions, entries.rows.positions_BL[row])
    np.testing.assert_allclose(
      capture_weights, entries.capture_weights_BL[row], rtol=1e-6
    )
    assert len(records) == L
    for i, (ids, weights) in enumerate(records):
      number = entries.num_BL[row, i]
      lengths.add(number)
      assert len(ids) == len(weights) == number
      assert (number > 0) == (capture_weights[i] > 0)
      np.testing.assert_array_equal(ids, entries.ids_BLK[row, i, :number])
      np.testing.assert_allclose(
        weights, entries.p_BLK[row, i, :number], rtol=1e-5, atol=1e-7
      )
      if cache.manifest.kind != "topk" and number:
        np.testing.assert_allclose(sum(weights), 1, rtol=1e-12)
  # Positions without a record, and records that are not all of one length.
  assert 0 in lengths and len(lengths) > (
    1 if entries.log_tail_BL is None else 0
  )
  assert (entries.rows.positions_BL[2] >= 100).all()
  with pytest.raises(AssertionError, match="row 5 is not committed"):
    read_row(folder_of(cache), 5, replica)


def test_the_page_says_which_positions_a_gram_is_of(cache, of_page):
  found = cache.read(range(5)).gram
  for row in range(5):
    positions, cosines = of_page.read_gram(folder_of(cache), row)
    is_drawn = found.weights_BM[row] > 0
    np.testing.assert_array_equal(positions, found.positions_BM[row, is_drawn])
    codes = found.codes_BZP[row]
    np.testing.assert_allclose(cosines, codes / 127, rtol=1e-12)
  assert len(of_page.read_gram(folder_of(cache), 1)[0]) == L - 5 < GRAM


def test_the_reader_of_the_page_refuses_damage(cache, read_row, tmp_path):
  copy = tmp_path / "copy"
  shutil.copytree(folder_of(cache), copy)
  refused = []
  for path in sorted(copy.glob("*/c")):
    moved = path.rename(tmp_path / "moved")  # Zarr reads the fill value then.
    try:
      read_row(copy, 3)
    except AssertionError as error:
      assert re.search("damaged|another id order|not committed", str(error))
      refused.append(path.parent.name)
    moved.rename(path)
  read_row(copy, 3)
  same = {"position_offsets"}  # All zeros in this row.
  if cache.manifest.kind != "threshold":
    same.add("num_tail")
  assert {*refused} == {*cache._arrays, "id_order"} - same


def test_a_swapped_replica_is_refused_by_the_reader_of_the_page(
  cache, read_row, tmp_path
):
  copy = tmp_path / "copy"
  shutil.copytree(folder_of(cache), copy)
  stored = cache.read_stored(np.arange(5))
  digests = stored["record_digest"]
  swapped = stored | {"record_digest": digests[:, ::-1]}
  logit_cache.open_cache(copy).write_stored(0, swapped)
  if cache.manifest.kind == "topk":  # All replicas are the same.
    read_row(copy, 1)
    return
  with pytest.raises(AssertionError, match="said of row 1 is damaged"):
    read_row(copy, 1)


def test_zarr_python_opens_every_array(cache):
  group = zarr.open_group(folder_of(cache), mode="r")
  stored = cache.read_stored(np.arange(5))
  found = {name: np.asarray(array[:]) for name, array in group.arrays()}
  np.testing.assert_array_equal(found.pop("id_order"), ORDER)
  assert found.keys() == stored.keys()
  for name, array in stored.items():
    np.testing.assert_array_equal(found[name][:5], array, err_msg=name)
    assert found[name].dtype == array.dtype, name


def table_of(heading):
  """The rows of the first table below a heading, as cells."""
  text = PAGE.read_text("utf-8").split(f" {heading}\n")[1]
  table = re.search(r"^\|.*?\n\n", text, re.M | re.S)[0]
  lines = [x for x in table.splitlines() if x.startswith("| `")]
  return [[c.strip(" `") for c in line.split("|")[1:-1]] for line in lines]


def test_arrays_are_those_of_the_page(cache):
  kind = cache.manifest.kind
  # By hand: floor(1 / 0.09) + 1 = 12, with room for one tail.
  K, H = dict(threshold=(12, 11), random=(9, 9), topk=(5, 5))[kind]
  sizes = {"R": R, "M": M, "L": L, "V": V, "16": 16, "32": 32}
  X = min(3 * K, K + 4 * (V // 32_640))
  sizes["Z P"] = 2 * GRAM * (GRAM - 1) // 2
  sizes |= {"L K": L * K, "L X": L * X, "L H": L * H}
  expected = {}
  for name, dtype, shape, fill, holds in table_of("Layout"):
    if "`topk` alone" in holds and kind != "topk":
      continue
    if "not in `topk" in holds and kind == "topk":
      continue
    # Two dtypes: V > 65,536, and K <= 255.
    dtype = dtype.split(" or ")[name == "tokens"] if "or" in dtype else dtype
    dims = [sizes[d] for d in shape.strip("[]").split(", ")]
    expected[name] = [dtype, dims, float(fill)]
  found = {}
  for path in folder_of(cache).glob("*/zarr.json"):
    array = json.loads(path.read_text())
    name, shape = path.parent.name, array["shape"]
    found[name] = [array["data_type"], shape, array["fill_value"]]
    grid = array["chunk_grid"]["configuration"]["chunk_shape"]
    if name == "id_order":
      assert grid == [V]
      codecs = [c["name"] for c in array["codecs"]]
      assert codecs == ["bytes", "zstd", "crc32c"]
      continue
    [sharding] = array["codecs"]
    inner = sharding["configuration"]
    assert grid == [5, *shape[1:]]
    assert inner["chunk_shape"] == [1] * (len(shape) - 1) + shape[-1:]
    codecs = [c["name"] for c in inner["codecs"]]
    is_byte = array["data_type"] in ("uint8", "int8")
    compressor = "zstd" if is_byte else "blosc"
    assert codecs == ["bytes", compressor, "crc32c"]
    settings = inner["codecs"][1]["configuration"]
    level = settings["level" if compressor == "zstd" else "clevel"]
    assert level == 5 and settings.get("cname", "zstd") == "zstd"
    assert settings.get("shuffle", "shuffle") == "shuffle"
    assert inner.get("index_location", "end") == "end"  # The default.
    assert [c["name"] for c in inner["index_codecs"]] == ["bytes", "crc32c"]
    assert (path.parent / "/".join("c" + "0" * len(shape))).is_file(), name
  assert found == expected


def test_attributes_are_those_of_the_page(cache):
  group = json.loads((folder_of(cache) / "zarr.json").read_text())
  attributes = group["attributes"]
  assert {name for name, _ in table_of("Attributes")} == set(attributes)
  assert attributes["format_version"] == 3
  order = hashlib.sha256(ORDER.astype("<u4").tobytes()).hexdigest()
  assert attributes["id_order_digest"] == order
  own = [k for k in ("tau", "num_draws", "top_k") if attributes[k] is not None]
  wanted = dict(threshold="tau", random="num_draws", topk="top_k")
  assert own == [wanted[cache.manifest.kind]]


def test_levels_are_those_of_the_page(cache):
  attributes, code = cache.manifest.to_attributes(), np.arange(256)
  for name, by_hand in (
    ("entropy_levels", (code / 64) ** 2),
    ("label_logprob_levels", -((code / 32) ** 2)),
  ):
    np.testing.assert_allclose(attributes[name], by_hand, rtol=1e-12)
  levels = np.array(attributes["value_levels"])
  assert levels.shape == (256,)
  if cache.manifest.kind == "random":
    np.testing.assert_allclose(levels[:10], np.arange(10) / 9, rtol=1e-12)
  elif cache.manifest.kind == "topk":
    assert not levels.any()
  else:
    assert not levels[:2].any()
    n = np.count_nonzero(levels)
    tau = KINDS["threshold"]["tau"]
    by_hand = [tau ** (1 - (c - 2) / (n - 1)) for c in range(2, n + 2)]
    np.testing.assert_allclose(levels[2 : n + 2], by_hand, rtol=1e-12)


def test_all_lengths_of_a_gap_are_there(cache):
  """Otherwise few lines of the page's reader would be tested."""
  stored = cache.read_stored(np.arange(5))
  first = np.concatenate(
    [
      part[:count]
      for m in range(M)
      for part, count in zip(
        stored["id_first"][:, m],
        record_codec.used(
          {n: stored[n][:, m] for n in cache.manifest.layout.arrays()}
        )["id_first"],
        strict=True,
      )
    ]
  )
  for low, high in ((0, 127), (128, 254), (255, 255)):
    assert ((first >= low) & (first <= high)).any(), (low, high)
  # The example of the page about where entries lie, on the first row.
  [numbers] = stored["num_head"][:1, 0] + stored["num_tail"][:1, 0]
  assert not stored["id_first"][0, 0, numbers.sum() :].any()


def test_bytes_of_gaps_are_those_of_the_page():
  rows = {cells[0]: cells[1:] for cells in gap_table()}
  assert rows["0 to 127"][1:] == ["b", "0 to 127"]
  for first, rest, gap in (
    (127, [], 127),
    (128, [0], 128),
    (254, [255], 32_639),
    (255, [0x80, 0x7F, 0], 32_640),
  ):
    found = record_codec._gaps(np.uint8([first]), np.uint8(rest))
    assert found.tolist() == [gap]
  assert rows["128 to 254"][2] == "128 to 32,639"
  assert rows["255"][2] == "from 32,640"


def gap_table():
  text = PAGE.read_text("utf-8").split("| b | bytes in")[1].split("\n\n")[0]
  return [
    [c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()[2:]
  ]
