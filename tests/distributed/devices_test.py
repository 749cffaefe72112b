"""Tests for analogjax/distributed/devices.py."""

import jax
import pytest

from analogjax.distributed import devices


@pytest.mark.parametrize("name", devices.CHIPS)
def test_every_chip_has_figures_of_a_plausible_size(name):
  chip = devices.chip(name)
  assert chip.name == name and chip.source
  assert chip.peak_flops.keys() == {"bfloat16", "float32"}
  assert chip.fast_bytes_per_second > chip.slow_bytes_per_second
  if name != "cpu":
    # A step that reads all of the memory takes 8 to 60 ms on any of them.
    seconds = chip.memory_bytes / chip.memory_bytes_per_second
    assert 0.008 < seconds < 0.06
    assert 100 < chip.watts < 2000
    assert 1e14 < chip.peak_flops["bfloat16"] < 3e15


def test_figures_by_hand():
  v5p, h100 = devices.chip("v5p"), devices.chip("h100")
  assert v5p.is_tpu and not h100.is_tpu
  assert v5p.memory_bytes == 95 * 2**30
  assert v5p.fast_bytes_per_second == 600e9  # 6 links of 100 GB/s.
  assert v5p.slow_bytes_per_second == 6.25e9  # 50 Gbit/s.
  assert v5p.peak_flops["bfloat16"] == 459e12
  assert h100.memory_bytes == 80e9
  assert h100.fast_bytes_per_second == 450e9
  assert h100.slow_bytes_per_second == 50e9
  assert h100.watts == 1275
  # jax sees two devices in a chip.
  half = devices.chip("tpu7x")
  assert half.memory_bytes == 96 * 2**30
  assert half.peak_flops["bfloat16"] == pytest.approx(2307e12 / 2)
  assert half.fast_bytes_per_second == 300e9


@pytest.mark.parametrize(
  ("kind", "name"),
  [
    ("NVIDIA H100 80GB HBM3", "h100"),
    ("NVIDIA A100-SXM4-40GB", "a100_40gb"),
    ("NVIDIA A100 80GB PCIe", "a100"),
    ("TPU v4", "v4"),
    ("TPU v5 lite", "v5e"),
    ("TPU v5", "v5p"),
    ("TPU v6 lite", "v6e"),
    ("TPU7x", "tpu7x"),
    ("H100 PCIe", "h100_pcie"),
    ("NVIDIA H200", "h200"),
    ("NVIDIA B200", "b200"),
    ("NVIDIA GB200", "gb200"),
    ("cpu", "cpu"),
    ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
    ("TPU v9", None),
  ],
)
def test_a_chip_is_named_after_what_jax_calls_it(kind, name):
  assert devices.chip_name(kind) == name


def test_people_name_chips_and_not_devices():
  assert devices.CHIP_PEAKS["tpu7x"] == 2307e12
  assert devices.CHIP_PEAKS["h100"] == 989.4e12


@pytest.mark.parametrize(
  ("kind", "bfloat16", "float32"),
  [
    ("TPU v4", 275e12, 275e12),
    ("TPU v5 lite", 197e12, 197e12),
    ("TPU v5", 459e12, 459e12),
    ("TPU v5p", 459e12, 459e12),
    ("TPU v6 lite", 918e12, 918e12),
    ("TPU7x", 1153.5e12, 1153.5e12),  # Half a chip.
    ("NVIDIA A100-SXM4-80GB", 312e12, 156e12),
    ("NVIDIA A100-PCIE-40GB", 312e12, 156e12),
    ("A100-SXM4-40GB", 312e12, 156e12),
    ("NVIDIA A100 80GB PCIe", 312e12, 156e12),
    ("NVIDIA A10", 125e12, 62.5e12),
    ("NVIDIA A10G", 70e12, 35e12),
    ("NVIDIA H100 80GB HBM3", 989.4e12, 494.7e12),
    ("NVIDIA H100 PCIe", 756e12, 378e12),
    ("NVIDIA H100 NVL", 835.5e12, 417.5e12),
    ("NVIDIA H200", 989.4e12, 494.7e12),
    ("NVIDIA H200 NVL", 835.5e12, 417.5e12),
    ("NVIDIA GH200 480GB", 989.4e12, 494.7e12),
    ("NVIDIA B200", 2.25e15, 1.125e15),
    ("NVIDIA B300 SXM6 AC", 2.25e15, 1.125e15),
    ("NVIDIA GB200", 2.5e15, 1.25e15),
    ("NVIDIA L4", 121e12, 60e12),
    ("NVIDIA L40S", 362e12, 183e12),
  ],
)
def test_the_peak_of_a_device(kind, bfloat16, float32):
  assert devices.peak_flops(kind, "bfloat16") == pytest.approx(bfloat16)
  assert devices.peak_flops(kind, "float32") == pytest.approx(float32)


@pytest.mark.parametrize(
  "kind",
  [
    "cpu",
    "",
    "TPU v3",  # Unknown here.
    "TPU v5 lite pod",
    "NVIDIA A100-SXM4-40GB MIG 1g.5gb",  # A slice of a GPU is not the GPU.
    "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
    "NVIDIA H20",  # A seventh of an H200.
    "NVIDIA H800",
    "NVIDIA A100X",
    "NVIDIA L40",
    "Tesla V100-SXM2-16GB",
  ],
)
def test_no_peak_is_made_up(kind):
  for dtype in ("bfloat16", "float32"):
    assert devices.peak_flops(kind, dtype) is None


def test_this_device_is_asked_by_its_kind():
  kind = jax.devices()[0].device_kind
  found = devices.peak_flops(kind, "float32")
  assert found is None if jax.default_backend() == "cpu" else found > 1e12
