"""Placement of arrays: the mesh, and a table from shape letters to mesh axes.

A parameter's name ends in its shape letters (wq_DNH), so its name is enough to
shard it, and the models carry no sharding annotations. Stacked layers are below
a name that ends in the letter Y (blocks_Y). The letters along a path add up, so
`blocks_Y/attention/wq_DNH` has the shape letters YDNH.
"""

import collections
from collections.abc import Mapping
import math
import re
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
import numpy as np

MESH_AXES = ("data", "fsdp", "expert", "tensor")

Array = jax.Array | np.ndarray  # On devices, or still on the host.

# A letter that is absent is replicated.
_SPLIT = {"N": "tensor", "G": "tensor", "F": "tensor", "V": "tensor"}
WEIGHT_AXES = {"D": "fsdp", "E": "expert", **_SPLIT}
ACTIVATION_AXES = {"B": ("data", "fsdp", "expert"), **_SPLIT}

ROWS = P(ACTIVATION_AXES["B"])


def make_mesh(axis_sizes: Mapping[str, int], devices: Any = None) -> Mesh:
  """A mesh over all devices (or `devices`); at most one size may be -1.

  Slices are groups of devices with a fast network: a TPU's, or the GPUs of a
  host. With several slices, `data` spans them first, then `fsdp`; the other
  axes stay in one.

  Raises:
    ValueError: an axis is unknown, or the sizes do not give the number of
      devices or do not fit the slices.
  """
  devices = list(jax.devices() if devices is None else devices)
  unknown = sorted(set(axis_sizes) - set(MESH_AXES))
  if unknown:
    raise ValueError(
      f"mesh: unknown axis {', '.join(unknown)}; the axes are "
      f"{', '.join(MESH_AXES)}."
    )
  sizes = [axis_sizes.get(axis, 1) for axis in MESH_AXES]
  named: dict[str, int] = dict(zip(MESH_AXES, sizes, strict=True))
  given = ", ".join(f"{axis}={n}" for axis, n in named.items())
  if sizes.count(-1) > 1 or any(n < 1 and n != -1 for n in sizes):
    raise ValueError(
      f"mesh: {given}; each size must be positive, and one at most may be -1"
      " (it takes the devices that are left)."
    )
  sizes = list(fill_axes(named, len(devices)).values())
  if math.prod(sizes) != len(devices):
    raise ValueError(
      f"mesh: {given} does not match the {len(devices)} devices that there"
      f" are; the product of the axes must be {len(devices)}."
    )
  types = (AxisType.Auto,) * len(MESH_AXES)
  if len({_slice_of(device) for device in devices}) > 1:
    return Mesh(_over_slices(sizes, devices), MESH_AXES, axis_types=types)
  try:
    return jax.make_mesh(
      tuple(sizes), MESH_AXES, axis_types=types, devices=devices
    )
  except NotImplementedError:
    # An axis of a TPU's torus has to be shared by two of ours, for example
    # tensor=2 of a v5p:4x4x4.
    placed = mesh_utils.create_device_mesh(
      tuple(sizes), devices, allow_split_physical_axes=True
    )
    return Mesh(placed, MESH_AXES, axis_types=types)


def fill_axes(
  axis_sizes: Mapping[Any, int], num_devices: int
) -> dict[str, int]:
  """Sizes with -1 replaced by the remaining devices, if they divide evenly."""
  fixed = math.prod(n for n in axis_sizes.values() if n != -1)
  rest, remainder = divmod(num_devices, fixed)
  return {
    axis: rest if n == -1 and not remainder else n
    for axis, n in axis_sizes.items()
  }


def _slice_of(device) -> int:
  return getattr(device, "slice_index", 0)


def _over_slices(sizes: list[int], devices: list[Any]) -> np.ndarray:
  """Devices of several slices in the order of a mesh."""
  by_slice = collections.Counter(map(_slice_of, devices))
  number = len(by_slice)
  if len(set(by_slice.values())) > 1:
    have = ", ".join(str(by_slice[i]) for i in sorted(by_slice))
    raise ValueError(
      f"mesh: {number} slices of {have} devices; expected as many in each."
    )
  size = len(devices) // number
  data, fsdp, expert, tensor = sizes
  over_data = math.gcd(data, number)
  over_fsdp = number // over_data
  if fsdp % over_fsdp:
    raise ValueError(
      f"mesh: data={data} and fsdp={fsdp} cannot count the"
      f" {number} slices of {size} devices; make mesh.data a multiple of"
      f" {number}, or mesh.fsdp one of {over_fsdp}. (A host of GPUs is a slice"
      " too. expert and tensor stay within one.)"
    )
  within = (data // over_data, fsdp // over_fsdp, expert, tensor)
  between = (over_data, over_fsdp, 1, 1)
  try:
    return mesh_utils.create_hybrid_device_mesh(within, between, devices)
  except NotImplementedError:  # As above, within a slice.
    return mesh_utils.create_hybrid_device_mesh(
      within, between, devices, allow_split_physical_axes=True
    )


def letters_of(path: str) -> str:
  """The shape letters of a parameter, e.g. YDNH for blocks_Y/.../wq_DNH."""
  return "".join(re.findall(r"_([A-Z]+)\b", path))


def weight_spec(letters: str) -> P:
  """The PartitionSpec of a weight or of an optimizer moment."""
  return P(*(WEIGHT_AXES.get(letter) for letter in letters))


def state_shardings(abstract: Any, mesh: Mesh) -> Any:
  """A NamedSharding for every leaf of a train state, from the leaf's name.

  Optimizer moments have the names of their weights, so they are sharded alike.
  Scalars are replicated; any other unnamed leaf is an error.

  Raises:
    ValueError: a mesh axis does not divide its dimension.
  """

  def of(path, leaf):
    if leaf.ndim == 0:
      return NamedSharding(mesh, P())
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    letters = letters_of(name)
    assert len(letters) == leaf.ndim, f"{name}: shape {leaf.shape}."
    for letter, size in zip(letters, leaf.shape, strict=True):
      axis = WEIGHT_AXES.get(letter)
      if axis is not None and size % mesh.shape[axis]:
        raise ValueError(
          f"mesh: {axis}={mesh.shape[axis]} does not divide {letter}={size}"
          f" (dimension {letter} of {name}); choose a size of mesh.{axis}"
          f" that divides {size}."
        )
    return NamedSharding(mesh, weight_spec(letters))

  return jax.tree_util.tree_map_with_path(of, abstract)


def pin(x: jax.Array, axes: tuple[str | tuple[str, ...] | None, ...]):
  """Pins an array inside a jitted function to mesh axes; no mesh, no effect."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, P(*axes))


def constrain(x: jax.Array, letters: str) -> jax.Array:
  """Pins an activation to the mesh, e.g. constrain(x_BLD, "BLD")."""
  return pin(x, tuple(ACTIVATION_AXES.get(letter) for letter in letters))


def check_batch_rows(batch_rows: int, mesh: Mesh, field: str) -> None:
  """Refuses a batch whose rows the mesh cannot divide evenly.

  Raises:
    ValueError: names `field` and the axes that hold the rows.
  """
  ways = math.prod(mesh.shape[axis] for axis in ACTIVATION_AXES["B"])
  if batch_rows % ways:
    raise ValueError(
      f"{field}={batch_rows} rows cannot be split over"
      f" {' x '.join(ACTIVATION_AXES['B'])} = {ways} devices; use a multiple"
      f" of {ways}."
    )


def put_rows(tree: Any, mesh: Mesh) -> Any:
  """Host arrays [B, ...] as global arrays whose rows are split over the mesh.

  Every process passes the whole batch and keeps the rows of its own devices.
  """
  sharding = NamedSharding(mesh, ROWS)

  def put(x):
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  return jax.tree.map(put, tree)
