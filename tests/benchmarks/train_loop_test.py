"""Tests for tests/benchmarks/train_loop.py, at toy size."""

import importlib
from pathlib import Path
import re

import pytest

SIZES = dict(V=60, D=16, layers=1, rows=1, length=8, chunk=8)


@pytest.fixture
def train_loop(monkeypatch):
  """The module as the script has it: beside its imports."""
  monkeypatch.syspath_prepend(str(Path(__file__).parent))
  return importlib.import_module("train_loop")


def spent(train_loop, *seconds, loss=1.0, held=0.25, waited=0.0):
  return [
    train_loop.Spent(seconds=s, held=held, waited=waited, loss=loss)
    for s in seconds
  ]


@pytest.mark.slow
def test_the_whole_script(train_loop, tmp_path, monkeypatch, capsys):
  """Both arms train, a save is written and removed, and the page has it."""
  page = tmp_path / "page.md"
  page.write_text("<!-- train loop: begin -->\n<!-- train loop: end -->\n")
  monkeypatch.setattr(train_loop, "DOCS", page)
  monkeypatch.setattr(train_loop, "AXES", ("fsdp",))
  folder = tmp_path / "checkpoints"
  folder.mkdir()
  sizes = (
    "--V=60 --D=16 --layers=1 --rows=2 --saving-rows=1 --length=8"
    " --chunk=8 --rounds=1 --wide-rounds=0 --steps=2 --save-rounds=1"
    " --save-steps=2 --large-rounds=0"
  )
  train_loop.main([*sizes.split(), f"--folder={folder}", "--write-docs"])
  assert capsys.readouterr().out.strip() in page.read_text()
  cells = re.findall(r"^\| (.*) \|$", page.read_text(), re.M)
  steps, saves = cells[1:2], cells[3:]
  assert [row.split(" | ")[1] for row in steps] == ["`fsdp=2`"]
  assert [row.split(",")[0] for row in saves] == ["D = 16"]
  assert all(float(row.split(" | ")[4]) > 0 for row in saves)
  assert not list(folder.iterdir())


def test_a_step_on_two_processes(train_loop):
  """Ratios within a round; a turn was two steps."""
  measured = train_loop.Processes(
    student=train_loop.Student(**SIZES),
    axis="fsdp",
    steps=2,
    spent={
      train_loop.ONE: spent(train_loop, 2.0, 4.0, 2.0),
      train_loop.TWO: spent(train_loop, 2.4, 4.8, 2.4),
      train_loop.BARE: spent(train_loop, 1.6, 3.2, 1.6),
    },
  )
  table = train_loop.processes_table([measured])
  row = (
    "`fsdp=2` | 1.000 | 1.200 | 1.20 (1.20 to 1.20) | 1.500 (1.500 to 1.500)"
  )
  assert f" | {row} |" in table
  told = "Aim missed: D = 16 on `fsdp=2` takes 1.200 times one process"
  assert f"{told}; at most 1.150." in table


def test_the_share_of_a_save(train_loop):
  """3 s added to steps of 1 s, of which there are 100 between two saves."""
  student = train_loop.Student(**SIZES)
  saves = train_loop.Saves(
    student=student,
    state_bytes=2_000_000,
    steps=4,
    spent={
      "without": spent(train_loop, 4.0, 8.0, 4.0),
      "with": spent(train_loop, 7.0, 11.0, 7.0),
    },
  )
  assert saves.step_seconds == 1.0 and saves.share == pytest.approx(0.03)
  table = train_loop.saves_table([saves])
  assert "| 2 | 3 x 4 | 1.000 | 0.250 | 0.000 | 3.00 (3.00 to 3.00) |" in table
  assert "Aim missed: saves of D = 16 take 3.00 %; less than 3 %." in table


def test_arms_that_compute_something_else_are_refused(train_loop):
  (base,) = spent(train_loop, 1.0, loss=2.0)
  (near,) = spent(train_loop, 1.0, loss=2.0001)
  train_loop.check_losses({"one": base, "two": near})
  for loss in (2.001, float("nan")):
    (other,) = spent(train_loop, 1.0, loss=loss)
    with pytest.raises(ValueError, match=f"two: loss {loss:.6f}, but 2.000000"):
      train_loop.check_losses({"one": base, "two": other})


@pytest.mark.slow
def test_a_process_that_fails_ends_all(train_loop):
  """A mesh of two devices does not fit one row."""
  student = train_loop.Student(**SIZES)
  place = train_loop.Place(student=student, num_devices=2)
  with pytest.raises(EOFError), train_loop.started([place]):
    pass
