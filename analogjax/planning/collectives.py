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

from collections.abc import Mapping
import dataclasses
import math
import re

import numpy as np

from analogjax.planning import hlo

_KINDS = """
  all-gather all-reduce reduce-scatter collective-permute all-to-all
  ragged-all-to-all collective-broadcast
""".split()
_COLLECTIVE = re.compile(rf" ({'|'.join(_KINDS)})(-start)?\(")
_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
  """One collective of a program."""

  kind: str
  axes: tuple[str, ...]  # Mesh axes along which devices exchange.
  sent: int  # Bytes that one device sends, each time.
  times: int  # Per run of the program.
  times_known: bool  # False: in a loop whose length the text does not give.
  shape: str  # Shape of the result, as in the text.
  source: str  # The operation it was made for.


def find(text: str, axis_sizes: Mapping[str, int]) -> list[Collective]:
  """All collectives that a run of the program may reach."""
  program = hlo.parse(text)
  found, seen = [], set()
  for name, lines in program.computations.items():
    if name not in program.times:
      continue
    for line in lines:
      match = _COLLECTIVE.search(line)
      if match is None:
        continue
      chain = re.search(r'chain_id="(\d+)"', line)
      if chain is not None:  # One collective, in pieces.
        key = re.findall(r"channel_id=\d+", line)[0], chain[1]
        if key in seen:
          continue
        seen.add(key)
      kind = match[1]
      if name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter of all-reduce"
      one = _collective(line, match, kind, axis_sizes, *program.times[name])
      if one.axes:
        found.append(one)
  return found


def by_kind(
  found: list[Collective],
) -> dict[tuple[str, str], tuple[int, int, bool]]:
  """(kind, axes) -> runs, bytes sent by one device, whether both are known."""
  out = {}
  for one in found:
    key = one.kind, " x ".join(one.axes)
    runs, sent, known = out.get(key, (0, 0, True))
    out[key] = (
      runs + one.times,
      sent + one.times * one.sent,
      known and one.times_known,
    )
  return dict(sorted(out.items(), key=lambda item: -item[1][1]))


def between_slices(text: str) -> dict[str, tuple[int, int, bool]]:
  """Traffic that a TPU's program hands to the network of hosts.

  Each of several slices runs its own program, and data for another slice is
  sent through the hosts. Such lines do not say along which axis.

  Returns:
    Kind -> runs, bytes sent by one device, whether both are known.
  """
  program, found = hlo.parse(text), {}
  for name, (times, known) in program.times.items():
    for line in program.computations[name]:
      match = re.search(r'_megascale_transfer_type="(\w+)"', line)
      if match is None or " send(" not in line:
        continue
      kind = match[1].lower().replace("_", "-")
      shape = line[line.index(" = ") + 3 : line.index(" send(")]
      runs, sent, all_known = found.get(kind, (0, 0, True))
      found[kind] = (
        runs + times,
        sent + times * round(_bytes(shape)),
        all_known and known,
      )
  return found


def _collective(line, match, kind, axis_sizes, times, known) -> Collective:
  shape = line[line.index(" = ") + 3 : match.start()]
  size, moved = _bytes(shape), 0.0
  if match[1] == "collective-permute":
    pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", line)
    assert pairs is not None, line
    axes = _axes(_listed(pairs[1]), axis_sizes)
    # A started collective returns its inputs and its outputs.
    moved = size / 2 if match[2] else size
  else:
    groups = _groups(line, axis_sizes)
    axes, n = _axes(groups, axis_sizes), len(groups[0])
    if match[1] == "all-gather" and match[2]:
      size = size * n / (n + 1)
    moved = size * (n - 1) / n
    if match[1] == "reduce-scatter":
      moved *= n
    elif kind == "all-reduce":
      moved *= 2
  source = re.search(r'op_name="([^"]*)"', line)
  return Collective(
    kind=kind,
    axes=axes,
    sent=round(moved),
    times=times,
    times_known=known,
    shape=re.sub(r"\{[^}]*\}", "", shape),
    source=source[1] if source else "",
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
