"""Reads the HLO text of a compiled program: computations, loops, shapes."""

from collections.abc import Iterator, Mapping
import dataclasses
import functools
import math
import re

_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%([\w.-]+) = ")
_OPCODE = re.compile(r"[})\]] ([a-z][a-z0-9-]*)\(")
_OPERANDS = re.compile(r" [a-z][a-z0-9-]*\(((?:[^()]|\([^()]*\))*)\)")
_CALLED = re.compile(
  r"(calls|to_apply|body|condition|branch_computations|called_computations)="
  r"(\{[^}]*\}|%?[\w.-]+)"
)
_ARRAY = re.compile(r"\b([a-z]+\d+\w*|pred)\[([\d,]*)\](\{[^}]*\})?")
_BITS = {"pred": 8, "bf16": 16}
# Marks a layout in the on-chip memory of a TPU, which is not the device's.
_ON_CHIP = re.compile(r"S\([1-9]\)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
  """One instruction of a computation, by the first of its lines."""

  name: str
  shape: str  # As in the text, with layouts.
  opcode: str
  operands: tuple[str, ...]
  line: str
  is_root: bool

  @functools.cached_property
  def calls(self) -> dict[str, list[str]]:
    """Names of the computations that it calls, by attribute."""
    return {
      what: [name.strip(" %") for name in value.strip("{}").split(",")]
      for what, value in _CALLED.findall(self.line)
    }

  @property
  def called(self) -> list[str]:
    """Names of the computations that it calls."""
    return [name for names in self.calls.values() for name in names]

  @property
  def source(self) -> str:
    """The operation that it was made for; "" if the text does not say."""
    match = re.search(r'op_name="([^"]*)"', self.line)
    return match[1] if match else ""


Computation = Mapping[str, Instruction]  # By name, in order.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """The parsed text of a program."""

  computations: Mapping[str, Computation]
  entry: str

  @functools.cached_property
  def times(self) -> dict[str, tuple[int, bool]]:
    """Number of runs of each computation, and whether it is known.

    Computations that never run are left out.
    """
    callers = {}
    for name, instructions in self.computations.items():
      for one in instructions.values():
        for callee, factor, known in _calls(one, self.computations):
          callers.setdefault(callee, []).append((name, factor, known))

    @functools.cache
    def of(name):
      total, all_known = int(name == self.entry), True
      for caller, factor, known in callers.get(name, ()):
        times, caller_known = of(caller)
        total += times * factor
        all_known &= (known and caller_known) or not times
      return total, all_known

    return {name: of(name) for name in self.computations if of(name)[0]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Array:
  """One array of a shape."""

  dtype: str
  sizes: tuple[int, ...]
  on_chip: bool  # In the fast memory of a TPU's core.

  @property
  def bytes(self) -> float:
    bits = _BITS.get(self.dtype) or int(re.findall(r"\d+", self.dtype)[0])
    return math.prod(self.sizes) * bits / 8


def parse(text: str) -> Program:
  """Parses `compiled.as_text()`, or a dump of XLA."""
  found, entry, instructions = {}, "", None
  for line in text.splitlines():
    if match := _HEADER.match(line):
      instructions = found[match[2]] = {}
      if match[1]:
        entry = match[2]
    elif re.match(r"}(, execution_thread=.*)?$", line):
      instructions = None
    # Other lines are attributes of a kernel, which may have many of them.
    elif instructions is not None and (one := _instruction(line)) is not None:
      instructions[one.name] = one
  assert entry, "no ENTRY: is this HLO?"
  for name, instructions in found.items():
    assert any(one.is_root for one in instructions.values()), name
  return Program(computations=found, entry=entry)


def arrays(shape: str) -> list[Array]:
  """The arrays of a shape, which may be a tuple."""
  return [
    Array(
      dtype=dtype,
      sizes=tuple(int(d) for d in sizes.split(",") if d),
      on_chip=bool(_ON_CHIP.search(layout)),
    )
    for dtype, sizes, layout in _ARRAY.findall(shape)
  ]


def _instruction(line: str) -> Instruction | None:
  """Parses an instruction; None for a line of attributes."""
  start = _INSTRUCTION.match(line)
  opcode = _OPCODE.search(line, start.end()) if start else None
  if start is None or opcode is None:
    return None
  inner = _OPERANDS.search(line)
  return Instruction(
    name=start[2],
    shape=line[start.end() : opcode.start() + 1],
    opcode=opcode[1],
    operands=tuple(re.findall(r"%([\w.-]+)", inner[1])) if inner else (),
    line=line,
    is_root=bool(start[1]),
  )


def _calls(
  one: Instruction, computations: Mapping[str, Computation]
) -> Iterator[tuple[str, int, bool]]:
  """(name, how often, whether that is known) of the computations called."""
  for what, names in one.calls.items():
    times = 1
    if what == "body":
      condition = computations[one.calls["condition"][0]]
      times = _trips(one, condition, computations[names[0]])
    for name in names:
      if name in computations:
        yield name, times or 1, times is not None


def _trips(
  loop: Instruction, condition: Computation, body: Computation
) -> int | None:
  """Iterations of a while loop, or None.

  Either the compiler states it, or the loop counts from 0 up to a constant in
  constant steps, as do all loops from lax.scan or the partitioner.
  """
  if match := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.line):
    return int(match[1])
  compared = [x for x in condition.values() if "direction=LT" in x.line]
  if not compared:
    return None
  counter, bound = compared[0].operands
  index = re.search(r"index=(\d+)", _line_of(counter, condition))
  end = _constant(bound, condition)
  if index is None or end is None:
    return None
  result = next(one for one in body.values() if one.is_root)
  step = body.get(result.operands[int(index[1])])
  if step is None or step.opcode != "add":
    return None
  by = [_constant(name, body) for name in step.operands]
  by = [number for number in by if number]
  return -(-end // by[0]) if len(by) == 1 else None


def _line_of(name: str, computation: Computation) -> str:
  return computation[name].line if name in computation else ""


def _constant(name: str, computation: Computation) -> int | None:
  match = re.search(r" constant\((\d+)\)", _line_of(name, computation))
  return int(match[1]) if match else None
