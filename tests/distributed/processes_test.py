"""Tests for analogjax/distributed/processes.py, in one process."""

import types

import jax
from models import Gpu, mesh_id
import numpy as np
import pytest

from analogjax.distributed import processes, sharding

MESHES = (
  dict(data=8),
  dict(fsdp=4, tensor=2),
  dict(data=2, fsdp=2, tensor=2),
  dict(expert=2, tensor=4),
  dict(tensor=8),
)


@pytest.fixture(params=MESHES, ids=mesh_id)
def mesh(request):
  return sharding.make_mesh(request.param)


def of_processes(axes, process_of):
  """Stands for a mesh whose devices belong to several processes.

  `process_of` is the process of each device, in the order of the mesh.
  """
  shape = [axes.get(axis, 1) for axis in sharding.MESH_AXES]
  devices = np.empty(len(process_of), object)
  for i, process in enumerate(process_of):
    devices[i] = types.SimpleNamespace(process_index=process)
  return types.SimpleNamespace(
    axis_names=sharding.MESH_AXES, devices=devices.reshape(shape)
  )


def groups_of(mesh, monkeypatch):
  """The group of each process, by process."""
  found = {}
  for process in {d.process_index for d in mesh.devices.flat}:
    monkeypatch.setattr(jax, "process_index", lambda p=process: p)
    found[process] = processes.group(mesh)
  return found


def test_one_process_holds_all_rows(mesh):
  ways = int(np.prod([mesh.shape[axis] for axis in ("data", "fsdp", "expert")]))
  found = processes.group(mesh)
  assert found == processes.Group(0, 1, True, tuple(range(ways)), ways)
  assert found.rows_of(16) == 16


@pytest.mark.parametrize(
  ("axes", "process_of", "expected"),
  [
    # (index, is_leader, ways) of each process. Only rows are split:
    (
      dict(data=4),
      [0, 0, 1, 1],
      [(0, True, (0, 1)), (1, True, (2, 3))],
    ),
    # Each row is split over two processes; both feed it and one writes.
    (
      dict(data=2, tensor=2),
      [0, 1, 2, 3],
      [(0, True, (0,)), (0, False, (0,)), (1, True, (1,)), (1, False, (1,))],
    ),
    # A process beside another on every row: one group.
    (
      dict(data=2, tensor=2),
      [0, 1, 0, 1],
      [(0, True, (0, 1)), (0, False, (0, 1))],
    ),
    # Parts of a batch that are not neighbours.
    (dict(fsdp=4), [1, 0, 1, 0], [(1, True, (1, 3)), (0, True, (0, 2))]),
    # Overlaps that join three processes: 0 with 1, and 1 with 2.
    (
      dict(data=2, tensor=2),
      [0, 1, 1, 2],
      [(0, True, (0, 1)), (0, False, (0, 1)), (0, False, (0, 1))],
    ),
    # The order of the axes is that of the mesh: data, fsdp, expert.
    (
      dict(data=2, fsdp=2, expert=2),
      [0, 0, 0, 0, 1, 1, 1, 1],
      [(0, True, (0, 1, 2, 3)), (1, True, (4, 5, 6, 7))],
    ),
    (dict(tensor=2), [0, 1], [(0, True, (0,)), (0, False, (0,))]),
  ],
)
def test_processes_with_the_same_rows_form_a_group(
  axes, process_of, expected, monkeypatch
):
  mesh = of_processes(axes, process_of)
  found = groups_of(mesh, monkeypatch)
  got = [
    (found[p].index, found[p].is_leader, found[p].ways) for p in sorted(found)
  ]
  assert got == expected
  leaders = [group for group in found.values() if group.is_leader]
  assert {group.count for group in found.values()} == {len(leaders)}
  # The leaders' rows are all rows, each once.
  ways = sorted(way for group in leaders for way in group.ways)
  assert ways == list(range(leaders[0].num_ways))
  assert sum(group.rows_of(24) for group in leaders) == 24


@pytest.mark.parametrize(
  ("axes", "per_slice", "expected"),
  [
    # Two devices a process. (is_leader, ways) of each:
    (dict(data=4, tensor=2), 4, [(True, (i,)) for i in range(4)]),
    (
      dict(data=2, tensor=4),
      4,
      [(True, (0,)), (False, (0,)), (True, (1,)), (False, (1,))],
    ),
    (dict(data=2, fsdp=4), 4, [(True, (2 * i, 2 * i + 1)) for i in range(4)]),
    # fsdp counts slices within data.
    (dict(data=2, fsdp=2, tensor=2), 2, [(True, (i,)) for i in range(4)]),
    (dict(data=1, fsdp=4, tensor=2), 4, [(True, (i,)) for i in range(4)]),
  ],
)
def test_groups_of_a_mesh_over_slices(axes, per_slice, expected, monkeypatch):
  devices = [Gpu(i, i // 2, i // per_slice) for i in range(8)]
  mesh = sharding.make_mesh(axes, devices[::-1])
  found = groups_of(mesh, monkeypatch)
  assert [(found[p].is_leader, found[p].ways) for p in range(4)] == expected


def make_rows():
  rng = np.random.default_rng(0)
  return dict(
    a=np.arange(16).reshape(8, 2),
    b=(rng.random(8, np.float32), rng.integers(0, 9, (16, 2, 3), np.uint8)),
  )


def test_put_rows_and_fetch_rows_are_a_round_trip(mesh):
  mine, tree = processes.group(mesh), make_rows()
  on_mesh = processes.put_rows(tree, mesh, mine)
  wanted = sharding.put_rows(tree, mesh)
  for one, other in zip(
    jax.tree.leaves(on_mesh), jax.tree.leaves(wanted), strict=True
  ):
    assert one.sharding == other.sharding and one.dtype == other.dtype
    for a, b in zip(
      one.addressable_shards, other.addressable_shards, strict=True
    ):
      np.testing.assert_array_equal(a.data, b.data)
  processes.start_fetch(on_mesh)
  jax.tree.map(
    np.testing.assert_array_equal, processes.fetch_rows(on_mesh), tree
  )


def test_rows_that_come_out_of_a_step_are_fetched_in_order(mesh):
  """Each once, even if several devices hold a copy."""
  tree = processes.put_rows(make_rows(), mesh, processes.group(mesh))
  with jax.set_mesh(mesh):
    out = jax.jit(
      lambda t: (t["a"] * 2, t["b"][1].sum(-1)),
      out_shardings=jax.sharding.NamedSharding(mesh, sharding.ROWS),
    )(tree)
  processes.start_fetch(out)
  doubled, summed = processes.fetch_rows(out)
  np.testing.assert_array_equal(doubled, make_rows()["a"] * 2)
  np.testing.assert_array_equal(summed, make_rows()["b"][1].sum(-1))
  assert isinstance(doubled, np.ndarray)


def test_devices_in_another_order_than_their_rows():
  devices = np.array(jax.devices()[::-1]).reshape(4, 1, 1, 2)
  mesh = jax.sharding.Mesh(devices, sharding.MESH_AXES)
  tree = make_rows()
  on_mesh = processes.put_rows(tree, mesh, processes.group(mesh))
  jax.tree.map(
    np.testing.assert_array_equal, processes.fetch_rows(on_mesh), tree
  )
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(on_mesh), tree)


@pytest.mark.parametrize("ways", [(0, 1), (1, 3), (2,)])
def test_a_group_puts_its_rows_where_they_belong(ways, monkeypatch):
  """This group is never asked for the rows of other groups."""
  mesh = sharding.make_mesh(dict(data=4), jax.devices()[:4])
  mine = processes.Group(0, 2, True, ways, 4)
  whole = np.arange(24).reshape(12, 2)  # Three rows a way.
  rows = np.concatenate([whole[3 * way : 3 * way + 3] for way in ways])
  asked = {}

  def make(shape, named, part):
    assert shape == whole.shape and named.spec == sharding.ROWS
    for way in ways:
      index = slice(3 * way, 3 * way + 3), slice(None)
      asked[way] = part(index)

  monkeypatch.setattr(jax, "make_array_from_callback", make)
  processes.put_rows([rows], mesh, mine)
  for way in ways:
    np.testing.assert_array_equal(asked[way], whole[3 * way : 3 * way + 3])


def test_one_process_agrees_with_itself():
  found = processes.all_gather((True, -1, 2**40))
  assert found.dtype == np.int64 and found.tolist() == [[1, -1, 2**40]]
  value = np.arange(3)
  np.testing.assert_array_equal(processes.from_first(value), value)
  processes.barrier("nothing")
  assert processes.on_first(lambda: "done") == "done"
  assert processes.first_decides(lambda: True) is True


def test_a_whole_array_is_on_the_host(mesh):
  x = np.arange(32.0).reshape(8, 4)
  for letters in ("BD", "VD"):
    spec = jax.sharding.PartitionSpec(
      *(sharding.ACTIVATION_AXES.get(letter) for letter in letters)
    )
    on_mesh = jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
    np.testing.assert_array_equal(processes.fetch_whole(on_mesh), x)


def test_a_board_of_one_process_shows_what_it_was_given(mesh):
  board = processes.Board(mesh, 2)
  shown = [board.show((True, 0.25)), board.show((False, 1.5))]
  told = [board.read(one) for one in shown]
  assert [t.tolist() for t in told] == [[[1, 0.25]], [[0, 1.5]]]
  with pytest.raises(AssertionError):
    board.show((True,))


def test_a_board_has_a_row_for_each_process(monkeypatch):
  """The first device of a process in the mesh represents it."""
  mesh = of_processes(dict(data=6), [1, 1, 2, 0, 2, 0])
  monkeypatch.setattr(jax, "process_count", lambda: 3)
  monkeypatch.setattr(processes, "NamedSharding", lambda *_: None)
  board = processes.Board(mesh, 1)
  shown = np.float32([[10], [11], [20], [0], [21], [1]])
  assert board.read(shown).tolist() == [[0], [10], [20]]


def test_one_process_is_the_total():
  assert processes.total(0.1) == 0.1


def of_all(monkeypatch, *others):
  """The result of `all_gather` here, given other processes' values."""
  monkeypatch.setattr(processes, "_is_alone", lambda: False)
  monkeypatch.setattr(
    processes,
    "all_gather",
    lambda mine: np.int64([mine, *(f(mine) for f in others)]),
  )


def test_a_total_keeps_every_bit_of_a_float64(monkeypatch):
  other = np.float64([1e-9]).view(np.int64)
  of_all(monkeypatch, lambda _: other)
  assert processes.total(1 / 3) == 1 / 3 + 1e-9


def test_some_of_what_processes_found(monkeypatch):
  a, b, c, d = (bytes([i]) * 32 for i in range(1, 5))
  assert processes.some_of([a, b], 4) == [a, b]
  assert processes.some_of([a, b, c], 2) == [a, b]
  assert processes.some_of([], 3) == []

  def found(*digests):
    data = b"".join(digests).ljust(3 * 32, b"\0")
    return lambda _: np.frombuffer(data, np.int64).tolist()

  # One of the same group, one that found none, and one of another group.
  of_all(monkeypatch, found(a, b), found(), found(c, d))
  assert processes.some_of([a, b], 3) == [a, b, c]
