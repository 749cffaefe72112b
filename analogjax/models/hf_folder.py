"""Hugging Face folders: reads and writes config and safetensors.

Reading goes tensor by tensor, and within a tensor shard by shard, straight to
the devices that hold it; writing holds one file's tensors at a time.
"""

from collections.abc import Iterator, Mapping
import concurrent.futures
import functools
import hashlib
import json
import math
import os
from pathlib import Path
import shutil
from typing import Any

from flax import nnx
import huggingface_hub
import jax
import ml_dtypes  # noqa: F401  Teaches numpy, so safetensors, bfloat16.
import numpy as np
import safetensors
import safetensors.numpy

from analogjax import hosts, sharding
from analogjax.models import decoder, families

_INDEX = "model.safetensors.index.json"

_ROWS_AT_A_TIME = 4096

# Buffers that some exporters store and that hold no parameter.
_NOT_PARAMETERS = ("rotary_emb.inv_freq",)

TOKENIZER_FILES = (
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "chat_template.jinja",
)


def read_json(path: Path) -> dict[str, Any]:
  """A JSON object from a file; ValueError names the file."""
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise ValueError(f"{path}: there is no such file.") from None
  except (UnicodeDecodeError, json.JSONDecodeError) as error:
    raise ValueError(f"{path}: not readable as JSON: {error}.") from None
  if not isinstance(value, dict):
    raise ValueError(f"{path}: expected a JSON object.")
  return value


def read_config(folder: Path, *, dtype: str = "float32"):
  """The DecoderConfig of a folder; ValueError names file and field."""
  if not folder.is_dir():
    raise ValueError(
      f"{folder}: expected a Hugging Face folder (config.json, safetensors),"
      " found no such folder."
    )
  path = folder / "config.json"
  return families.from_hf_config(read_json(path), dtype=dtype, where=str(path))


def folder_digest(folder: Path) -> str:
  """SHA-256 over config.json and every safetensors file, hexadecimal.

  The digest is that of the sorted lines `<sha256>  <name>`, the format of
  sha256sum, so anyone can recompute it with standard tools. All processes call
  it, and each reads its share of the files.

  Raises:
    ValueError: a file is missing, or processes see other files.
  """
  names = hosts.together(
    lambda: ["config.json", *sorted(p.name for p in _weight_files(folder))]
  )
  # Or they would exchange digests of other files.
  seen = hosts.agree(_words(hashlib.sha256("\n".join(names).encode())))
  if (seen != seen[0]).any():
    raise ValueError(
      f"{folder}: the processes do not see the same files there; it has to be a"
      " folder that all of them share, or a copy of the same on each host."
    )
  mine = range(jax.process_index(), len(names), jax.process_count())
  words = np.zeros((len(names), 4), np.int64)

  def read_mine() -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
      found = pool.map(lambda i: _hash_file(folder / names[i]), mine)
      for i, digest in zip(mine, found, strict=True):
        words[i] = _words(digest)

  hosts.together(read_mine)
  everything = hosts.agree(words.ravel()).sum(0).reshape(words.shape)
  lines = [
    f"{digest.tobytes().hex()}  {name}\n"
    for digest, name in zip(everything, names, strict=True)
  ]
  return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _words(digest) -> np.ndarray:
  """A SHA-256 as int64 [4], for `hosts.agree`."""
  return np.frombuffer(digest.digest(), np.int64)


def file_sha256(path: Path) -> str:
  """SHA-256 of a file, hexadecimal; ValueError where there is none."""
  return _hash_file(path).hexdigest()


def _hash_file(path: Path):
  try:
    with open(path, "rb") as file:
      return hashlib.file_digest(file, "sha256")
  except FileNotFoundError:
    raise ValueError(f"{path}: there is no such file.") from None


def _weight_files(folder: Path) -> list[Path]:
  if (folder / _INDEX).exists():
    weight_map = read_json(folder / _INDEX).get("weight_map", {})
    return [folder / name for name in sorted(set(weight_map.values()))]
  return [folder / "model.safetensors"]


class _Tensors:
  """Every tensor of a folder by name, opened once, read by slices."""

  def __init__(self, folder: Path):
    self.folder = folder
    self._slices: dict[str, Any] = {}
    for path in _weight_files(folder):
      if not path.exists():
        wanted = (
          "weights" if path.stem == "model" else f"a file that {_INDEX} names"
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
    """Refuses a stored head that is not the embedding it is tied to.

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


def _leaves(cfg: decoder.DecoderConfig) -> dict[str, Any]:
  """Our path -> abstract array, without nnx's trailing 'value'."""
  flat = nnx.to_flat_state(decoder.abstract_parameters(cfg))
  return {"/".join(map(str, path)): leaf.get_value() for path, leaf in flat}


def _hf_shape(tensor: families.Tensor, sizes: Mapping[str, int]):
  return tuple(math.prod(sizes[c] for c in dim) for dim in tensor.dims)


def read_parameters(
  folder: Path, cfg: decoder.DecoderConfig, mesh, *, dtype: str = "float32"
) -> nnx.State:
  """The folder's weights as sharded parameters of `Decoder(cfg)`.

  Each process reads the slices that its own devices hold, nothing else; host
  memory never holds more than one parameter's local shards.

  Args:
    folder: single file or sharded index; float32, bfloat16 or float16.
    cfg: from `read_config`.
    mesh: where the parameters go, by `sharding.state_shardings`.
    dtype: dtype of the parameters; bfloat16 halves a frozen teacher.

  Raises:
    ValueError: a missing, misshapen or surplus tensor, or a damaged file.
  """
  tensors, table = _open_tensors(folder, cfg), families.TABLES["llama"]
  leaves = _leaves(cfg)
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
    ValueError: a missing, misshapen or surplus tensor, or a cut file.
  """
  _open_tensors(folder, cfg)


def _open_tensors(folder: Path, cfg: decoder.DecoderConfig) -> _Tensors:
  tensors, table = _Tensors(folder), families.TABLES["llama"]
  expected = set()
  for path, leaf in _leaves(cfg).items():
    sizes = dict(zip(sharding.letters_of(path), leaf.shape, strict=True))
    for layer in range(sizes.get("Y", 1)):
      name = table[path].name.format(layer)
      tensors.check(name, _hf_shape(table[path], sizes))
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


def hf_tensors(
  params: nnx.State, dtype: str
) -> Iterator[tuple[str, np.ndarray | None]]:
  """Every Hugging Face tensor of a model in turn, contiguous on the host.

  All processes go through them at the same time; process 0 alone gets values.
  """
  table = families.TABLES["llama"]
  for path, leaf in sorted(nnx.to_flat_state(params)):
    name = "/".join(map(str, path))
    value = leaf.get_value()
    letters = sharding.letters_of(name)
    layers = value.shape[0] if letters.startswith("Y") else 1
    for layer in range(layers):
      one = value[layer] if letters.startswith("Y") else value
      x = hosts.fetch_whole(one)
      if x is not None:
        x = _to_hf(x, letters.removeprefix("Y"), table[name], dtype)
      yield table[name].name.format(layer), x


def _to_hf(x, letters, tensor, dtype) -> np.ndarray:
  sizes = dict(zip(letters, x.shape, strict=True))
  x = np.transpose(x, [letters.index(c) for c in "".join(tensor.dims)])
  x = x.reshape(_hf_shape(tensor, sizes)).astype(dtype)
  # safetensors writes an array that is not C-contiguous wrong, and silently.
  return np.ascontiguousarray(x)


def write_folder(
  folder: Path,
  cfg: decoder.DecoderConfig,
  params: nnx.State,
  *,
  dtype: str,
  max_shard_bytes: int,
  tokenizer_folder: Path,
  metadata: Mapping[str, str],
) -> dict[str, Any] | None:
  """Writes a folder that transformers loads, reads it back and compares.

  The folder appears whole or not at all: everything goes to a temporary
  sibling that is renamed at the end, over an earlier export. All processes
  call it: process 0 writes, one tensor after the other, and the others hold
  nothing on the host. Where it fails, all stop at that tensor.

  Args:
    folder: target; its parent must exist.
    cfg: of the model.
    params: of the model, on any mesh.
    dtype: "float32" or "bfloat16", of the stored tensors.
    max_shard_bytes: a file is not larger, unless one tensor alone is.
    tokenizer_folder: tokenizer and generation files are copied from here.
    metadata: string pairs for the files' headers, beside format=pt.

  Returns:
    What was written: parameters, bytes, files with their SHA-256; None on
    other processes than 0.

  Raises:
    ValueError: weights that are not finite, or a file that does not read back
      as it was written.
  """
  temporary = folder.with_name(f".{folder.name}.incomplete")
  plan = _plan_shards(cfg, dtype, max_shard_bytes)
  header = {**metadata, "format": "pt"}
  writer = _TensorWriter(temporary, plan, header)
  hosts.on_first(writer.begin)
  for name, array in hf_tensors(params, dtype):
    hosts.on_first(functools.partial(writer.add, name, array))

  def finish() -> dict[str, Any]:
    writer.finish()
    _write_configs(temporary, cfg, dtype, tokenizer_folder)
    files = sorted(p for p in temporary.iterdir())
    report = {
      "parameters": writer.num_parameters,
      "bytes": sum(p.stat().st_size for p in files),
      "dtype": dtype,
      "files": {p.name: file_sha256(p) for p in files},
      **metadata,
    }
    fsync_folder(temporary)
    _put_in_place(temporary, folder)
    return report

  return hosts.on_first(finish)


class _TensorWriter:
  """Writes the safetensors files of a folder, each when it is complete."""

  def __init__(self, folder: Path, plan, header: Mapping[str, str]):
    self._folder, self._plan, self._header = folder, plan, header
    self._open_files: dict[str, dict[str, np.ndarray]] = {}
    self._left = {f: len(t) for f, t in plan.filename_to_tensors.items()}
    self.num_parameters = 0

  def begin(self) -> None:
    shutil.rmtree(self._folder, ignore_errors=True)
    self._folder.mkdir(parents=True)

  def add(self, name: str, array: np.ndarray | None) -> None:
    assert array is not None  # On process 0, which is here.
    if not np.isfinite(array.astype(np.float32)).all():
      raise ValueError(f"export: tensor {name!r} holds NaN or infinity.")
    self.num_parameters += array.size
    file = self._plan.tensor_to_filename[name]
    self._open_files.setdefault(file, {})[name] = array
    self._left[file] -= 1
    if not self._left[file]:
      tensors = self._open_files.pop(file)
      _write_checked(self._folder / file, tensors, self._header)

  def finish(self) -> None:
    assert not self._open_files
    if self._plan.is_sharded:
      sizes = {
        "total_parameters": self.num_parameters,
        "total_size": self._plan.metadata["total_size"],
      }
      weight_map = dict(sorted(self._plan.tensor_to_filename.items()))
      write_json(
        self._folder / _INDEX, {"metadata": sizes, "weight_map": weight_map}
      )


def _put_in_place(temporary: Path, folder: Path) -> None:
  old = folder.with_name(f".{folder.name}.old")
  shutil.rmtree(old, ignore_errors=True)
  if folder.exists():
    folder.rename(old)
  temporary.rename(folder)
  fsync(folder.parent)
  shutil.rmtree(old, ignore_errors=True)


def _plan_shards(cfg, dtype, max_shard_bytes):
  """Which tensor goes to which file, from shapes alone, in writing order."""
  table = families.TABLES["llama"]
  sizes = {}
  itemsize = np.dtype(dtype).itemsize
  for path, leaf in sorted(_leaves(cfg).items()):
    letters = sharding.letters_of(path)
    layers = leaf.shape[0] if letters.startswith("Y") else 1
    for layer in range(layers):
      sizes[table[path].name.format(layer)] = leaf.size // layers * itemsize
  return huggingface_hub.split_state_dict_into_shards_factory(
    sizes,
    get_storage_size=lambda size: size,
    filename_pattern="model{suffix}.safetensors",
    max_shard_size=max_shard_bytes,
  )


def _write_checked(path, tensors, header) -> None:
  try:
    safetensors.numpy.save_file(tensors, path, metadata=header)
  except safetensors.SafetensorError as error:
    raise ValueError(
      f"{path}: cannot be written ({error}). Make room, or mend the disk, and"
      " give the same command again."
    ) from error
  with safetensors.safe_open(path, framework="numpy") as file:
    for name, array in tensors.items():
      if not np.array_equal(file.get_tensor(name), array):
        raise ValueError(
          f"{path.name}: tensor {name!r} did not read back as written;"
          " the disk or the safetensors library is damaged."
        )


def _write_configs(folder, cfg, dtype, tokenizer_folder) -> None:
  teacher = read_json(tokenizer_folder / "config.json")
  config = families.to_hf_config(cfg, dtype=dtype)
  ids = {
    key: teacher[key]
    for key in ("bos_token_id", "eos_token_id", "pad_token_id")
    if teacher.get(key) is not None
  }
  write_json(folder / "config.json", config | ids)
  generation = tokenizer_folder / "generation_config.json"
  if generation.exists():
    ids |= read_json(generation)
  write_json(folder / "generation_config.json", ids)
  if not (tokenizer_folder / "tokenizer.json").exists():
    raise ValueError(
      f"{tokenizer_folder / 'tokenizer.json'}: the tokenizer is missing; the"
      " export cannot be used without it."
    )
  for name in TOKENIZER_FILES:
    if (tokenizer_folder / name).exists():
      shutil.copyfile(tokenizer_folder / name, folder / name)


def write_json(path: Path, value: Any) -> None:
  """Writes a file of a folder that is not in its place yet."""
  path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def fsync_folder(folder: Path) -> None:
  """Makes a folder of files durable, to be renamed into its place."""
  for path in folder.iterdir():
    fsync(path)
  fsync(folder)


def fsync(path: Path) -> None:
  """Makes a file's bytes durable, or the names in a folder."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
