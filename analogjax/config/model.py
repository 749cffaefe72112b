"""Sections of a config about the two models and the mesh they are on."""

import dataclasses
import re
from typing import Annotated

from analogjax.config.fields import (
  ABOVE_0,
  COUNT,
  NOT_EMPTY,
  PUBLIC,
  SEED,
  Bound,
  Private,
  Section,
  at_least,
  check,
  choice,
)

_DTYPE = choice("float32", "bfloat16")
_ATTENTION = choice("auto", "xla", "cudnn", "splash")
_SHA256 = Bound(
  lambda text: re.fullmatch("([0-9a-f]{64})?", text) is not None,
  "64 lower-case hex digits or ''",
)
_SIZE = Bound(lambda n: n >= 1 or n == -1, "a positive number or -1")
_TEACHER = "what the frontier model is, and where it lies"
_MACHINES = Private("depends on the lab's machines; changes no number")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig(
  Section, private="the lab's machines, from which the frontier's size follows"
):
  """Devices along each axis; -1 takes the remaining ones."""

  data: Annotated[int, "copies of the parameters, between slices", _SIZE] = 1
  fsdp: Annotated[int, "parts of the parameters and of the rows", _SIZE] = -1
  expert: Annotated[int, "parts of the experts; 1 for a dense model", _SIZE] = 1
  tensor: Annotated[
    int, "parts of heads, feed-forward and vocabulary", _SIZE
  ] = 1

  def rules(self) -> None:
    sizes = dataclasses.asdict(self)
    rest = [axis for axis, size in sizes.items() if size == -1]
    check(len(rest) <= 1, rest[-1] if rest else "", "-1 on one axis only", -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GgufConfig(Section, private=_TEACHER):
  """A teacher inside an installed package, for the demo only."""

  package: Annotated[str, "name of the installed distribution", NOT_EMPTY]
  file: Annotated[str, "name of the GGUF file in it", NOT_EMPTY]
  sha256: Annotated[str, "digest of the GGUF file", NOT_EMPTY, _SHA256]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig(Section, private=_TEACHER):
  """The frontier model, frozen."""

  path: Annotated[str, "Hugging Face folder; '': converted from gguf"]
  sha256: Annotated[str, "digest of the folder; '': not checked", _SHA256] = ""
  gguf: Annotated[GgufConfig | None, "used where path is ''"] = None
  dtype: Annotated[str, "dtype of the computation", _DTYPE] = "bfloat16"
  attention: Annotated[str, "kernel", _ATTENTION] = "auto"
  mesh: Annotated[
    MeshConfig | None, "own devices of a live teacher; None: the student's"
  ] = None

  def rules(self) -> None:
    if self.mesh is not None:
      for axis, size in dataclasses.asdict(self.mesh).items():
        check(size >= 1, f"mesh.{axis}", "a positive number", size)
    ok = bool(self.path) or self.gguf is not None
    check(ok, "path", "a folder, as teacher.gguf is None", self.path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling(Section):
  """Scaling of rotary frequencies beyond the trained context."""

  kind: Annotated[
    str, "rule that stretches", choice("llama3", "linear"), PUBLIC
  ]
  factor: Annotated[
    float, "long wavelengths become this much longer", at_least(1), PUBLIC
  ]
  low_freq_factor: Annotated[
    float, "llama3: original / wavelength that is stretched in full", PUBLIC
  ] = 1.0
  high_freq_factor: Annotated[
    float, "llama3: original / wavelength that is kept", PUBLIC
  ] = 4.0
  original_max_positions: Annotated[
    int, "llama3: context before stretching, tokens", COUNT, PUBLIC
  ] = 8192

  def rules(self) -> None:
    check(
      self.high_freq_factor > self.low_freq_factor,
      "high_freq_factor",
      f"more than low_freq_factor={self.low_freq_factor}",
      self.high_freq_factor,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentConfig(Section):
  """The small decoder; letters as in docs/glossary.md."""

  seed: Annotated[int, "seed of the initial parameters", SEED, PUBLIC] = 0
  V: Annotated[int, "vocabulary, entries; that of the teacher", COUNT, PUBLIC]
  D: Annotated[int, "model width", COUNT, PUBLIC]
  Y: Annotated[int, "layers", COUNT, PUBLIC]
  N: Annotated[int, "query heads", COUNT, PUBLIC]
  G: Annotated[int, "key/value heads; divides N", COUNT, PUBLIC]
  H: Annotated[int, "head width; even", COUNT, PUBLIC]
  F: Annotated[int, "feed-forward width", COUNT, PUBLIC]
  max_positions: Annotated[int, "longest context, tokens", COUNT, PUBLIC]
  rope_theta: Annotated[
    float, "base of the rotary embedding", ABOVE_0, PUBLIC
  ] = 5e5
  rope_scaling: Annotated[RopeScaling | None, "stretched context, or None"] = (
    None
  )
  rms_norm_eps: Annotated[
    float, "added to the mean square", ABOVE_0, PUBLIC
  ] = 1e-5
  tie_embeddings: Annotated[
    bool, "whether the head is the embedding", PUBLIC
  ] = False
  attention_bias: Annotated[
    bool, "whether q, k, v and output have biases", PUBLIC
  ] = False
  mlp_bias: Annotated[bool, "whether the MLP has biases", PUBLIC] = False
  dtype: Annotated[str, "dtype of the computation", _DTYPE, PUBLIC] = "bfloat16"
  remat: Annotated[
    str,
    "activations recomputed in the backward pass",
    choice("none", "dots", "full"),
    _MACHINES,
  ] = "full"
  attention: Annotated[str, "kernel", _ATTENTION, _MACHINES] = "auto"
  size_window: Annotated[
    str,
    "for a student outside 0.5-5 % of the teacher's parameters",
    choice("refuse", "warn"),
    Private("whether the analog missed the window in a draft"),
  ] = "refuse"

  def rules(self) -> None:
    check(self.N % self.G == 0, "G", f"a divisor of N={self.N}", self.G)
    check(self.H % 2 == 0, "H", "an even width (rotary embedding)", self.H)
