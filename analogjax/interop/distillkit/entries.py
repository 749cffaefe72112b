"""Top-k caches of DistillKit, read from its parquet files by row.

docs/distillkit.md has the layouts. Needs the extra `distillkit`.

Shape letters: B rows, L position, K entries of a record, N records of one row,
J values of a record in a column.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import glob
import hashlib
import itertools
import json
from pathlib import Path
import re
from typing import Any, NamedTuple

import numpy as np

from analogjax.data import rows as rows_lib
from analogjax.interop.distillkit import codec as distillkit_codec

MIN_TAIL = 2.0**-24  # Smallest mass float32 distinguishes from 0.
# A lossy code of a distribution is never this far off; a wrong codec soon is.
MAX_MASS = 2.0

Codec = distillkit_codec.Codec | distillkit_codec.LegacyCodec

_CAPTURED = "compression_config.yaml"  # The codec, beside a capture's files.
_OPTIONAL = ("attention_mask", "labels")


@dataclasses.dataclass(frozen=True)
class Counts:
  """Outcomes for the records that were read; they add up."""

  num_records: int = 0  # Records in the result.
  num_clamped: int = 0  # The entries left less than MIN_TAIL: the tail.
  num_unreadable: int = 0  # Decoded to NaN or infinity; treated as no record.
  largest_mass: float = 0.0  # Sum of a record's probabilities, as decoded.

  def __add__(self, other: "Counts") -> "Counts":
    return Counts(
      self.num_records + other.num_records,
      self.num_clamped + other.num_clamped,
      self.num_unreadable + other.num_unreadable,
      max(self.largest_mass, other.largest_mass),
    )


class Entries(NamedTuple):
  """Rows with the teacher's records, on the host."""

  rows: rows_lib.Rows
  ids_BLK: np.ndarray  # int32; 0 in empty slots.
  logprobs_BLK: np.ndarray  # float32, as decoded; -inf in empty slots.
  log_tail_BL: np.ndarray  # float32; 0 where there is no record.
  counts: Counts


def open_dataset(
  path: str, compression: Mapping[str, Any] | None, *, L: int, V: int
) -> "DistillKitRows":
  """Opens a dataset and checks its columns.

  Args:
    path: a parquet file, a folder (searched to any depth), or a glob. Files are
      taken in the order of their names, numbers by value.
    compression: DistillKit's `logprob_compressor` or
      `legacy_logit_compression`; None takes the compression_config.yaml that a
      capture writes beside its files.
    L: tokens in a row; shorter ones are padded.
    V: vocabulary of tokens and ids.

  Raises:
    ValueError: names the file or the field.
  """
  files = _files(path)
  captured = sorted({f.parent / _CAPTURED for f in files})
  codecs = [distillkit_codec.read_codec(f) for f in captured if f.is_file()]
  if compression is not None:
    codecs.insert(0, distillkit_codec.make_codec(compression))
  if not codecs:
    raise ValueError(
      f"{captured[0]} is not there, so config.cache.import_codec is needed."
    )
  codec = codecs[0]
  for other in codecs[1:]:
    if other.layout != codec.layout:
      raise ValueError(
        f"{path}: config.cache.import_codec (or the first {_CAPTURED}) is "
        f"{codec}, but beside the files is {other}. Give the latter, or none."
      )
  if codec.k > V:
    raise ValueError(
      f"config.cache.import_codec: k={codec.k}, expected at most {V}, the "
      f"vocabulary. {_CODEC}"
    )
  return DistillKitRows(files, codec, L, V)


class DistillKitRows:
  """Rows by index; make it with `open_dataset`.

  Rows are cheap in order. Out of order, a row costs the decoding of its row
  group up to it. Not thread-safe.
  """

  def __init__(self, files: Sequence[Path], codec: Codec, L: int, V: int):
    self.codec, self.L, self.V = codec, L, V
    self._files = list(files)
    self._groups: list[tuple[int, int, int]] = []  # File, group, row in file.
    self._starts: list[int] = []  # First row of each group.
    self.num_rows = 0
    for i, file in enumerate(self._files):
      with _open_parquet(file) as parquet:
        _check_schema(parquet.schema_arrow, codec, file)
        in_file = 0
        for group in range(parquet.num_row_groups):
          self._starts.append(self.num_rows + in_file)
          self._groups.append((i, group, in_file))
          in_file += parquet.metadata.row_group(group).num_rows
      self.num_rows += in_file
    if not self.num_rows:
      raise ValueError(f"{self._files[0]}: the dataset has no rows.")
    self._at = (-1, 0)  # Group that is being read, and its next row.
    self._batches: Iterator[Any] = iter(())

  @functools.cached_property
  def fingerprint(self) -> str:
    """Hash of the codec and all files' bytes; the first use reads them."""
    codec = {type(self.codec).__name__: dataclasses.asdict(self.codec)}
    parts = [json.dumps(codec, sort_keys=True).encode()]
    for file in self._files:
      with file.open("rb") as f:
        parts.append(hashlib.file_digest(f, hashlib.blake2b).digest())
    h = hashlib.blake2b(b"analogjax.distillkit 1", digest_size=32)
    for part in parts:
      h.update(len(part).to_bytes(8, "little") + part)
    return h.hexdigest()

  def read(self, indices: Sequence[int] | np.ndarray) -> Entries:
    """The rows and their records, in the requested order.

    Raises:
      ValueError: a row does not fit; names the file and the row.
    """
    index_B = np.asarray(indices, np.int64).reshape(-1)
    assert not np.any((index_B < 0) | (index_B >= self.num_rows)), index_B
    shape_BL, K = (len(index_B), self.L), self.codec.k
    ids_BLK = np.zeros((*shape_BL, K), np.int32)
    logprobs_BLK = np.full((*shape_BL, K), -np.inf, np.float32)
    log_tail_BL = np.zeros(shape_BL, np.float32)
    elements: list[Any] = [None] * len(index_B)
    counts = Counts()
    for b in np.argsort(index_B, kind="stable"):
      row = self._row(int(index_B[b]))
      elements[b] = self._element(row)
      record_N, ids_NK, logprobs_NK, log_tail_N, count = self._records(
        row, elements[b]["segments"]
      )
      ids_BLK[b, record_N] = ids_NK
      logprobs_BLK[b, record_N] = logprobs_NK
      log_tail_BL[b, record_N] = log_tail_N
      counts += count
    rows = rows_lib.to_rows(elements, L=self.L, V=self.V, first_index=0)
    return Entries(rows, ids_BLK, logprobs_BLK, log_tail_BL, counts)

  def _row(self, index: int) -> "_Row":
    """One row; continues from the last one if it is ahead."""
    g = int(np.searchsorted(self._starts, index, "right")) - 1
    i, group, first = self._groups[g]
    offset = index - self._starts[g]
    file = self._files[i]
    where = f"{file}, row {first + offset} (row {index} of the dataset)"
    try:
      if self._at[0] != g or self._at[1] > offset:
        parquet = _open_parquet(file)
        names = ["input_ids", *(c.name for c in self.codec.columns)]
        self._batches = parquet.iter_batches(
          1, row_groups=[group], columns=[*names, *_OPTIONAL]
        )
        self._at = (g, 0)
      skipped = offset - self._at[1]
      batch = next(itertools.islice(self._batches, skipped, None))
    except (OSError, ValueError, StopIteration) as e:
      self._at = (-1, 0)
      raise ValueError(f"{where} cannot be read: {e}. {_AGAIN}") from e
    self._at = (g, offset + 1)
    return _Row(batch, where)

  def _element(self, row: "_Row") -> dict[str, np.ndarray]:
    """The row as an element of a pipeline, padded to L."""
    tokens_N = row.integers("input_ids")
    assert tokens_N is not None
    num_tokens = row.num_tokens
    if not 1 <= num_tokens <= self.L:
      raise ValueError(
        f"{row.where}: {num_tokens} tokens, expected 1 to {self.L}. Set "
        "config.data.L to the longest row, or pack with --max-len of it."
      )
    row.check_below(tokens_N, self.V, "input_ids")
    # With packing, the mask numbers the documents, from 1.
    segments_N, labels_N = map(row.integers, _OPTIONAL)
    if segments_N is None:
      segments_N = np.ones(num_tokens, np.int64)
    row.check_below(segments_N, 2**31, _OPTIONAL[0])
    element = {"tokens": tokens_N, "segments": segments_N}
    if labels_N is not None:
      element["weights"] = (labels_N >= 0).astype(np.float32)
    pad = (0, self.L - num_tokens)
    return {name: np.pad(value, pad) for name, value in element.items()}

  def _records(self, row: "_Row", segments_L: np.ndarray) -> tuple[Any, ...]:
    """Positions, ids, log-probabilities, tails and counts of the records."""
    columns = [row.records(c) for c in self.codec.columns]
    num_tokens = row.num_tokens
    lengths = [len(c) for c in columns]
    # vLLM has no logits before the first token: the kept ones begin with those
    # of the second, and packing cuts the last token off.
    if set(lengths) not in ({num_tokens - 1}, {num_tokens}):
      names = ", ".join(c.name for c in self.codec.columns)
      raise ValueError(
        f"{row.where}: {lengths} records in {names}, expected "
        f"{num_tokens - 1} or {num_tokens} for {num_tokens} tokens. {_AGAIN}"
      )
    ids_NK, logprobs_NK = self.codec.decode(*columns)
    record_N = np.flatnonzero(segments_L[: len(ids_NK)] > 0)
    ids_NK, logprobs_NK = ids_NK[record_N], logprobs_NK[record_N]
    # Only minus infinity marks an entry that vLLM did not give, with any id.
    readable_N = ~np.any(np.isnan(logprobs_NK) | (logprobs_NK == np.inf), -1)
    num_unreadable = len(readable_N) - int(readable_N.sum())
    if num_unreadable and not readable_N.any():
      raise ValueError(
        f"{row.where}: all {num_unreadable} records decode to NaN or infinity. "
        f"The codec overflows, or is not the one of the capture. {_CODEC}"
      )
    record_N = record_N[readable_N]
    ids_NK, logprobs_NK = ids_NK[readable_N], logprobs_NK[readable_N]
    ids_NK = np.where(logprobs_NK > -np.inf, ids_NK, 0)
    if (wrong_NK := ids_NK >= self.V).any():
      n, k = np.argwhere(wrong_NK)[0]
      raise ValueError(
        f"{row.where}: id {ids_NK[n, k]} in the record of position "
        f"{record_N[n]}, expected below {self.V}, the vocabulary. {_CODEC}"
      )
    with np.errstate(over="ignore"):
      mass_N = np.exp(logprobs_NK).sum(-1, dtype=np.float64)
    largest = float(mass_N.max(initial=0.0))
    if largest > MAX_MASS:
      raise ValueError(
        f"{row.where}: the probabilities in the record of position "
        f"{record_N[mass_N.argmax()]} add up to {largest:.3g}, expected about "
        f"1 at most. {_CODEC}"
      )
    clamped_N = mass_N > 1 - MIN_TAIL
    log_tail_N = np.log1p(-np.where(clamped_N, 1 - MIN_TAIL, mass_N))
    counts = Counts(
      len(record_N), int(clamped_N.sum()), num_unreadable, largest
    )
    return record_N, ids_NK, logprobs_NK, log_tail_N, counts


_AGAIN = (
  "Copy the file again; one that a killed capture left unfinished has to go."
)
_CODEC = (
  "Give the codec of the capture in config.cache.import_codec; if it is that, "
  "the file is damaged."
)


class _Row:
  """One row of a parquet file; `where` names it in messages."""

  def __init__(self, batch: Any, where: str):
    self._batch, self.where = batch, where
    self.num_tokens = len(batch.column("input_ids").flatten())

  def integers(self, name: str) -> np.ndarray | None:
    """A column of one integer per token, if it is there."""
    if name not in self._batch.schema.names:
      return None
    values = self._values(self._batch.column(name).flatten(), name)
    if len(values) != self.num_tokens:
      raise ValueError(
        f"{self.where}: {len(values)} values in {name!r}, expected "
        f"{self.num_tokens}, one for each token. {_AGAIN}"
      )
    return values

  def records(self, column: distillkit_codec.Column) -> np.ndarray:
    """A column of one list per record, [N, J]."""
    lists = self._batch.column(column.name).flatten()
    lengths_N = _pyarrow().compute.list_value_length(lists)
    lengths_N = self._values(lengths_N, column.name)
    wrong_N = lengths_N != column.width
    if wrong_N.any():
      n = int(wrong_N.argmax())
      raise ValueError(
        f"{self.where}: {lengths_N[n]} values in {column.name!r} at record "
        f"{n}, expected {column.width} with this codec. {_CODEC}"
      )
    values = self._values(lists.flatten(), column.name)
    if column.dtype == np.uint8:
      self.check_below(values, 256, column.name)
    return values.astype(column.dtype).reshape(len(lists), column.width)

  def check_below(self, values: np.ndarray, end: int, name: str) -> None:
    wrong = (values < 0) | (values >= end)
    if values.dtype != np.uint8 and wrong.any():
      at = int(wrong.argmax())
      raise ValueError(
        f"{self.where}: {values[at]} in {name!r} at {at}, expected 0 to "
        f"{end - 1}. {_AGAIN}"
      )

  def _values(self, array: Any, name: str) -> np.ndarray:
    if array.null_count:
      raise ValueError(f"{self.where}: a null in {name!r}. {_AGAIN}")
    return array.to_numpy(zero_copy_only=False)


def _pyarrow() -> Any:
  try:
    import pyarrow
    import pyarrow.compute
    import pyarrow.parquet  # noqa: F401
  except ImportError as e:
    raise ValueError(
      f"config.cache.import_path: reading parquet files needs pyarrow ({e}). "
      "Install it with: pip install 'analogjax[distillkit]'"
    ) from e
  return pyarrow


def _open_parquet(file: Path) -> Any:
  pyarrow = _pyarrow()
  try:
    return pyarrow.parquet.ParquetFile(
      file, memory_map=True, page_checksum_verification=True
    )
  except (OSError, ValueError) as e:
    raise ValueError(
      f"{file} is not a whole parquet file: {e}. {_AGAIN}"
    ) from e


def _check_schema(schema: Any, codec: Codec, file: Path) -> None:
  """Refuses a file without the codec's columns, or with other types in them."""
  wanted = {"input_ids": (1, "integer")}
  for column in codec.columns:
    kind = "floating" if column.dtype.kind == "f" else "integer"
    wanted[column.name] = (2, kind)
  for name in _OPTIONAL:
    if name in schema.names:
      wanted[name] = (1, "integer")
  if missing := [name for name in wanted if name not in schema.names]:
    raise ValueError(
      f"{file}: there is no column {', '.join(map(repr, missing))}; found "
      f"{', '.join(map(repr, schema.names)) or 'none'}. A "
      f"{type(codec).__name__} reads {', '.join(map(repr, wanted))}: give the "
      "codec and the dataset that belong together."
    )
  types = _pyarrow().types
  for name, (depth, kind) in wanted.items():
    inner = schema.field(name).type
    for _ in range(depth):
      inner = getattr(inner, "value_type", None)  # Of any kind of list.
    if not (inner and getattr(types, f"is_{kind}")(inner)):
      raise ValueError(
        f"{file}: column {name!r} is {schema.field(name).type}, expected "
        f"{'lists of ' * depth}{kind} values. Give a dataset that DistillKit "
        "wrote."
      )


def _files(path: str) -> list[Path]:
  """The parquet files of a path, folder or glob, in order."""
  root = Path(path)
  if root.is_dir():
    found = list(root.rglob("*.parquet"))
  elif glob.has_magic(path):
    found = [Path(f) for f in glob.glob(path, recursive=True)]
  else:
    found = [root]
  found = [f for f in found if f.is_file()]
  if not found:
    raise ValueError(
      f"config.cache.import_path={path!r}: there is no parquet file. Packed "
      "datasets lie on disk as .arrow; write them with Dataset.to_parquet."
    )

  def order(file: Path) -> list[Any]:
    # data_10 comes after data_2.
    parts = re.split(r"(\d+)", file.as_posix())
    return [int(p) if i % 2 else p for i, p in enumerate(parts)]

  return sorted(found, key=order)
