"""Tests for analogjax/planning/counted.py: against what XLA compiles.

On CPUs, as there XLA can. They have no kernel for attention, and gradients that
a GPU scatters they sum, so those are compared by what would be the same.
"""

import dataclasses

import jax
import pytest

from analogjax.planning import compiled, counted, shapes

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
    (request,) = (r for r in shapes.requests(cfg) if r.stage == stage)
    number = axes["data"] * axes["fsdp"] * axes["tensor"]
    step = shapes.prepare(request, cfg, teacher, jax.devices()[:number])
    return compiled.make_program(step, ""), counted.make_program(step)

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
  # On CPUs a sum and a slice of it stand for a scatter, of twice the bytes; but
  # for the unembedding, which the loss scatters.
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
