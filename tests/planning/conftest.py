"""Configs to plan for, and simple sizes to plan with."""

import dataclasses
import math
from pathlib import Path

from models import SMOLLM2, tiny
import pytest

from analogjax.config import loading, schema
from analogjax.distributed import devices
from analogjax.models import sizes
from analogjax.planning import program_cost, topologies

DEMO = Path(__file__).parents[2] / "configs" / "demo.py"
PHASES = ("pretrain", "control", "distill")


@pytest.fixture(scope="session")
def smollm():
  """The shape of SmolLM2-135M."""
  return SMOLLM2


@pytest.fixture(scope="session")
def load():
  """(overrides) -> the demo in batches of 32 rows, with its own sizes."""

  def load(*overrides):
    sizes = ["cache.num_rows=320", "cache.held_out_rows=32"]
    sizes += ["cache.batch_rows=32", "measure.batch_rows=32"]
    for name in PHASES:
      sizes += [f"train.{name}.batch_rows=32", f"train.{name}.num_steps=160"]
    pairs = [tuple(o.split("=", 1)) for o in (*sizes, *overrides)]
    return schema.to_sections(loading.load(DEMO, pairs))

  return load


@pytest.fixture(scope="session")
def count():
  """(sections, teacher, topology) -> programs of simple sizes, at once.

  The formulas are monotonic in every field that a plan may change, and training
  takes most; they are not those of the package.
  """
  return lambda sections, teacher, topology: [
    count_program(sections, teacher, topology, name)
    for name in ("", *sections.train.phases)
  ]


def count_program(sections, teacher, topology, name):
  """The cache step for the name "", else that of a phase."""
  mesh, L = dataclasses.asdict(sections.mesh), sections.data.L
  tensor, split = mesh["tensor"], mesh["fsdp"] * mesh["tensor"]
  ways = topology.num_devices // tensor
  phase = sections.train.phase[name] if name else None
  model = sections.student if phase else teacher
  flops = sizes.forward_flops_per_token(model, L)
  params = math.ceil(sizes.count_parameters(model).total / split)
  logits = 3 * 4 * math.ceil(model.V / tensor)
  if phase is None:
    batch_rows, parts, remat = sections.cache.batch_rows, 1, 1.0
    params *= {"float32": 4, "bfloat16": 2}[sections.teacher.dtype]
    arrays = {"params": params}
    arrays["logits"] = logits * math.ceil(batch_rows / ways)
    arrays["logits"] *= sections.cache.chunk
  else:
    batch_rows, parts, flops = phase.batch_rows, phase.microbatches, 3 * flops
    rows = math.ceil(batch_rows / parts / ways)
    params *= 4
    arrays = {"params": params, "gradients": params, "moments": 2 * params}
    remat = {"none": 1.0, "dots": 1.1, "full": 4 / 3}[model.remat]
    qkv = (model.N + 2 * model.G) * model.H / tensor
    products = qkv + 2 * model.D + 2 * model.F / tensor
    heads = (2 * model.N * L + model.N * model.H) / tensor
    layer = 4 * model.D + qkv + heads + 4 * model.F / tensor
    kept = {"none": layer, "dots": model.D + products, "full": model.D}
    again = 0 if model.remat == "none" else layer
    numbers = model.Y * kept[model.remat] + again
    arrays["activations"] = math.ceil(rows * L * 4 * numbers)
    arrays["logits"] = logits * min(phase.loss.chunk, rows * L)
  tokens, total = batch_rows * L, sum(arrays.values())
  flops *= tokens / topology.num_devices
  held = arrays["params"] + arrays.get("moments", 0)
  exchange = program_cost.Exchange(
    kind="all-gather",
    axes=("fsdp",),
    runs=parts,
    sent_bytes=parts * arrays["params"] * (mesh["fsdp"] - 1),
    is_whole=True,
  )
  return program_cost.ProgramCost(
    stage=f"train.{name}" if name else "cache",
    how="counted",
    tokens=tokens,
    flops=flops,
    executed_flops=flops * remat,
    accessed_bytes=parts * total,
    argument_bytes=held,
    temporary_bytes=total - held,
    output_bytes=0,
    code_bytes=0,
    largest=tuple(arrays.items()),
    exchanges=(exchange,),
  )


# A small pair, and machines that are counted in CPUs.

TEACHER = tiny(
  **dict(V=512, D=64, Y=3, H=16, F=128, max_positions=2048),
  tie_embeddings=False,
)
_SMALL = (
  *("student.V=512", "student.D=32", "student.Y=2", "student.F=64"),
  *("student.H=8", "student.size_window=warn", "data.L=64", "cache.chunk=32"),
  *("mesh.fsdp=1", "cache.batch_rows=8", "measure.batch_rows=8"),
  *(f"train.{name}.batch_rows=8" for name in PHASES),
  *(f"train.{name}.loss.chunk=128" for name in PHASES),
)


def _machine(
  name: str, number: int, *, chip: str = "cpu"
) -> topologies.Topology:
  return topologies.Topology(
    name=name,
    chip=devices.Chip(
      name=chip,
      is_tpu=chip.startswith("v"),
      memory_bytes=1e11,
      peak_flops={"bfloat16": 1e12, "float32": 1e12},
      memory_bytes_per_second=1e11,
      fast_bytes_per_second=1e10,
      slow_bytes_per_second=1e9,
      per_host=8,
      watts=100,
      source="made up",
    ),
    shape=(number,),
  )


@pytest.fixture(name="machine")
def machine_():
  """machine(name, number, chip=...) -> topologies.Topology."""
  return _machine


@pytest.fixture
def teacher():
  return TEACHER


@pytest.fixture
def sections():
  """sections("mesh.fsdp=2", ...) -> the demo, shrunk."""

  def make(*overrides: str) -> schema.Sections:
    pairs = [tuple(o.split("=", 1)) for o in (*_SMALL, *overrides)]
    return schema.to_sections(loading.load(DEMO, pairs))

  return make
