"""A config to plan for, and a closed form to plan with."""

import dataclasses
from pathlib import Path

import pytest

from analogjax import config, config_files
from analogjax.models import decoder
from analogjax.planning import facts, outline

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
    return config.to_sections(config_files.load(DEMO, pairs))

  return load


@pytest.fixture(scope="session")
def count():
  """(sections, teacher, topology) -> programs, by the arrays of outline.py."""
  return count_arrays


def count_arrays(sections, smollm, topology):
  mesh = dataclasses.asdict(sections.mesh)
  plan = outline.make_plan(sections, smollm, mesh)
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
