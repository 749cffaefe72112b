"""The logit cache's manifest and arrays; docs/cache_format.md describes them.

Shape letters (docs/glossary.md): R rows of the cache, M replicas, L position,
V vocabulary.
"""

import dataclasses
from typing import Any

import numpy as np

from analogjax.cache import gram_codes, record_codec, sampling
from analogjax.data import pipeline, rows as rows_lib
from analogjax.workdir import store

FORMAT = "analogjax.logit_cache"
FORMAT_VERSION = 3
# Version 2 lacks only what version 3 adds.
_ADDED_IN_3 = {"gram_positions": 0, "gram_depths": ()}

GROUP_KEY = "zarr.json"
ID_ORDER = "id_order"
RECORD_DIGEST_BYTES = 16


class CacheError(ValueError):
  """A cache that is unusable, or unusable for this purpose."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
  """The authoritative description of a cache; attributes of its Zarr group."""

  kind: str  # "threshold", "random" or "topk"; decides which of the next three.
  tau: float | None
  num_draws: int | None
  top_k: int | None
  temperature: float  # Records are of softmax(logits / temperature).
  num_replicas: int  # M, independent draws of every record.
  capture: str  # "all", "random" or "entropy": positions with a record.
  capture_rate: float
  gram_positions: int  # Positions drawn per row for cosines; 0: none.
  gram_depths: tuple[float, ...]  # Their depths, as fractions.
  seed: int  # Of all draws.
  num_rows: int
  sequence_length: int  # L, tokens.
  vocabulary_size: int  # V of teacher and tokenizer.
  rows_per_object: int  # Rows in one stored object: the unit of a commit.
  teacher_digest: str  # hf_folder.folder_digest of the teacher.
  teacher_dtype: str  # Its compute dtype.
  tokenizer_digest: str  # SHA-256 of its tokenizer.json.
  pipeline: str  # config.data.pipeline, or what was imported.
  pipeline_fingerprint: str  # RowSource.fingerprint.
  software: dict[str, str]  # Versions of the writer; recorded, not compared.

  def __post_init__(self):
    # JSON has lists.
    object.__setattr__(self, "gram_depths", tuple(self.gram_depths))

  @property
  def sampler(self) -> sampling.Sampler:
    # A kind has only its own parameter; the others are None.
    return sampling.make_sampler(
      self.kind,
      tau=1.0 if self.tau is None else self.tau,
      num_draws=self.num_draws or 1,
      top_k=self.top_k or 1,
    )

  @property
  def layout(self) -> record_codec.Layout:
    return record_codec.Layout(
      sampler=self.sampler, L=self.sequence_length, V=self.vocabulary_size
    )

  def levels(self) -> dict[str, list[float]]:
    """The values of the 256 codes of each array of codes."""
    return {
      "value_levels": record_codec.value_levels(self.sampler).tolist(),
      "entropy_levels": record_codec.entropy_levels().tolist(),
      "label_logprob_levels": record_codec.label_logprob_levels().tolist(),
    }

  def to_attributes(self) -> dict[str, Any]:
    return {
      "format": FORMAT,
      "format_version": FORMAT_VERSION,
      # Record i of a row is the distribution of token i + 1.
      "predicts_offset": 1,
      **self.levels(),
      **dataclasses.asdict(self),
    }


# May differ between two caches whose rows can stand beside each other.
_NOT_COMPARED = ("num_rows", "software")


def check(where: store.Place, found: Manifest, wanted: Manifest) -> None:
  """Refuses a cache that was made from something else; names both values.

  Raises:
    CacheError: a field that rows depend on differs.
  """
  for field in dataclasses.fields(Manifest):
    name = field.name
    a, b = getattr(found, name), getattr(wanted, name)
    if name == "pipeline":
      a, b = map(pipeline.first_name, (a, b))
    if name not in _NOT_COMPARED and a != b:
      raise CacheError(
        f"{where}: the logit cache was written with {name}={a!r}, this run has"
        f" {b!r}. Use another --workdir, or move that cache away."
      )


def read_group(where: store.Place) -> tuple[Manifest, str] | None:
  """(manifest, digest of the id order) of a cache; None if there is no group.

  Raises:
    CacheError: something else is there, a damaged cache, or another version.
  """
  group = store.read_json(where, GROUP_KEY)
  if group is None:
    return None
  attributes = group.get("attributes", {}) if isinstance(group, dict) else {}
  if attributes.get("format") != FORMAT:
    raise CacheError(
      f"{where}: a Zarr group, but not an analogjax logit cache."
    )
  version = attributes.get("format_version")
  if version == 2:
    attributes = {**attributes, **_ADDED_IN_3}
  elif version != FORMAT_VERSION:
    raise CacheError(
      f"{where}: logit cache of format version {version}, this analogjax reads"
      f" versions 2 and {FORMAT_VERSION}. Read it with the release that wrote"
      " it, or cache again into another place."
    )
  names = [field.name for field in dataclasses.fields(Manifest)]
  missing = sorted({*names, "id_order_digest"} - set(attributes))
  if missing:
    raise CacheError(
      f"{where}/{GROUP_KEY}: the manifest has no {', '.join(missing)}; it is"
      " damaged."
    )
  manifest = Manifest(**{name: attributes[name] for name in names})
  for name, levels in manifest.levels().items():
    # Not equality: powers differ in the last bit between libraries.
    found = np.asarray(attributes.get(name, []), np.float64)
    if found.shape != (256,) or not np.allclose(found, levels, rtol=1e-12):
      raise CacheError(
        f"{where}/{GROUP_KEY}: {name} are not those of format version"
        f" {FORMAT_VERSION}, so its codes cannot be told; it is damaged, or"
        " other software wrote it."
      )
  return manifest, attributes["id_order_digest"]


def write_group(where: store.Place, manifest: Manifest, order: str) -> None:
  """Writes the group; `order` is the digest of the id order."""
  group = {
    "zarr_format": 3,
    "node_type": "group",
    "attributes": {**manifest.to_attributes(), "id_order_digest": order},
  }
  store.write_json(where, GROUP_KEY, group)


def array_specs(m: Manifest) -> dict[str, dict[str, Any]]:
  """The TensorStore specification of every array of rows, `digest` last."""
  R, M, L = m.num_rows, m.num_replicas, m.sequence_length
  token = "uint16" if m.vocabulary_size <= 2**16 else "uint32"
  specs = {
    "tokens": _spec(m, [R, L], token),
    "segments": _spec(m, [R, L], "int32"),
    "position_offsets": _spec(m, [R, L], "int32", fill=0),
    "weights": _spec(m, [R, L], "float32", fill=1),
    "inclusion": _spec(m, [R, L], "uint8", fill=255),
    "entropy": _spec(m, [R, L], "uint8"),
    "label_logprob": _spec(m, [R, L], "uint8"),
  }
  if m.gram_positions:
    size = len(m.gram_depths) * gram_codes.num_pairs(m.gram_positions)
    specs["gram"] = _spec(m, [R, size], "int8")
  for name, (size, dtype) in m.layout.arrays().items():
    specs[name] = _spec(m, [R, M, size], dtype)
  specs["record_digest"] = _spec(m, [R, M, RECORD_DIGEST_BYTES], "uint8")
  # Rows without a digest are the holes.
  specs["digest"] = _spec(m, [R, rows_lib.DIGEST_BYTES], "uint8", fill=0)
  return specs


def id_order_spec(V: int) -> dict[str, Any]:
  """The specification of the array of all ids, the likeliest first."""
  codecs = [_bytes("uint32"), {"name": "zstd"}, {"name": "crc32c"}]
  return {
    "metadata": {
      "shape": [V],
      "data_type": "uint32",
      "fill_value": 0,
      "chunk_grid": {
        "name": "regular",
        "configuration": {"chunk_shape": [V]},
      },
      "codecs": codecs,
    },
    "fill_missing_data_reads": False,
    "store_data_equal_to_fill_value": True,
  }


def _spec(
  m: Manifest, shape: list[int], dtype: str, *, fill: int | None = None
) -> dict[str, Any]:
  """An array of rows; one without a fill value is written in full."""
  inner = [1] * (len(shape) - 1) + shape[-1:]  # One row is one read.
  sharded = {
    "chunk_shape": inner,
    "codecs": [_bytes(dtype), _compressor(dtype), {"name": "crc32c"}],
    "index_codecs": [_bytes("uint64"), {"name": "crc32c"}],
    "index_location": "end",
  }
  spec: dict[str, Any] = {
    "metadata": {
      "shape": shape,
      "data_type": dtype,
      "fill_value": fill or 0,
      "chunk_grid": {
        "name": "regular",
        "configuration": {"chunk_shape": [m.rows_per_object, *shape[1:]]},
      },
      "codecs": [{"name": "sharding_indexed", "configuration": sharded}],
    }
  }
  if fill is None:
    # Otherwise a lost object would read as zeros: a teacher that predicts token
    # 0.
    spec["fill_missing_data_reads"] = False
    spec["store_data_equal_to_fill_value"] = True
  return spec


def _bytes(dtype: str) -> dict[str, Any]:
  if dtype.endswith("int8"):
    return {"name": "bytes"}
  return {"name": "bytes", "configuration": {"endian": "little"}}


def _compressor(dtype: str) -> dict[str, Any]:
  if dtype.endswith("int8"):
    return {"name": "zstd", "configuration": {"level": 5}}
  size = 2 if dtype.endswith("16") else 4
  blosc = {
    "cname": "zstd",
    "clevel": 5,
    "shuffle": "shuffle",
    "typesize": size,
    "blocksize": 0,
  }
  return {"name": "blosc", "configuration": blosc}
