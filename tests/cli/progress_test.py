"""Tests for analogjax/cli/progress.py."""

import time

import pytest
import rich.console

from analogjax.cli import progress


@pytest.fixture
def now(monkeypatch):
  value = [0.0]
  monkeypatch.setattr(progress.time, "strftime", lambda _: "12:00:00")
  monkeypatch.setattr(progress.time, "monotonic", lambda: value[0])
  return value


def advance(now, bar, seconds, **kwargs):
  now[0] += seconds
  bar.advance(**kwargs)


def test_without_a_terminal_it_is_a_line_now_and_then(now, capsys):
  with progress.Progress("train x", total=8, unit="steps") as bar:
    advance(now, bar, 11, count=1, tokens=100)  # With the compilation.
    advance(now, bar, 4, count=1, tokens=100)
    advance(now, bar, 4, count=1, tokens=100)
    advance(now, bar, 4, count=1, tokens=100, values={"loss": 2.0})
    advance(now, bar, 1, count=4, tokens=400)
  lines = capsys.readouterr().out.splitlines()
  assert lines == [
    "12:00:00 train x: 1/8 steps    left ?",
    "12:00:00 train x: 4/8 steps  25 tokens/s  left 0:16  loss 2.000",
    "12:00:00 train x: 8/8 steps  54 tokens/s  left 0:00",
  ]


def test_the_time_of_what_follows_is_in_the_time_left(now, capsys):
  with progress.Progress("x", total=4, unit="steps", later=10.0) as bar:
    advance(now, bar, 11, count=1, tokens=1)
    values = {"loss": 0.25, "lr": 3e-4}
    advance(now, bar, 11, count=1, tokens=1, values=values)
  line = capsys.readouterr().out.splitlines()[-1]
  assert "left 0:22, with later phases 2:12" in line
  assert line.endswith("loss 0.250  lr 0.0003")


def test_a_resumed_count_goes_on(now, capsys):
  with progress.Progress("cache", total=10, unit="rows", done=6) as bar:
    advance(now, bar, 1, count=2, tokens=1)
    advance(now, bar, 1, count=2, tokens=1)
  assert capsys.readouterr().out.startswith(
    "12:00:00 cache: 10/10 rows  1 tokens/s"
  )


def test_on_a_terminal_it_is_a_bar(monkeypatch):
  where = rich.console.Console(force_terminal=True, width=120, record=True)
  monkeypatch.setattr(progress, "console", lambda: where)
  with progress.Progress("cache", total=2, unit="rows") as bar:
    bar.advance(1, tokens=5)
    bar.advance(1, tokens=5, values={"loss": 1.5})
  text = where.export_text()
  assert "cache" in text and "2/2 rows" in text and "loss 1.500" in text


def test_other_processes_are_silent(monkeypatch, capsys):
  monkeypatch.setattr(progress.jax, "process_index", lambda: 1)
  progress.say("hello")
  with progress.Progress("cache", total=1, unit="rows") as bar:
    bar.advance(1, tokens=1)
  assert capsys.readouterr().out == ""


def test_an_activity_moves_while_the_process_waits(monkeypatch, capsys):
  monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.01)
  tokens = [5]
  with progress.Activity("measure x", lambda: f"{tokens[0]} tokens"):
    assert capsys.readouterr().out == "measure x ...\n"  # At once.
    progress.doing("teacher: row 4/8")
    lines = []
    while len(lines) < 2:
      time.sleep(0.01)
      lines += capsys.readouterr().out.splitlines()
  assert lines[-1] == "measure x: teacher: row 4/8, 5 tokens, 0:00"
  time.sleep(0.05)
  assert capsys.readouterr().out.count("\n") <= 1  # It has ended.
  progress.doing("nothing runs")


def test_an_activity_on_a_terminal_is_one_line(monkeypatch):
  where = rich.console.Console(force_terminal=True, width=80, record=True)
  monkeypatch.setattr(progress.rich.console, "Console", lambda **_: where)
  with progress.Activity("measure x") as activity:
    with progress.Activity("inside"):
      progress.say("a line above it")
    assert activity.bar is not None and progress.console() is where
  assert "a line above it" in where.export_text()
