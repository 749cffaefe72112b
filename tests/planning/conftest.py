"""Configs to plan for, and a closed form to plan with."""

import dataclasses
from pathlib import Path

import pytest

from analogjax.config import loading, schema
from analogjax.distributed import devices
from analogjax.models import decoder
from analogjax.planning import closed_form, facts, topologies

DEMO = Path(__file__).parents[2] / "configs" / "demo.py"
PHASES = ("pretrain", "control", "distill")


@pytest.fixture(scope="session")
def smollm():
  """The shape of SmolLM2-135M."""
  return decoder.DecoderConfig(
    **dict(V=49152, D=576, Y=30, N=9, G=3, H=64, F=1536, max_positions=8192),
    **dict(rope_theta=1e5, rms_norm_eps=1e-5, tie_embeddings=True),
    **dict(attention_bias=False, mlp_bias=False),
  )


@pytest.fixture(scope="session")
def load():
  """(overrides) -> the demo in batches of 32 rows, with sizes of its own."""

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
  """(sections, teacher, topology) -> programs, by the arrays of outline.py."""
  return count_arrays


def count_arrays(sections, smollm, topology):
  mesh = dataclasses.asdict(sections.mesh)
  plan = closed_form.make_plan(sections, smollm, mesh)
  found = []
  for stage, arrays in plan["memory_bytes_per_device"].items():
    rows, parts, per = sections.cache.batch_rows, 1, "forward"
    model, remat = "teacher", 1.0
    if stage != "cache":
      phase = sections.train.phase[stage.removeprefix("train.")]
      rows, parts = phase.batch_rows, phase.microbatches
      model, per = "student", "training"
      remat = {"none": 1.0, "dots": 1.1, "full": 4 / 3}[sections.student.remat]
    tokens = rows * sections.data.L
    flops = tokens * plan[model][f"{per}_flops_per_token"]
    flops /= topology.num_devices
    held = arrays["params"] + arrays.get("moments", 0)
    exchange = facts.Exchange(
      kind="all-gather",
      axes=("fsdp",),
      runs=parts,
      # Of all parameters what others hold.
      sent_bytes=parts * arrays["params"] * (mesh["fsdp"] - 1),
      is_whole=True,
    )
    found.append(
      facts.Program(
        stage=stage,
        how="counted",
        tokens=tokens,
        flops=flops,
        executed_flops=flops * remat,
        accessed_bytes=parts * arrays["total"],
        argument_bytes=held,
        temporary_bytes=arrays["total"] - held,
        output_bytes=0,
        code_bytes=0,
        largest=tuple((n, b) for n, b in arrays.items() if n != "total"),
        exchanges=(exchange,),
      )
    )
  return found


# A small pair, and machines that are counted in CPUs.

TEACHER = decoder.DecoderConfig(
  **dict(V=512, D=64, Y=3, N=4, G=2, H=16, F=128, max_positions=2048),
  **dict(rope_theta=1e4, rms_norm_eps=1e-5, tie_embeddings=False),
  **dict(attention_bias=False, mlp_bias=False),
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
