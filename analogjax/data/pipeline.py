"""Opens the frontier run's own grain pipeline as a source of checked rows.

The pipeline is named by `config.data.pipeline = "package.module:function"`; the
function returns a grain MapDataset, IterDataset or DataLoader of elements with
`tokens` [L] and `segments` [L] (see rows.to_rows).

Letters: B rows of one read, L tokens of a row, V vocabulary.
"""

import abc
import collections
from collections.abc import Callable, Mapping, Sequence
import difflib
import hashlib
import importlib
import inspect
import json
import sys
import traceback
from typing import Any

from absl import flags
import grain
import numpy as np

from analogjax.data import json_state, rows as rows_lib
from analogjax.data.rows import Rows

_FINGERPRINT_ROWS = 4
_KEPT_STATES = 64

# Pipelines of ours that moved, by their first names. Saved configs and caches
# use those, and the fingerprint of a pipeline includes its first name.
_MOVED = {
  "analogjax.data.docstrings:packed_rows": (
    "analogjax.demo.docstrings:packed_rows"
  )
}


class EndOfRows(Exception):
  """The pipeline has fewer rows than requested."""

  def __init__(self, num_rows: int):
    super().__init__(f"the pipeline ends after {num_rows} rows")
    self.num_rows = num_rows


class RowSource(abc.ABC):
  """Rows by index, from one pipeline, checked against L and V.

  Attributes:
    fingerprint: hex; identifies the pipeline by its spec, its arguments, its
      kind and the digests of its first rows, but not by the location of
      folders.
    num_rows: None for a stream whose end has not been seen, and for a dataset
      that repeats forever.
    random_access: whether any row may be read at any time.
  """

  fingerprint: str
  num_rows: int | None
  random_access: bool

  @abc.abstractmethod
  def read(self, indices: Sequence[int] | np.ndarray) -> Rows:
    """The rows at `indices`.

    A stream takes consecutive indices, not before those already passed, and
    skips forward to the first of them.

    Raises:
      EndOfRows: some index is beyond the last row. The source is then
        unchanged, so the remaining rows can be read.
    """

  @abc.abstractmethod
  def state(self, index: int) -> dict[str, Any] | None:
    """The state from which `restore` makes row `index` next, as JSON values.

    It is kept for the start of the stream and the latest 64 ends of reads. It
    is None for any other index, and always if rows have random access.
    """

  @abc.abstractmethod
  def restore(self, index: int, state: dict[str, Any] | None) -> None:
    """Makes row `index` the next one; `state` comes from `state(index)`."""


def open_pipeline(
  spec: str,
  arguments: Mapping[str, Any],
  *,
  L: int,
  V: int,
  substitutions: Mapping[str, str] = {},  # noqa: B006 (never written to)
) -> RowSource:
  """The rows of the pipeline that `spec` names.

  Args:
    spec: "package.module:function".
    arguments: keyword arguments of the function, JSON values.
    substitutions: e.g. {"teacher": "/runs/a/teacher"}: the text "{teacher}" in
      a string argument is replaced. The fingerprint is taken before that.

  Raises:
    ValueError: names config.data.pipeline or config.data.arguments, and what to
      change.
  """
  function = find_function(spec)
  canonical = _canonical_json(arguments)
  call = {k: _substitute(v, substitutions) for k, v in arguments.items()}
  check_call(spec, function, call)
  try:
    dataset = function(**call)
  except Exception as e:
    raise ValueError(_failure(spec, "when it was called", e)) from e

  if isinstance(dataset, grain.MapDataset):
    kind, source = "MapDataset", _IndexedRows(spec, dataset, L=L, V=V)
  elif isinstance(dataset, grain.IterDataset):
    kind, source = "IterDataset", _StreamedRows(spec, dataset, L=L, V=V)
  elif isinstance(dataset, grain.DataLoader):
    kind, source = "DataLoader", _StreamedRows(spec, dataset, L=L, V=V)
  else:
    raise ValueError(
      f"config.data.pipeline={spec!r}: the function returned a "
      f"{type(dataset).__module__}.{type(dataset).__qualname__}, expected a "
      "grain MapDataset, IterDataset or DataLoader of rows."
    )
  h = hashlib.blake2b(digest_size=32)
  for part in (first_name(spec), canonical, kind, *_first_digests(source)):
    h.update(len(part).to_bytes(8, "little"))
    h.update(part if isinstance(part, bytes) else part.encode())
  source.fingerprint = h.hexdigest()
  return source


def check_arguments(spec: str, arguments: Mapping[str, Any]) -> None:
  """Refuses arguments that the pipeline's function does not accept.

  Nothing is read. Raises the errors of `open_pipeline`.
  """
  check_call(spec, find_function(spec), arguments)


class _IndexedRows(RowSource):
  """A grain MapDataset."""

  random_access = True

  def __init__(self, spec: str, dataset: grain.MapDataset, *, L: int, V: int):
    self._spec, self._dataset, self._L, self._V = spec, dataset, L, V
    length = len(dataset)
    if not length:
      raise ValueError(_no_rows(spec))
    # grain gives a dataset that repeats forever this length.
    self.num_rows = None if length == sys.maxsize else length

  def read(self, indices: Sequence[int] | np.ndarray) -> Rows:
    read = []
    for index in indices:
      assert index >= 0, f"row {index} asked for."
      # grain takes an index modulo the length, so it would start again.
      if self.num_rows is not None and index >= self.num_rows:
        raise EndOfRows(self.num_rows)
      try:
        element = self._dataset[index]
      except Exception as e:
        raise ValueError(_failure(self._spec, f"at row {index}", e)) from e
      if element is None:
        raise ValueError(
          f"config.data.pipeline={self._spec!r}: row {index} was filtered "
          "out, so rows have no fixed index. Filter documents before they "
          "are packed, or return dataset.to_iter_dataset()."
        )
      read.append(_checked(self._spec, element, self._L, self._V, index))
    return _concatenate(read, self._L, self._V)

  def state(self, index: int) -> None:
    return None

  def restore(self, index: int, state: dict[str, Any] | None) -> None:
    pass


class _StreamedRows(RowSource):
  """A grain IterDataset or DataLoader, read in order."""

  random_access = False

  def __init__(
    self,
    spec: str,
    dataset: grain.IterDataset | grain.DataLoader,
    *,
    L: int,
    V: int,
  ):
    self._spec, self._dataset, self._L, self._V = spec, dataset, L, V
    self.num_rows = None
    if not flags.FLAGS.is_parsed():
      # grain reads its own flags to start worker processes (mp_prefetch).
      flags.FLAGS.mark_as_parsed()
    self._states = collections.OrderedDict[int, Any]()
    self._iterator = self._iterate()
    self._index = 0
    self._start = json_state.to_json(self._iterator.get_state())

  def read(self, indices: Sequence[int] | np.ndarray) -> Rows:
    if not len(indices):
      return _concatenate([], self._L, self._V)
    first, before = indices[0], self._index
    assert list(indices) == list(range(first, first + len(indices))), (
      f"rows of a stream are read in order, asked for {list(indices)}."
    )
    assert first >= before, (
      f"row {first} asked for, but the stream stands at {before}: restore."
    )
    if self.num_rows is not None and indices[-1] >= self.num_rows:
      raise EndOfRows(self.num_rows)
    self._keep_state()
    try:
      while self._index < first:
        self._next()
      self._keep_state()
      read = []
      for index in indices:
        element = self._next()
        read.append(_checked(self._spec, element, self._L, self._V, index))
    except EndOfRows:
      self._go_to(before, self._states[before])
      raise
    self._keep_state()
    return _concatenate(read, self._L, self._V)

  def state(self, index: int) -> dict[str, Any] | None:
    state = self._start if index == 0 else self._states.get(index)
    if state is None:
      return None
    return {
      "row": index,
      "grain": grain.__version__,
      "iterator": state,
    }

  def restore(self, index: int, state: dict[str, Any] | None) -> None:
    if state is None:
      raise ValueError(
        f"config.data.pipeline={self._spec!r} is a stream and row {index} has "
        "no saved state. Start from row 0."
      )
    if not {"row", "grain", "iterator"} <= set(state) or state["row"] != index:
      raise ValueError(
        f"config.data.pipeline={self._spec!r}: expected the saved state of "
        f"row {index}, found {json.dumps(state)[:200]}."
      )
    if state["grain"] != grain.__version__:
      # grain promises a state's meaning only within one version. The rows are
      # the same (the fingerprint says so), so read up to `index` again.
      self._go_to(0, self._start)
      return
    self._go_to(index, state["iterator"])

  def _next(self) -> Any:
    try:
      element = next(self._iterator)
    except StopIteration:
      if not self._index:
        raise ValueError(_no_rows(self._spec)) from None
      self.num_rows = self._index
      raise EndOfRows(self._index) from None
    except Exception as e:
      where = f"at row {self._index}"
      raise ValueError(_failure(self._spec, where, e)) from e
    self._index += 1
    return element

  def _keep_state(self) -> None:
    # Encoded at once: an iterator may later change the dict that it gave.
    self._states[self._index] = json_state.to_json(self._iterator.get_state())
    self._states.move_to_end(self._index)
    while len(self._states) > _KEPT_STATES:
      self._states.popitem(last=False)

  def _go_to(self, index: int, state: Any) -> None:
    # A fresh iterator: not every iterator takes a state after its end.
    if hasattr(self._iterator, "close"):
      self._iterator.close()
    self._iterator = self._iterate()
    try:
      self._iterator.set_state(json_state.from_json(state))
    except Exception as e:
      raise ValueError(
        _failure(self._spec, f"when row {index}'s state was restored", e)
      ) from e
    self._index = index

  def _iterate(self) -> Any:
    try:
      return iter(self._dataset)
    except Exception as e:
      raise ValueError(_failure(self._spec, "before its first row", e)) from e


def _first_digests(source: RowSource) -> list[bytes]:
  digests = []
  for index in range(_FINGERPRINT_ROWS):
    try:
      rows = source.read([index])
    except EndOfRows:
      break
    digests.append(rows_lib.rows_digests(rows).tobytes())
  source.restore(0, source.state(0))
  return digests


def _checked(spec: str, element: Any, L: int, V: int, index: int) -> Rows:
  try:
    return rows_lib.to_rows([element], L=L, V=V, first_index=index)
  except ValueError as e:
    raise ValueError(f"config.data.pipeline={spec!r}: {e}") from e


def _concatenate(read: Sequence[Rows], L: int, V: int) -> Rows:
  if not read:
    return rows_lib.to_rows([], L=L, V=V, first_index=0)
  return Rows(*(np.concatenate(fields) for fields in zip(*read, strict=True)))


def _failure(spec: str, where: str, e: Exception) -> str:
  # A ValueError is a sentence for the user; other errors need their type.
  plain = isinstance(e, ValueError) and str(e)
  what = str(e) if plain else f"{type(e).__name__}: {e}".rstrip(": ")
  # The last place in the user's own file: what it called may be grain's.
  module = spec.partition(":")[0]
  file = getattr(sys.modules.get(module), "__file__", None)
  frames = traceback.extract_tb(e.__traceback__)
  own = [f for f in frames if f.filename == file]
  if own and not module.startswith("analogjax."):
    what += f" ({own[-1].filename}, line {own[-1].lineno})"
  return f"config.data.pipeline={spec!r} failed {where}: {what}"


def _no_rows(spec: str) -> str:
  return (
    f"config.data.pipeline={spec!r} gives no rows. Check "
    "config.data.arguments: the path, the split and whether there is enough "
    "text for one row."
  )


def first_name(spec: str) -> str:
  """The original name of a pipeline, if it is one of ours that moved."""
  return {now: first for first, now in _MOVED.items()}.get(spec, spec)


def find_function(spec: str) -> Callable[..., Any]:
  """The function that "package.module:function" names."""
  module_name, colon, name = _MOVED.get(spec, spec).partition(":")
  if not (colon and module_name and name.isidentifier()):
    raise ValueError(
      f"config.data.pipeline={spec!r}: expected 'package.module:function', "
      "e.g. 'analogjax.data.text:jsonl'."
    )
  try:
    module = importlib.import_module(module_name)
  except ModuleNotFoundError as e:
    if not f"{module_name}.".startswith(f"{e.name}."):
      raise ValueError(
        f"config.data.pipeline={spec!r}: its module imports {e.name!r}, which "
        "is not installed."
      ) from e
    raise ValueError(
      f"config.data.pipeline={spec!r}: there is no module {e.name!r}. Install "
      "the package that holds it, or put its folder on PYTHONPATH."
    ) from e
  except Exception as e:
    raise ValueError(_failure(spec, "when it was imported", e)) from e
  function = getattr(module, name, None)
  if not callable(function):
    names = [n for n, f in vars(module).items() if inspect.isfunction(f)]
    raise ValueError(
      f"config.data.pipeline={spec!r}: module {module_name} has no function "
      f"{name!r}.{_did_you_mean(name, names)}"
    )
  return function


def check_call(
  spec: str, function: Callable[..., Any], call: Mapping[str, Any]
) -> None:
  try:
    signature = inspect.signature(function)
  except (TypeError, ValueError):
    return  # Some built-in callables have none.
  try:
    signature.bind(**call)
  except TypeError as e:
    names = list(signature.parameters)
    unknown = [k for k in call if k not in names]
    # Python would name the argument that is missing, not the one misspelt.
    what = f"there is no argument {unknown[0]!r}" if unknown else str(e)
    hint = _did_you_mean(unknown[0], names) if unknown else ""
    raise ValueError(
      f"config.data.arguments does not fit config.data.pipeline={spec!r}: "
      f"{what}.{hint} It takes {signature}."
    ) from e


def _did_you_mean(name: str, names: Sequence[str]) -> str:
  close = difflib.get_close_matches(name, names, n=1)
  return f" Did you mean {close[0]!r}?" if close else ""


def _canonical_json(arguments: Mapping[str, Any]) -> str:
  try:
    return json.dumps(
      dict(arguments), sort_keys=True, separators=(",", ":"), allow_nan=False
    )
  except (TypeError, ValueError) as e:
    raise ValueError(
      "config.data.arguments must be plain values (numbers, strings, "
      f"booleans, lists, dicts): {e}."
    ) from e


def _substitute(value: Any, substitutions: Mapping[str, str]) -> Any:
  if isinstance(value, str):
    for name, text in substitutions.items():
      value = value.replace(f"{{{name}}}", text)
    return value
  if isinstance(value, Mapping):
    return {k: _substitute(v, substitutions) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return type(value)(_substitute(v, substitutions) for v in value)
  return value
