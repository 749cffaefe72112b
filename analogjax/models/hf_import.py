"""Reads Hugging Face folders: config, and weights straight to the devices.

Weights are read tensor by tensor, and within a tensor shard by shard.
hf_export.py writes them.
"""

from collections.abc import Mapping
import concurrent.futures
import functools
import hashlib
import math
from pathlib import Path
from typing import Any

from flax import nnx
import jax
import ml_dtypes  # noqa: F401  Teaches numpy, so safetensors, bfloat16.
import numpy as np
import safetensors
import safetensors.numpy

from analogjax.distributed import processes, sharding
from analogjax.models import decoder, families
from analogjax.workdir import files

INDEX = "model.safetensors.index.json"

_ROWS_AT_A_TIME = 4096

# Buffers that some exporters store and that hold no parameter.
_NOT_PARAMETERS = ("rotary_emb.inv_freq",)


def read_config(folder: Path, *, dtype: str = "float32"):
  """The DecoderConfig of a folder; ValueError names file and field."""
  if not folder.is_dir():
    raise ValueError(
      f"{folder}: expected a Hugging Face folder (config.json, safetensors),"
      " found no such folder."
    )
  path = folder / "config.json"
  return families.from_hf_config(
    files.read_json(path), dtype=dtype, where=str(path)
  )


def folder_digest(folder: Path) -> str:
  """SHA-256 over config.json and every safetensors file, hexadecimal.

  The digest is that of the sorted lines `<sha256>  <name>`, the format of
  sha256sum, so anyone can recompute it with standard tools. All processes call
  it, and each reads its share of the files.

  Raises:
    ValueError: a file is missing, or processes see different files.
  """
  names = processes.all_or_none(
    lambda: ["config.json", *sorted(p.name for p in _weight_files(folder))]
  )
  # Otherwise they would exchange digests of different files.
  seen = processes.all_gather(_words(hashlib.sha256("\n".join(names).encode())))
  if (seen != seen[0]).any():
    raise ValueError(
      f"{folder}: the processes do not see the same files there; it has to be a"
      " folder that all of them share, or a copy of the same on each host."
    )
  mine = range(jax.process_index(), len(names), jax.process_count())
  words = np.zeros((len(names), 4), np.int64)

  def read_mine() -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
      found = pool.map(lambda i: files.hash_file(folder / names[i]), mine)
      for i, digest in zip(mine, found, strict=True):
        words[i] = _words(digest)

  processes.all_or_none(read_mine)
  everything = processes.all_gather(words.ravel()).sum(0).reshape(words.shape)
  lines = [
    f"{digest.tobytes().hex()}  {name}\n"
    for digest, name in zip(everything, names, strict=True)
  ]
  return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _words(digest) -> np.ndarray:
  """A SHA-256 as int64 [4], for `processes.all_gather`."""
  return np.frombuffer(digest.digest(), np.int64)


def _weight_files(folder: Path) -> list[Path]:
  if (folder / INDEX).exists():
    weight_map = files.read_json(folder / INDEX).get("weight_map", {})
    return [folder / name for name in sorted(set(weight_map.values()))]
  return [folder / "model.safetensors"]


class _Tensors:
  """All tensors of a folder by name, opened once, read by slices."""

  def __init__(self, folder: Path):
    self.folder = folder
    self._slices: dict[str, Any] = {}
    for path in _weight_files(folder):
      if not path.exists():
        wanted = (
          "weights" if path.stem == "model" else f"a file that {INDEX} names"
        )
        raise ValueError(
          f"{path}: the file is missing; expected {wanted}, in safetensors"
          " format."
        )
      try:
        file = safetensors.safe_open(path, framework="numpy")
        for name in file.keys():  # noqa: SIM118
          self._slices[name] = file.get_slice(name)
      except safetensors.SafetensorError as error:
        raise ValueError(
          f"{path}: not a whole safetensors file ({error}); it holds"
          f" {path.stat().st_size} bytes. Fetch or write it again."
        ) from None

  def names(self) -> set[str]:
    return {n for n in self._slices if not n.endswith(_NOT_PARAMETERS)}

  def check(self, name: str, shape: tuple[int, ...]) -> None:
    if name not in self._slices:
      raise ValueError(
        f"{self.folder}: tensor {name!r} is missing from its safetensors"
        " files; config.json asks for it."
      )
    found = tuple(self._slices[name].get_shape())
    if found != shape:
      raise ValueError(
        f"{self.folder}: tensor {name!r} has shape {list(found)}; config.json"
        f" asks for {list(shape)}."
      )

  def check_equal(self, name: str, other: str) -> None:
    """Refuses a stored head that differs from the embedding it is tied to.

    transformers would leave the two untied, as if the config said so.
    """
    shape = tuple(self._slices[name].get_shape())
    self.check(other, shape)
    for start in range(0, shape[0], _ROWS_AT_A_TIME):
      rows = (slice(start, min(start + _ROWS_AT_A_TIME, shape[0])),)
      if not np.array_equal(self.read(name, rows), self.read(other, rows)):
        raise ValueError(
          f"{self.folder}: config.json ties {other!r} to {name!r}, but the two"
          " tensors differ; set tie_word_embeddings to false there."
        )

  def read(self, name: str, slices: tuple[slice, ...]) -> np.ndarray:
    return self._slices[name][slices]


def parameter_shapes(cfg: decoder.DecoderConfig) -> dict[str, Any]:
  """The abstract parameters of `Decoder(cfg)`, by path."""
  """Our path -> abstract array, without nnx's trailing 'value'."""
  flat = nnx.to_flat_state(decoder.abstract_parameters(cfg))
  return {"/".join(map(str, path)): leaf.get_value() for path, leaf in flat}


def hf_shape(tensor: families.Tensor, sizes: Mapping[str, int]):
  """The shape of a tensor in the folder, from the sizes of its letters."""
  return tuple(math.prod(sizes[c] for c in dim) for dim in tensor.dims)


def read_parameters(
  folder: Path, cfg: decoder.DecoderConfig, mesh, *, dtype: str = "float32"
) -> nnx.State:
  """The folder's weights as sharded parameters of `Decoder(cfg)`.

  Each process reads only the slices of its own devices; host memory never holds
  more than one parameter's local shards.

  Args:
    folder: single file or sharded index; float32, bfloat16 or float16.
    mesh: where the parameters go, by `sharding.state_shardings`.
    dtype: dtype of the parameters; bfloat16 halves a frozen teacher.

  Raises:
    ValueError: a tensor is missing, misshapen or surplus, or a file is damaged.
  """
  tensors, table = _open_tensors(folder, cfg), families.TABLES["llama"]
  leaves = parameter_shapes(cfg)
  abstract = decoder.abstract_parameters(cfg)
  shardings = sharding.state_shardings(abstract, mesh)
  flat = []
  for path, target in nnx.to_flat_state(shardings):
    name = "/".join(map(str, path))
    shape = leaves[name].shape
    read = _shard_reader(tensors, table[name], name, shape, dtype)
    array = jax.make_array_from_callback(shape, target.get_value(), read)
    flat.append((path, nnx.Param(array)))
  return nnx.from_flat_state(flat)


def check_weights(folder: Path, cfg: decoder.DecoderConfig) -> None:
  """Refuses files that are not the weights of `Decoder(cfg)`, by their headers.

  Raises:
    ValueError: a tensor is missing, misshapen or surplus, or a file is cut.
  """
  _open_tensors(folder, cfg)


def _open_tensors(folder: Path, cfg: decoder.DecoderConfig) -> _Tensors:
  tensors, table = _Tensors(folder), families.TABLES["llama"]
  expected = set()
  for path, leaf in parameter_shapes(cfg).items():
    sizes = dict(zip(sharding.letters_of(path), leaf.shape, strict=True))
    for layer in range(sizes.get("Y", 1)):
      name = table[path].name.format(layer)
      tensors.check(name, hf_shape(table[path], sizes))
      expected.add(name)
  surplus = tensors.names() - expected
  unembed = table["unembed_VD"].name
  if cfg.tie_embeddings and unembed in surplus:
    surplus -= {unembed}
    tensors.check_equal(table["embed_VD"].name, unembed)
  if surplus:
    raise ValueError(
      f"{folder}: tensors that this model does not have:"
      f" {', '.join(sorted(surplus)[:4])} ({len(surplus)} in all); is"
      " model_type in config.json right?"
    )
  return tensors


def _shard_reader(tensors, tensor, path, shape, dtype):
  """A callback that reads one device's shard of one parameter."""
  letters = sharding.letters_of(path)
  sizes = dict(zip(letters, shape, strict=True))
  stacked = letters.startswith("Y")
  ours = letters.removeprefix("Y")
  theirs = "".join(tensor.dims)
  order = [theirs.index(letter) for letter in ours]

  # Devices that hold the same shard share one copy on the host.
  @functools.cache
  def read_shard(*ranges):
    spans = dict(zip(letters, ranges, strict=True))
    slices = tuple(_merged_slice(dim, spans, sizes) for dim in tensor.dims)
    expanded = [len(spans[letter]) for letter in theirs]
    out = np.empty([len(spans[letter]) for letter in letters], dtype)
    for i, layer in enumerate(spans.get("Y", (0,))):
      x = tensors.read(tensor.name.format(layer), slices).reshape(expanded)
      out[i if stacked else ...] = np.transpose(x, order)
    return out

  def read(index):
    pairs = zip(index, shape, strict=True)
    return read_shard(*(range(*cut.indices(size)) for cut, size in pairs))

  return read


def _merged_slice(dim: str, spans, sizes) -> slice:
  """The slice of a merged dimension ("NH") for spans of its letters."""
  first, rest = dim[0], dim[1:]
  assert all(len(spans[c]) == sizes[c] for c in rest), (dim, spans)
  inner = math.prod(sizes[c] for c in rest)
  return slice(spans[first].start * inner, spans[first].stop * inner)
