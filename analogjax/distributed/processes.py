"""Several processes of one program: their rows of a batch, and collectives.

A global batch is split over the mesh by rows. Processes whose devices hold the
same rows form a group: they must feed the same rows, and one of them, the
leader, writes the results. So no row and no result has to be sent from one host
to another.

Shape letter: B rows of a global batch.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import numpy as np

from analogjax.distributed import sharding, stopping


class FailedElsewhere(ValueError):
  """Another process failed and reports why, so this one stops."""

  is_another_process = True

  def __init__(self, process: int, what: str = ""):
    super().__init__(
      f"{what}process {process} failed and says why; this one stops too. Run"
      " the same command again to continue."
    )


@dataclasses.dataclass(frozen=True)
class Group:
  """The processes that hold the same rows as this one."""

  index: int  # Number of this group.
  count: int  # Number of groups.
  is_leader: bool  # This process writes for the group.
  ways: tuple[int, ...]  # Which of `num_ways` equal parts of a batch it holds.
  num_ways: int

  def rows_of(self, batch_rows: int) -> int:
    """Number of rows of a global batch that this group feeds."""
    return batch_rows // self.num_ways * len(self.ways)

  def indices_of(self, batch_rows: int) -> np.ndarray:
    """Indices of the rows of a global batch that this group feeds, in order."""
    by_way = np.arange(batch_rows).reshape(self.num_ways, -1)
    return by_way[list(self.ways)].ravel()


def group(mesh: Mesh) -> Group:
  """The group of this process on a mesh."""
  rows = [mesh.axis_names.index(axis) for axis in sharding.ACTIVATION_AXES["B"]]
  others = [i for i in range(mesh.devices.ndim) if i not in rows]
  devices = mesh.devices.transpose(*rows, *others)
  num_ways = int(np.prod([mesh.devices.shape[i] for i in rows]))
  by_way = devices.reshape(num_ways, -1)
  groups: list[tuple[set[int], list[int]]] = []  # (processes, ways).
  for way in range(num_ways):
    processes, ways = {d.process_index for d in by_way[way]}, [way]
    apart = []
    for other in groups:
      if other[0] & processes:
        processes, ways = processes | other[0], other[1] + ways
      else:
        apart.append(other)
    groups = [*apart, (processes, ways)]
  groups.sort(key=lambda g: g[1])
  me = jax.process_index()
  index = next(i for i, (processes, _) in enumerate(groups) if me in processes)
  processes, ways = groups[index]
  return Group(
    index=index,
    count=len(groups),
    is_leader=me == min(processes),
    ways=tuple(ways),
    num_ways=num_ways,
  )


def put_rows(tree: Any, mesh: Mesh, mine: Group) -> Any:
  """This group's rows [B / num_ways x ways, ...] as part of a global batch."""
  named = NamedSharding(mesh, sharding.ROWS)

  def put(x):
    per_way = len(x) // len(mine.ways)
    shape = (per_way * mine.num_ways, *x.shape[1:])

    def part(index):
      start = index[0].start or 0
      local = mine.ways.index(start // per_way) * per_way
      return x[local : local + per_way]

    return jax.make_array_from_callback(shape, named, part)

  return jax.tree.map(put, tree)


def start_fetch(tree: Any) -> None:
  """Begins to copy what this process holds of a result to the host."""
  for leaf in jax.tree.leaves(tree):
    for part in _parts(leaf).values():
      part.copy_to_host_async()


def fetch_rows(tree: Any) -> Any:
  """The rows of a result that this process holds, in order, on the host."""

  def fetch(leaf):
    parts = _parts(leaf)
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])

  return jax.tree.map(fetch, tree)


def _parts(leaf) -> dict[int, jax.Array]:
  """One copy of each part of the rows, by its first row."""
  return {s.index[0].start or 0: s.data for s in leaf.addressable_shards}


def fetch_whole(x: jax.Array) -> np.ndarray | None:
  """A global array whole on the host of process 0; None on the others.

  All processes call it. With several, each device briefly holds the whole
  array, and every process waits for that.
  """
  if x.is_fully_addressable:
    return np.asarray(x)
  assert isinstance(x.sharding, NamedSharding)
  whole = _replicate(x.sharding.mesh)(x).block_until_ready()
  return np.asarray(whole) if jax.process_index() == 0 else None


@functools.cache
def _replicate(mesh):
  return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))


def _is_alone() -> bool:
  """Whether there is no other process; starts no backend to find out."""
  return not jax.distributed.is_initialized() or jax.process_count() == 1


def all_gather(values: Sequence[int] | np.ndarray) -> np.ndarray:
  """Gathers the values of every process, int64 [processes, len(values)]."""
  mine = np.asarray(values, np.int64)
  if _is_alone():
    return mine[None]
  # Two words each: without x64, jax would cut 64-bit integers.
  words = mine.view(np.uint32)
  gathered = multihost_utils.process_allgather(words, tiled=False)
  return np.ascontiguousarray(gathered, np.uint32).view(np.int64)


def all_or_none(call: Callable[[], Any]) -> Any:
  """Calls on every process; if one call fails, all processes raise.

  This way no process waits for one that has failed.

  Raises:
    FailedElsewhere: it failed on another process.
  """
  if _is_alone():
    return call()
  value = failure = None
  try:
    value = call()
  except Exception as error:
    failure = error
  failed = all_gather([failure is not None])[:, 0]
  if failure is not None:
    raise failure
  if failed.any():
    raise FailedElsewhere(int(failed.argmax()))
  return value


def on_first(call: Callable[[], Any]) -> Any:
  """Calls on process 0 while the others wait; these return None.

  Raises:
    FailedElsewhere: the call failed, on the processes that did not call.
  """
  if _is_alone() or jax.process_index() == 0:
    return all_or_none(call)
  return all_or_none(lambda: None)


def first_decides(question: Callable[[], bool]) -> bool:
  """Asks process 0; returns its answer on every process."""
  return bool(from_first(np.asarray(bool(on_first(question)))))


def from_first(value: np.ndarray) -> np.ndarray:
  """Returns the value of process 0 on every process; all pass one shape."""
  if _is_alone():
    return value
  return np.asarray(multihost_utils.broadcast_one_to_all(value))


def barrier(name: str) -> None:
  """Waits until every process is here."""
  if not _is_alone():
    multihost_utils.sync_global_devices(name)


class Board:
  """A few numbers that every process shows to the others once per step.

  They travel behind the previously dispatched step, so a reader waits at most
  for that step. All processes read the same numbers, so they can base decisions
  on them without further communication.
  """

  def __init__(self, mesh: Mesh, num_values: int):
    self._mesh, self._num_values = mesh, num_values
    self._exchange = jax.jit(
      lambda shown: shown, out_shardings=NamedSharding(mesh, P())
    )
    # One row per device; each process uses the first of its devices.
    owners = [device.process_index for device in mesh.devices.flat]
    self._rows = [owners.index(i) for i in range(jax.process_count())]

  def show(self, values: Sequence[float]) -> Any:
    """Dispatches the numbers of this process; pass the result to `read`."""
    assert len(values) == self._num_values, values
    mine = np.asarray([values], np.float32)
    if jax.process_count() == 1:
      return mine
    axes = NamedSharding(self._mesh, P(self._mesh.axis_names))
    shape = (self._mesh.size, self._num_values)
    shown = jax.make_array_from_callback(shape, axes, lambda _: mine)
    return self._exchange(shown)

  def read(self, shown: Any) -> np.ndarray:
    """Returns what every process showed, float32 [processes, num_values]."""
    if jax.process_count() == 1:
      return shown
    return np.asarray(shown)[self._rows]


def total(value: float) -> float:
  """Sums the values of all processes."""
  if _is_alone():
    return value
  (words,) = np.asarray([value], np.float64).view(np.int64)
  return float(all_gather([int(words)])[:, 0].view(np.float64).sum())


def some_of(mine: Sequence[bytes], most: int) -> list[bytes]:
  """Gathers up to `most` different digests of 32 bytes of all processes.

  `most` limits each process and the total.
  """
  data = b"".join(mine[:most]).ljust(32 * most, b"\0")
  words = all_gather(np.frombuffer(data, np.int64).tolist())
  found = words.reshape(-1, 4)
  # Processes of one group found the same.
  return list(dict.fromkeys(w.tobytes() for w in found if w.any()))[:most]


def stop_if_asked(where: str) -> None:
  """Stops all processes here if any of them was asked to; all call this.

  Raises:
    stopping.Stopped: with `where`, for the message.
  """
  if all_gather([stopping.asked()]).any():
    raise stopping.Stopped(where)
