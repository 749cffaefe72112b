"""Communication between the devices of a compiled program, from its HLO text.

A TPU's compiler splits a collective: an all-gather may become a loop of
permutes beside the product that needs it, or a chain of fusions that carry one
piece each. So the bytes that one device sends are counted, which are the same
either way. With n devices in a ring:

  all-gather, all-to-all: (n - 1) / n of the whole
  reduce-scatter: the same, of its input
  all-reduce: twice that
  collective-permute: all of it
"""

from collections.abc import Iterable, Mapping
import dataclasses
import math
import re

import numpy as np

from analogjax.planning import hlo
from analogjax.planning.program_cost import Exchange

_KINDS = """
  all-gather all-reduce reduce-scatter collective-permute all-to-all
  ragged-all-to-all collective-broadcast
""".split()
_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
  """One collective of a program."""

  kind: str
  axes: tuple[str, ...]  # Along which devices exchange; (): between slices.
  sent: int  # Bytes that one device sends, each time.
  times: int  # Per run of the program.
  times_known: bool  # False: in a loop whose length the text does not give.
  shape: str  # Shape of the result, as in the text.
  source: str  # The operation it was made for.


def find(
  program: hlo.Program, axis_sizes: Mapping[str, int]
) -> list[Collective]:
  """All collectives that a run of the program may reach.

  `axis_sizes` is the mesh that the program was compiled for, in order.
  """
  found, seen = [], set()
  for name, (times, known) in program.times.items():
    for instruction in program.computations[name].values():
      kind = instruction.opcode.removesuffix("-start")
      if kind not in _KINDS:
        continue
      line = instruction.line
      chain = re.search(r'chain_id="(\d+)"', line)
      if chain is not None:  # One collective, in pieces.
        key = re.findall(r"channel_id=\d+", line)[0], chain[1]
        if key in seen:
          continue
        seen.add(key)
      if name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter of all-reduce"
      axes, sent = _sent(instruction, kind, axis_sizes)
      if axes:
        found.append(_collective(instruction, kind, axes, sent, times, known))
  return found


def between_slices(program: hlo.Program) -> list[Collective]:
  """Traffic that a TPU's program hands to the network of hosts.

  Each of several slices runs its own program, and data for another slice is
  sent through the hosts. Such instructions do not say along which axis.
  """
  found = []
  for name, (times, known) in program.times.items():
    for one in program.computations[name].values():
      match = re.search(r'_megascale_transfer_type="(\w+)"', one.line)
      if match is not None and one.opcode == "send":
        kind = match[1].lower().replace("_", "-")
        found.append(
          _collective(one, kind, (), _bytes(one.shape), times, known)
        )
  return found


def by_kind(found: Iterable[Collective]) -> tuple[Exchange, ...]:
  """Sums by kind and axes, the most bytes first, those between slices last."""
  out: dict[tuple[str, tuple[str, ...]], list[Collective]] = {}
  for one in found:
    out.setdefault((one.kind, one.axes), []).append(one)
  exchanges = [
    Exchange(
      kind=kind,
      axes=axes,
      runs=sum(one.times for one in group),
      sent_bytes=sum(one.times * one.sent for one in group),
      is_whole=all(one.times_known for one in group),
    )
    for (kind, axes), group in out.items()
  ]
  return tuple(sorted(exchanges, key=lambda e: -e.sent_bytes * bool(e.axes)))


def _sent(
  instruction: hlo.Instruction, kind: str, axis_sizes: Mapping[str, int]
) -> tuple[tuple[str, ...], float]:
  """(axes, bytes that one device sends) of one run."""
  line, opcode = instruction.line, instruction.opcode
  size = _bytes(instruction.shape)
  if kind == "collective-permute":
    pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", line)
    assert pairs is not None, line
    # A started collective returns its inputs and its outputs.
    sent = size / 2 if opcode.endswith("-start") else size
    return _axes(_listed(pairs[1]), axis_sizes), sent
  groups = _groups(line, axis_sizes)
  n = len(groups[0])
  if opcode == "all-gather-start":
    size = size * n / (n + 1)
  sent = size * (n - 1) / n
  if opcode.startswith("reduce-scatter"):
    sent *= n
  elif kind == "all-reduce":
    sent *= 2
  return _axes(groups, axis_sizes), sent


def _collective(
  one: hlo.Instruction, kind, axes, sent: float, times: int, known: bool
) -> Collective:
  return Collective(
    kind=kind,
    axes=axes,
    sent=round(sent),
    times=times,
    times_known=known,
    shape=re.sub(r"\{[^}]*\}", "", one.shape),
    source=one.source,
  )


def _bytes(shape: str) -> float:
  """Bytes of all arrays; a scalar of a started collective is its semaphore."""
  return sum(
    array.bytes
    for array in hlo.arrays(shape)
    if array.sizes or array.dtype != "u32"
  )


def _listed(groups: str) -> list[list[int]]:
  """Parses a text like {0,1},{2,3}."""
  return [
    [int(i) for i in group.split(",")]
    for group in re.findall(r"{([^}]*)", groups)
  ]


def _groups(line: str, axis_sizes) -> list[list[int]]:
  """Devices that exchange with each other, by position in the mesh."""
  number = math.prod(axis_sizes.values())
  if match := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", line):
    return _listed(match[1])
  # [groups, devices]<=[sizes]T(order)
  if match := re.search(rf"replica_groups=\[([\d,]+)\]<={_IOTA}", line):
    ids = _iota(match[2], match[3])
    return ids.reshape(_numbers(match[1])).tolist()
  # mesh['axis_0'=8,'axis_1'=2], device_ids=([4,4]T(1,0)) {'axis_0'}
  if match := re.search(
    rf"replica_groups=mesh\[([^]]*)\](?:, device_ids=\({_IOTA}\))?"
    r" \{([^}]*)\}",
    line,
  ):
    sizes = {n: int(i) for n, i in re.findall(r"'([^']*)'=(\d+)", match[1])}
    names = re.findall(r"'([^']*)'(:?)", match[4])
    assert not any(part for _, part in names), f"a part of an axis: {match[0]}"
    kept = [list(sizes).index(name) for name, _ in names]
    others = [i for i in range(len(sizes)) if i not in kept]
    ids = _iota(match[2] or str(number), match[3]).reshape([*sizes.values()])
    ids = ids.transpose([*others, *kept])
    return ids.reshape(-1, math.prod(ids.shape[len(others) :])).tolist()
  assert re.search(r"replica_groups=(?!\{\})", line) is None, line
  return [list(range(number))]


def _iota(sizes: str, order: str | None) -> np.ndarray:
  """Devices numbered in an array of these sizes, with its axes permuted."""
  shape = _numbers(sizes)
  ids = np.arange(math.prod(shape)).reshape(shape)
  return ids.transpose(None if order is None else _numbers(order))


def _numbers(text: str) -> list[int]:
  return [int(i) for i in text.split(",")]


def _axes(groups, axis_sizes) -> tuple[str, ...]:
  """Axes along which the devices of a group differ."""
  differ = set()
  for group in groups:
    places = np.unravel_index(np.asarray(group), [*axis_sizes.values()])
    for axis, place in zip(axis_sizes, places, strict=True):
      if len(set(place.tolist())) > 1:
        differ.add(axis)
  return tuple(axis for axis in axis_sizes if axis in differ)
