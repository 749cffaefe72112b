"""Tests for analogjax/distributed/stopping.py."""

import os
from pathlib import Path
import signal
import subprocess
import sys

import pytest

from analogjax.distributed import processes, stopping


def test_sigterm_asks_while_somebody_listens():
  before = signal.getsignal(signal.SIGTERM)
  assert not stopping.asked()
  with stopping.listening():
    assert not stopping.asked()
    signal.raise_signal(signal.SIGTERM)
    assert stopping.asked()
    signal.raise_signal(signal.SIGTERM)  # To the process, and to its group.
    assert stopping.asked()
  assert signal.getsignal(signal.SIGTERM) is before
  assert not stopping.asked()


def test_an_error_ends_the_listening():
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(KeyError), stopping.listening():
    signal.raise_signal(signal.SIGTERM)
    raise KeyError
  assert signal.getsignal(signal.SIGTERM) is before
  assert not stopping.asked()


# The main thread waits where no handler of Python's runs, as in a C++ library.
_BLOCKED = """
import ctypes
from analogjax.distributed import stopping
mutex, library = ctypes.create_string_buffer(256), ctypes.CDLL(None)
with stopping.listening("stopped before it began"):
  print("waits", flush=True)
  while True:
    library.pthread_mutex_lock(mutex)
"""


def test_what_has_not_begun_ends_at_once():
  root = str(Path(__file__).parents[2])
  process = subprocess.Popen(
    [sys.executable, "-c", _BLOCKED],
    env=os.environ | {"PYTHONPATH": root},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  with process:
    try:
      assert process.stdout.readline() == "waits\n"
      process.terminate()
      _, err = process.communicate(timeout=60)
    finally:
      process.kill()
  assert (process.returncode, err) == (75, "stopped before it began\n")


def test_what_has_begun_is_asked():
  before = signal.getsignal(signal.SIGTERM)
  with stopping.listening("stopped before it began"):
    stopping.begin()
    signal.raise_signal(signal.SIGTERM)
    assert stopping.asked()
  assert signal.getsignal(signal.SIGTERM) is before
  assert signal.set_wakeup_fd(-1) == -1


def test_all_stop_where_one_is_asked():
  with stopping.listening():
    processes.stop_if_asked("between two phases")
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(stopping.Stopped, match="between two phases"):
      processes.stop_if_asked("between two phases")
