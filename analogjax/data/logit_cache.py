"""The logit cache: the teacher's distribution over rows, on disk.

A Zarr v3 group, written and read through TensorStore, that any Zarr reader
opens; docs/cache_format.md describes it. Rows are addressed by index. A row is
committed when its digest is there, which is written last, so a cache may be
killed at any moment and filled up later by any number of processes.

Shape letters (docs/glossary.md): R rows of the cache, B rows of a batch, L
position, K slots of a record.
"""

from collections.abc import Sequence
import dataclasses
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts

from analogjax.data import rows as rows_lib, sampling

FORMAT = "analogjax.logit_cache"
FORMAT_VERSION = 1

# What has to agree before rows of one cache can stand beside each other.
_IDENTITY = (
  "kind",
  "tau",
  "seed",
  "sequence_length",
  "vocabulary_size",
  "teacher_digest",
  "teacher_dtype",
  "tokenizer_digest",
  "pipeline",
  "pipeline_fingerprint",
  "rows_per_object",
)

# Chunks of these that hold nothing but the fill value are not stored: weights
# and positions cost no byte where the pipeline leaves them at their default,
# and rows without a digest are the holes.
_MAY_BE_ABSENT = ("position_offsets", "weights", "digest")


class CacheError(ValueError):
  """A cache that cannot be used, or not be used like this."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
  """The truth about a cache; attributes of its Zarr group."""

  kind: str  # "threshold".
  tau: float
  seed: int  # Of the sampling offsets.
  num_rows: int
  sequence_length: int  # L, tokens.
  vocabulary_size: int  # V of teacher and tokenizer.
  rows_per_object: int  # Rows in one stored object: the unit of a commit.
  teacher_digest: str  # hf_folder.folder_digest of the teacher.
  teacher_dtype: str  # Its compute dtype.
  tokenizer_digest: str  # SHA-256 of its tokenizer.json.
  pipeline: str  # config.data.pipeline.
  pipeline_fingerprint: str  # RowSource.fingerprint.
  software: dict[str, str]  # Versions that wrote it; recorded, not compared.

  @property
  def sampler(self) -> sampling.Threshold:
    return sampling.Threshold(tau=self.tau)

  def to_attributes(self) -> dict[str, Any]:
    fields = dataclasses.asdict(self)
    return {
      "format": FORMAT,
      "format_version": FORMAT_VERSION,
      "temperature": 1.0,
      # Record i of a row is the distribution of token i + 1.
      "predicts_offset": 1,
      "head_levels": sampling.head_levels(self.tau).tolist(),
      **fields,
    }


class Entries(NamedTuple):
  """Rows of the cache with the teacher's records, decoded, on the host."""

  rows: rows_lib.Rows
  ids_BLK: np.ndarray  # int32.
  p_BLK: np.ndarray  # float32; each position sums to one.
  entropy_BL: np.ndarray  # float32, of the teacher, nats.


class LogitCache:
  """An open cache; make one with `create` or `open_cache`."""

  def __init__(self, location: str, manifest: Manifest, arrays: dict[str, Any]):
    self.location = location
    self.manifest = manifest
    self._arrays = arrays

  def committed(self) -> np.ndarray:
    """Which rows are there, bool [R]."""
    digests = self._read("digest", slice(0, self.manifest.num_rows))
    return np.any(digests, axis=-1)

  def digests(self, indices: Sequence[int]) -> np.ndarray:
    """Digests of the rows, uint8 [B, 32]; zeros where not committed."""
    return self._read("digest", np.asarray(indices))

  def holes(self) -> list[range]:
    """The objects that still have to be written, as ranges of rows."""
    done = self.committed()
    size = self.manifest.rows_per_object
    starts = range(0, self.manifest.num_rows, size)
    objects = [range(i, min(i + size, len(done))) for i in starts]
    return [o for o in objects if not done[o.start : o.stop].all()]

  def write(
    self, start: int, rows: rows_lib.Rows, records: sampling.Records
  ) -> None:
    """Writes one whole object and commits its rows.

    Args:
      start: index of the first row, a multiple of rows_per_object.
      rows: of the object.
      records: of the same rows, on the host.

    Raises:
      CacheError: the disk or the object store refused (it is full, say).
    """
    m = self.manifest
    assert start % m.rows_per_object == 0, start
    part = slice(start, start + len(rows.tokens_BL))
    offsets_BL = rows.positions_BL - default_positions(rows.segments_BL)
    values = {
      "tokens": rows.tokens_BL,
      "segments": rows.segments_BL,
      "position_offsets": offsets_BL,
      "weights": np.where(rows.segments_BL > 0, rows.weights_BL, 1),
      "ids": records.ids_BLK,
      "codes": records.codes_BLK,
      "entropy": records.entropy_BL,
      "label_logprob": records.label_logprob_BL,
    }
    try:
      writes = []
      for name, value in values.items():
        array = self._arrays[name]
        dtype = array.dtype.numpy_dtype
        writes.append(array[part].write(np.asarray(value).astype(dtype)))
      for write in writes:
        write.result()
      # The commit: readers look at the digest first.
      digests_B32 = rows_lib.rows_digests(rows)
      self._arrays["digest"][part].write(digests_B32).result()
    except (ValueError, OSError) as error:
      raise CacheError(
        f"{self.location}: writing rows {part.start} to {part.stop - 1} of"
        f" the logit cache failed: {_reason(error)}. The rows before are"
        " safe; free some space (or mend the store) and run again, it goes"
        " on where it was."
      ) from error

  def read(self, indices: Sequence[int] | np.ndarray) -> Entries:
    """The rows and what the teacher says about them.

    Raises:
      CacheError: a row that is not committed, or whose bytes do not match
        their checksum or digest; names the row.
    """
    index = np.asarray(indices)
    fields = {name: self._start_read(name, index) for name in self._arrays}
    digests = self._finish("digest", fields["digest"], index)
    for row, there in zip(index, np.any(digests, -1), strict=True):
      if not there:
        raise CacheError(
          f"{self.location}: row {row} is not committed. Run 'analogjax cache'"
          " to fill the holes."
        )
    got = {name: self._finish(name, f, index) for name, f in fields.items()}
    segments_BL = got["segments"].astype(np.int32)
    weights_BL = np.where(segments_BL > 0, got["weights"], 0)
    rows = rows_lib.Rows(
      tokens_BL=got["tokens"].astype(np.int32),
      segments_BL=segments_BL,
      positions_BL=got["position_offsets"] + default_positions(segments_BL),
      weights_BL=weights_BL.astype(np.float32),
    )
    found = rows_lib.rows_digests(rows)
    for row, wrong in zip(index, (found != digests).any(-1), strict=True):
      if wrong:
        raise CacheError(
          f"{self.location}: the tokens, segments or positions of row {row} do"
          f" not match its digest.{self._advice(row)}"
        )
    return Entries(
      rows=rows,
      ids_BLK=got["ids"].astype(np.int32),
      p_BLK=sampling.decode(got["codes"], self.manifest.tau),
      entropy_BL=got["entropy"].astype(np.float32),
    )

  def resized(self, num_rows: int) -> "LogitCache":
    """The same cache with room for, or cut to, this many rows."""
    manifest = dataclasses.replace(self.manifest, num_rows=num_rows)
    # Killed in between, the manifest must not name rows that no array has.
    if num_rows < self.manifest.num_rows:
      _write_group(self.location, manifest)
    for array in self._arrays.values():
      rest = [None] * (array.ndim - 1)
      array.resize(exclusive_max=[num_rows, *rest]).result()
    _write_group(self.location, manifest)
    return open_cache(self.location)

  def bytes_by_array(self) -> dict[str, int]:
    """Bytes on a local disk, everything counted, by array."""
    return {name: self._bytes_below(name) for name in self._arrays}

  def object_bytes(self, start: int) -> int:
    """Bytes on a local disk of the object that begins at row `start`."""
    i = start // self.manifest.rows_per_object
    return sum(self._bytes_below(f"{name}/c/{i}") for name in self._arrays)

  def _bytes_below(self, path: str) -> int:
    folder = Path(self.location.removeprefix("file://"), path)
    files = (file for file in folder.rglob("*") if file.is_file())
    return sum(file.stat().st_size for file in files)

  def _read(self, name, index):
    return self._finish(name, self._start_read(name, index), index)

  def _start_read(self, name, index):
    return self._arrays[name][index].read()

  def _finish(self, name, future, index):
    try:
      return np.asarray(future.result())
    except (ValueError, OSError) as error:
      row = self._first_unreadable(name, index)
      raise CacheError(
        f"{self.location}: array {name!r} cannot be read at row {row}:"
        f" {_reason(error)}.{self._advice(row)}"
      ) from error

  def _first_unreadable(self, name, index) -> int:
    rows = np.arange(self.manifest.num_rows)[index]
    for row in rows:
      try:
        self._arrays[name][int(row)].read().result()
      except (ValueError, OSError):
        return int(row)
    return int(rows[0])  # The store has recovered since.

  def _advice(self, row: int) -> str:
    stored = f"digest/c/{row // self.manifest.rows_per_object}/0"
    return (
      f" To write the rows of this object again, delete {stored} in the cache"
      " and run 'analogjax cache'."
    )


def default_positions(segments_BL: np.ndarray) -> np.ndarray:
  """Positions that count from 0 within each run of one segment, int32."""
  B, L = segments_BL.shape
  index_BL = np.broadcast_to(np.arange(L), (B, L))
  starts_BL = np.ones((B, L), bool)
  starts_BL[:, 1:] = segments_BL[:, 1:] != segments_BL[:, :-1]
  begin_BL = np.maximum.accumulate(np.where(starts_BL, index_BL, 0), axis=1)
  return np.where(segments_BL > 0, index_BL - begin_BL, 0).astype(np.int32)


def create(location: str | Path, manifest: Manifest) -> LogitCache:
  """A cache at this place: a new one, or the one that is there, checked.

  An existing cache must agree with `manifest` in all that its rows depend on;
  where it has fewer rows, it grows.

  Raises:
    CacheError: what is there disagrees (names both values) or is unreadable.
  """
  url = _url(location)
  if read_manifest(url) is None:
    try:
      for name, spec in _specs(manifest).items():
        _open(url, name, spec, create=True)
      # Last: a group without it is not a cache yet.
      _write_group(url, manifest)
    except (ValueError, OSError) as error:
      raise CacheError(
        f"{url}: the logit cache cannot be created: {_reason(error)}."
      ) from error
  cache = open_cache(url)
  check_manifest(cache, manifest)
  if cache.manifest.num_rows < manifest.num_rows:
    cache = cache.resized(manifest.num_rows)
  return cache


def check_manifest(cache: LogitCache, wanted: Manifest) -> None:
  """Refuses a cache that was made of something else; names both values."""
  for field in _IDENTITY:
    found, expected = getattr(cache.manifest, field), getattr(wanted, field)
    if found != expected:
      raise CacheError(
        f"{cache.location}: the logit cache was written with"
        f" {field}={found!r}, this run has {expected!r}. Use another"
        " --workdir, or move that cache away."
      )


def open_cache(location: str | Path) -> LogitCache:
  """Opens what `create` made.

  Raises:
    CacheError: nothing there, not a logit cache, or a newer format.
  """
  url = _url(location)
  manifest = read_manifest(url)
  if manifest is None:
    raise CacheError(
      f"{url}: there is no logit cache here; run 'analogjax cache' first."
    )
  arrays = {name: _open(url, name, {}) for name in _specs(manifest)}
  return LogitCache(url, manifest, arrays)


def read_manifest(location: str | Path) -> Manifest | None:
  """The manifest of a cache, or None where there is no cache."""
  url = _url(location)
  store = ts.KvStore.open(_kvstore(url)).result()
  found = store.read("zarr.json").result()
  if found.state == "missing":
    return None
  try:
    attributes = json.loads(found.value).get("attributes", {})
  except ValueError as error:
    raise CacheError(f"{url}/zarr.json: not JSON: {error}.") from error
  if attributes.get("format") != FORMAT:
    raise CacheError(f"{url}: a Zarr group, but not an analogjax logit cache.")
  version = attributes.get("format_version")
  if version != FORMAT_VERSION:
    raise CacheError(
      f"{url}: logit cache of format version {version}, this analogjax reads"
      f" version {FORMAT_VERSION}."
    )
  names = [field.name for field in dataclasses.fields(Manifest)]
  if missing := sorted(set(names) - set(attributes)):
    raise CacheError(
      f"{url}/zarr.json: the manifest has no {', '.join(missing)}; it is"
      " damaged."
    )
  return Manifest(**{name: attributes[name] for name in names})


def _specs(m: Manifest) -> dict[str, dict[str, Any]]:
  R, L, K = m.num_rows, m.sequence_length, m.sampler.num_slots
  token = "uint16" if m.vocabulary_size <= 2**16 else "uint32"
  return {
    "tokens": _spec(m, [R, L], token, 0),
    "segments": _spec(m, [R, L], "int32", 0),
    "position_offsets": _spec(m, [R, L], "int32", 0),
    "weights": _spec(m, [R, L], "float32", 1),
    "ids": _spec(m, [R, L, K], token, 0),
    "codes": _spec(m, [R, L, K], "uint8", 0),
    "entropy": _spec(m, [R, L], "float16", 0),
    "label_logprob": _spec(m, [R, L], "float16", 0),
    "digest": _spec(m, [R, rows_lib.DIGEST_BYTES], "uint8", 0),
  }


def _spec(m: Manifest, shape, dtype: str, fill: int) -> dict[str, Any]:
  endian = {"name": "bytes", "configuration": {"endian": "little"}}
  size = np.dtype(dtype).itemsize
  blosc = {
    "cname": "zstd",
    "clevel": 5,
    "shuffle": "shuffle" if size > 1 else "noshuffle",
    "typesize": size,
  }
  inner = [
    endian if size > 1 else {"name": "bytes"},
    {"name": "blosc", "configuration": blosc},
    {"name": "crc32c"},
  ]
  row = [1, *shape[1:]]  # One row is one read.
  sharded = {
    "chunk_shape": row,
    "codecs": inner,
    "index_codecs": [endian, {"name": "crc32c"}],
    "index_location": "end",
  }
  return {
    "metadata": {
      "shape": shape,
      "data_type": dtype,
      "fill_value": fill,
      "chunk_grid": {
        "name": "regular",
        "configuration": {"chunk_shape": [m.rows_per_object, *shape[1:]]},
      },
      "codecs": [{"name": "sharding_indexed", "configuration": sharded}],
    }
  }


def _open(url: str, name: str, spec: dict[str, Any], *, create: bool = False):
  spec = {"driver": "zarr3", "kvstore": _kvstore(url, name), **spec}
  if name not in _MAY_BE_ABSENT:
    # Else a lost object would read as zeros: a teacher that says token 0.
    spec["fill_missing_data_reads"] = False
    spec["store_data_equal_to_fill_value"] = True
  try:
    # A creation that was killed leaves some arrays behind; they are the same.
    return ts.open(spec, open=True, create=create).result()
  except (ValueError, OSError) as error:
    raise CacheError(
      f"{url}: array {name!r} of the logit cache cannot be opened:"
      f" {_reason(error)}."
    ) from error


def _write_group(url: str, manifest: Manifest) -> None:
  group = {
    "zarr_format": 3,
    "node_type": "group",
    "attributes": manifest.to_attributes(),
  }
  store = ts.KvStore.open(_kvstore(url)).result()
  store.write("zarr.json", json.dumps(group, indent=1).encode()).result()


def _url(location: str | Path) -> str:
  text = str(location)
  return text if "://" in text else f"file://{os.path.abspath(text)}"


def _kvstore(url: str, name: str = "") -> str | dict[str, str]:
  path = f"{url}/{name}/" if name else f"{url}/"
  if not path.startswith("file://"):
    return path
  # As a URL, a folder named "100%" or "a#b" would be refused or misread.
  return {"driver": "file", "path": path.removeprefix("file://")}


def _reason(error: BaseException) -> str:
  # TensorStore appends the spec as JSON; a person needs the first part alone.
  return str(error).split(" [tensorstore_spec", 1)[0].rstrip(".")
