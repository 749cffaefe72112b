"""Tests for the steps: traffic between the devices of a mesh.

Programs are compiled and read, not run. Sizes are chosen so that a dimension
identifies itself: those of a whole batch, or of one part of it on all devices,
and that of the vocabulary equal no other, nor a product of others.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import math
import os
from pathlib import Path
import re
import sys
import tempfile

import jax
from jax.experimental import topologies
from jax.sharding import NamedSharding
import numpy as np
import pytest
from tpu import needs_libtpu

from analogjax.cache import sampling, teacher_programs
from analogjax.distributed import sharding
from analogjax.fidelity import token_sums
from analogjax.models import decoder
from analogjax.planning import collectives, hlo
from analogjax.training import losses, programs

pytestmark = pytest.mark.medium


def benchmark(name):
  """A module of tests/benchmarks, which is not a package."""
  path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
  spec = importlib.util.spec_from_file_location(f"traffic_{name}", path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module
  spec.loader.exec_module(module)
  return module


students = benchmark("students")

PARTS = 3  # Microbatches of a batch whose step is split.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
  part: int  # Rows of a part; a multiple of the devices.
  L: int
  chunk: int
  cfg: decoder.DecoderConfig

  @property
  def rows(self) -> int:
    return PARTS * self.part


SMALL = Sizes(
  part=24,
  L=22,
  chunk=11,
  cfg=students.config(
    "1B",
    **dict(V=304, D=80, Y=3, N=4, G=2, H=14, F=104, dtype="float32"),
    remat="full",
    tie_embeddings=False,
  ),
)
# Splash attention wants rows of 128 positions and heads of 64.
TPU = Sizes(
  part=192,
  L=128,
  chunk=32,
  cfg=dataclasses.replace(
    SMALL.cfg,
    **dict(V=2000, D=320, N=8, G=4, H=64, F=544, dtype="bfloat16"),
  ),
)
SPLIT = dict(data=2, fsdp=2, tensor=2)
PROGRAMS = [
  ("train", SPLIT),
  ("teacher", SPLIT),
  ("eval", SPLIT),
  ("compare", SPLIT),
  ("train in parts", dict(fsdp=8)),
  ("teacher", dict(fsdp=8)),
  ("compare", dict(fsdp=8)),
  ("train", dict(data=8)),
]


def lower(name, sizes, mesh):
  """A step for a mesh, from shapes alone."""
  cfg = sizes.cfg
  rows = NamedSharding(mesh, sharding.ROWS)
  training = students.training(
    cfg=cfg,
    mesh=mesh,
    objective=losses.Objective(chunk=sizes.chunk),
    microbatches=PARTS if name == "train in parts" else 1,
  )
  params = training.abstract.params
  batch = students.make_batch("threshold", sizes.rows, sizes.L, cfg.V)
  keys_B2 = np.zeros((sizes.rows, 2), np.uint32)
  batch, keys_B2 = jax.tree.map(
    lambda leaf: teacher_programs.shape_of(leaf, rows), (batch, keys_B2)
  )
  with jax.set_mesh(mesh):
    if name.startswith("train"):
      return training.step.lower(training.abstract, batch)
    if name == "teacher":
      step = teacher_programs.make_teacher_step(
        cfg,
        mesh,
        sampler=sampling.Threshold(tau=0.04),
        capture=sampling.Capture(),
        num_replicas=1,
        temperature=1.0,
        chunk=sizes.chunk,
        gram_layers=1,
      )
      return step.lower(params, batch, keys_B2)
    if name == "eval":
      step = programs.make_eval_step(
        cfg, mesh, temperature=1.0, chunk=sizes.chunk
      )
      return step.lower(params, batch)
    names = ("teacher", "student")
    step = token_sums.make_step(
      tuple((name, cfg) for name in names),
      mesh,
      chunk=sizes.chunk,
      documents=2,
    )
    return step.lower({name: params for name in names}, batch)


@dataclasses.dataclass(frozen=True)
class Program:
  found: list[collectives.Collective]
  log: str  # The compiler's output on stderr.


def compiled(name, sizes, axes, devices):
  mesh = sharding.make_mesh(axes, devices[: math.prod(axes.values())])
  lowered = lower(name, sizes, mesh)
  with tempfile.TemporaryDirectory() as folder:
    options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
    if mesh.devices.flat[0].platform == "cpu":
      # About the code generated from the program, which nobody runs.
      options["xla_backend_optimization_level"] = 0
    log = Path(folder, "stderr")
    with stderr_in(log):
      lowered.compile(compiler_options=options)
    # Not as_text(): jaxlib cannot read each program of a newer libtpu.
    (path,) = Path(folder).glob("*after_optimizations.txt")
    program = hlo.parse(path.read_text("utf-8"))
    found = collectives.find(program, dict(mesh.shape))
    return Program(found, log.read_text("utf-8"))


@contextlib.contextmanager
def stderr_in(path):
  """Captures the file descriptor to which XLA writes its warnings."""
  before = os.dup(2)
  try:
    with path.open("wb") as file:
      os.dup2(file.fileno(), 2)
    yield
  finally:
    os.dup2(before, 2)
    os.close(before)


@functools.cache
def _on_cpu(name, axes, sizes):
  return compiled(name, sizes, dict(axes), jax.devices())


def on_cpu(name, axes, sizes=SMALL):
  return _on_cpu(name, tuple(axes.items()), sizes)


def arrays(one) -> Iterator[tuple[str, tuple[int, ...]]]:
  """(dtype, shape) of all outputs of a collective; sizes of 1 left out."""
  for dtype, dims in re.findall(r"\b([a-z]+\d+)\[([\d,]*)\]", one.shape):
    sizes = (int(size) for size in dims.split(",") if size)
    yield dtype, tuple(size for size in sizes if size > 1)


def sizes_in(shape) -> set[int]:
  """The dimensions, and the products of two neighbours."""
  return {*shape, *(a * b for a, b in itertools.pairwise(shape))}


def whole_batches(program, sizes):
  """Collectives that give a device the rows of all.

  Two are exempt: an all-to-all returns as much as it takes, and the embedding
  is looked up in place, so each device has the ids of its fsdp group.
  """
  of_all = {sizes.part, sizes.rows}
  of_all |= {rows * sizes.L for rows in of_all}
  tokens = {("s32", (rows, sizes.L)) for rows in (sizes.part, sizes.rows)}
  return [
    one
    for one in program.found
    if one.kind != "all-to-all"
    if any(of_all & sizes_in(x[1]) and x not in tokens for x in arrays(one))
  ]


def logits(program, sizes, axes):
  """Collectives of anything by id of the vocabulary that is not a weight."""
  cfg = sizes.cfg
  of_V = {cfg.V, cfg.V // axes.get("tensor", 1)}
  of_D = {cfg.D, cfg.D // axes.get("fsdp", 1)}
  return [
    one
    for one in program.found
    for _, shape in arrays(one)
    if of_V & set(shape)
    if not (len(shape) == 2 and shape[0] in of_V and shape[1] in of_D)
  ]


def check_shapes(program, sizes, axes):
  assert program.found  # Otherwise nothing was read.
  assert not whole_batches(program, sizes)
  assert not logits(program, sizes, axes)


def program_id(value):
  if isinstance(value, str):
    return value.replace(" ", "_")
  return "-".join(f"{axis}{size}" for axis, size in value.items())


@pytest.mark.parametrize(("name", "axes"), PROGRAMS, ids=program_id)
def test_no_device_gets_the_rows_of_all_or_logits(name, axes):
  check_shapes(on_cpu(name, axes), SMALL, axes)


@pytest.mark.parametrize(("name", "axes"), PROGRAMS, ids=program_id)
def test_xla_has_to_replicate_nothing(name, axes):
  """It warns if replication is its only way from one sharding to another."""
  log = on_cpu(name, axes).log
  assert "rematerialization" not in log, log


def traffic(program, axes):
  """(kind, axes except data) -> (times, kB exchanged by all devices).

  In a ring, a device sends (n - 1) / n of those, or twice that.
  """
  found = {}
  for one in program.found:
    n = math.prod(axes[axis] for axis in one.axes)
    key = one.kind, tuple(axis for axis in one.axes if axis != "data")
    times, exchanged = found.get(key, (0, 0.0))
    exchanged += one.times * one.sent * n / (n - 1)
    found[key] = times + one.times, exchanged
  return {key: (times, round(x / 1e3)) for key, (times, x) in found.items()}


@pytest.mark.parametrize(
  ("fsdp", "data"), [(1, (2, 8)), (2, (2, 4))], ids=["alone", "with_fsdp2"]
)
def test_traffic_does_not_grow_with_the_data_axis(fsdp, data):
  """Traffic of a training step with this many rows for each device."""
  found = []
  for n in data:
    axes = dict(data=n, fsdp=fsdp)
    sizes = dataclasses.replace(SMALL, part=3 * n * fsdp)
    found.append(traffic(on_cpu("train", axes, sizes), axes))
  assert found[0] == found[1]
  # Over data only a device's part of the gradient travels, in float32.
  _, exchanged = found[0]["all-reduce", ()]
  gradient = 2 * 4 * SMALL.cfg.num_parameters / fsdp / 1e3
  assert exchanged == pytest.approx(gradient, rel=0.01)


@pytest.mark.parametrize("name", ["train", "teacher", "eval", "compare"])
def test_a_program_is_no_longer_for_more_layers(name):
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  lengths = []
  for Y in (2, 16):
    cfg = dataclasses.replace(SMALL.cfg, Y=Y)
    sizes = dataclasses.replace(SMALL, cfg=cfg)
    lengths.append(lower(name, sizes, mesh).as_text().count("\n"))
  assert lengths[0] == lengths[1] > 100


def on_tpu(topology, name, axes, sizes=TPU):
  """Compiles ahead of time, for absent chips."""
  needs_libtpu()
  chips = topologies.get_topology_desc(topology, "tpu").devices
  return compiled(name, sizes, axes, list(chips))


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("name", ["train in parts", "teacher", "compare"])
@pytest.mark.parametrize(
  "axes", [dict(fsdp=64), dict(data=4, fsdp=4, tensor=4)], ids=program_id
)
def test_no_chip_gets_the_rows_of_all_or_logits(name, axes):
  program = on_tpu("v5p:4x4x4", name, axes)
  check_shapes(program, TPU, axes)
  assert "rematerialization" not in program.log, program.log


@pytest.mark.usefixtures("optimized")
def test_traffic_does_not_grow_with_the_number_of_chips():
  found = []
  for topology, n in (("v5p:2x2x1", 4), ("v5p:4x4x4", 64)):
    sizes = dataclasses.replace(TPU, part=3 * n)
    program = on_tpu(topology, "train", dict(data=n), sizes)
    found.append(traffic(program, dict(data=n)))
  assert found[0] == found[1] != {}
