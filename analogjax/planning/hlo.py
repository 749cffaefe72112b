"""Reads the HLO text of a compiled program: computations, loops, shapes."""

from collections.abc import Iterator, Mapping
import dataclasses
import functools
import math
import re

_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%([\w.-]+) = ")
_OPCODE = re.compile(r"[})\]] ([a-z][a-z0-9-]*)\(")
_CALLED = re.compile(
  r"(calls|to_apply|body|condition|branch_computations|called_computations)="
  r"(\{[^}]*\}|%?[\w.-]+)"
)
_ARRAY = re.compile(r"\b([a-z]+\d+\w*|pred)\[([\d,]*)\](\{[^}]*\})?")
_BITS = {"pred": 8, "bf16": 16}
# Marks a layout in the on-chip memory of a TPU, which is not the device's.
_ON_CHIP = re.compile(r"S\([1-9]\)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """The parsed text of a program."""

  # Lines of each computation by name; an instruction may span several.
  computations: Mapping[str, list[str]]
  entry: str

  @functools.cached_property
  def times(self) -> dict[str, tuple[int, bool]]:
    """Number of runs of each computation, and whether it is known.

    Computations that never run are left out.
    """
    callers = {}
    for name, lines in self.computations.items():
      for line in lines:
        for callee, factor, known in _calls(line, self.computations):
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

  @functools.cached_property
  def instructions(self) -> dict[str, dict[str, "Instruction"]]:
    """Instructions of each computation by name, in order."""
    return {
      name: {
        one.name: one for one in map(_instruction, lines) if one is not None
      }
      for name, lines in self.computations.items()
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
  """One line of a computation."""

  name: str
  shape: str  # As in the text, with layouts.
  opcode: str
  operands: tuple[str, ...]
  line: str
  is_root: bool

  @property
  def called(self) -> list[str]:
    """Names of the computations that it calls."""
    return [
      name.strip(" %")
      for _, value in _CALLED.findall(self.line)
      for name in value.strip("{}").split(",")
    ]


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
  found, entry, lines = {}, "", None
  for line in text.splitlines():
    if match := _HEADER.match(line):
      lines = found[match[2]] = []
      if match[1]:
        entry = match[2]
    elif re.match(r"}(, execution_thread=.*)?$", line):
      lines = None
    elif lines is not None:
      # An instruction may continue below: kernels have attributes of many
      # lines.
      lines.append(line)
  assert entry, "no ENTRY: is this HLO?"
  for name, lines in found.items():
    assert any(x.lstrip().startswith("ROOT") for x in lines), name
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
  if start is None:
    return None
  rest = line[start.end() :]
  opcode = _OPCODE.search(rest)
  if opcode is None:
    return None
  return Instruction(
    name=start[2],
    shape=rest[: opcode.start() + 1],
    opcode=opcode[1],
    operands=tuple(_operands(line)),
    line=line,
    is_root=bool(start[1]),
  )


def _calls(line: str, computations) -> Iterator[tuple[str, int, bool]]:
  """(name, how often, whether that is known) of the computations called."""
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

  Either the compiler states it, or the loop counts from 0 up to a constant in
  constant steps, as do all loops from lax.scan or the partitioner.
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
  inner = re.search(r" [a-z][a-z0-9-]*\(((?:[^()]|\([^()]*\))*)\)", line)
  return re.findall(r"%([\w.-]+)", inner[1]) if inner else []


def _line_of(name: str, lines: list[str]) -> str:
  start = re.compile(rf"\s*(ROOT )?%{re.escape(name)} = ")
  return next((line for line in lines if start.match(line)), "")


def _constant(name: str, lines: list[str]) -> int | None:
  match = re.search(r" constant\((\d+)\)", _line_of(name, lines))
  return int(match[1]) if match else None
