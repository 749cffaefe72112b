"""The largest arrays of a program, named in terms of the model.

Inputs are known by name. Arrays that XLA keeps beside them are identified by
shape and by the operation that made them: dimensions are those of the model on
one device.
"""

from collections.abc import Iterator, Mapping
import math
import re

import jax

from analogjax.distributed import sharding
from analogjax.models import decoder
from analogjax.planning import hlo, programs

_PEAK_LINE = re.compile(r"^    ([\w.-]+)\{[\d,]*\}: (\d+) bytes")

OTHER = "other, and room between them"


def largest(
  step: programs.Step,
  program: hlo.Program,
  live_ranges: str,
  temporary_bytes: float,
) -> tuple[tuple[str, float], ...]:
  """(name, bytes on one device), the largest first.

  `live_ranges` is XLA's dump of them: everything alive at the peak. Arrays may
  share memory, so the sum may exceed the total.
  """
  found: dict[str, float] = {}
  words = _Words(step)
  for array, size in _alive(program, live_ranges):
    what = words.of(array)
    found[what] = found.get(what, 0) + size
  # Holes between arrays, and memory reserved for another moment.
  rest = temporary_bytes - sum(found.values())
  if rest > 0:
    found[OTHER] = found.get(OTHER, 0) + rest
  return ranked(found | dict(known(step)))


def known(step: programs.Step) -> Iterator[tuple[str, float]]:
  """Arrays that exist whatever the compiler does: arguments and residents."""
  for what, tree in step.arguments.items():
    yield what, programs.bytes_of(tree)
  for what, tree in step.resident.items():
    yield f"{what}, beside the program", programs.bytes_of(tree)


def ranked(found: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
  return tuple(sorted(found.items(), key=lambda item: -item[1]))


def _alive(
  program: hlo.Program, live_ranges: str
) -> Iterator[tuple[hlo.Array, int]]:
  """(array, bytes) at the peak, without the program's arguments."""
  _, _, peak = live_ranges.partition("(peak):\n")
  everything = {
    one.name: (name, one)
    for name, instructions in program.computations.items()
    for one in instructions.values()
  }
  for line in peak.splitlines():
    match = _PEAK_LINE.match(line)
    if match is None:
      break
    name, size = match[1], int(match[2])
    if name not in everything:
      continue
    computation, one = everything[name]
    if one.opcode == "parameter" and computation == program.entry:
      continue
    # Of a tuple, the array of that size.
    arrays = hlo.arrays(one.shape)
    fits = [a for a in arrays if a.bytes <= size and not a.on_chip]
    if not fits:
      continue
    yield max(fits, key=lambda a: a.bytes), size


class _Words:
  """Names for the arrays of one program."""

  def __init__(self, step: programs.Step):
    cfg, mesh = step.model, step.mesh
    self._is_training = step.request.kind == "train"
    tensor = mesh.shape[sharding.WEIGHT_AXES["V"]]
    ways = mesh.size // tensor
    self._Y, self._L = cfg.Y, step.L
    self._tokens = max(step.rows // ways, 1) * step.L
    self._V = {math.ceil(cfg.V / tensor), cfg.V}
    self._K = step.num_slots
    abstract = decoder.abstract_parameters(cfg)
    where = sharding.state_shardings(abstract, mesh)
    self._local, self._layer, self._gathered = set(), set(), set()
    self._heads = set()
    leaves = zip(
      jax.tree_util.tree_leaves_with_path(abstract),
      jax.tree.leaves(where),
      strict=True,
    )
    for (path, x), place in leaves:
      local = place.shard_shape(x.shape)
      letters = sharding.letters_of(
        jax.tree_util.keystr(path, simple=True, separator="/")
      )
      # Along fsdp an array is gathered before it is used.
      whole = tuple(
        x.shape[i] if letter == "D" else local[i]
        for i, letter in enumerate(letters)
      )
      self._local.add(_key(local))
      if letters.startswith("Y"):
        self._layer.add(_key(local[1:]))
        self._gathered.add(_key(whole[1:]))
      else:
        self._heads.add(_key(whole))
    if "teacher's unembedding" in step.arguments:
      V, W = step.arguments["teacher's unembedding"].shape
      self._heads.add(_key((math.ceil(V / tensor), W)))

  def of(self, array: hlo.Array) -> str:
    key, size = _key(array.sizes), math.prod(array.sizes)
    is_float = array.dtype == "f32"
    if key in self._local and (is_float and self._is_training):
      return "gradients"
    if key in self._local:
      return "parameters in the compute dtype"
    if key in self._heads:
      return "unembedding, gathered, or its gradient"
    if key in self._gathered | self._layer:
      return "weights of a layer, gathered, or their gradients"
    if self._V & set(array.sizes):
      return "logits of a chunk"
    if sum(n == self._L for n in array.sizes) > 1:
      return "attention scores"
    if self._K and self._K in array.sizes:
      return "records"
    if size % (self._Y * self._tokens) == 0 and self._Y in array.sizes:
      return "activations kept for the backward pass"
    if size % self._tokens == 0 and size > self._tokens:
      return "activations of a layer"
    return OTHER


def _key(sizes: tuple[int, ...]) -> tuple[int, ...]:
  return tuple(sorted(n for n in sizes if n != 1))
