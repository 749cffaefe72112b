"""FLOPs and memory traffic of a compiled program, from its HLO text.

XLA's own analysis (`compiled.cost_analysis()`) counts the body of a loop once,
however often it runs: one of 32 layers in a scan. Here each computation counts
as often as it runs.
"""

from collections.abc import Mapping
import math
import re

import numpy as np

from analogjax.planning import hlo

# They move nothing, or their traffic is counted elsewhere.
_FREE = frozenset(
  """
  parameter constant tuple get-tuple-element bitcast while conditional call
  after-all opt-barrier partition-id replica-id domain copy-done slice-done
  all-gather-done all-reduce-done collective-permute-done async-done
  async-update send-done recv-done iota
  """.split()
)
_SLICES = ("dynamic-slice", "slice", "gather")
# Kernel of splash attention -> number of products of [L, H] by [H, L], or
# equally large. The forward one has q k and p v; dq also d(output) v; dkv all
# five but dq.
_SPLASH = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}


def matrix_flops(program: hlo.Program) -> float:
  """FLOPs of all matrix products in a run, on one device.

  A multiplication and an addition for each pair of factors. Attention in a
  kernel is counted with the blocks of scores that it does not skip. A loop of
  unknown length counts once.
  """
  total = 0.0
  for name, (times, _) in program.times.items():
    instructions = program.computations[name]
    for one in instructions.values():
      if one.opcode == "dot":
        total += times * _dot(one, instructions)
      elif one.opcode == "convolution":
        total += times * _convolution(one, instructions)
      elif one.opcode == "custom-call":
        total += times * _kernel(one, instructions)
  return total


def accessed_bytes(program: hlo.Program) -> float:
  """Bytes read from and written to the device's memory in a run.

  Every instruction that is not fused into another one reads its operands and
  writes its result. If it slices an array, or writes a slice of one, only the
  slice counts. A TPU core's own memory does not count.
  """
  fused = {
    called
    for instructions in program.computations.values()
    for one in instructions.values()
    if one.opcode not in ("while", "conditional", "call")
    for called in one.called
  }
  total = 0.0
  for name, (times, _) in program.times.items():
    if name in fused:
      continue
    instructions = program.computations[name]
    for one in instructions.values():
      if one.opcode not in _FREE:
        total += times * _moved(one, instructions, program)
  return total


def _dot(one: hlo.Instruction, instructions) -> float:
  (result,) = hlo.arrays(one.shape)
  left = _array(one.operands[0], instructions)
  dims = _numbers(one.line, r"lhs_contracting_dims=\{([\d,]*)\}")
  contracted = math.prod(left.sizes[i] for i in dims)
  return 2.0 * math.prod(result.sizes) * contracted


def _convolution(one: hlo.Instruction, instructions) -> float:
  """FLOPs of a convolution.

  A TPU's compiler writes all products so, with heads as a side of a window.
  """
  (result,) = hlo.arrays(one.shape)
  image, kernel = (_array(name, instructions) for name in one.operands[:2])
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.line)
  assert labels is not None, one.line
  of_image, of_kernel, of_result = (
    dict(zip(text, array.sizes, strict=True))
    for text, array in zip(
      labels.groups(), (image, kernel, result), strict=True
    )
  )
  window = re.search(r"window=\{([^}]*)\}", one.line)
  sides = dict(re.findall(r"(\w+)=([\w-]+)", window[1] if window else ""))
  pairs = 1.0
  for i, place in enumerate(sorted(k for k in of_kernel if k.isdigit())):
    pairs *= _pairs(
      of_image[place], of_kernel[place], of_result[place], sides, i
    )
  return 2.0 * of_result["b"] * of_result["f"] * of_kernel["i"] * pairs


def _pairs(image: int, kernel: int, result: int, sides, i: int) -> float:
  """Pairs of window position and result that meet an element."""

  def of(field, default):
    text = sides.get(field)
    return default if text is None else text.split("x")[i]

  stride, dilation = int(of("stride", 1)), int(of("rhs_dilate", 1))
  base = int(of("lhs_dilate", 1))
  before = int(of("pad", "0_0").split("_")[0])
  at = np.arange(result)[:, None] * stride + np.arange(kernel) * dilation
  at = at - before
  is_there = (at >= 0) & (at <= (image - 1) * base) & (at % base == 0)
  return float(is_there.sum())


def _kernel(one: hlo.Instruction, instructions) -> float:
  """FLOPs of a Pallas kernel; splash attention is the only one used."""
  name = re.match(r"splash_mha_[a-z]+", one.name)
  if name is None:
    return 0.0
  products = next(
    (n for kind, n in _SPLASH.items() if name[0].startswith(kind)), 0
  )
  mask, queries = None, None
  for operand in one.operands:
    for array in _arrays(operand, instructions):
      if mask is None and array.dtype == "s8":
        mask = array  # [1, blocks, blocks]: one side of a block is L / blocks.
      if queries is None and array.dtype in ("bf16", "f32"):
        queries = array  # [N, L, H], or rows of that.
  if mask is None or queries is None or len(queries.sizes) < 3:
    return 0.0
  *rows, N, L, H = queries.sizes
  blocks = mask.sizes[1]
  # Blocks on the diagonal count in full.
  scores = L * L * (blocks + 1) / (2 * blocks)
  return products * 2.0 * math.prod(rows) * N * H * scores


def _moved(one: hlo.Instruction, instructions, program: hlo.Program) -> float:
  if one.opcode in _SLICES:
    return 2 * _size(one.shape)
  if one.opcode == "dynamic-update-slice":
    return 2 * _size_of(one.operands[1], instructions)
  if one.opcode.endswith("-start"):
    # Its shape includes the inputs; a scalar is a semaphore.
    return sum(
      x.bytes for x in hlo.arrays(one.shape) if x.sizes and not x.on_chip
    )
  if one.opcode != "fusion":
    read = sum(_size_of(name, instructions) for name in one.operands)
    return read + _size(one.shape)
  (inner,) = one.called
  total = _written(inner, one.shape, program)
  for index, name in enumerate(one.operands):
    if not all(array.on_chip for array in _arrays(name, instructions)):
      total += _read(inner, index, program)
  return total


def _written(computation: str, shape: str, program: hlo.Program) -> float:
  """Bytes that a fusion writes; a slice written in place counts by its size."""
  inner = program.computations[computation]
  root = next(one for one in inner.values() if one.is_root)
  roots = [root]
  if root.opcode == "tuple":
    roots = [inner[name] for name in root.operands]
  total = _size(shape)
  for one in roots:
    while one.opcode == "bitcast":
      one = inner[one.operands[0]]
    if one.opcode == "dynamic-update-slice":
      total += _size_of(one.operands[1], inner) - _size(one.shape)
    elif one.opcode == "fusion":
      (called,) = one.called
      total += _written(called, one.shape, program) - _size(one.shape)
  return max(total, 0.0)


def _read(computation: str, index: int, program: hlo.Program) -> float:
  """Bytes of an operand that a fusion reads.

  A TPU's compiler nests fusions, and puts the slice of one layer's weights into
  the innermost.
  """
  inner = program.computations[computation]
  parameter = f" parameter({index})"
  (found,) = (
    one
    for one in inner.values()
    if one.opcode == "parameter" and parameter in one.line
  )
  whole, total, names = _size(found.shape), 0.0, {found.name}
  # In order, so a view comes before its users.
  for one in inner.values():
    if names.isdisjoint(one.operands):
      continue
    if one.opcode == "bitcast":
      names.add(one.name)
      continue
    for place, name in enumerate(one.operands):
      if name not in names:
        continue
      if one.opcode in _SLICES and place == 0:
        total += _size(one.shape)
      elif one.opcode == "dynamic-update-slice" and place == 0:
        pass  # In place.
      elif one.opcode == "fusion":
        (called,) = one.called
        total += _read(called, place, program)
      else:
        return whole
  return min(total, whole)


def _array(name: str, instructions: Mapping[str, hlo.Instruction]) -> hlo.Array:
  (array,) = hlo.arrays(instructions[name].shape)
  return array


def _arrays(name: str, instructions) -> list[hlo.Array]:
  return hlo.arrays(instructions[name].shape) if name in instructions else []


def _size(shape: str) -> float:
  return sum(x.bytes for x in hlo.arrays(shape) if not x.on_chip)


def _size_of(name: str, instructions) -> float:
  return _size(instructions[name].shape) if name in instructions else 0.0


def _numbers(line: str, pattern: str) -> list[int]:
  match = re.search(pattern, line)
  return [int(i) for i in match[1].split(",") if i] if match else []
