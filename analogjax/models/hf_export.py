"""Writes a Hugging Face folder, tensor by tensor, from any mesh."""

from collections.abc import Iterator, Mapping
import functools
from pathlib import Path
import shutil
from typing import Any

from flax import nnx
import huggingface_hub
import ml_dtypes  # noqa: F401  Teaches numpy, so safetensors, bfloat16.
import numpy as np
import safetensors
import safetensors.numpy

from analogjax.distributed import processes, sharding
from analogjax.models import decoder, families, hf_import, hf_tokenizer
from analogjax.workdir import files as files_lib


def hf_tensors(
  params: nnx.State, dtype: str
) -> Iterator[tuple[str, np.ndarray | None]]:
  """Every Hugging Face tensor of a model in turn, contiguous on the host.

  All processes iterate at the same time; only process 0 gets values.
  """
  table = families.TABLES["llama"]
  for path, leaf in sorted(nnx.to_flat_state(params)):
    name = "/".join(map(str, path))
    value = leaf.get_value()
    letters = sharding.letters_of(name)
    layers = value.shape[0] if letters.startswith("Y") else 1
    for layer in range(layers):
      one = value[layer] if letters.startswith("Y") else value
      x = processes.fetch_whole(one)
      if x is not None:
        x = _to_hf(x, letters.removeprefix("Y"), table[name], dtype)
      yield table[name].name.format(layer), x


def _to_hf(x, letters, tensor, dtype) -> np.ndarray:
  sizes = dict(zip(letters, x.shape, strict=True))
  x = np.transpose(x, [letters.index(c) for c in "".join(tensor.dims)])
  x = x.reshape(hf_import.hf_shape(tensor, sizes)).astype(dtype)
  # safetensors silently writes an array that is not C-contiguous wrong.
  return np.ascontiguousarray(x)


def write_folder(
  folder: Path,
  cfg: decoder.DecoderConfig,
  params: nnx.State,
  *,
  dtype: str,
  max_shard_bytes: int,
  tokenizer_folder: Path,
  keeps_chat_template: bool,
  metadata: Mapping[str, str],
) -> dict[str, Any] | None:
  """Writes a folder that transformers loads, reads it back and compares.

  The folder appears whole or not at all: everything goes to a temporary sibling
  that replaces an earlier export at the end. All processes call it: process 0
  writes, one tensor after the other, and the others hold nothing on the host.
  If it fails, all stop at that tensor.

  Args:
    folder: target; its parent must exist.
    dtype: "float32" or "bfloat16", of the stored tensors.
    max_shard_bytes: limit of a file, which only a larger tensor exceeds.
    tokenizer_folder: source of the tokenizer and generation settings that
      hf_tokenizer.py allows.
    keeps_chat_template: whether its chat template is copied.
    metadata: string pairs for the files' headers, beside format=pt.

  Returns:
    Parameters, bytes, and files with their SHA-256; None on processes other
    than 0.

  Raises:
    ValueError: weights are not finite, or a file does not read back as written.
  """
  temporary = folder.with_name(f".{folder.name}.incomplete")
  plan = _plan_shards(cfg, dtype, max_shard_bytes)
  header = {**metadata, "format": "pt"}
  writer = _TensorWriter(temporary, plan, header)
  processes.on_first(writer.begin)
  for name, array in hf_tensors(params, dtype):
    processes.on_first(functools.partial(writer.add, name, array))

  def finish() -> dict[str, Any]:
    writer.finish()
    _write_configs(temporary, cfg, dtype, tokenizer_folder)
    hf_tokenizer.write(
      tokenizer_folder,
      temporary,
      max_positions=cfg.max_positions,
      keeps_chat_template=keeps_chat_template,
    )
    files = sorted(p for p in temporary.iterdir())
    report = {
      "parameters": writer.num_parameters,
      "bytes": sum(p.stat().st_size for p in files),
      "dtype": dtype,
      "files": {p.name: files_lib.file_sha256(p) for p in files},
      **metadata,
    }
    files_lib.fsync_folder(temporary)
    _put_in_place(temporary, folder)
    return report

  return processes.on_first(finish)


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
      index = {"metadata": sizes, "weight_map": weight_map}
      files_lib.write_json(self._folder / hf_import.INDEX, index)


def _put_in_place(temporary: Path, folder: Path) -> None:
  old = folder.with_name(f".{folder.name}.old")
  shutil.rmtree(old, ignore_errors=True)
  if folder.exists():
    folder.rename(old)
  temporary.rename(folder)
  files_lib.fsync(folder.parent)
  shutil.rmtree(old, ignore_errors=True)


def _plan_shards(cfg, dtype, max_shard_bytes):
  """Assigns tensors to files, from shapes alone, in writing order."""
  table = families.TABLES["llama"]
  sizes = {}
  itemsize = np.dtype(dtype).itemsize
  for path, leaf in sorted(hf_import.parameter_shapes(cfg).items()):
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
  teacher = files_lib.read_json(tokenizer_folder / "config.json")
  config = families.to_hf_config(cfg, dtype=dtype)
  ids = {
    key: teacher[key]
    for key in ("bos_token_id", "eos_token_id", "pad_token_id")
    if teacher.get(key) is not None
  }
  files_lib.write_json(folder / "config.json", config | ids)
  generation = tokenizer_folder / "generation_config.json"
  if generation.exists():
    ids |= hf_tokenizer.generation_config(
      files_lib.read_json(generation), max_positions=cfg.max_positions
    )
  files_lib.write_json(folder / "generation_config.json", ids)
