"""Tests for analogjax/planning/formulas.py, against programs that XLA compiles.

The programs are for CPUs, for which XLA can compile. CPUs have no kernel for
attention, and they sum gradients that a GPU scatters, so only quantities that
would be the same are compared.
"""

import dataclasses

import jax
import pytest

from analogjax.planning import (
  compiled,
  formulas,
  programs,
  report,
  topologies,
)

DISTILL = (
  *("train.phases=distill", "train.distill.init_from="),
  *("measure.phases=distill", "student.V=2048", "student.D=256"),
  *("student.N=8", "student.G=4", "student.H=32", "student.F=512"),
  *("student.Y=3", "data.L=256", "train.distill.loss.chunk=256"),
)
ALONE = dict(data=1, fsdp=1, tensor=1)


@pytest.fixture
def both(sections, teacher):
  """both(stage, axes, overrides) -> (compiled, counted)."""
  teacher = dataclasses.replace(teacher, V=2048, N=8, G=4, H=32, D=256, F=512)

  def make(stage, axes, *overrides):
    mesh = [f"mesh.{axis}={n}" for axis, n in axes.items()]
    cfg = sections(*DISTILL, *mesh, *overrides)
    (request,) = (r for r in programs.requests(cfg) if r.stage == stage)
    number = axes["data"] * axes["fsdp"] * axes["tensor"]
    step = programs.prepare(
      request,
      cfg,
      teacher,
      *programs.meshes(request, cfg, jax.devices()[:number]),
    )
    return compiled.make_program(step, ""), formulas.count_program(step)

  return make


def sent(program, axis):
  return {e.kind: e.sent_bytes for e in program.exchanges if e.axes == (axis,)}


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_a_training_step(both, remat):
  theirs, ours = both("train.distill", ALONE, f"student.remat={remat}")
  assert ours.argument_bytes == theirs.argument_bytes
  assert ours.memory_bytes == pytest.approx(theirs.memory_bytes, rel=0.15)
  assert ours.executed_flops == pytest.approx(theirs.executed_flops, rel=0.01)
  # Without what is computed twice and above the diagonal.
  assert 0.6 < ours.flops / ours.executed_flops < 1
  assert ours.output_bytes == 0 and theirs.output_bytes < 1000  # Metrics.
  assert not theirs.exchanges and not ours.exchanges


@pytest.mark.slow
def test_what_a_mesh_exchanges(both):
  theirs, ours = both(
    "train.distill", dict(data=2, fsdp=2, tensor=2), "student.remat=full"
  )
  assert ours.argument_bytes == theirs.argument_bytes
  assert ours.memory_bytes == pytest.approx(theirs.memory_bytes, rel=0.2)
  assert ours.executed_flops == pytest.approx(theirs.executed_flops, rel=0.01)
  found, counts = sent(theirs, "fsdp"), sent(ours, "fsdp")
  for kind in ("all-gather", "all-to-all"):
    assert counts[kind] == pytest.approx(found[kind], rel=0.02), kind
  # On CPUs a sum and a slice of it replace a scatter, with twice the bytes;
  # except for the unembedding, which the loss scatters.
  rest = counts["reduce-scatter"] - found["reduce-scatter"]
  assert 2 * rest == pytest.approx(found["all-reduce"], rel=0.02)
  assert sent(ours, "data")["all-reduce"] == pytest.approx(
    sent(theirs, "data")["all-reduce"], rel=0.02
  )
  # Nor do they add what comes of q, k and v, or of gate and up, before they
  # sum: three sums more a layer.
  width = 2 * 256 * 256 * 4  # Rows of a device, L, D, float32.
  more = 3 * 3 * width
  assert sent(ours, "tensor")["all-reduce"] + more == pytest.approx(
    sent(theirs, "tensor")["all-reduce"], rel=0.02
  )


@pytest.mark.slow
def test_parts_of_a_batch(both):
  theirs, ours = both(
    "train.distill",
    dict(data=1, fsdp=2, tensor=1),
    *("student.remat=full", "train.distill.microbatches=2"),
  )
  assert ours.memory_bytes == pytest.approx(theirs.memory_bytes, rel=0.2)
  assert ours.executed_flops == pytest.approx(theirs.executed_flops, rel=0.01)
  assert sent(ours, "fsdp")["all-to-all"] == pytest.approx(
    sent(theirs, "fsdp")["all-to-all"], rel=0.02
  )


@pytest.mark.parametrize("chunk", [32, 256])
def test_the_teacher_over_the_rows(both, chunk):
  theirs, ours = both(
    "cache", dict(data=1, fsdp=2, tensor=2), f"cache.chunk={chunk}"
  )
  # The compiled one does not look at the weights of the loss.
  assert ours.argument_bytes == theirs.argument_bytes + theirs.resident_bytes
  assert ours.memory_bytes == pytest.approx(theirs.memory_bytes, rel=0.2)
  assert ours.executed_flops == pytest.approx(theirs.executed_flops, rel=0.01)
  for axis, kind in (("fsdp", "all-gather"), ("tensor", "all-reduce")):
    # Sampling exchanges some numbers of each token, too.
    found = sent(theirs, axis)[kind]
    assert sent(ours, axis)[kind] == pytest.approx(found, rel=0.05)
  # Records of a device: its rows, the same on all of `tensor`.
  assert ours.output_bytes == pytest.approx(theirs.output_bytes, rel=0.1)


@pytest.mark.slow
def test_a_teacher_in_the_loop(both):
  theirs, ours = both(
    "train.distill",
    dict(data=1, fsdp=2, tensor=1),
    *("student.remat=full", "train.distill.loss.teacher=live"),
  )
  assert ours.argument_bytes == theirs.argument_bytes
  assert ours.resident_bytes == theirs.resident_bytes
  assert ours.executed_flops == pytest.approx(theirs.executed_flops, rel=0.01)
  assert sent(ours, "fsdp")["all-gather"] == pytest.approx(
    sent(theirs, "fsdp")["all-gather"], rel=0.02
  )


def test_gpus_are_counted(sections, teacher, machine):
  """Nothing is compiled: it takes no time, and no device."""
  hosts = dataclasses.replace(
    machine("gpu:h100:16", 8, chip="h100"), num_slices=2
  )
  student = ("student.dtype=bfloat16", "mesh.tensor=2")
  rows = ("cache.batch_rows=16", "train.distill.batch_rows=16")
  cfg = sections(*DISTILL, *student, *rows, "mesh.data=2", "mesh.fsdp=4")
  of_cache, train = formulas.count_programs(cfg, teacher, hosts)
  assert of_cache.how == train.how == "counted"
  embedding = 4 * 512 * 32  # float32; split by fsdp and tensor.
  assert train.argument_bytes > 3 * embedding / 8
  assert {e.axes for e in train.exchanges} == {
    ("data",),
    ("fsdp",),
    ("tensor",),
  }
  # In bfloat16 a GPU has a kernel for attention, which a CPU has not.
  assert "attention scores" not in dict(train.largest)


@pytest.mark.parametrize("name", ["tpu7x:2x2x1", "2*v5e:2x2", "gpu:gb200:8"])
def test_machines_that_are_not_here(load, smollm, name):
  topology = topologies.parse(name)
  sections = report.on_topology(load("mesh.data=2"), smollm, topology)
  found = formulas.count_programs(sections, smollm, topology)
  stages = ["cache", "train.pretrain", "train.control", "train.distill"]
  assert [program.stage for program in found] == stages
  assert {program.how for program in found} == {"counted"}
  # Parameters and moments are split only over fsdp, and float32.
  (last,) = [p for p in found if p.stage == "train.distill"]
  assert last.argument_bytes > 3 * 4 * 3_342_912 / 4
  assert {e.axes for e in last.exchanges} == {("data",), ("fsdp",)}


def test_a_live_teacher_has_a_step_of_its_own(load, smollm):
  topology = topologies.parse("gpu:h100:2")
  sections = load("train.distill.loss.teacher=live", "mesh.fsdp=2")
  found = formulas.count_programs(sections, smollm, topology)
  live = found[-2]
  assert live.stage == "train.distill.teacher"
  # The student's state is on the device too.
  assert live.resident_bytes > 3 * 4 * 3_342_912 / 2
  one = report.make_report(
    sections,
    smollm,
    topology,
    count=formulas.count_programs,
    make=formulas.count_programs,
  )
  (cost,) = [cost for cost in one.costs if cost.stage == "train.distill"]
  parts = one.bounds["train.distill"], one.bounds["train.distill.teacher"]
  efficiency = sections.plan.efficiency
  assert cost.step_seconds == pytest.approx(
    sum(part.seconds for part in parts) / efficiency
  )
