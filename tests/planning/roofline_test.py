"""Tests for analogjax/planning/roofline.py."""

import dataclasses

import pytest

from analogjax.planning import program_cost, roofline, topologies

PROGRAM = program_cost.ProgramCost(
  stage="train.distill",
  how="by hand",
  tokens=1024,
  flops=459e12,  # One second of a v5p.
  executed_flops=None,
  accessed_bytes=None,
  argument_bytes=0,
  temporary_bytes=0,
  output_bytes=0,
  code_bytes=0,
  largest=(),
  exchanges=(),
)


def axes(data=1, fsdp=1, expert=1, tensor=1):
  return dict(data=data, fsdp=fsdp, expert=expert, tensor=tensor)


def exchange(*along, sent=1e9, kind="all-gather", is_whole=True):
  return program_cost.Exchange(
    kind=kind, axes=along, runs=1, sent_bytes=sent, is_whole=is_whole
  )


def bound(name, mesh, *exchanges, dtype="bfloat16", **changes):
  program = dataclasses.replace(PROGRAM, exchanges=exchanges, **changes)
  return roofline.bound(program, topologies.parse(name), mesh, dtype)


def test_arithmetic_alone():
  b = bound("v5p:2x2x1", axes(fsdp=4))
  assert b.seconds == b.serial_seconds == b.compute == 1.0
  assert b.mfu == 1.0 and b.binds == "compute"
  assert b.memory is None and b.parts == dict(compute=1.0, fast=0, slow=0)


def test_remat_takes_time_that_is_not_the_model_s():
  b = bound("v5p:2x2x1", axes(fsdp=4), executed_flops=4 * 459e12)
  assert b.compute == 4.0 and b.mfu == 0.25
  # Work that the compiler does not see is done all the same.
  b = bound("v5p:2x2x1", axes(fsdp=4), executed_flops=0.5 * 459e12)
  assert b.compute == 1.0 and b.mfu == 1.0


def test_float32_is_slower_on_a_gpu():
  slow, fast = (
    bound("gpu:h100:8", axes(fsdp=8), dtype=dtype).compute
    for dtype in ("float32", "bfloat16")
  )
  assert slow == pytest.approx(2 * fast)


def test_the_slowest_binds():
  b = bound("v5p:2x2x1", axes(fsdp=4), accessed_bytes=4 * 2765e9)
  assert b.memory == 4.0 and b.binds == "memory" and b.seconds == 4.0
  assert b.mfu == 0.25
  # 2 x 2 without joined ends: a link of 100 GB/s along each dimension.
  b = bound("v5p:2x2x1", axes(fsdp=4), exchange("fsdp", sent=1e12))
  assert b.fast == pytest.approx(5.0) and b.binds == "fast"
  assert b.serial_seconds == pytest.approx(6.0)


def test_what_is_not_counted_whole_is_said():
  assert bound("cpu:8", axes(fsdp=8), exchange("fsdp")).is_whole
  assert not bound(
    "cpu:8", axes(fsdp=8), exchange("fsdp", is_whole=False)
  ).is_whole


@pytest.mark.parametrize(
  ("name", "mesh", "along", "gb_per_second"),
  [
    # Rings of 8: two links each way along a dimension.
    ("v5p:8x8x8", axes(fsdp=64, tensor=8), ("tensor",), 200),
    ("v5p:8x8x8", axes(fsdp=64, tensor=8), ("fsdp",), 400),
    ("v5p:8x8x8", axes(fsdp=64, tensor=8), ("fsdp", "tensor"), 600),
    ("v5p:8x8x8", axes(fsdp=512), ("fsdp",), 600),
    # Both could have the two dimensions of 4; the last axis chooses first.
    ("v5p:4x4x16", axes(fsdp=16, tensor=16), ("tensor",), 400),
    ("v5p:4x4x16", axes(fsdp=16, tensor=16), ("fsdp",), 200),
    # Two of a dimension of 4 have one link; the rest of it one as well.
    ("v5p:4x4x4", axes(fsdp=32, tensor=2), ("tensor",), 100),
    ("v5p:4x4x4", axes(fsdp=32, tensor=2), ("fsdp",), 500),
    # The ends of a v6e are joined only at 16.
    ("v6e:16x16", axes(fsdp=16, tensor=16), ("fsdp",), 200),
    ("v6e:8x8", axes(fsdp=8, tensor=8), ("fsdp",), 100),
    # A switch.
    ("gpu:h100:8", axes(fsdp=4, tensor=2), ("tensor",), 450),
    # Along data there is nobody within the slice.
    ("2*v5p:4x4x4", axes(data=2, fsdp=64), ("fsdp",), 600),
  ],
)
def test_links_of_an_axis(name, mesh, along, gb_per_second):
  found = roofline.fast_bandwidth(along, topologies.parse(name), mesh)
  assert found == pytest.approx(gb_per_second * 1e9)


@pytest.mark.parametrize(
  ("mesh", "along", "kind", "slow"),
  [
    (axes(data=8, tensor=8), ("tensor",), "all-gather", 0),
    (axes(data=8, tensor=8), ("data",), "all-reduce", 1),
    (axes(fsdp=64), ("fsdp",), "all-gather", 7 / 63),
    (axes(fsdp=64), ("fsdp",), "all-to-all", 56 / 63),
    (axes(data=8, fsdp=8), ("data", "fsdp"), "all-reduce", 7 / 63),
    (axes(data=2, fsdp=32), ("fsdp",), "all-to-all", 24 / 31),
    (axes(data=2, fsdp=32), ("fsdp",), "reduce-scatter", 3 / 31),
    (axes(data=8, fsdp=8), (), "send", 1),
  ],
)
def test_how_much_goes_between_hosts(mesh, along, kind, slow):
  b = bound("gpu:h100:64", mesh, exchange(*along, kind=kind))
  assert b.slow == pytest.approx(slow * 1e9 / 50e9)
  assert b.fast == pytest.approx((1 - slow) * 1e9 / 450e9)


def test_one_slice_has_no_slow_network():
  for name in ("v5p:4x4x4", "cpu:8", "gpu:gb200:64"):
    mesh = axes(data=topologies.parse(name).num_devices)
    assert bound(name, mesh, exchange("data")).slow == 0
