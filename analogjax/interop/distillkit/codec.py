"""DistillKit's codecs of top-k log-probabilities, in numpy.

Field names and arithmetic are those of github.com/arcee-ai/DistillKit at
a61c2e7: a decoder here gives the same as its own, defects included, up to the
last bit of a float32 sum (which its processors differ in too).

Shape letters: N records, K entries of a record, A entries that are
approximated, T terms, J bytes.
"""

from collections.abc import Mapping
import dataclasses
import difflib
import functools
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

_FIELD = "config.cache.import_codec"
_ADVICE = "Give the config that the logits were captured with"
_DTYPES = {
  "float16": np.dtype(np.float16),
  "bfloat16": np.dtype(ml_dtypes.bfloat16),
  "float32": np.dtype(np.float32),
  "float64": np.dtype(np.float64),
}


class Column(NamedTuple):
  """A parquet column of one list per record."""

  name: str
  width: int  # Values of a record.
  dtype: np.dtype


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidualBin:
  """DistillKit's QuantizationBin."""

  scale_dtype: str
  element_bits: int
  num_elements: int

  def __post_init__(self):
    _check_fields(self, "residual_bins[].")
    _check(1 <= self.element_bits <= 64, self, "element_bits", "1 to 64")
    _check(self.num_elements > 0, self, "num_elements", "above 0")

  @property
  def num_bytes(self) -> int:
    elements = _ceil_div(self.element_bits * self.num_elements, 8)
    return _DTYPES[self.scale_dtype].itemsize + elements


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codec:
  """DistillKit's DistributionQuantizationConfig; its defaults too."""

  d: int  # Vocabulary of the ids.
  k: int
  exact_k: int
  exact_dtype: str = "float32"
  polynomial_terms: tuple[int | str, ...] = ()
  term_dtype: str = "float32"
  residual_bins: tuple[ResidualBin, ...] = ()
  delta_encoding: bool = True
  error_diffusion: bool = False  # Used only by the encoder.
  normalize_t: bool = False

  def __post_init__(self):
    _check_fields(self)
    _check(self.d > 1, self, "d", "2 or more")
    _check(self.k > 0, self, "k", "1 or more")
    _check(0 <= self.exact_k <= self.k, self, "exact_k", f"0 to k={self.k}")
    left = self.k - self.exact_k
    in_bins = sum(b.num_elements for b in self.residual_bins)
    expected = f"at most k - exact_k = {left} elements in all"
    _check(in_bins <= left, self, "residual_bins", expected)
    for term in self.polynomial_terms:
      known = type(term) is int or term in ("sqrt", "exp")
      _check(known, self, "polynomial_terms", "integers, 'sqrt' or 'exp'")
    expected = "terms or residual_bins, because exact_k < k"
    coded = bool(self.polynomial_terms or self.residual_bins)
    _check(left == 0 or coded, self, "polynomial_terms", expected)

  @property
  def columns(self) -> tuple[Column, ...]:
    J = self.exact_k * _DTYPES[self.exact_dtype].itemsize
    J += len(self.polynomial_terms) * _DTYPES[self.term_dtype].itemsize
    J += sum(b.num_bytes for b in self.residual_bins)
    ids_J = _ceil_div(self.k * _id_bits(self.d), 8)
    byte = np.dtype(np.uint8)
    return (
      Column("bytepacked_indices", ids_J, byte),
      Column("compressed_logprobs", J, byte),
    )

  @property
  def layout(self) -> "Codec":
    """A value that is equal for two codecs that decode alike."""
    d = 2 ** _id_bits(self.d)
    return dataclasses.replace(self, d=d, error_diffusion=False)

  def decode(
    self, ids_NJ: np.ndarray, logprobs_NJ: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Ids, int64 [N, K], and log-probabilities, float32 [N, K], of records."""
    ids_NK = unpack_bits(ids_NJ, _id_bits(self.d), self.k)
    out, term = _DTYPES[self.exact_dtype], _DTYPES[self.term_dtype]
    taken = 0

    def take(count: int, dtype: np.dtype) -> np.ndarray:
      nonlocal taken
      part_NJ = logprobs_NJ[:, taken : taken + count * dtype.itemsize]
      taken += count * dtype.itemsize
      shape = (len(part_NJ), count)
      return np.ascontiguousarray(part_NJ).view(dtype).reshape(shape)

    with np.errstate(all="ignore"):  # The overflow is part of their format.
      exact_NK = take(self.exact_k, out)
      coefficients_NT = take(len(self.polynomial_terms), term)
      shape = (len(logprobs_NJ), self.k - self.exact_k)
      approximate_NA = np.zeros(shape, out)
      start = 0
      for b in self.residual_bins:
        scale_N1 = take(1, _DTYPES[b.scale_dtype])
        J = _ceil_div(b.element_bits * b.num_elements, 8)
        packed_NJ = take(J, np.dtype(np.uint8))
        levels = unpack_bits(packed_NJ, b.element_bits, b.num_elements)
        if b.element_bits == 1:
          levels = levels * 2 - 1
        else:
          levels = levels + np.int64(-(2 ** (b.element_bits - 1)))
        wide = _at_least_float32(scale_N1.dtype)
        value = levels.astype(np.float32).astype(wide) * scale_N1.astype(wide)
        stop = start + b.num_elements
        approximate_NA[:, start:stop] = _rounded(value, out)
        start = stop
      if self.polynomial_terms:
        t_A = _points(shape[1], term, self.normalize_t)
        terms_TA = [_term(t_A, i) for i in self.polynomial_terms]
        fit_NA = _fit(coefficients_NT, np.stack(terms_TA))
        wide = _wider(term, out)
        fit_NA = fit_NA.astype(wide)
        approximate_NA = fit_NA + approximate_NA.astype(wide)
      wide = approximate_NA.dtype
      logprobs_NK = np.concatenate([exact_NK.astype(wide), approximate_NA], -1)
      if self.delta_encoding:
        # Their sums are float32, but the processor's are carried in float64.
        deltas_NK = logprobs_NK.astype(np.float32)
        sums_NK = np.cumsum(deltas_NK, axis=-1, dtype=np.float64)
        logprobs_NK = sums_NK.astype(np.float32).astype(out)
      return ids_NK, logprobs_NK.astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LegacyCodec:
  """DistillKit's LegacyLogitCompressionConfig; its defaults too."""

  vocab_size: int
  k: int
  exact_k: int
  polynomial_degree: int
  invert_polynomial: bool = True
  with_sqrt_term: bool = False
  term_dtype: str = "float32"  # Used only by the encoder: columns are float32.

  def __post_init__(self):
    _check_fields(self)
    _check(self.vocab_size > 1, self, "vocab_size", "2 or more")
    _check(self.k > 0, self, "k", "1 or more")
    _check(0 <= self.exact_k <= self.k, self, "exact_k", f"0 to k={self.k}")
    degree = self.polynomial_degree
    _check(degree >= 0, self, "polynomial_degree", "0 or more")

  @property
  def columns(self) -> tuple[Column, ...]:
    words = _ceil_div(self.k, 64 // _id_bits(self.vocab_size))
    terms = self.polynomial_degree + 1 + self.with_sqrt_term
    real = np.dtype(np.float32)
    return (
      Column("packed_indices", words, np.dtype(np.uint64)),
      Column("exact_values", self.exact_k, real),
      Column("coeffs", terms if self.exact_k < self.k else 0, real),
    )

  @property
  def layout(self) -> "LegacyCodec":
    """A value that is equal for two codecs that decode alike."""
    size = 2 ** _id_bits(self.vocab_size)
    return dataclasses.replace(self, vocab_size=size, term_dtype="float32")

  def decode(
    self, words_NJ: np.ndarray, exact_NK: np.ndarray, coefficients_NT: Any
  ) -> tuple[np.ndarray, np.ndarray]:
    """Ids, int64 [N, K], and log-probabilities, float32 [N, K], of records."""
    bits = _id_bits(self.vocab_size)
    shifts = np.arange(64 // bits, dtype=np.uint64) * np.uint64(bits)
    ids = words_NJ[..., None] >> shifts & np.uint64(2**bits - 1)
    ids_NK = ids.reshape(len(words_NJ), -1)[:, : self.k].astype(np.int64)
    if self.exact_k == self.k:
      return ids_NK, exact_NK
    t_A = np.arange(1, self.k - self.exact_k + 1, dtype=np.float32)
    sign = -1 if self.invert_polynomial else 1
    powers = [sign * i for i in range(self.polynomial_degree + 1)]
    terms = [*powers, "sqrt"] if self.with_sqrt_term else powers
    with np.errstate(all="ignore"):
      fit_NA = _fit(coefficients_NT, np.stack([_term(t_A, i) for i in terms]))
    return ids_NK, np.concatenate([exact_NK, fit_NA], -1)


def make_codec(compression: Mapping[str, Any]) -> Codec | LegacyCodec:
  """The codec of a DistillKit config, by its field names.

  Raises:
    ValueError: names the field.
  """
  if not isinstance(compression, Mapping):
    found = type(compression).__name__
    raise ValueError(f"{_FIELD}: expected fields of a codec, found a {found}.")
  legacy = "polynomial_degree" in compression or "vocab_size" in compression
  cls = LegacyCodec if legacy else Codec
  known = {f.name: f for f in dataclasses.fields(cls)}
  for name in compression:
    if name not in known:
      close = difflib.get_close_matches(str(name), known, n=1)
      hint = f"Did you mean {close[0]!r}?" if close else _ADVICE + "."
      raise ValueError(f"{_FIELD}: no codec has a field {name!r}. {hint}")
  required = [n for n, f in known.items() if f.default is dataclasses.MISSING]
  if missing := [name for name in required if name not in compression]:
    raise ValueError(f"{_FIELD}: {', '.join(missing)} not given. {_ADVICE}.")
  values = dict(compression)
  if not legacy:
    try:
      values["polynomial_terms"] = tuple(values.get("polynomial_terms") or ())
      bins = values.get("residual_bins") or ()
      values["residual_bins"] = tuple(ResidualBin(**b) for b in bins)
    except TypeError as e:
      raise ValueError(
        f"{_FIELD}: not a list of its kind: {e}. {_ADVICE}."
      ) from e
  return cls(**values)


def read_codec(file: Path) -> Codec | LegacyCodec:
  """The codec in the compression_config.yaml that a capture writes."""
  try:
    import yaml
  except ImportError as e:
    raise ValueError(
      f"{file}: reading it needs PyYAML ({e}). Install it with: "
      "pip install 'analogjax[distillkit]'"
    ) from e
  try:
    return make_codec(yaml.safe_load(file.read_text("utf-8")))
  except (ValueError, yaml.YAMLError) as e:
    raise ValueError(f"{file}: {e}") from e


def unpack_bits(bytes_NJ: np.ndarray, bits: int, count: int) -> np.ndarray:
  """`count` integers of `bits` bits each, high bit first, int64 [N, count]."""
  N, groups = len(bytes_NJ), _ceil_div(count, 8)
  # Eight elements fill `bits` bytes, which fixes all shifts.
  padded_NJ = np.zeros((N, groups * bits), np.uint8)
  J = _ceil_div(bits * count, 8)
  padded_NJ[:, :J] = bytes_NJ[:, :J]
  lanes = padded_NJ.reshape(N * groups, bits).T
  word = np.uint32 if bits <= 32 else np.uint64
  lanes = np.ascontiguousarray(lanes).astype(word)
  values = np.zeros((N * groups, 8), np.int64)
  for lane in range(8):
    end = (lane + 1) * bits
    value = np.zeros(N * groups, word)
    for i in range(lane * bits // 8, _ceil_div(end, 8)):
      shift = end - 8 * (i + 1)
      byte = lanes[i]
      value |= byte << word(shift) if shift >= 0 else byte >> word(-shift)
    values[:, lane] = value & word(2**bits - 1)
  return values.reshape(N, groups * 8)[:, :count]


def _points(A: int, dtype: np.dtype, normalize: bool) -> np.ndarray:
  """Points of evaluation of the polynomial: 0 to A - 1, or 0 to 1."""
  if not normalize or A < 2:
    return np.arange(A).astype(dtype)
  # As torch.linspace: from both ends, a product and a difference rounded as one
  # unless they have 16 bits.
  fused = dtype.itemsize > 2
  wide = np.dtype(np.longdouble) if fused else np.dtype(np.float32)
  step = (dtype.type(1) / dtype.type(A - 1)).astype(wide)
  rise_A = np.arange(A).astype(wide) * step
  fall_A = rise_A[::-1] if fused else rise_A[::-1].astype(dtype).astype(wide)
  return np.where(np.arange(A) < A // 2, rise_A, 1 - fall_A).astype(dtype)


def _term(t_A: np.ndarray, term: int | str) -> np.ndarray:
  """A term at the points, rounded where torch rounds."""
  dtype = t_A.dtype
  # Small powers are products, which bfloat16 rounds one by one.
  t_A = t_A.astype(np.float32) if dtype == np.float16 else t_A
  if term == 2:
    value_A = t_A * t_A
  elif term == 3:
    value_A = t_A * t_A * t_A
  elif term == -2:
    value_A = (1 / (t_A * t_A)).astype(t_A.dtype)
  else:
    wide_A = t_A.astype(np.float64)
    if isinstance(term, int):
      value_A = wide_A**term
    else:
      value_A = {"sqrt": np.sqrt, "exp": np.exp}[term](wide_A)
    value_A = value_A.astype(_at_least_float32(t_A.dtype))
  return value_A.astype(dtype)


def _fit(coefficients_NT: np.ndarray, terms_TA: np.ndarray) -> np.ndarray:
  """The polynomials, [N, A], in the dtype of the coefficients."""
  dtype = coefficients_NT.dtype
  products = [
    (coefficients_NT[:, i, None] * term_A[None]).astype(
      _at_least_float32(dtype)
    )
    for i, term_A in enumerate(terms_TA)
  ]
  # High powers cancel, so the order of the sum matters. This is torch's on a
  # processor with AVX2: vectors of 32 bytes, else four lanes.
  T, lanes = len(products), 32 // dtype.itemsize
  if T < lanes:
    return _sum_by_four(products).astype(dtype)
  whole = T // lanes * lanes
  by_lane = [_sum_by_four(products[i:whole:lanes]) for i in range(lanes)]
  return functools.reduce(np.add, products[whole:] + by_lane).astype(dtype)


def _sum_by_four(values: list[np.ndarray]) -> np.ndarray:
  whole = len(values) // 4 * 4
  lanes = [values[0:whole:4] + values[whole:]]
  if whole:
    lanes += [values[i:whole:4] for i in (1, 2, 3)]
  return functools.reduce(np.add, [functools.reduce(np.add, v) for v in lanes])


def _at_least_float32(dtype: np.dtype) -> np.dtype:
  return np.promote_types(dtype, np.float32)


def _rounded(value: np.ndarray, dtype: np.dtype) -> np.ndarray:
  # float64 becomes float16 by way of float32, as in torch.
  value = value.astype(np.float32) if dtype.itemsize == 2 else value
  return value.astype(dtype)


def _wider(a: np.dtype, b: np.dtype) -> np.dtype:
  """torch's result dtype of two dtypes; float16 and bfloat16 give float32."""
  return a if a == b else np.promote_types(_at_least_float32(a), b)


def _id_bits(vocabulary: int) -> int:
  # In float32, as in the encoder: 2**21 + 1 ids get 21 bits.
  return int(np.ceil(np.log2(np.float32(vocabulary))))


def _ceil_div(a: int, b: int) -> int:
  return -(-a // b)


def _check_fields(codec: Any, prefix: str = "") -> None:
  """Refuses fields of another type."""
  for f in dataclasses.fields(codec):
    value = getattr(codec, f.name)
    where = f"{_FIELD}.{prefix}{f.name}={value!r}"
    if f.name.endswith("_dtype") and str(value) not in _DTYPES:
      names = ", ".join(_DTYPES)
      raise ValueError(f"{where}: expected one of {names}. {_ADVICE}.")
    wanted = {int: "an integer", bool: "true or false"}.get(f.type)  # pyright: ignore
    if wanted and type(value) is not f.type:
      raise ValueError(f"{where}: expected {wanted}. {_ADVICE}.")


def _check(good: bool, codec: Any, name: str, expected: str) -> None:
  if not good:
    found = getattr(codec, name)
    raise ValueError(
      f"{_FIELD}: {name}={found!r}, expected {expected}. {_ADVICE}."
    )
