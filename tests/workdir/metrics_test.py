"""Tests for analogjax/workdir/metrics.py."""

import sys
import types

import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from analogjax.workdir import metrics


def write(folder, first_step, records):
  writers = metrics.open_writers(folder, first_step=first_step)
  for writer in writers:
    for step, values in records:
      writer.write_scalars(step, values)
    writer.close()


def scalars(folder):
  """Every scalar in the event files, read by the format's definition."""
  found = []
  for path in sorted((folder / "tensorboard").iterdir()):
    data = path.read_bytes()
    while data:
      length = int.from_bytes(data[:8], "little")
      crc = int.from_bytes(data[8:12], "little")
      assert crc == masked_crc32c(data[:8])
      event = event_pb2.Event.FromString(data[12 : 12 + length])
      for value in event.summary.value:
        found.append((event.step, value.tag, value.simple_value))
      data = data[12 + length + 4 :]
  return found


def test_records_are_read_as_written(tmp_path):
  write(tmp_path, 0, [(1, {"train/loss_nats": 2.5}), (2, {"x": 1.0})])
  assert metrics.read(tmp_path) == [
    {"step": 1, "train/loss_nats": 2.5},
    {"step": 2, "x": 1.0},
  ]
  assert scalars(tmp_path) == [(1, "train/loss_nats", 2.5), (2, "x", 1.0)]


def test_no_file_is_no_records(tmp_path):
  assert metrics.read(tmp_path) == []


def test_steps_that_are_done_again_replace_their_records(tmp_path):
  write(tmp_path, 0, [(0, {"x": 9.0}), (1, {"x": 1.0}), (2, {"x": 2.0})])
  write(tmp_path, 1, [(2, {"x": 3.0})])
  values = [(r["step"], r["x"]) for r in metrics.read(tmp_path)]
  assert values == [(0, 9.0), (1, 1.0), (2, 3.0)]


def test_a_start_from_nothing_drops_all(tmp_path):
  write(tmp_path, 0, [(0, {"x": 9.0}), (1, {"x": 1.0})])
  write(tmp_path, 0, [(0, {"x": 8.0})])
  assert metrics.read(tmp_path) == [{"step": 0, "x": 8.0}]


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path):
  write(tmp_path, 0, [(1, {"x": 1.0}), (2, {"x": 2.0})])
  path = tmp_path / metrics.FILE
  path.write_bytes(path.read_bytes()[:-5])
  assert metrics.read(tmp_path) == [{"step": 1, "x": 1.0}]
  write(tmp_path, 1, [(2, {"x": 5.0})])
  assert [r["x"] for r in metrics.read(tmp_path)] == [1.0, 5.0]


class Wandb(types.ModuleType):
  """Stands in for the package wandb: records its calls."""

  def __init__(self):
    super().__init__("wandb")
    self.started, self.logged, self.finished = [], [], 0

  def init(self, **arguments):
    self.started.append(arguments)
    self.id = arguments["id"] or "new"
    return self

  def define_metric(self, *arguments, **more):
    pass

  def log(self, values):
    self.logged.append(values)

  def finish(self):
    self.finished += 1


def test_weights_and_biases_gets_the_same_records(tmp_path, monkeypatch):
  wandb = Wandb()
  monkeypatch.setitem(sys.modules, "wandb", wandb)
  folder = tmp_path / "run" / "train" / "distill"
  for first_step in (0, 4, 0):
    writers = metrics.open_writers(folder, first_step=first_step, wandb="us/x")
    for writer in writers:
      writer.write_scalars(first_step + 1, {"train/loss_nats": 2.5})
      writer.close()
  assert [s["id"] for s in wandb.started] == [None, "new", None]
  assert wandb.started[0]["entity"] == "us" and wandb.finished == 3
  assert wandb.started[0]["project"] == "x"
  assert wandb.started[0]["name"] == "run/distill"
  assert wandb.logged[1] == {"step": 5, "train/loss_nats": 2.5}


def test_without_the_package_the_field_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(ValueError, match=r"train.wandb='x': .* pip install"):
    metrics.open_writers(tmp_path, first_step=0, wandb="x")
