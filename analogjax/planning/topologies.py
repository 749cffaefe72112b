"""Machines of a plan, by name, and the meshes that fit them.

Names are `v5p:4x4x4` (chips of one slice), `2*v5p:4x4x4` (slices),
`gpu:h100:64` and `cpu:8`.
"""

from collections.abc import Iterator
import dataclasses
import difflib
import math
import re

from analogjax.distributed import devices, sharding

# Two dimensions. Source: Google Cloud, "TPU v5e" and "TPU v6e", supported
# configurations.
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
# Three dimensions, below a cube of 4x4x4; above, all are multiples of 4 and
# rise. Source: Google Cloud, "TPU v4", "TPU v5p", "TPU7x (Ironwood)".
_DEEP = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
  """Chips that are reserved together."""

  name: str  # As the user wrote it: "v5p:8x8x8", "2*v5p:4x4x4", "gpu:h100:64".
  chip: devices.Chip
  shape: tuple[int, ...]  # Of the torus of a slice, or (devices,).
  num_slices: int = 1  # Slices are joined by the slow network.

  @property
  def num_devices(self) -> int:
    return self.num_slices * math.prod(self.shape)

  @property
  def is_gpu(self) -> bool:
    return not self.chip.is_tpu and self.chip.name != devices.CPU

  @property
  def platform(self) -> str:
    """The platform's name in jax."""
    return "tpu" if self.chip.is_tpu else "gpu" if self.is_gpu else "cpu"


def parse(name: str) -> Topology:
  """The machines of a name.

  GPUs joined by NVLink are a slice, as they are for sharding.make_mesh.

  Raises:
    ValueError: the chip or shape does not exist; says which do.
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
  if family not in devices.TPUS:
    raise _wrong(name, f"there is no chip {family!r}", _near(family))
  dims = _tpu_shape(name, family, rest)
  cores = devices.DEVICES_OF_A_CHIP[family]
  # libtpu's name, whatever the user calls the chip.
  return Topology(
    name=f"{slices}*{family}:{rest}" if slices > 1 else f"{family}:{rest}",
    chip=devices.chip(family),
    shape=dims if cores == 1 else (*dims, cores),
    num_slices=slices,
  )


_FORMS = "v5p:4x4x4, 2*v5p:4x4x4, gpu:h100:64 or cpu:8"


def _wrong(name: str, what: str, expected: str) -> ValueError:
  return ValueError(f"--topology={name}: {what}; expected {expected}.")


def _near(word: str) -> str:
  """The allowed values, the nearest one last."""
  known = f"{', '.join(devices.TPUS)}, gpu or cpu"
  close = difflib.get_close_matches(word, devices.CHIPS[:-1], n=1, cutoff=0.5)
  if not close:
    return known
  form = f"gpu:{close[0]}:8" if close[0] in devices.GPUS else f"{close[0]}:..."
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
    exists |= cubes and math.prod(dims) <= devices.JOINED[family]
  if not exists:
    most = f", at most {devices.JOINED[family]:,} chips"
    raise _wrong(
      name, f"{family} has no slice of {text}", f"one of {shapes}{most}"
    )
  return dims


def _gpus(name: str, rest: str) -> Topology:
  kind, _, count = rest.partition(":")
  kind = kind.replace("-", "_")
  if kind not in devices.GPUS:
    raise _wrong(
      name,
      f"there is no GPU {kind!r} in the table",
      f"one of {', '.join(devices.GPUS)}",
    )
  number, together = _count(name, count), devices.JOINED[kind]
  if number > together and number % together:
    raise _wrong(
      name,
      f"{number} GPUs are not whole groups of {together} that NVLink joins",
      f"up to {together}, or a multiple of {together}",
    )
  within = min(number, together)
  return Topology(
    name=name,
    chip=devices.chip(kind),
    shape=(within,),
    num_slices=number // within,
  )


def _cpus(name: str, rest: str) -> Topology:
  return Topology(
    name=name, chip=devices.chip(devices.CPU), shape=(_count(name, rest),)
  )


def _count(name: str, text: str) -> int:
  if not re.fullmatch(r"[1-9]\d*", text):
    raise _wrong(name, "is without a number of devices", _FORMS)
  return int(text)


def mesh_axes(mesh_sizes: dict[str, int], topology: Topology) -> dict[str, int]:
  """Devices along each axis, -1 filled in.

  Raises:
    ValueError: the product is not the number of devices, or the axes cannot
      span the slices as sharding.make_mesh does.
  """
  number = topology.num_devices
  sizes = sharding.fill_axes(mesh_sizes, number)
  given = ", ".join(f"{axis}={size}" for axis, size in mesh_sizes.items())
  if math.prod(sizes.values()) != number:
    fixed = math.prod(size for size in mesh_sizes.values() if size != -1)
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
  """Whether `data` spans the slices, and `fsdp` those that it leaves."""
  return (
    sizes["fsdp"] % (num_slices // math.gcd(sizes["data"], num_slices)) == 0
  )


def meshes(topology: Topology) -> Iterator[dict[str, int]]:
  """Every mesh of these devices, `expert` 1; the least split ones first."""
  number = topology.num_devices
  within = math.prod(topology.shape)
  for tensor in _divisors(within):
    for fsdp in _divisors(number // tensor):
      # The remaining devices of whole slices span them, as make_mesh requires.
      data = number // tensor // fsdp
      yield {"data": data, "fsdp": fsdp, "expert": 1, "tensor": tensor}


def _divisors(number: int) -> list[int]:
  return [n for n in range(1, number + 1) if number % n == 0]
