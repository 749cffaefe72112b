"""Tests for analogjax/workdir/lock.py."""

import contextlib
import errno
import fcntl
import json
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys

import pytest

from analogjax import main
from analogjax.workdir import lock

ROOT = Path(__file__).parents[2]

_HOLDER = """
import pathlib, sys
from analogjax.workdir import lock
with lock.hold(pathlib.Path(sys.argv[1]), "cache") as is_held:
  print(is_held, flush=True)
  sys.stdin.read()
"""


@contextlib.contextmanager
def another_run(workdir):
  """A process that holds the lock of a workdir until it is killed."""
  process = subprocess.Popen(
    [sys.executable, "-c", _HOLDER, workdir],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    assert process.stdout.readline() == "True\n"
    yield process
  finally:
    process.kill()
    process.communicate()


def test_a_second_run_is_refused_until_the_first_is_gone(tmp_path, capsys):
  workdir = tmp_path / "new" / "run"
  config = ROOT / "configs" / "demo.py"
  arguments = ["train", f"--config={config}", f"--workdir={workdir}"]
  with another_run(workdir) as first:
    assert main.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith(
      f"analogjax train: error: {workdir}: in use by `analogjax cache`,"
      f" process {first.pid} on {socket.gethostname()}, since 20"
    )
    assert err.endswith("Wait for it or end it, or use another --workdir.\n")
    # Nothing of it was written.
    assert [path.name for path in workdir.iterdir()] == [lock.FILE]
    first.send_signal(signal.SIGKILL)
    first.wait(60)
    with lock.hold(workdir, "train") as is_held:
      assert is_held


def test_who_holds_it_stands_in_the_file_and_only_then(tmp_path):
  path = tmp_path / lock.FILE
  with lock.hold(tmp_path, "run"):
    holder = json.loads(path.read_text())
    assert holder["command"] == "run" and holder["process"] == os.getpid()
    with pytest.raises(ValueError, match="`analogjax run`, process"):
      with lock.hold(tmp_path, "train"):
        pass
    assert json.loads(path.read_text()) == holder
  assert path.read_text() == ""
  with pytest.raises(KeyError), lock.hold(tmp_path, "run"):
    raise KeyError
  with lock.hold(tmp_path, "train"):
    pass


def test_a_holder_that_has_only_begun(tmp_path):
  with lock.hold(tmp_path, "run"):
    (tmp_path / lock.FILE).write_text("")
    with pytest.raises(ValueError, match="in use by another run"):
      with lock.hold(tmp_path, "train"):
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks(tmp_path, monkeypatch, code):
  def refuse(*_):
    raise OSError(code, os.strerror(code))

  monkeypatch.setattr(fcntl, "flock", refuse)
  with lock.hold(tmp_path, "run") as is_held:
    assert not is_held


def test_other_failures_are_told(tmp_path, monkeypatch):
  def fail(*_):
    raise OSError(errno.EIO, os.strerror(errno.EIO))

  monkeypatch.setattr(fcntl, "flock", fail)
  with pytest.raises(OSError, match="Input/output error"):
    with lock.hold(tmp_path, "run"):
      pass
  (tmp_path / "file").write_text("")
  with pytest.raises(NotADirectoryError):
    with lock.hold(tmp_path / "file", "run"):
      pass
