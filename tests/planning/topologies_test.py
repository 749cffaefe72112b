"""Tests for analogjax/planning/topologies.py."""

import math

import pytest

from analogjax.distributed import devices
from analogjax.planning import topologies

MESH = dict(data=1, fsdp=-1, expert=1, tensor=1)


@pytest.mark.parametrize(
  ("name", "chip", "shape", "slices"),
  [
    ("v5p:8x8x8", "v5p", (8, 8, 8), 1),
    ("v5p:2x2x1", "v5p", (2, 2, 1), 1),
    ("v6e:16x16", "v6e", (16, 16), 1),
    ("2*v5p:4x4x4", "v5p", (4, 4, 4), 2),
    ("tpu7x:4x4x8", "tpu7x", (4, 4, 8, 2), 1),
    ("V7X:2x2x1", "tpu7x", (2, 2, 1, 2), 1),
    ("gpu:h100:64", "h100", (8,), 8),
    ("gpu:H100-PCIe:4", "h100_pcie", (4,), 1),
    ("gpu:gb200:144", "gb200", (72,), 2),
    ("cpu:8", "cpu", (8,), 1),
  ],
)
def test_names(name, chip, shape, slices):
  topology = topologies.parse(name)
  assert topology.chip == devices.chip(chip)
  assert topology.shape == shape and topology.num_slices == slices
  assert topology.num_devices == slices * math.prod(shape)


def test_a_name_of_tpus_is_libtpu_s():
  assert topologies.parse("3*V7x:2x2x1").name == "3*tpu7x:2x2x1"
  assert topologies.parse("ironwood:2x2x1").name == "tpu7x:2x2x1"


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("v9p:2x2x1", "there is no chip 'v9p'; expected v4, v5e, v5p, v6e,"),
    ("h100:8", "perhaps gpu:h100:8."),
    ("v5p", "is without a shape in chips; expected one of 2x2x1,"),
    ("v5p:2x2", "v5p has no slice of 2x2; expected one of 2x2x1"),
    ("v5p:4x8x4", "has no slice of 4x8x4; expected one of 2x2x1, 2x2x2, 2x2x4"),
    ("v5p:4x4x6", "has no slice of 4x4x6"),
    ("v5p:16x16x28", "at most 6,144 chips"),
    ("v6e:16x32", "v6e has no slice of 16x32; expected one of 1x1, 2x2,"),
    ("v6e:0x4", "v6e has no slice of 0x4"),
    ("gpu:h10:8", "there is no GPU 'h10' in the table; expected one of a100_"),
    ("gpu:h100:12", "12 GPUs are not whole groups of 8 that NVLink joins"),
    ("gpu:h100", "is without a number of devices"),
    ("gpu", "there is no GPU ''"),
    ("2*gpu:h100:8", "slices are of TPUs; expected all devices in one number"),
    ("cpu:0", "is without a number of devices"),
    ("0*v5p:4x4x4", "is not the name of a topology"),
    ("", "is not the name of a topology; expected v5p:4x4x4, 2*v5p:4x4x4,"),
  ],
)
def test_what_does_not_exist_is_named(name, expected):
  with pytest.raises(ValueError) as info:
    topologies.parse(name)
  text = str(info.value)
  assert text.startswith(f"--topology={name}: ") and expected in text
  assert "\n" not in text


def test_the_rest_of_the_mesh_is_filled_in():
  topology = topologies.parse("v5p:4x4x4")
  mesh = topologies.mesh_axes(MESH | dict(tensor=4), topology)
  assert mesh == dict(data=1, fsdp=16, expert=1, tensor=4)


@pytest.mark.parametrize(
  ("sizes", "expected"),
  [
    (
      dict(fsdp=32),
      "data=1, fsdp=32, expert=1, tensor=1 is for 32 devices",
    ),
    (dict(tensor=3), "expert=1, tensor=3 is for a multiple of 3 devices"),
  ],
)
def test_a_mesh_of_another_size_is_refused(sizes, expected):
  with pytest.raises(
    ValueError, match=f"mesh: .*{expected}, but v5p:4x4x4 has 64"
  ):
    topologies.mesh_axes(MESH | sizes, topologies.parse("v5p:4x4x4"))


def test_slices_are_counted_by_data_then_fsdp():
  four = topologies.parse("4*v5e:2x2")
  for sizes in (dict(data=4), dict(data=2, fsdp=8), dict(fsdp=16)):
    assert topologies.mesh_axes(MESH | sizes, four)
  with pytest.raises(
    ValueError, match="cannot count the 4 slices of 4.v5e:2x2"
  ):
    topologies.mesh_axes(dict(data=2, fsdp=1, expert=1, tensor=8), four)


def test_every_mesh_is_there_once():
  # 8 = 2^3 over three axes: 10 ways.
  found = [
    tuple(m.values()) for m in topologies.meshes(topologies.parse("cpu:8"))
  ]
  assert len(found) == len(set(found)) == 10
  assert {d * f * e * t for d, f, e, t in found} == {8}
  for mesh in topologies.meshes(topologies.parse("gpu:h100:48")):
    assert topologies.counts_slices(mesh, 6)
  # tensor stays within a host: 1, 2, 4 or 8 of 16, and data or fsdp counts
  # the two hosts.
  pair = [
    tuple(m.values())
    for m in topologies.meshes(topologies.parse("gpu:h100:16"))
  ]
  assert max(t for *_, t in pair) == 8
  assert set(pair) == {
    (16 // f // t, f, 1, t)
    for t in (1, 2, 4, 8)
    for f in (1, 2, 4, 8, 16)
    if 16 % (f * t) == 0
  }
