"""Tests for analogjax/distributed/sharding.py."""

import jax
from jax.experimental import topologies
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from models import Gpu, tiny
import numpy as np
import pytest
from tpu import needs_libtpu

from analogjax.distributed import sharding
from analogjax.models import decoder

CFG = tiny(
  **dict(V=32, D=8, Y=3, H=6, F=10, tie_embeddings=False),
  **dict(attention_bias=True, mlp_bias=True),
)

# Where every parameter of the decoder lives, by hand.
PLACES = {
  "embed_VD": P("tensor", "fsdp"),
  "unembed_VD": P("tensor", "fsdp"),
  "final_norm/scale_D": P("fsdp"),
  "blocks_Y/attention_norm/scale_D": P(None, "fsdp"),
  "blocks_Y/mlp_norm/scale_D": P(None, "fsdp"),
  "blocks_Y/attention/wq_DNH": P(None, "fsdp", "tensor", None),
  "blocks_Y/attention/wk_DGH": P(None, "fsdp", "tensor", None),
  "blocks_Y/attention/wv_DGH": P(None, "fsdp", "tensor", None),
  "blocks_Y/attention/wo_NHD": P(None, "tensor", None, "fsdp"),
  "blocks_Y/attention/bq_NH": P(None, "tensor", None),
  "blocks_Y/attention/bk_GH": P(None, "tensor", None),
  "blocks_Y/attention/bv_GH": P(None, "tensor", None),
  "blocks_Y/attention/bo_D": P(None, "fsdp"),
  "blocks_Y/mlp/wgate_DF": P(None, "fsdp", "tensor"),
  "blocks_Y/mlp/wup_DF": P(None, "fsdp", "tensor"),
  "blocks_Y/mlp/wdown_FD": P(None, "tensor", "fsdp"),
  "blocks_Y/mlp/bgate_F": P(None, "tensor"),
  "blocks_Y/mlp/bup_F": P(None, "tensor"),
  "blocks_Y/mlp/bdown_D": P(None, "fsdp"),
}


@pytest.fixture(scope="module")
def cube():
  return sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))


def _by_path(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def test_parameters_lie_where_the_table_says(cube):
  abstract = decoder.abstract_parameters(CFG)
  shardings = sharding.state_shardings(abstract, cube)
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract)
  params = _by_path(jax.device_put(zeros, shardings))
  found = {
    path.removesuffix("/value"): (x.sharding.mesh, x.sharding.spec)
    for path, x in params.items()
  }
  assert found == {path: (cube, spec) for path, spec in PLACES.items()}
  for path, x in params.items():
    # None of these is whole anywhere, and data holds copies.
    ways = sum(axis is not None for axis in x.sharding.spec)
    assert x.addressable_shards[0].data.size * 2**ways == x.size, path


def test_moments_follow_their_weights_and_scalars_are_replicated(cube):
  weight = jax.ShapeDtypeStruct((8, 4, 6), jnp.float32)
  state = dict(
    params=dict(wq_DNH=weight),
    opt_state=(dict(mu=dict(wq_DNH=weight)), jax.ShapeDtypeStruct((), int)),
  )
  found = jax.tree.map(lambda s: s.spec, sharding.state_shardings(state, cube))
  spec = P("fsdp", "tensor", None)
  assert found == dict(
    params=dict(wq_DNH=spec), opt_state=(dict(mu=dict(wq_DNH=spec)), P())
  )


def test_a_leaf_without_its_letters_is_a_mistake_of_ours(cube):
  leaf = jax.ShapeDtypeStruct((8, 8), jnp.float32)
  for name in ("kernel", "w_D"):
    with pytest.raises(AssertionError, match=name):
      sharding.state_shardings({name: leaf}, cube)


@pytest.mark.parametrize(
  ("path", "letters"),
  [
    ("embed_VD", "VD"),
    ("blocks_Y/attention/wq_DNH", "YDNH"),
    ("blocks_Y/attention/wq_DNH/value", "YDNH"),
    ("['blocks_Y'].mu['mlp']['wdown_FD']", "YFD"),
    ("opt_state/0/count", ""),
    ("final_norm/scale_D", "D"),
    ("logits_cache", ""),
  ],
)
def test_letters_of(path, letters):
  assert sharding.letters_of(path) == letters


@pytest.mark.parametrize(
  ("sizes", "leaf", "message"),
  [
    (dict(fsdp=8), dict(w_DF=(12, 8)), "fsdp=8 does not divide D=12"),
    (dict(tensor=8), dict(wk_DGH=(8, 2, 6)), "tensor=8 does not divide G=2"),
    (dict(tensor=8), dict(embed_VD=(50, 8)), r"V=50 \(dimension V of embed_VD"),
  ],
)
def test_an_axis_that_does_not_divide_is_named(sizes, leaf, message):
  mesh = sharding.make_mesh(sizes)
  ((name, shape),) = leaf.items()
  with pytest.raises(ValueError, match=message):
    sharding.state_shardings(
      {name: jax.ShapeDtypeStruct(shape, jnp.float32)}, mesh
    )


@pytest.mark.parametrize(
  ("sizes", "expected"),
  [
    (dict(data=8), (8, 1, 1, 1)),
    (dict(fsdp=-1), (1, 8, 1, 1)),
    (dict(data=2, fsdp=-1, tensor=2), (2, 2, 1, 2)),
    (dict(tensor=2, expert=4, data=-1), (1, 1, 4, 2)),
  ],
)
def test_make_mesh(sizes, expected):
  mesh = sharding.make_mesh(sizes)
  assert tuple(mesh.shape[axis] for axis in sharding.MESH_AXES) == expected


@pytest.mark.medium
@pytest.mark.parametrize(
  "sizes", [dict(fsdp=32, tensor=2), dict(fsdp=16, tensor=4), dict(fsdp=64)]
)
def test_make_mesh_of_a_torus(sizes):
  """Sizes that are products of sides of a TPU's torus, and others."""
  needs_libtpu()
  topology = topologies.get_topology_desc("v5p:4x4x4", "tpu")
  mesh = sharding.make_mesh(sizes, topology.devices)
  assert {a: n for a, n in mesh.shape.items() if n > 1} == sizes
  assert set(mesh.devices.flat) == set(topology.devices)
  # Devices of `tensor` exchange most, so they are neighbours.
  for group in mesh.devices.reshape(-1, sizes.get("tensor", 1)):
    coords = np.asarray([device.coords for device in group])
    assert (np.ptp(coords, axis=0) > 0).sum() <= 1


def gpus(*counts):
  """Hosts with this many GPUs; ids are not in the order of jax.devices()."""
  found = []
  for host, count in enumerate(counts):
    found += [Gpu(100 * host + i, host, host) for i in range(count)]
  return found[::-1]


def check_slices(sizes, devices, across):
  """Checks that devices of other slices differ only along the axes `across`."""
  mesh = sharding.make_mesh(sizes, devices)
  assert {axis: n for axis, n in mesh.shape.items() if n > 1} == {
    axis: n for axis, n in sizes.items() if n > 1
  }
  assert sorted(d.id for d in mesh.devices.flat) == sorted(
    d.id for d in devices
  )
  slices = np.vectorize(lambda d: d.slice_index)(mesh.devices)
  for i, axis in enumerate(sharding.MESH_AXES):
    differ = (np.ptp(slices, axis=i) > 0).any()
    assert differ == (axis in across), axis
  return mesh


@pytest.mark.parametrize(
  ("counts", "sizes", "across"),
  [
    ((4, 4), dict(data=2, fsdp=4), {"data"}),
    ((4, 4), dict(data=4, tensor=2), {"data"}),
    ((4, 4), dict(data=8), {"data"}),
    ((4, 4), dict(data=2, expert=2, tensor=2), {"data"}),
    ((4, 4), dict(fsdp=8), {"fsdp"}),
    ((4, 4), dict(fsdp=4, tensor=2), {"fsdp"}),
    ((4, 4, 4, 4), dict(data=2, fsdp=2, tensor=4), {"data", "fsdp"}),
    ((4, 4, 4, 4), dict(data=2, fsdp=8), {"data", "fsdp"}),
    ((2, 2, 2), dict(data=6), {"data"}),
    ((4,), dict(fsdp=2, tensor=2), set()),
  ],
)
def test_slices_are_counted_by_data_then_fsdp(counts, sizes, across):
  mesh = check_slices(sizes, gpus(*counts), across)
  # The inner axes are of neighbours: ids of a host are one apart.
  if sizes.get("tensor", 1) > 1:
    ids = np.vectorize(lambda d: d.id)(mesh.devices)
    assert (np.diff(ids, axis=-1) == 1).all()


@pytest.mark.medium
@pytest.mark.parametrize(
  ("sizes", "across"),
  [
    (dict(data=2, fsdp=16), {"data"}),
    (dict(data=4, fsdp=2, tensor=4), {"data"}),
    (dict(data=2, fsdp=8, tensor=2), {"data"}),  # Which split a side.
    (dict(fsdp=8, tensor=4), {"fsdp"}),
  ],
)
def test_slices_of_a_tpu(sizes, across):
  needs_libtpu()
  topology = topologies.get_topology_desc("v5e:4x4", "tpu", num_slices=2)
  check_slices(sizes, list(topology.devices), across)


@pytest.mark.parametrize(
  ("counts", "sizes", "message"),
  [
    (
      (4, 4),
      dict(tensor=8),
      "data=1 and fsdp=1 cannot count the 2 slices of 4 devices;"
      " make mesh.data a multiple of 2, or mesh.fsdp one of 2",
    ),
    ((4, 4), dict(expert=2, tensor=4), ".* mesh.data a multiple of 2, or"),
    (
      (2, 2, 2, 2),
      dict(data=2, tensor=4),
      "data=2 and .* the 4 slices of 2 .* of 4, or mesh.fsdp one of 2",
    ),
    (
      (4, 2),
      dict(data=6),
      "2 slices of 4, 2 devices; expected as many in each",
    ),
  ],
)
def test_a_mesh_that_does_not_fit_the_slices(counts, sizes, message):
  with pytest.raises(ValueError, match=f"^mesh: {message}"):
    sharding.make_mesh(sizes, gpus(*counts))


@pytest.mark.parametrize(
  ("sizes", "message"),
  [
    (dict(data=4), "data=4, .* does not match the 8 devices"),
    (dict(data=16), "product of the axes must be 8"),
    (dict(data=3, fsdp=-1), "data=3, fsdp=-1, .* the 8 devices"),
    (dict(data=-1, fsdp=-1), "one at most may be -1"),
    (dict(data=0, fsdp=8), "data=0, .* must be positive"),
    (dict(data=-2, fsdp=-4), "must be positive"),
    (dict(model=8), "unknown axis model; the axes are data, fsdp, expert, ten"),
  ],
)
def test_a_bad_mesh_is_named(sizes, message):
  with pytest.raises(ValueError, match=f"^mesh: .*{message}"):
    sharding.make_mesh(sizes)


def test_rows_are_split_over_every_axis_but_tensor(cube):
  rows = dict(a=np.arange(16).reshape(8, 2), b=np.arange(8.0))
  found = sharding.put_rows(rows, cube)
  assert found["a"].sharding == NamedSharding(cube, sharding.ROWS)
  for name, x in found.items():
    np.testing.assert_array_equal(x, rows[name])
    assert {s.data.shape[0] for s in x.addressable_shards} == {2}


def test_check_batch_rows(cube):
  sharding.check_batch_rows(12, cube, "train.distill.batch_rows")
  message = (
    "^train.distill.batch_rows=6 rows cannot be split over data x fsdp x expert"
    " = 4 devices; use a multiple of 4"
  )
  with pytest.raises(ValueError, match=message):
    sharding.check_batch_rows(6, cube, "train.distill.batch_rows")


def test_constrain_pins_activations_where_there_is_a_mesh(cube):
  x_BLF = np.zeros((8, 3, 4), np.float32)
  sharding.constrain(jnp.asarray(x_BLF), "BLF")  # Without one: no effect.
  with jax.set_mesh(cube):
    fn = jax.jit(lambda x: sharding.constrain(x * 1, "BLF"))
    found = fn(x_BLF).sharding
  expected = NamedSharding(cube, P(("data", "fsdp", "expert"), None, "tensor"))
  assert found.is_equivalent_to(expected, 3)
