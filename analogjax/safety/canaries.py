"""Canaries: random token sequences, planted into the rows of any pipeline.

A model that finds a planted canary likelier than similar sequences that were
not planted has memorised it. In a config:

  data.pipeline = "analogjax.safety.canaries:planted"
  data.arguments = dict(
    pipeline="my_lab.data:rows",  # The lab's own; its arguments are below.
    canaries=dict(
      tokens=16,  # Length of a canary.
      ids=(17, 49_152),  # First id to draw, and the end of the range.
      copies=(1, 10, 100),  # How often a canary is planted.
      each=4,  # Canaries for each number of copies.
      rows=100_000,  # They are spread over the first rows, so many.
      seed=0,
    ),
    split="train", ...
  )
  data.held_out_arguments = dict(canaries=dict(), split="held_out")

The rows and their order stay the same, with the pipeline's random access and
grain state. In some rows `tokens` positions hold a canary, as a document of its
own; it replaces the text there and splits the document around it in two. No row
has two canaries.

Source: Carlini et al., The Secret Sharer, arXiv:1802.08232.

Letters: C canaries, N tokens of one, L tokens of a row.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any, NamedTuple

import grain
import numpy as np

from analogjax.data import pipeline as pipeline_lib, rows as rows_lib

SPEC = "analogjax.safety.canaries:planted"
_FIELD = "config.data.arguments.canaries"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Settings of the canaries; `settings` makes it from plain values."""

  tokens: int
  ids: tuple[int, int]
  copies: tuple[int, ...]
  each: int
  rows: int
  seed: int

  def __post_init__(self):
    def check(ok, field, expected):
      if not ok:
        raise ValueError(
          f"{_FIELD}.{field}: expected {expected}, found"
          f" {getattr(self, field)!r}."
        )

    for field in ("tokens", "each", "rows", "seed"):
      check(type(getattr(self, field)) is int, field, "a whole number")
    for field in ("ids", "copies"):
      ok = all(type(x) is int for x in getattr(self, field))
      check(ok, field, "whole numbers")
    check(self.tokens >= 4, "tokens", "4 or more")
    ok = len(self.ids) == 2 and 0 <= self.ids[0] < self.ids[1] - 1
    check(ok, "ids", "(FIRST, END) with 0 <= FIRST and two ids or more")
    ok = len(self.copies) > 0 and len(set(self.copies)) == len(self.copies)
    check(ok and min(self.copies) >= 1, "copies", "numbers above 0, each once")
    check(self.each >= 1, "each", "1 or more")
    check(0 <= self.seed < 2**32, "seed", "0 <= seed < 2**32")
    least = self.each * sum(self.copies)
    expected = f"{least} or more, the sum of all copies: no row has two"
    check(self.rows >= least, "rows", expected)


class Plan(NamedTuple):
  """The canaries, and the canary of each row that has one."""

  tokens_CN: np.ndarray  # int32; canaries with most copies last.
  copies_C: np.ndarray
  rows: Mapping[int, tuple[int, float]]  # Row -> canary, relative position.


def settings(values: Mapping[str, Any]) -> Settings:
  """The settings in the argument `canaries`.

  Raises:
    ValueError: names the field.
  """
  wanted = [field.name for field in dataclasses.fields(Settings)]
  if set(values) != set(wanted):
    raise ValueError(
      f"{_FIELD}: expected {', '.join(wanted)}, found"
      f" {', '.join(values) or 'none'}."
    )
  lists = {name: tuple(values[name]) for name in ("ids", "copies")}
  return Settings(**{**values, **lists})


def planned(arguments: Mapping[str, Any]) -> Settings | None:
  """The settings in the arguments of `planted`; None: nothing is planted."""
  values = arguments.get("canaries")
  return settings(values) if values else None


def plan(chosen: Settings) -> Plan:
  """The canaries and their rows, a function of only the settings."""
  copies_C = np.repeat(sorted(chosen.copies), chosen.each)
  tokens_CN = _draw(chosen, "planted", len(copies_C))
  rng = _rng(chosen, "rows")
  total = int(copies_C.sum())
  rows = rng.permutation(chosen.rows)[:total]
  canaries = np.repeat(np.arange(len(copies_C)), copies_C)
  places = rng.random(total)
  return Plan(
    tokens_CN,
    copies_C,
    dict(
      zip(
        rows.tolist(),
        zip(canaries.tolist(), places.tolist(), strict=True),
        strict=True,
      )
    ),
  )


def unplanted(chosen: Settings, number: int) -> np.ndarray:
  """Sequences of the same distribution, in no row; int32 [number, N]."""
  return _draw(chosen, "unplanted", number)


def planted(
  *, pipeline: str, canaries: Mapping[str, Any], **arguments: Any
) -> grain.MapDataset | grain.IterDataset:
  """The rows of another pipeline, with canaries in some of them.

  Args:
    pipeline: "package.module:function" of the other.
    canaries: `Settings` as plain values; empty: none are planted.

  Raises:
    ValueError: names the field.
  """
  function = pipeline_lib.find_function(pipeline)
  pipeline_lib.check_call(pipeline, function, arguments)
  dataset = function(**arguments)
  if not isinstance(dataset, grain.MapDataset | grain.IterDataset):
    raise ValueError(
      f"config.data.arguments.pipeline={pipeline!r}: expected a grain"
      " MapDataset or IterDataset to plant canaries in, found a"
      f" {type(dataset).__name__}."
    )
  if not canaries:
    return dataset
  return dataset.map_with_index(
    functools.partial(_plant, found=plan(settings(canaries)))
  )


def _plant(index: int, element: Any, *, found: Plan) -> Any:
  place = found.rows.get(int(index))
  if place is None or element is None:
    return element
  canary, part = place
  tokens_N = found.tokens_CN[canary]
  tokens_L = np.array(element["tokens"])
  N, L = len(tokens_N), len(tokens_L)
  if L < N:
    raise ValueError(
      f"{_FIELD}.tokens: expected at most the tokens of a row, {L}, found {N}."
    )
  start = int(part * (L - N + 1))
  here = slice(start, start + N)
  tokens_L[here] = tokens_N
  before_L = np.asarray(element["segments"])
  after = {"tokens": tokens_L, "segments": _cut(before_L, here)}
  # The following text keeps its positions: they are relative, and begin
  # anywhere.
  positions_L = np.array(
    element.get("positions", rows_lib.default_positions(before_L))
  )
  positions_L[here] = np.arange(N)
  after["positions"] = positions_L
  if "weights" in element:
    weights_L = np.array(element["weights"])
    weights_L[here] = 1
    after["weights"] = weights_L
  return {**element, **after}


def _cut(segments_L: np.ndarray, here: slice) -> np.ndarray:
  """Segments in which the positions `here` are a document of their own."""
  part_L = np.zeros(len(segments_L), np.int64)
  part_L[here], part_L[here.stop :] = 1, 2
  is_text_L = (segments_L > 0) | (part_L == 1)
  new_L = np.ones(len(segments_L), bool)
  new_L[1:] = np.diff(segments_L) != 0
  new_L[1:] |= np.diff(part_L) != 0
  # Boundaries of the text that the canary replaced do not count.
  new_L[here.start + 1 : here.stop] = False
  return np.where(is_text_L, np.cumsum(new_L & is_text_L), 0)


def _draw(chosen: Settings, kind: str, number: int) -> np.ndarray:
  rng = _rng(chosen, kind)
  shape = (number, chosen.tokens)
  return rng.integers(*chosen.ids, shape).astype(np.int32)


def _rng(chosen: Settings, kind: str) -> np.random.Generator:
  words = ("planted", "unplanted", "rows")
  return np.random.default_rng([chosen.seed, words.index(kind)])
