"""Sections of a config about the two models and the mesh they are on."""

import dataclasses
import re
from typing import Annotated, Any

from analogjax.config.fields import (
  check,
  check_choice,
  check_counts,
  check_seed,
)

_ATTENTION = ("auto", "xla", "cudnn", "splash")


def _check_sha256(section: Any) -> None:
  ok = re.fullmatch("([0-9a-f]{64})?", section.sha256) is not None
  check(ok, "sha256", "64 lower-case hex digits or ''", section.sha256)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
  """Devices along each axis; -1 takes what is left."""

  data: Annotated[int, "copies of the parameters, between slices"]
  fsdp: Annotated[int, "parameters and rows are split"]
  expert: Annotated[int, "experts are split; 1 for a dense model"]
  tensor: Annotated[int, "heads, feed-forward and vocabulary are split"]

  def __post_init__(self):
    sizes = dataclasses.asdict(self)
    for axis, size in sizes.items():
      check(size >= 1 or size == -1, axis, "a positive number or -1", size)
    rest = [axis for axis, size in sizes.items() if size == -1]
    check(len(rest) <= 1, rest[-1] if rest else "", "-1 on one axis only", -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GgufConfig:
  """A teacher inside an installed package, for the demo only."""

  package: Annotated[str, "name of the installed distribution"]
  file: Annotated[str, "name of the GGUF file in it"]
  sha256: Annotated[str, "of the GGUF file, 64 hex digits"]

  def __post_init__(self):
    for field in ("package", "file", "sha256"):
      check(bool(getattr(self, field)), field, "a text that is not empty", "")
    _check_sha256(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig:
  """The frontier model, frozen."""

  path: Annotated[str, "Hugging Face folder; '': converted from gguf"]
  sha256: Annotated[str, "digest of the folder; '': not checked"]
  gguf: Annotated[GgufConfig | None, "used where path is ''; may be None"]
  dtype: Annotated[str, "compute dtype: float32 or bfloat16"]
  attention: Annotated[str, "kernel: auto, xla, cudnn or splash"]
  mesh: Annotated[
    MeshConfig | None, "of a live teacher's own devices; None: the student's"
  ]

  def __post_init__(self):
    _check_sha256(self)
    check_choice(self, "dtype", "float32", "bfloat16")
    check_choice(self, "attention", *_ATTENTION)
    if self.mesh is not None:
      for axis, size in dataclasses.asdict(self.mesh).items():
        check(size >= 1, f"mesh.{axis}", "a positive number", size)
    ok = bool(self.path) or self.gguf is not None
    check(ok, "path", "a folder, as teacher.gguf is None", self.path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScalingConfig:
  """How rotary frequencies are stretched beyond `original_max_positions`."""

  kind: Annotated[str, "llama3 or linear"]
  factor: Annotated[float, "long wavelengths become this much longer"]
  low_freq_factor: Annotated[float, "llama3: original / wavelength, stretched"]
  high_freq_factor: Annotated[float, "llama3: original / wavelength, kept"]
  original_max_positions: Annotated[int, "context before stretching, tokens"]

  def __post_init__(self):
    RopeScaling(**dataclasses.asdict(self))  # Has the rules.


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentConfig:
  """The small decoder; letters as in docs/glossary.md."""

  seed: Annotated[int, "of the initial parameters"]
  V: Annotated[int, "vocabulary, entries; that of the teacher"]
  D: Annotated[int, "model width"]
  Y: Annotated[int, "layers"]
  N: Annotated[int, "query heads"]
  G: Annotated[int, "key/value heads; divides N"]
  H: Annotated[int, "head width; even"]
  F: Annotated[int, "feed-forward width"]
  max_positions: Annotated[int, "longest context, tokens"]
  rope_theta: Annotated[float, "base of the rotary embedding"]
  rope_scaling: Annotated[
    RopeScalingConfig | None, "stretched context, or None"
  ]
  rms_norm_eps: Annotated[float, "added to the mean square"]
  tie_embeddings: Annotated[bool, "the head is the embedding"]
  attention_bias: Annotated[bool, "biases on q, k, v and output"]
  mlp_bias: Annotated[bool, "biases in the MLP"]
  dtype: Annotated[str, "compute dtype: float32 or bfloat16"]
  remat: Annotated[str, "kept for the backward pass: none, dots or full"]
  attention: Annotated[str, "kernel: auto, xla, cudnn or splash"]
  size_window: Annotated[str, "outside 0.5-5 % of the teacher: refuse or warn"]

  def __post_init__(self):
    check_seed(self)
    check_counts(self, "V", "D", "Y", "N", "G", "H", "F", "max_positions")
    check(self.N % self.G == 0, "G", f"a divisor of N={self.N}", self.G)
    check(self.H % 2 == 0, "H", "an even width (rotary embedding)", self.H)
    check(self.rope_theta > 0, "rope_theta", "> 0", self.rope_theta)
    check(self.rms_norm_eps > 0, "rms_norm_eps", "> 0", self.rms_norm_eps)
    check_choice(self, "dtype", "float32", "bfloat16")
    # "none" means that nothing is recomputed, see models/decoder.py.
    check_choice(self, "remat", "none", "dots", "full")
    check_choice(self, "attention", *_ATTENTION)
    check_choice(self, "size_window", "refuse", "warn")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
  """How rotary frequencies are stretched beyond the trained context."""

  kind: str  # "llama3" or "linear".
  factor: float
  low_freq_factor: float = 1.0  # llama3 alone, as are the next two.
  high_freq_factor: float = 4.0
  original_max_positions: int = 8192

  def __post_init__(self):
    if self.kind not in ("llama3", "linear"):
      raise ValueError(
        f"kind: expected 'llama3' or 'linear', found {self.kind!r}."
      )
    if self.factor < 1:
      raise ValueError(f"factor: expected 1 or more, found {self.factor}.")
    if self.high_freq_factor <= self.low_freq_factor:
      raise ValueError(
        "high_freq_factor: expected more than"
        f" low_freq_factor={self.low_freq_factor}, found"
        f" {self.high_freq_factor}."
      )
    if self.original_max_positions < 1:
      raise ValueError(
        "original_max_positions: expected a positive number, found"
        f" {self.original_max_positions}."
      )
