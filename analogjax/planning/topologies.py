"""Machines by name: what a chip can do, and how many are reserved together.

Names are `v5p:4x4x4` (chips of one slice), `2*v5p:4x4x4` (slices),
`gpu:h100:64` and `cpu:8`.
"""

from collections.abc import Iterator
import difflib
import math
import re
from typing import NamedTuple

from analogjax.planning.facts import Chip, Topology
from analogjax.training import meter

_GIB = 2.0**30

# Two dimensions. Source: Google Cloud, "TPU v5e" and "TPU v6e", supported
# configurations.
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
# Three dimensions, below a cube of 4x4x4; above, all are multiples of 4 and
# rise. Source: Google Cloud, "TPU v4", "TPU v5p", "TPU7x (Ironwood)".
_DEEP = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")


class _Tpu(NamedTuple):
  kind: str  # As throughput.py knows it.
  most: int  # Chips of a slice.
  cores: int  # jax devices of a chip.
  gib: float  # Of a chip, as are the next four.
  memory: float  # GB/s.
  links: int  # To neighbours.
  link: float  # GB/s, one direction.
  dcn: float  # Gbit/s.
  watts: float
  per_host: int  # Chips.
  source: str


# What a page calls bidirectional bandwidth counts both directions. Google
# publishes no power: all watts are assumed, v4's from the chip's 192 W at most
# (Jouppi et al. 2023, arXiv:2304.01433, table 4) and a host's share.
_TPUS = {
  "v4": _Tpu(
    *("TPU v4", 4096, 1, 32, 1200, 6, 50, 25, 300, 4),
    'Google Cloud, "TPU v4": 32 GiB, 1200 GB/s; arXiv:2304.01433: 6 links of 50'
    " GB/s; data centre network assumed as that of v5e",
  ),
  "v5e": _Tpu(
    *("TPU v5e", 256, 1, 16, 819, 4, 50, 25, 200, 8),
    'Google Cloud, "TPU v5e" and "TPU v6e": 16 GB, 819 GB/s, 1600 Gbit/s over 4'
    " ports, 2 x 100 Gbit/s for a host of 8",
  ),
  "v5p": _Tpu(
    *("TPU v5p", 6144, 1, 95, 2765, 6, 100, 50, 500, 4),
    'Google Cloud, "TPU v5p": 95 GiB, 2765 GB/s, 1200 GB/s bidirectional in a'
    " torus of 3 dimensions, 50 Gbit/s of data centre network",
  ),
  "v6e": _Tpu(
    *("TPU v6e", 256, 1, 32, 1638, 4, 100, 100, 350, 8),
    'Google Cloud, "TPU v6e" and "TPU7x (Ironwood)": 32 GiB, 1638 GB/s, 800'
    " GB/s bidirectional over 4 ports, 100 Gbit/s of data centre network",
  ),
  "tpu7x": _Tpu(
    *("TPU7x", 9216, 2, 192, 7380, 6, 100, 100, 1000, 4),
    'Google Cloud, "TPU7x (Ironwood)": a chip has 192 GiB, 7380 GB/s, 1200 GB/s'
    " bidirectional in a torus of 3 dimensions, 100 Gbit/s of data centre"
    " network; jax sees two devices, each with half of it",
  ),
}


class _Gpu(NamedTuple):
  kind: str
  gb: float
  memory: float  # GB/s.
  nvlink: float  # GB/s, one direction, all links together.
  network: float  # Gbit/s.
  watts: float  # With its share of the host.
  together: int  # That NVLink joins.
  per_host: int
  source: str


# NVLink's figure on a data sheet counts both directions. Watts are a DGX's
# most, shared by its GPUs.
_GPUS = {
  "a100_40gb": _Gpu(
    *("A100-SXM4-40GB", 40, 1555, 300, 200, 6500 / 8, 8, 8),
    'NVIDIA, "A100 datasheet": 40 GB, 1555 GB/s, NVLink 600 GB/s (12 links),'
    ' TDP 400 W; "DGX A100": 8 x 200 Gbit/s InfiniBand, 6.5 kW',
  ),
  "a100": _Gpu(
    *("A100-SXM4-80GB", 80, 2039, 300, 200, 6500 / 8, 8, 8),
    'NVIDIA, "A100 datasheet": 80 GB, 2039 GB/s, NVLink 600 GB/s (12 links),'
    ' TDP 400 W; "DGX A100": 8 x 200 Gbit/s InfiniBand, 6.5 kW',
  ),
  "h100_pcie": _Gpu(
    *("H100 PCIe", 80, 2000, 64, 200, 600, 8, 8),
    'NVIDIA, "H100 datasheet": 80 GB, 2 TB/s, PCIe 5.0 128 GB/s, TDP 300 to 350'
    " W; the bridges that NVLink has between two are left out; eight to a host,"
    " 200 Gbit/s and 250 W of the host for each are assumed",
  ),
  "h100": _Gpu(
    *("H100 80GB HBM3", 80, 3350, 450, 400, 10200 / 8, 8, 8),
    'NVIDIA, "H100 datasheet" (SXM): 80 GB, 3.35 TB/s, NVLink 900 GB/s (18'
    ' links), TDP 700 W; "DGX H100": 8 x 400 Gbit/s InfiniBand, 10.2 kW',
  ),
  "h200": _Gpu(
    *("H200", 141, 4800, 450, 400, 10200 / 8, 8, 8),
    'NVIDIA, "H200 datasheet" (SXM): 141 GB, 4.8 TB/s, NVLink 900 GB/s, TDP 700'
    ' W; "DGX H200": 8 x 400 Gbit/s InfiniBand, 10.2 kW',
  ),
  "b200": _Gpu(
    *("B200", 180, 8000, 900, 400, 14300 / 8, 8, 8),
    'NVIDIA, "DGX B200 datasheet": 8 GPUs with 1,440 GB and 64 TB/s, NVLink 1.8'
    " TB/s each, 8 x 400 Gbit/s InfiniBand, 14.3 kW; TDP 1000 W",
  ),
  "gb200": _Gpu(
    *("GB200", 186, 8000, 900, 400, 120_000 / 72, 72, 4),
    'NVIDIA, "GB200 NVL72": 72 GPUs with 13.4 TB and 576 TB/s, NVLink 130 TB/s;'
    " 400 Gbit/s of InfiniBand for each and 120 kW a rack are assumed",
  ),
}

CHIPS = (*_TPUS, *_GPUS, "cpu")


def chip(name: str) -> Chip:
  """The figures of one jax device of a kind of `CHIPS`."""
  if name == "cpu":
    return _cpu()
  sheet = _TPUS.get(name) or _GPUS[name]
  peak = {
    dtype: meter.peak_flops(sheet.kind, dtype)
    for dtype in ("float32", "bfloat16")
  }
  known = {dtype: flops for dtype, flops in peak.items() if flops is not None}
  assert known.keys() == peak.keys(), f"throughput.py lacks {sheet.kind}."
  if isinstance(sheet, _Gpu):
    return Chip(
      name=name,
      is_tpu=False,
      memory_bytes=sheet.gb * 1e9,
      peak_flops=known,
      memory_bytes_per_second=sheet.memory * 1e9,
      fast_bytes_per_second=sheet.nvlink * 1e9,
      slow_bytes_per_second=sheet.network * 1e9 / 8,
      per_host=sheet.per_host,
      watts=sheet.watts,
      source=sheet.source,
    )
  return Chip(
    name=name,
    is_tpu=True,
    memory_bytes=sheet.gib * _GIB / sheet.cores,
    peak_flops=known,
    memory_bytes_per_second=sheet.memory * 1e9 / sheet.cores,
    fast_bytes_per_second=sheet.links * sheet.link * 1e9 / sheet.cores,
    slow_bytes_per_second=sheet.dcn * 1e9 / 8 / sheet.cores,
    per_host=sheet.per_host * sheet.cores,
    watts=sheet.watts / sheet.cores,
    source=sheet.source,
  )


def _cpu() -> Chip:
  # Figures that let a check run through; no time of it is to be believed.
  return Chip(
    name="cpu",
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


def parse(name: str) -> Topology:
  """The machines that a name stands for.

  The GPUs that NVLink joins are a slice, as they are for sharding.make_mesh.

  Raises:
    ValueError: a chip or a shape that does not exist; says which do.
  """
  match = re.fullmatch(r"(?:([1-9]\d*)\*)?(\w[\w-]*)(?::(.+))?", name.lower())
  if match is None:
    raise _wrong(name, "is not the name of a topology", _FORMS)
  slices, family, rest = int(match[1] or 1), match[2], match[3] or ""
  if family in ("gpu", "cpu"):
    if match[1]:
      raise _wrong(name, "slices are of TPUs", "all devices in one number")
    return _gpus(name, rest) if family == "gpu" else _cpus(name, rest)
  family = {"v7x": "tpu7x", "trillium": "v6e", "ironwood": "tpu7x"}.get(
    family, family
  )
  if family not in _TPUS:
    raise _wrong(name, f"there is no chip {family!r}", _near(family))
  dims = _tpu_shape(name, family, rest)
  cores = _TPUS[family].cores
  # As libtpu has it, whatever the user calls the chip.
  return Topology(
    name=f"{slices}*{family}:{rest}" if slices > 1 else f"{family}:{rest}",
    chip=chip(family),
    shape=dims if cores == 1 else (*dims, cores),
    num_slices=slices,
  )


_FORMS = "v5p:4x4x4, 2*v5p:4x4x4, gpu:h100:64 or cpu:8"


def _wrong(name: str, what: str, expected: str) -> ValueError:
  return ValueError(f"--topology={name}: {what}; expected {expected}.")


def _near(word: str) -> str:
  """What may stand there, the nearest one at the end."""
  known = f"{', '.join(_TPUS)}, gpu or cpu"
  close = difflib.get_close_matches(word, [*_TPUS, *_GPUS], n=1, cutoff=0.5)
  if not close:
    return known
  form = f"gpu:{close[0]}:8" if close[0] in _GPUS else f"{close[0]}:..."
  return f"{known}, perhaps {form}"


def _tpu_shape(name: str, family: str, text: str) -> tuple[int, ...]:
  """Chips along each dimension of the torus."""
  flat = family in ("v5e", "v6e")
  known = _FLAT if flat else _DEEP
  shapes = ", ".join(known)
  if not flat:
    shapes += ", 4x4x4 and multiples of 4 that rise, as 4x8x8"
  if not re.fullmatch(r"\d+(x\d+)+", text):
    raise _wrong(name, "is without a shape in chips", f"one of {shapes}")
  dims = tuple(int(n) for n in text.split("x"))
  exists = text in known
  if not flat and len(dims) == 3:
    cubes = all(n > 0 and n % 4 == 0 for n in dims) and list(dims) == sorted(
      dims
    )
    exists |= cubes and math.prod(dims) <= _TPUS[family].most
  if not exists:
    most = f", at most {_TPUS[family].most:,} chips"
    raise _wrong(
      name, f"{family} has no slice of {text}", f"one of {shapes}{most}"
    )
  return dims


def _gpus(name: str, rest: str) -> Topology:
  kind, _, count = rest.partition(":")
  kind = kind.replace("-", "_")
  if kind not in _GPUS:
    raise _wrong(
      name,
      f"there is no GPU {kind!r} in the table",
      f"one of {', '.join(_GPUS)}",
    )
  number, together = _count(name, count), _GPUS[kind].together
  if number > together and number % together:
    raise _wrong(
      name,
      f"{number} GPUs are not whole groups of {together} that NVLink joins",
      f"up to {together}, or a multiple of {together}",
    )
  within = min(number, together)
  return Topology(
    name=name, chip=chip(kind), shape=(within,), num_slices=number // within
  )


def _cpus(name: str, rest: str) -> Topology:
  return Topology(name=name, chip=_cpu(), shape=(_count(name, rest),))


def _count(name: str, text: str) -> int:
  if not re.fullmatch(r"[1-9]\d*", text):
    raise _wrong(name, "is without a number of devices", _FORMS)
  return int(text)


def mesh_axes(mesh_sizes: dict[str, int], topology: Topology) -> dict[str, int]:
  """Devices along each axis, -1 filled in.

  Raises:
    ValueError: the product is not the number of devices, or the axes cannot
      count the slices as sharding.make_mesh does.
  """
  number, sizes = topology.num_devices, dict(mesh_sizes)
  given = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
  fixed = math.prod(size for size in sizes.values() if size != -1)
  if -1 in sizes.values() and number % fixed == 0:
    sizes = {a: number // fixed if n == -1 else n for a, n in sizes.items()}
  if math.prod(sizes.values()) != number:
    asked = "a multiple of " * (-1 in sizes.values()) + str(fixed)
    raise ValueError(
      f"mesh: {given} is for {asked} devices, but {topology.name} has {number};"
      " choose sizes whose product that is (-1 takes what is left), or give"
      " --search."
    )
  if not counts_slices(sizes, topology.num_slices):
    raise ValueError(
      f"mesh: {given} cannot count the {topology.num_slices} slices of"
      f" {topology.name}; make mesh.data a multiple of {topology.num_slices},"
      " or mesh.fsdp one of what data leaves."
      " expert and tensor stay within a slice."
    )
  return sizes


def counts_slices(sizes: dict[str, int], num_slices: int) -> bool:
  """Whether `data` counts the slices, and `fsdp` those that it leaves."""
  return (
    sizes["fsdp"] % (num_slices // math.gcd(sizes["data"], num_slices)) == 0
  )


def meshes(topology: Topology) -> Iterator[dict[str, int]]:
  """Every mesh of these devices, `expert` 1; the least split ones first."""
  number = topology.num_devices
  within = math.prod(topology.shape)
  for tensor in _divisors(within):
    for fsdp in _divisors(number // tensor):
      # What is left of whole slices counts them, as make_mesh wants it.
      data = number // tensor // fsdp
      yield {"data": data, "fsdp": fsdp, "expert": 1, "tensor": tensor}


def _divisors(number: int) -> list[int]:
  return [n for n in range(1, number + 1) if number % n == 0]
