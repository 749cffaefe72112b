"""Tests for analogjax/planning/compiled.py, against XLA and Linux."""

import dataclasses
import json
from pathlib import Path
import pickle
import subprocess
import sys

import jax
import pytest

from analogjax.planning import compiled, programs

DISTILL = (
  *("train.phases=distill", "train.distill.init_from="),
  "measure.phases=distill",
)
# A step takes so much that the rest of a process does not matter.
LARGE = (
  *("student.V=8192", "student.D=256", "student.F=768", "student.N=8"),
  *("student.G=4", "student.H=32", "student.Y=2", "data.L=256"),
  *("train.distill.loss.chunk=256", "cache.chunk=256"),
)

# Runs a program of a plan on arrays of ones and looks how much memory it took.
_RUN = """
import ctypes, json, pickle, sys
import jax
from analogjax.planning import compiled as compiling, programs

def kilobytes(field):
  with open("/proc/self/status") as status:
    return next(int(x.split()[1]) for x in status if x.startswith(field))

def run(stage):
  (request,) = (r for r in programs.requests(sections) if r.stage == stage)
  step = programs.prepare(
    request,
    sections,
    teacher,
    *programs.meshes(request, sections, jax.devices()),
  )
  planned = compiling.make_program(step, "")
  ones = jax.jit(
    lambda: jax.tree.map(lambda x: jax.numpy.ones(x.shape, x.dtype), step.call),
    out_shardings=jax.tree.map(lambda x: x.sharding, step.call),
  ).lower().compile()
  program = step.lower().compile()
  ctypes.CDLL(None).malloc_trim(0)
  with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # The peak begins here.
  before = kilobytes("VmRSS")
  jax.block_until_ready(program(*ones()))
  measured = 1024 * (kilobytes("VmHWM") - before)
  return planned.memory_bytes - planned.resident_bytes, measured

with open(sys.argv[1], "rb") as file:
  sections, teacher = pickle.load(file)
print(json.dumps({stage: run(stage) for stage in ("cache", "train.distill")}))
"""


@pytest.mark.slow
@pytest.mark.skipif(
  not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc"
)
def test_memory_is_what_a_process_takes(sections, teacher, tmp_path):
  teacher = dataclasses.replace(teacher, V=8192, D=512, Y=8, F=1024)
  job = tmp_path / "job"
  job.write_bytes(pickle.dumps((sections(*DISTILL, *LARGE), teacher)))
  done = subprocess.run(
    # All that is allocated goes back to the system when it is freed.
    [
      *("env", "MALLOC_MMAP_THRESHOLD_=65536", "JAX_NUM_CPU_DEVICES=1"),
      *(sys.executable, "-c", _RUN, job),
    ],
    capture_output=True,
    text=True,
    timeout=240,
  )
  assert done.returncode == 0, done.stderr
  for stage, (planned, measured) in json.loads(done.stdout).items():
    assert planned > 5e7, stage
    assert planned == pytest.approx(measured, rel=0.1), stage


def test_flops_are_those_of_xla(sections, teacher):
  """If all loops run once: XLA always counts a body once."""
  cfg = sections(
    *DISTILL, *LARGE, "student.Y=1", "train.distill.loss.chunk=2048"
  )
  (request,) = (r for r in programs.requests(cfg) if r.kind == "train")
  step = programs.prepare(
    request, cfg, teacher, *programs.meshes(request, cfg, jax.devices()[:1])
  )
  program = compiled.make_program(step, "")
  theirs = step.lower().compile().cost_analysis()["flops"]
  assert program.executed_flops == pytest.approx(theirs, rel=0.05)
  # By the formula, with the scores above the diagonal, which are computed here.
  L, heads, tokens = 256, 8 * 32, 8 * 256
  more = 3 * 2 * heads * (2 * L - (L + 1)) * tokens
  assert program.flops + more == pytest.approx(program.executed_flops, rel=0.01)
