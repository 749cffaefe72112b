"""What the devices of a compiled program exchange, from its HLO text.

A TPU's compiler takes a collective apart: an all-gather may become a loop of
permutes beside the product that wants it, or a chain of fusions that carry one
piece of it each. So what is counted is the bytes that one device sends, which
are the same either way: of n devices, by a ring,

  all-gather, all-to-all: (n - 1) / n of the whole
  reduce-scatter: the same, of what goes in
  all-reduce: twice that
  collective-permute: all of it
"""

from collections.abc import Iterator, Mapping
import dataclasses
import functools
import math
import re

import numpy as np

_KINDS = (
  *("all-gather", "all-reduce", "reduce-scatter", "collective-permute"),
  *("all-to-all", "ragged-all-to-all", "collective-broadcast"),
)
_COLLECTIVE = re.compile(rf" ({'|'.join(_KINDS)})(-start)?\(")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_CALLED = re.compile(
  r"(calls|to_apply|body|condition|branch_computations|called_computations)="
  r"(\{[^}]*\}|%?[\w.-]+)"
)
_SHAPE = re.compile(r"\b([a-z]+\d+\w*|pred)\[([\d,]*)\]")
_BITS = {"pred": 8, "bf16": 16}
_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
  """One collective of a program."""

  kind: str
  axes: tuple[str, ...]  # Of the mesh, along which devices exchange.
  sent: int  # Bytes that one device sends, each time.
  times: int  # A run of the program.
  times_known: bool  # False: in a loop whose length the text does not tell.
  shape: str  # Of the result, as in the text.
  source: str  # The operation it was made for.


def find(text: str, axis_sizes: Mapping[str, int]) -> list[Collective]:
  """All collectives that a run of the program may get to.

  Args:
    text: `compiled.as_text()`.
    axis_sizes: of the mesh that the program was compiled for, in order.
  """
  computations, entry = _computations(text)
  times = _times(computations, entry)
  found, seen = [], set()
  for name, lines in computations.items():
    if name not in times:
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
      one = _collective(line, match, kind, axis_sizes, *times[name])
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


def between_slices(text: str) -> dict[str, tuple[int, int]]:
  """Kind -> runs, bytes: what a TPU's program hands to the network of hosts.

  Of several slices each runs a program of its own, and what another has to get
  is sent through the hosts. Such lines do not say along which axis; loops are
  not counted out.
  """
  found = {}
  for line in text.splitlines():
    kind = re.search(r'_megascale_transfer_type="(\w+)"', line)
    if kind and " send(" in line:
      shape = line[line.index(" = ") + 3 : line.index(" send(")]
      runs, sent = found.get(kind[1], (0, 0))
      found[kind[1]] = runs + 1, sent + round(_bytes(shape))
  return found


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  """Lines of each computation by name, and the name of the first to run."""
  found, entry, lines = {}, "", None
  for line in text.splitlines():
    if match := _HEADER.match(line):
      lines = found[match[2]] = []
      if match[1]:
        entry = match[2]
    elif re.match(r"}(, execution_thread=.*)?$", line):
      lines = None
    elif lines is not None:
      # An instruction may go on below: kernels have attributes of many lines.
      lines.append(line)
  assert entry, "no ENTRY: is this HLO?"
  for name, lines in found.items():
    assert any(x.lstrip().startswith("ROOT") for x in lines), name
  return found, entry


def _times(computations, entry) -> dict[str, tuple[int, bool]]:
  """How often each computation runs, and whether that is known."""
  callers = {}
  for name, lines in computations.items():
    for line in lines:
      for callee, factor, known in _calls(line, computations):
        callers.setdefault(callee, []).append((name, factor, known))

  @functools.cache
  def of(name):
    total, all_known = int(name == entry), True
    for caller, factor, known in callers.get(name, ()):
      times, caller_known = of(caller)
      total += times * factor
      all_known &= (known and caller_known) or not times
    return total, all_known

  return {name: of(name) for name in computations if of(name)[0]}


def _calls(line: str, computations) -> Iterator[tuple[str, int, bool]]:
  """(name, how often, whether that is known) of what an instruction calls."""
  named = {
    what: [name.strip(" %") for name in value.strip("{}").split(",")]
    for what, value in _CALLED.findall(line)
  }
  for what, names in named.items():
    times = 1
    if what == "body":
      condition, body = named["condition"][0], named["body"][0]
      times = _trips(line, computations[condition], computations[body])
    for name in names:
      if name in computations:
        yield name, times or 1, times is not None


def _trips(line: str, condition: list[str], body: list[str]) -> int | None:
  """Iterations of a while loop, or None.

  Either the compiler says it, or the loop counts from 0 up to a constant in
  steps of a constant, as all do that come of lax.scan or of the partitioner.
  """
  if match := re.search(r'known_trip_count":\{"n":"(\d+)"', line):
    return int(match[1])
  root = next((x for x in condition if "direction=LT" in x), None)
  if root is None:
    return None
  counter, bound = _operands(root)
  index = re.search(r"index=(\d+)", _line_of(counter, condition))
  end = _constant(bound, condition)
  if index is None or end is None:
    return None
  result = next(x for x in body if x.lstrip().startswith("ROOT"))
  step = _line_of(_operands(result)[int(index[1])], body)
  by = [_constant(name, body) for name in _operands(step)] if step else []
  by = [number for number in by if number]
  return -(-end // by[0]) if len(by) == 1 and " add(" in step else None


def _operands(line: str) -> list[str]:
  inner = re.search(r" [a-z-]+\(((?:[^()]|\([^()]*\))*)\)", line)
  return re.findall(r"%([\w.-]+)", inner[1]) if inner else []


def _line_of(name: str, lines: list[str]) -> str:
  start = re.compile(rf"\s*(ROOT )?%{re.escape(name)} = ")
  return next((line for line in lines if start.match(line)), "")


def _constant(name: str, lines: list[str]) -> int | None:
  match = re.search(r" constant\((\d+)\)", _line_of(name, lines))
  return int(match[1]) if match else None


def _collective(line, match, kind, axis_sizes, times, known) -> Collective:
  shape = line[line.index(" = ") + 3 : match.start()]
  size, moved = _bytes(shape), 0.0
  if match[1] == "collective-permute":
    pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", line)
    assert pairs is not None, line
    axes = _axes(_listed(pairs[1]), axis_sizes)
    # What is started gives what goes in and what comes out.
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
  """Of all arrays; a scalar of a started collective is its semaphore."""
  total = 0.0
  for dtype, dims in _SHAPE.findall(shape):
    sizes = [int(d) for d in dims.split(",") if d]
    if dtype == "u32" and not sizes:
      continue
    bits = _BITS.get(dtype) or int(re.findall(r"\d+", dtype)[0])
    total += math.prod(sizes) * bits / 8
  return total


def _listed(groups: str) -> list[list[int]]:
  """Of a text like {0,1},{2,3}."""
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
  """Devices counted in an array of sizes, its axes put in an order."""
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
