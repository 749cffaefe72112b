"""Accelerators: peaks, memory, links and power of one jax device of each kind.

A plan uses all figures of a chip, the training loop its peak, the ledger its
power.
"""

from collections.abc import Mapping
import dataclasses
import re

_GIB = 2.0**30
CPU = "cpu"  # A chip's name.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """One jax device of a kind, by its vendor's data sheet."""

  name: str  # "v5p", "h100".
  is_tpu: bool
  memory_bytes: float  # HBM, as the vendor counts it.
  # Dense matrix products, FLOP/s, by compute dtype ("bfloat16", "float32").
  # float32 means jax's default: one bfloat16 pass on a TPU, TF32 on a GPU (jax,
  # "Matmul precision").
  peak_flops: Mapping[str, float]
  memory_bytes_per_second: float
  # Of one device, one direction, all its links of the fast network (ICI,
  # NVLink) together; and its share of its host's (DCN, InfiniBand).
  fast_bytes_per_second: float
  slow_bytes_per_second: float
  per_host: int  # Devices of one host.
  watts: float  # Under load, with its share of the host.
  source: str


# Google Cloud prints bidirectional bandwidth, which counts both directions.
# Google publishes no power: all watts are assumed, v4's from the chip's 192 W
# at most (Jouppi et al. 2023, arXiv:2304.01433, table 4) and a host's share. v4
# and v5p are in megacore mode, in which they start; a chip of TPU7x is two
# devices. `device_kind` is what libtpu and jax's pallas/mosaic/tpu_info.py say.
_TPUS = (
  # name, device_kind, chips of a slice at most, devices of a chip; per chip:
  # bfloat16 TFLOP/s, GiB, GB/s, links, GB/s of a link, Gbit/s of DCN, watts;
  # chips of a host
  ("v4", r"TPU v4", 4096, 1, 275, 32, 1200, 6, 50, 25, 300, 4),
  ("v5e", r"TPU v5 lite|TPU v5e", 256, 1, 197, 16, 819, 4, 50, 25, 200, 8),
  ("v5p", r"TPU v5p?", 6144, 1, 459, 95, 2765, 6, 100, 50, 500, 4),
  ("v6e", r"TPU v6 lite|TPU v6e", 256, 1, 918, 32, 1638, 4, 100, 100, 350, 8),
  ("tpu7x", r"TPU7x", 9216, 2, 2307, 192, 7380, 6, 100, 100, 1000, 4),
)

# Most data sheets print FLOP/s with sparsity, twice these, and NVLink's GB/s of
# both directions. Watts are a DGX's most, shared by its GPUs. The whole name
# has to match: a MIG slice ("MIG 1g.10gb" at its end) and the cut-down H20 and
# H800 are other devices.
_A100_40GB = r"A100-(SXM4|PCIE)-40GB"
_A100_80GB = r"A100-(SXM4|PCIE)-80GB|A100 80GB PCIe"
_H100 = r"H100 80GB HBM3"
_GPUS = (
  # name, device_kind, TFLOP/s in bfloat16 and TF32, GB, GB/s, GB/s of NVLink,
  # Gbit/s of network, watts, GPUs that NVLink joins, GPUs of a host
  ("a100_40gb", _A100_40GB, 312, 156, 40, 1555, 300, 200, 6500 / 8, 8, 8),
  ("a100", _A100_80GB, 312, 156, 80, 2039, 300, 200, 6500 / 8, 8, 8),
  ("h100_pcie", r"H100 PCIe", 756, 378, 80, 2000, 64, 200, 600, 8, 8),
  ("h100", _H100, 989.4, 494.7, 80, 3350, 450, 400, 10200 / 8, 8, 8),
  ("h200", r"H200", 989.4, 494.7, 141, 4800, 450, 400, 10200 / 8, 8, 8),
  ("b200", r"B200", 2250, 1125, 180, 8000, 900, 400, 14300 / 8, 8, 8),
  ("gb200", r"GB200", 2500, 1250, 186, 8000, 900, 400, 120_000 / 72, 72, 4),
)

# device_kind, TFLOP/s in bfloat16 and TF32 of GPUs that no plan is made for.
# Source: NVIDIA's data sheet of each, of A10G "NVIDIA A10G datasheet" (AWS,
# 2022), of B300 and GB300 the specifications of HGX and NVL72, shared by their
# 8 and 72 GPUs.
_OTHER_GPUS = (
  (r"A10", 125, 62.5),
  (r"A10G", 70, 35),
  (r"GH200 480GB|GH200 144G HBM3e", 989.4, 494.7),
  (r"(H100|H200) NVL", 835.5, 417.5),
  (r"B300 SXM6 AC", 2250, 1125),
  (r"GB300", 2500, 1250),
  (r"L4", 121, 60),
  (r"L40S", 362, 183),
)

_SOURCES = {
  "v4": (
    'Google Cloud, "TPU v4": 32 GiB, 1200 GB/s; arXiv:2304.01433: 6 links of 50'
    " GB/s; data centre network assumed as that of v5e"
  ),
  "v5e": (
    'Google Cloud, "TPU v5e" and "TPU v6e": 16 GB, 819 GB/s, 1600 Gbit/s over 4'
    " ports, 2 x 100 Gbit/s for a host of 8"
  ),
  "v5p": (
    'Google Cloud, "TPU v5p": 95 GiB, 2765 GB/s, 1200 GB/s bidirectional in a'
    " torus of 3 dimensions, 50 Gbit/s of data centre network"
  ),
  "v6e": (
    'Google Cloud, "TPU v6e" and "TPU7x (Ironwood)": 32 GiB, 1638 GB/s, 800'
    " GB/s bidirectional over 4 ports, 100 Gbit/s of data centre network"
  ),
  "tpu7x": (
    'Google Cloud, "TPU7x (Ironwood)": a chip has 192 GiB, 7380 GB/s, 1200 GB/s'
    " bidirectional in a torus of 3 dimensions, 100 Gbit/s of data centre"
    " network; jax sees two devices, each with half of it"
  ),
  "a100_40gb": (
    'NVIDIA, "A100 datasheet": 40 GB, 1555 GB/s, NVLink 600 GB/s (12 links),'
    ' TDP 400 W; "DGX A100": 8 x 200 Gbit/s InfiniBand, 6.5 kW'
  ),
  "a100": (
    'NVIDIA, "A100 datasheet": 80 GB, 2039 GB/s, NVLink 600 GB/s (12 links),'
    ' TDP 400 W; "DGX A100": 8 x 200 Gbit/s InfiniBand, 6.5 kW'
  ),
  "h100_pcie": (
    'NVIDIA, "H100 datasheet": 80 GB, 2 TB/s, PCIe 5.0 128 GB/s, TDP 300 to 350'
    " W; the bridges that NVLink has between two are left out; eight to a host,"
    " 200 Gbit/s and 250 W of the host for each are assumed"
  ),
  "h100": (
    'NVIDIA, "H100 datasheet" (SXM): 80 GB, 3.35 TB/s, NVLink 900 GB/s (18'
    ' links), TDP 700 W; "DGX H100": 8 x 400 Gbit/s InfiniBand, 10.2 kW'
  ),
  "h200": (
    'NVIDIA, "H200 datasheet" (SXM): 141 GB, 4.8 TB/s, NVLink 900 GB/s, TDP 700'
    ' W; "DGX H200": 8 x 400 Gbit/s InfiniBand, 10.2 kW'
  ),
  "b200": (
    'NVIDIA, "DGX B200 datasheet": 8 GPUs with 1,440 GB and 64 TB/s, NVLink 1.8'
    " TB/s each, 8 x 400 Gbit/s InfiniBand, 14.3 kW; TDP 1000 W"
  ),
  "gb200": (
    'NVIDIA, "GB200 NVL72": 72 GPUs with 13.4 TB and 576 TB/s, NVLink 130 TB/s;'
    " 400 Gbit/s of InfiniBand for each and 120 kW a rack are assumed"
  ),
}

# Chips or GPUs that the fast network joins; devices of a chip; device_kind.
JOINED = {row[0]: row[2] for row in _TPUS} | {row[0]: row[9] for row in _GPUS}
DEVICES_OF_A_CHIP = {row[0]: row[3] for row in _TPUS}
# bfloat16 FLOP/s of a whole chip, by the name that people write.
CHIP_PEAKS = {row[0]: row[4] * 1e12 for row in _TPUS} | {
  row[0]: row[2] * 1e12 for row in _GPUS if "_" not in row[0]
}
_KINDS = {row[0]: row[1] for row in (*_TPUS, *_GPUS)}

TPUS = (*DEVICES_OF_A_CHIP,)
GPUS = tuple(row[0] for row in _GPUS)
CHIPS = (*TPUS, *GPUS, CPU)


def chip(name: str) -> Chip:
  """The figures of one jax device of a kind of `CHIPS`."""
  if name == CPU:
    # Made-up figures for checks; do not trust times computed from them.
    return Chip(
      name=CPU,
      is_tpu=False,
      memory_bytes=8 * _GIB,
      peak_flops={"float32": 1e11, "bfloat16": 1e11},
      memory_bytes_per_second=1e10,
      fast_bytes_per_second=1e10,
      slow_bytes_per_second=1e9,
      per_host=8,
      watts=20.0,
      source="assumed: 8 GiB, 100 GFLOP/s, 10 GB/s and 20 W for each device",
    )
  for row in _GPUS:
    if row[0] == name:
      bfloat16, tf32, gb, memory, nvlink, network, watts, _, per_host = row[2:]
      return Chip(
        name=name,
        is_tpu=False,
        memory_bytes=gb * 1e9,
        peak_flops={"float32": tf32 * 1e12, "bfloat16": bfloat16 * 1e12},
        memory_bytes_per_second=memory * 1e9,
        fast_bytes_per_second=nvlink * 1e9,
        slow_bytes_per_second=network * 1e9 / 8,
        per_host=per_host,
        watts=watts,
        source=_SOURCES[name],
      )
  (row,) = (row for row in _TPUS if row[0] == name)
  devices, peak, gib, memory, links, link, dcn, watts, per_host = row[3:]
  peak *= 1e12
  return Chip(
    name=name,
    is_tpu=True,
    memory_bytes=gib * _GIB / devices,
    peak_flops={"float32": peak / devices, "bfloat16": peak / devices},
    memory_bytes_per_second=memory * 1e9 / devices,
    fast_bytes_per_second=links * link * 1e9 / devices,
    slow_bytes_per_second=dcn * 1e9 / 8 / devices,
    per_host=per_host * devices,
    watts=watts / devices,
    source=_SOURCES[name],
  )


def chip_name(device_kind: str) -> str | None:
  """The name in `CHIPS` of jax's `device_kind`, or None."""
  for name, kinds in _KINDS.items():
    if re.fullmatch(f"(NVIDIA )?({kinds})", device_kind):
      return name
  return CPU if device_kind == CPU else None


def peak_flops(device_kind: str, dtype: str) -> float | None:
  """Most FLOP/s of one device in dense matrix products, or None if unknown.

  Args:
    device_kind: `jax.devices()[0].device_kind`.
    dtype: compute dtype, "bfloat16" or "float32"; see `Chip.peak_flops`.
  """
  assert dtype in ("bfloat16", "float32"), dtype
  name = chip_name(device_kind)
  if name is not None:
    return None if name == CPU else chip(name).peak_flops[dtype]
  for kinds, bfloat16, tf32 in _OTHER_GPUS:
    if re.fullmatch(f"(NVIDIA )?({kinds})", device_kind):
      return (bfloat16 if dtype == "bfloat16" else tf32) * 1e12
  return None
