"""docs/cache_format.md describes what analogjax/data/logit_cache.py writes.

Its reader, which knows nothing but zarr, reads what ours reads.
"""

import json
from pathlib import Path
import re
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analogjax.data import logit_cache, rows as rows_lib, sampling

PAGE = Path(__file__).parents[1] / "docs" / "cache_format.md"

V, L, TAU = 300, 24, 0.09


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  """Five rows: packed, padded, with weights and positions of their own."""
  rng = np.random.default_rng(0)
  segments_BL = np.sort(rng.integers(1, 4, (5, L)))
  segments_BL[1, -5:] = 0
  weights_BL = np.ones((5, L), np.float32)
  weights_BL[3, ::3] = 0.5
  rows = rows_lib.Rows(
    tokens_BL=rng.integers(0, V, (5, L), dtype=np.int32),
    segments_BL=segments_BL.astype(np.int32),
    positions_BL=logit_cache.default_positions(segments_BL),
    weights_BL=weights_BL * (segments_BL > 0),
  )
  rows.positions_BL[2] += 100  # A row that goes on in the middle.
  manifest = logit_cache.Manifest(
    kind="threshold",
    tau=TAU,
    seed=7,
    num_rows=6,  # The last one is never written.
    sequence_length=L,
    vocabulary_size=V,
    rows_per_object=5,
    teacher_digest="t",
    teacher_dtype="float32",
    tokenizer_digest="t",
    pipeline="a:b",
    pipeline_fingerprint="f",
    software={},
  )
  logits_BLV = rng.normal(size=(5, L, V)) * 3
  logits_BLV[0, 0, 5:7] = 200, 199.5  # No tail is left beside these.
  records = sampling.draw(
    jnp.asarray(logits_BLV, jnp.float32),
    jnp.asarray(rows.tokens_BL),
    jnp.asarray(sampling.row_keys(rows_lib.rows_digests(rows), 7)),
    jnp.int32(0),
    sampling.Threshold(tau=TAU),
  )
  made = logit_cache.create(tmp_path_factory.mktemp("doc") / "cache", manifest)
  made.write(0, rows, sampling.Records(*jax.device_get(records)))
  return made


@pytest.fixture
def read_row():
  text = PAGE.read_text("utf-8")
  [source] = re.findall(r"^```python file=.*?\n(.*?)^```$", text, re.M | re.S)
  module = types.ModuleType("read_cache")
  exec(compile(source, PAGE.name, "exec"), module.__dict__)
  return module.read_row


def folder_of(cache):
  return cache.location.removeprefix("file://")


def test_the_reader_of_the_page_reads_what_ours_reads(cache, read_row):
  entries = cache.read(range(5))
  for row in range(5):
    tokens, segments, positions, ids, weights = read_row(folder_of(cache), row)
    np.testing.assert_array_equal(tokens, entries.rows.tokens_BL[row])
    np.testing.assert_array_equal(segments, entries.rows.segments_BL[row])
    np.testing.assert_array_equal(positions, entries.rows.positions_BL[row])
    np.testing.assert_array_equal(ids, entries.ids_BLK[row])
    np.testing.assert_allclose(weights, entries.p_BLK[row], rtol=1e-6)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-12)
  assert (entries.rows.positions_BL[2] >= 100).all()
  with pytest.raises(AssertionError, match="row 5 is not committed"):
    read_row(folder_of(cache), 5)


@pytest.mark.parametrize("array", ["segments", "ids", "codes"])
def test_the_reader_of_the_page_refuses_damage(
  cache, read_row, tmp_path, array
):
  copy = tmp_path / "copy"
  shutil.copytree(folder_of(cache), copy)
  shutil.rmtree(copy / array / "c")  # Zarr reads the fill value then.
  with pytest.raises(AssertionError, match="is damaged|has no record"):
    read_row(copy, 1)


def table_of(heading):
  """The rows of the table below a heading of cache_format.md, as cells."""
  text = PAGE.read_text("utf-8").split(f" {heading}\n")[1]
  section = re.split(r"^#+ ", text, flags=re.MULTILINE)[0]
  lines = [x for x in section.splitlines() if x.startswith("| `")]
  return [[c.strip(" `") for c in line.split("|")[1:-1]] for line in lines]


def test_arrays_are_those_of_the_page(cache):
  R, K = 6, 12  # K by hand: floor(1 / 0.09) + 1.
  found = {}
  for path in Path(folder_of(cache)).glob("*/zarr.json"):
    array = json.loads(path.read_text())
    [sharding] = array["codecs"]
    inner = sharding["configuration"]
    name, shape = path.parent.name, array["shape"]
    found[name] = [array["data_type"], shape, array["fill_value"]]
    grid = array["chunk_grid"]["configuration"]["chunk_shape"]
    assert grid == [5, *shape[1:]] and inner["chunk_shape"] == [1, *shape[1:]]
    codecs = [c["name"] for c in inner["codecs"]]
    assert codecs == ["bytes", "blosc", "crc32c"]
    assert inner.get("index_location", "end") == "end"  # The default.
    assert (path.parent / "/".join("c" + "0" * len(shape))).is_file()
  sizes = {"R": R, "L": L, "K": K, "32": 32}
  expected = {}
  for name, dtype, shape, fill, _ in table_of("Layout"):
    dtype = dtype.split(" or ")[0] if "as" not in dtype else "uint16"
    dims = [sizes[d] for d in shape.strip("[]").split(", ")]
    expected[name] = [dtype, dims, int(fill)]
  assert found == expected


def test_attributes_are_those_of_the_page(cache):
  attributes = cache.manifest.to_attributes()
  assert {name for name, _ in table_of("Attributes")} == set(attributes)


def test_codes_and_order_of_slots_are_those_of_the_page(cache):
  levels = sampling.head_levels(TAU)
  by_hand = [0, 0] + [TAU ** (1 - (c - 2) / 253) for c in range(2, 256)]
  np.testing.assert_allclose(levels, by_hand, rtol=1e-12)
  codes_BLK = np.asarray(cache._read("codes", slice(0, 5)))
  ids_BLK = np.asarray(cache._read("ids", slice(0, 5)))
  for codes_K, ids_K in zip(
    codes_BLK.reshape(-1, 12), ids_BLK.reshape(-1, 12), strict=True
  ):
    kinds = np.select([codes_K == 0, codes_K == 1], [2, 1], 0)
    assert (np.diff(kinds) >= 0).all()
    for kind in (0, 1):
      assert (np.diff(ids_K[kinds == kind].astype(int)) > 0).all()
    assert (ids_K[kinds == 2] == 0).all()
