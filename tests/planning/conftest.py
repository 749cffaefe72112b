"""A small pair and machines that are counted in CPUs."""

from pathlib import Path

import pytest

from analogjax import config, config_files
from analogjax.models import decoder
from analogjax.planning import facts

DEMO = Path(__file__).parents[2] / "configs" / "demo.py"

TEACHER = decoder.DecoderConfig(
  **dict(V=512, D=64, Y=3, N=4, G=2, H=16, F=128, max_positions=2048),
  **dict(rope_theta=1e4, rms_norm_eps=1e-5, tie_embeddings=False),
  **dict(attention_bias=False, mlp_bias=False),
)
_PHASES = ("pretrain", "control", "distill")
_SMALL = (
  *("student.V=512", "student.D=32", "student.Y=2", "student.F=64"),
  *("student.H=8", "student.size_window=warn", "data.L=64", "cache.chunk=32"),
  *("mesh.fsdp=1", "cache.batch_rows=8", "measure.batch_rows=8"),
  *(f"train.{name}.batch_rows=8" for name in _PHASES),
  *(f"train.{name}.loss.chunk=128" for name in _PHASES),
)


def _machine(name: str, number: int, *, chip: str = "cpu") -> facts.Topology:
  return facts.Topology(
    name=name,
    chip=facts.Chip(
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
  """machine(name, number, chip=...) -> facts.Topology."""
  return _machine


@pytest.fixture
def teacher():
  return TEACHER


@pytest.fixture
def sections():
  """sections("mesh.fsdp=2", ...) -> the demo, shrunk."""

  def make(*overrides: str) -> config.Sections:
    pairs = [tuple(o.split("=", 1)) for o in (*_SMALL, *overrides)]
    return config.to_sections(config_files.load(DEMO, pairs))

  return make
