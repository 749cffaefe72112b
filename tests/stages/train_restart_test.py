"""`analogjax train`: rows by step, restarts, and other meshes, in process."""

import shutil
import signal
import types

import jax
import numpy as np
import pytest

from analogjax.config import loading, schema
from analogjax.distributed import processes, sharding
from analogjax.run.run import Run
from analogjax.stages import train

pytestmark = pytest.mark.medium

# Devices, and the mesh over them.
MESHES = {
  "fsdp4-tensor2": (8, "mesh.fsdp=4", "mesh.tensor=2"),
  "2-2-2": (8, "mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"),
  "data4": (4, "mesh.data=4", "mesh.fsdp=1"),
  "fsdp2": (2, "mesh.fsdp=2"),
  "alone": (1,),
}
# In the middle of a pass over the rows, and between two saves; at 6 the student
# would have been evaluated.
STOPS = {"cache": 5, "stream": 6}


def stop():
  """Signals this process to stop, as a scheduler does."""
  signal.raise_signal(signal.SIGTERM)


@pytest.fixture(scope="module")
def stopped(training, tmp_path_factory):
  """By source: a workdir that SIGTERM stopped."""
  found = {}
  for name, values in training.sources.items():
    workdir = tmp_path_factory.mktemp("stopped") / name
    seen = training.train(workdir, *values, at={STOPS[name]: stop})
    assert seen.code == 75
    assert sorted(seen.states) == [4, STOPS[name]]
    found[name] = workdir
  return found


def assert_same(found, wanted):
  """Two trees have the same leaves, to the bit."""
  jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize("source", ["cache", "stream"])
def test_a_restart_is_bit_identical(
  training, straight, stopped, tmp_path, source
):
  workdir = shutil.copytree(stopped[source], tmp_path / "run")
  again = training.train(workdir, *training.sources[source])
  wanted_in, wanted = straight[source]
  assert again.code == wanted.code == 0
  assert sorted(again.batches) == list(range(STOPS[source] + 1, 13))
  for step, batch in again.batches.items():
    assert_same(batch, wanted.batches[step])
  assert sorted(again.states) == [8, 12]
  for step, state in again.states.items():
    assert_same(state, wanted.states[step])
  assert training.curve(workdir) == training.curve(wanted_in)


def test_a_phase_with_a_weight_says_how_far_the_grams_are(training, straight):
  """In training and on held-out rows; one without it, only on the latter."""
  of_cache = training.losses(straight["cache"][0])
  assert {step for step, name in of_cache if name == "train/gram"} == {
    *range(1, 13)
  }
  held_out = {
    source: [
      training.losses(straight[source][0])[step, "held_out/gram"]
      for step in (0, 6, 12)
    ]
    for source in ("cache", "stream")
  }
  assert held_out["cache"][2] < held_out["cache"][0]
  assert (
    held_out["stream"][0] == held_out["cache"][0]
  )  # The student is the same.
  assert not any(
    name == "train/gram" for _, name in training.losses(straight["stream"][0])
  )


@pytest.mark.parametrize("mesh", MESHES)
def test_another_mesh_goes_on_with_the_same_rows(
  training, straight, stopped, tmp_path, mesh
):
  workdir = shutil.copytree(stopped["cache"], tmp_path / "run")
  devices, *values = MESHES[mesh]
  again = training.train(workdir, *values, devices=devices)
  wanted_in, wanted = straight["cache"]
  assert again.code == 0
  assert sorted(again.batches) == list(range(STOPS["cache"] + 1, 13))
  for step, batch in again.batches.items():
    assert_same(batch, wanted.batches[step])
  wanted_losses = training.losses(wanted_in)
  assert training.losses(workdir) == pytest.approx(wanted_losses, rel=1e-5)


# Processes of a mesh, in the order of its devices.
PROCESSES = {
  "one": (dict(data=4), [0, 0, 0, 0]),
  "two": (dict(fsdp=4), [0, 0, 1, 1]),
  "two, not in order": (dict(data=4), [1, 0, 1, 0]),
  "two, each row on both": (dict(data=2, tensor=2), [0, 1, 0, 1]),
  "four": (dict(data=2, fsdp=2), [0, 1, 2, 3]),
  "four, two for a row": (dict(fsdp=2, tensor=2), [3, 2, 1, 0]),
}


def stand_in_mesh(axes, process_of):
  """Stands for a mesh over the devices of several processes."""
  devices = np.empty(len(process_of), object)
  for i, process in enumerate(process_of):
    devices[i] = types.SimpleNamespace(process_index=process)
  shape = [axes.get(axis, 1) for axis in sharding.MESH_AXES]
  return types.SimpleNamespace(
    axis_names=sharding.MESH_AXES, devices=devices.reshape(shape)
  )


@pytest.fixture(scope="module")
def open_order(training):
  """Opens the order of rows as a process of a mesh does."""

  def open_order(source, mesh):
    arguments = training.arguments(
      "train", training.cached, *training.sources[source]
    )
    overrides = [
      tuple(a.removeprefix("--config.").split("=", 1))
      for a in arguments
      if a.startswith("--config.")
    ]
    cfg = loading.load(training.folder / "lab.py", overrides)
    run = Run(schema.to_sections(cfg), training.cached)
    phase = run.config.train.phase["distill"]
    order = train._row_order(phase, run, mesh, train._open_cache(run))
    return order, processes.group(mesh).indices_of(phase.batch_rows)

  return open_order


@pytest.mark.parametrize("how", PROCESSES)
@pytest.mark.parametrize("source", ["cache", "stream"])
def test_processes_feed_the_rows_that_one_feeds(
  straight, open_order, monkeypatch, source, how
):
  axes, process_of = PROCESSES[how]
  mesh, fed = stand_in_mesh(axes, process_of), []
  for process in sorted(set(process_of)):
    monkeypatch.setattr(jax, "process_index", lambda p=process: p)
    order, indices = open_order(source, mesh)
    fed.append((indices, [order.read(step) for step in range(12)]))
  assert {row for indices, _ in fed for row in indices} == set(range(8))
  _, wanted = straight[source]
  for step in range(12):
    whole = wanted.batches[step + 1]
    for indices, read in fed:
      part = jax.tree.map(lambda a, i=indices: a[i], whole)
      assert_same(read[step], part)
