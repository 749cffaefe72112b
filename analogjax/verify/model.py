"""Claims about the weights, mostly from their headers.

Shape letters are those of docs/glossary.md.
"""

from typing import Any

import numpy as np

from analogjax.bundle import folder, layout, safetensors_headers
from analogjax.bundle.layout import expect
from analogjax.bundle.strict_json import Refused
from analogjax.distributed import sharding
from analogjax.models import decoder, families, hf_import, sizes
from analogjax.verify import files
from analogjax.verify.rules import VERIFIED, Evidence, Rules, listed, shown

_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
# The exponent bits, which are all ones in NaN and infinity.
_EXPONENTS = {"F32": 0x7F800000, "BF16": 0x7F80, "F16": 0x7C00}
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Fields by which a file asks a loader to run code that comes with it.
_RUNS = ("auto_map", "custom_pipelines", "trust_remote_code")
_SETTINGS = (
  layout.CONFIG,
  "model/generation_config.json",
  "model/tokenizer_config.json",
  "model/special_tokens_map.json",
)
_MOST_SIZE = 1 << 24  # For a width, a vocabulary or a context.
# Exceptions of our own parser for a value that it was not made for.
_STRANGE = (
  ValueError,
  TypeError,
  AttributeError,
  KeyError,
  OverflowError,
  ZeroDivisionError,
)
RULES = Rules()


def weight_files(evidence: Evidence) -> list[str]:
  """The files of weights that a loader would take.

  Raises:
    Refused: another loader might take other files.
  """
  found = [
    path for path in evidence.tree.files if files.WEIGHTS.fullmatch(path)
  ]
  expect(bool(found), "model/: there are no safetensors files")
  if layout.INDEX not in evidence.tree.files:
    one = "model/model.safetensors"
    expect(found == [one], f"without {layout.INDEX}, only {one} is expected")
    return found
  places = evidence.value(layout.INDEX).get("weight_map")
  held = {
    name: path.removeprefix("model/")
    for path in found
    for name in evidence.header(path).tensors
  }
  expect(
    places == held, f"{layout.INDEX}: weight_map is not what the files hold"
  )
  expect(
    set(held.values()) == {path.removeprefix("model/") for path in found},
    "model/: a safetensors file without a tensor",
  )
  return sorted(found)


def tensors(evidence: Evidence) -> dict[str, safetensors_headers.Tensor]:
  """All tensors of the model; Refused where two have the same name."""
  out: dict[str, safetensors_headers.Tensor] = {}
  for path in weight_files(evidence):
    for name, tensor in evidence.header(path).tensors.items():
      expect(name not in out, f"tensor {shown(name)} is in two files")
      out[name] = tensor
  return out


def model_config(
  evidence: Evidence, *, dtype: str = "float32"
) -> decoder.DecoderConfig:
  """The DecoderConfig of model/config.json; Refused if it is invalid."""
  where = layout.CONFIG
  value = evidence.value(where)
  try:
    cfg = families.from_hf_config(value, dtype=dtype, where=where)
  except _STRANGE as error:
    raise Refused(
      str(error)
      if type(error) is ValueError
      else f"{where}: a field has a value of the wrong kind ({error})"
    ) from None
  largest = max(cfg.V, cfg.D, cfg.N, cfg.G, cfg.H, cfg.F, cfg.max_positions)
  expect(
    largest <= _MOST_SIZE,
    f"{where}: a size of {largest:,}, expected <= {_MOST_SIZE:,}",
  )
  return cfg


def expected_shapes(cfg: decoder.DecoderConfig) -> dict[str, tuple[int, ...]]:
  """The shape of every tensor that a config needs, by its name."""
  table, out = families.TABLES["llama"], {}
  for path, leaf in hf_import.parameter_shapes(cfg).items():
    sizes = dict(zip(sharding.letters_of(path), leaf.shape, strict=True))
    shape = hf_import.hf_shape(table[path], sizes)
    for layer in range(sizes.get("Y", 1)):
      out[table[path].name.format(layer)] = shape
  return out


def count(evidence: Evidence) -> int:
  """Parameters by the headers; a tied head is not stored twice."""
  return sum(tensor.size for tensor in tensors(evidence).values())


@RULES.add(
  "weights", "The weight files are complete and match the model's config."
)
def _weights(evidence: Evidence):
  cfg, found = model_config(evidence), tensors(evidence)
  # Before the tensors of a billion layers are listed.
  expect(
    cfg.Y <= len(found),
    f"{layout.CONFIG}: {cfg.Y:,} layers, but there are {len(found):,} tensors",
  )
  # A tied model must not store a head: a loader that finds a different one
  # would use it, and the model would have more parameters than were counted.
  expected = expected_shapes(cfg)
  wrong = [f"{name} is missing" for name in expected if name not in found]
  for name, tensor in found.items():
    if name not in expected:
      wrong.append(f"{shown(name)} belongs to no part of the model")
    elif tensor.shape != expected[name]:
      wrong.append(
        f"{name} has shape {list(tensor.shape)} instead of"
        f" {list(expected[name])}"
      )
  expect(not wrong, listed(wrong))
  kinds = {tensor.dtype for tensor in found.values()}
  expect(
    len(kinds) == 1 and kinds <= set(_DTYPES.values()),
    f"dtypes {sorted(kinds)}, expected one of {', '.join(_DTYPES)}",
  )
  number = len(weight_files(evidence))
  return VERIFIED, (
    f"{len(found)} tensors in {number} safetensors file"
    f"{'s' if number > 1 else ''} have the names and shapes that"
    f" {layout.CONFIG} needs, and fill the files to the last byte."
  )


@RULES.add("finite", "Every weight is a finite number.", needs=("weights",))
def _finite(evidence: Evidence):
  total = 0
  for path in weight_files(evidence):
    header = evidence.header(path)
    end = max((t.stop for t in header.tensors.values()), default=0)
    start = evidence.tree.files[path] - end
    for name, tensor in header.tensors.items():
      kind = np.dtype(f"<u{safetensors_headers.BITS[tensor.dtype] // 8}")
      ones = kind.type(_EXPONENTS[tensor.dtype])
      for at in range(tensor.start, tensor.stop, folder.CHUNK):
        length = min(folder.CHUNK, tensor.stop - at)
        data = evidence.tree.range(path, start + at, length)
        bits = np.frombuffer(data, kind)
        expect(
          not np.any((bits & ones) == ones),
          f"{path}: tensor {shown(name)} holds NaN or infinity",
        )
        total += len(bits)
  return VERIFIED, f"All {total:,} numbers were read."


@RULES.add("no_code", "No file of the model asks a loader to run code.")
def _no_code(evidence: Evidence):
  found = [path for path in _SETTINGS if path in evidence.tree.files]
  for path in found:
    for field in _fields(evidence.value(path)):
      expect(field not in _RUNS, f"{path}: it has the field {field}")
  return VERIFIED, (
    f"{len(found)} files of settings have none of the fields"
    f" {', '.join(_RUNS)}."
  )


def _fields(value: Any):
  """Every field name, at any depth that the JSON reader allows."""
  if isinstance(value, dict):
    yield from value
    for inner in value.values():
      yield from _fields(inner)
  elif isinstance(value, list):
    for inner in value:
      yield from _fields(inner)


def _expect_recorded(said, found, where: str) -> None:
  """Refuses if the record's `said` differs from what was `found`."""

  def text(value: Any) -> str:
    return f"{value:,}" if type(value) is int else shown(value)

  wrong = [
    f"model.{key} is {text(said[key])} in the record, {text(found[key])} in"
    f" {where}"
    for key in found
    if found[key] != said[key]
  ]
  expect(not wrong, listed(wrong))


@RULES.add(
  "parameters",
  "The model has as many parameters as the record says.",
  needs=("record", "weights"),
)
def _parameters(evidence: Evidence):
  total, paths = count(evidence), weight_files(evidence)
  model = evidence.record["model"]
  found = {
    "parameters.total": total,
    # A dense decoder uses all parameters for each token; we have no other.
    "parameters.active": total,
    "tensors": len(tensors(evidence)),
    "weights_bytes": sum(evidence.tree.files[path] for path in paths),
  }
  said = {f"parameters.{k}": n for k, n in model["parameters"].items()} | model
  _expect_recorded(said, found, "the files")
  return VERIFIED, (
    f"{total:,} parameters by the headers; tied embeddings count once."
  )


@RULES.add(
  "architecture",
  "The model has the recorded architecture.",
  needs=("record", "weights"),
)
def _architecture(evidence: Evidence):
  cfg, where = model_config(evidence), layout.CONFIG
  value, model = evidence.value(where), evidence.record["model"]
  dtype = model["dtype"]
  expect(
    dtype in _DTYPES,
    f"model.dtype: {shown(dtype)}, expected one of {', '.join(_DTYPES)}",
  )
  kinds = {tensor.dtype for tensor in tensors(evidence).values()}
  found = {
    "family": value["model_type"],
    "dtype": next(k for k, v in _DTYPES.items() if v in kinds),
    "vocabulary_size": cfg.V,
    "context_tokens": cfg.max_positions,
    "architecture": sizes.architecture(cfg),
  }
  _expect_recorded(model, found, where)
  ids = {key: value[key] for key in _IDS if key in value}
  known = families.to_hf_config(cfg, dtype=dtype) | ids
  strange = sorted(
    key
    for key in {*known, *value}
    if key not in known or known[key] != value.get(key, value)
  )
  expect(
    not strange,
    f"{where}: fields that an export would write differently:"
    f" {listed([shown(key) for key in strange])}",
  )
  return VERIFIED, (
    f"A {value['model_type']} of {cfg.Y} layers of width {cfg.D}, as recorded."
  )


@RULES.add(
  "model_files",
  "The model's files are the recorded ones.",
  needs=("record", "manifest"),
)
def _model_files(evidence: Evidence):
  ours = ("README.md", "LICENSE", "NOTICE")
  found = {
    name: entry.sha256
    for path, entry in evidence.entries.items()
    if path.startswith("model/")
    and (name := path.removeprefix("model/")) not in ours
  }
  said = evidence.record["model"]["files"]
  wrong = sorted(k for k in {*found, *said} if found.get(k) != said.get(k))
  expect(
    not wrong, f"in model/, the record has another SHA-256: {listed(wrong)}"
  )
  expect(
    evidence.record["data"]["tokenizer_sha256"] == found.get("tokenizer.json"),
    "data.tokenizer_sha256 is not that of model/tokenizer.json",
  )
  return VERIFIED, (
    f"{len(found)} files, among them the tokenizer, match the record."
  )
