"""Claims about the weights: what they are, and how many, by their headers.

Shape letters are those of docs/glossary.md.
"""

from typing import Any

import numpy as np

from analogjax.bundle import folder, layout, safetensors_headers
from analogjax.bundle.layout import expect
from analogjax.bundle.strict_json import Refused
from analogjax.distributed import sharding
from analogjax.models import decoder, families, hf_import
from analogjax.verify import files
from analogjax.verify.rules import (
  VERIFIED,
  Evidence,
  Outcome,
  Rule,
  listed,
  shown,
)

_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
# All ones there: NaN or infinity.
_EXPONENTS = {"F32": 0x7F800000, "BF16": 0x7F80, "F16": 0x7C00}
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Fields by which a file asks a loader to run something that came with it.
_RUNS = ("auto_map", "custom_pipelines", "trust_remote_code")
_SETTINGS = (
  *(layout.CONFIG, "model/generation_config.json"),
  *("model/tokenizer_config.json", "model/special_tokens_map.json"),
)
_MOST_SIZE = 1 << 24  # Of a width, a vocabulary or a context.
# Of a value that a parser of ours was not made for.
_STRANGE = (
  *(ValueError, TypeError, AttributeError, KeyError),
  *(OverflowError, ZeroDivisionError),
)


def weight_files(evidence: Evidence) -> list[str]:
  """The files of the weights, as a loader would take them.

  Raises:
    Refused: another loader could take others.
  """
  found = sorted(
    path for path in evidence.tree.files if files.WEIGHTS.fullmatch(path)
  )
  expect(bool(found), "model/: there are no safetensors files")
  if layout.INDEX not in evidence.tree.files:
    one = "model/model.safetensors"
    expect(found == [one], f"without {layout.INDEX} there is to be {one} alone")
    return found
  value = evidence.value(layout.INDEX)
  places = value.get("weight_map")
  expect(isinstance(places, dict), f"{layout.INDEX}: weight_map is no object")
  assert isinstance(places, dict)
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
  return found


def tensors(evidence: Evidence) -> dict[str, safetensors_headers.Tensor]:
  """All tensors of the model; Refused where two have one name."""
  out: dict[str, safetensors_headers.Tensor] = {}
  for path in weight_files(evidence):
    for name, tensor in evidence.header(path).tensors.items():
      expect(name not in out, f"tensor {shown(name)} is in two files")
      out[name] = tensor
  return out


def model_config(evidence: Evidence, *, dtype: str = "float32"):
  """The DecoderConfig of model/config.json; Refused if it is none."""
  value = evidence.value(layout.CONFIG)
  try:
    cfg = families.from_hf_config(value, dtype=dtype, where=layout.CONFIG)
  except _STRANGE as error:
    raise Refused(
      str(error)
      if type(error) is ValueError
      else f"{layout.CONFIG}: a field is not of its kind ({error})"
    ) from None
  largest = max(cfg.V, cfg.D, cfg.N, cfg.G, cfg.H, cfg.F, cfg.max_positions)
  expect(
    largest <= _MOST_SIZE,
    f"{layout.CONFIG}: a size of {largest:,}, expected <= {_MOST_SIZE:,}",
  )
  return cfg


def expected_shapes(cfg: decoder.DecoderConfig) -> dict[str, tuple[int, ...]]:
  """Every tensor that the config asks for, by name."""
  table, out = families.TABLES["llama"], {}
  for path, leaf in hf_import.parameter_shapes(cfg).items():
    sizes = dict(zip(sharding.letters_of(path), leaf.shape, strict=True))
    shape = hf_import.hf_shape(table[path], sizes)
    for layer in range(sizes.get("Y", 1)):
      out[table[path].name.format(layer)] = shape
  return out


def count(evidence: Evidence) -> int:
  """Parameters by the headers, where a tied head is not stored twice."""
  return sum(tensor.size for tensor in tensors(evidence).values())


def _weights(evidence: Evidence) -> Outcome:
  cfg, found = model_config(evidence), tensors(evidence)
  # So that a config of a billion layers is not counted out.
  expect(
    cfg.Y <= len(found),
    f"{layout.CONFIG}: {cfg.Y:,} layers, but there are {len(found):,} tensors",
  )
  # Of a tied model a stored head is none of it: a loader that finds one that
  # differs takes it, and has more parameters than were counted.
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
  return Outcome(
    VERIFIED,
    f"{len(found)} tensors in {number} safetensors file"
    f"{'s' if number > 1 else ''} are those that {layout.CONFIG} asks for, in"
    " name and shape, and fill the files to the last byte.",
  )


def _finite(evidence: Evidence) -> Outcome:
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
  return Outcome(VERIFIED, f"{total:,} numbers were read.")


def _no_code(evidence: Evidence) -> Outcome:
  looked = [path for path in _SETTINGS if path in evidence.tree.files]
  for path in looked:
    for field in _fields(evidence.value(path)):
      expect(field not in _RUNS, f"{path}: it has the field {field}")
  return Outcome(
    VERIFIED,
    f"{len(looked)} files of settings have none of the fields"
    f" {', '.join(_RUNS)}.",
  )


def _fields(value: Any):
  """Every name of a field, at any depth that the JSON reader lets through."""
  if isinstance(value, dict):
    yield from value
    for inner in value.values():
      yield from _fields(inner)
  elif isinstance(value, list):
    for inner in value:
      yield from _fields(inner)


def _parameters(evidence: Evidence) -> Outcome:
  model = evidence.record["model"]
  total, paths = count(evidence), weight_files(evidence)
  found = {
    "parameters.total": total,
    # A token goes through all of a dense decoder, and we have no other.
    "parameters.active": total,
    "tensors": len(tensors(evidence)),
    "weights_bytes": sum(evidence.tree.files[path] for path in paths),
  }
  said = {
    "parameters.total": model["parameters"]["total"],
    "parameters.active": model["parameters"]["active"],
    "tensors": model["tensors"],
    "weights_bytes": model["weights_bytes"],
  }
  wrong = [
    f"model.{key} is {said[key]:,} in the record, {found[key]:,} in the files"
    for key in found
    if found[key] != said[key]
  ]
  expect(not wrong, listed(wrong))
  return Outcome(
    VERIFIED,
    f"{total:,} parameters, counted from the headers; tied embeddings once.",
  )


def _architecture(evidence: Evidence) -> Outcome:
  cfg = model_config(evidence)
  value, model = evidence.value(layout.CONFIG), evidence.record["model"]
  expect(
    model["dtype"] in _DTYPES,
    f"model.dtype: {shown(model['dtype'])} is none of {', '.join(_DTYPES)}",
  )
  kinds = {tensor.dtype for tensor in tensors(evidence).values()}
  found = {
    "family": value["model_type"],
    "dtype": next(k for k, v in _DTYPES.items() if v in kinds),
    "vocabulary_size": cfg.V,
    "context_tokens": cfg.max_positions,
    "architecture": {
      "layers": cfg.Y,
      "width": cfg.D,
      "heads": cfg.N,
      "kv_heads": cfg.G,
      "head_width": cfg.H,
      "feed_forward": cfg.F,
      "tied_embeddings": cfg.tie_embeddings,
    },
  }
  wrong = [
    f"model.{key} is {shown(model[key])} in the record, {shown(found[key])} in"
    f" {layout.CONFIG}"
    for key in found
    if model[key] != found[key]
  ]
  expect(not wrong, listed(wrong))
  ids = {key: value[key] for key in _IDS if key in value}
  known = families.to_hf_config(cfg, dtype=model["dtype"]) | ids
  strange = sorted(
    key
    for key in {*known, *value}
    if key not in known or known[key] != value.get(key, value)
  )
  expect(
    not strange,
    f"{layout.CONFIG}: fields that the export does not write so:"
    f" {listed([shown(key) for key in strange])}",
  )
  shape = f"{cfg.Y} layers of width {cfg.D}"
  return Outcome(
    VERIFIED, f"A {value['model_type']} of {shape}, as the record says."
  )


def _model_files(evidence: Evidence) -> Outcome:
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
    not wrong,
    f"of model/ the record has another SHA-256: {listed(wrong)}",
  )
  tokenizer = found.get("tokenizer.json")
  expect(
    evidence.record["data"]["tokenizer_sha256"] == tokenizer,
    "data.tokenizer_sha256 is not that of model/tokenizer.json",
  )
  return Outcome(VERIFIED, f"{len(found)} files, the tokenizer's among them.")


def rules() -> tuple[Rule, ...]:
  return (
    Rule(
      "weights",
      "The weights are whole, and are those of the model's config.",
      _weights,
    ),
    Rule(
      "finite",
      "Every weight is a finite number.",
      _finite,
      needs=("weights",),
    ),
    Rule(
      "no_code", "No file of the model asks a loader to run code.", _no_code
    ),
    Rule(
      "parameters",
      "The model has as many parameters as the record says.",
      _parameters,
      needs=("record", "weights"),
    ),
    Rule(
      "architecture",
      "The model has the architecture that the record says.",
      _architecture,
      needs=("record", "weights"),
    ),
    Rule(
      "model_files",
      "The model's files are those that were exported.",
      _model_files,
      needs=("record", "manifest"),
    ),
  )
