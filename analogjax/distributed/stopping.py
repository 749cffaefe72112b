"""Stops a run early on SIGTERM, so that it can be started again."""

from collections.abc import Iterator
import contextlib
import os
import signal
import socket
import sys
import threading

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: the scheduler restarts the job.


class Stopped(Exception):
  """All processes stop here with everything saved; a restart continues."""


class Stalled(Exception):
  """This process alone cannot continue now; a restart may."""


class _Asked:
  """Whether this process was asked to stop; global, as signals are."""

  by_signal = 0  # Number of the signal.
  has_begun = True  # Until then there is nothing to save.


@contextlib.contextmanager
def listening(unbegun: str = "") -> Iterator[None]:
  """Within the block SIGTERM asks the stages to save and stop; see `asked`.

  A second SIGTERM changes nothing: schedulers send it to a process and to its
  group.

  Args:
    unbegun: message with which SIGTERM ends the process at once before `begin`.
      "": the run has begun.
  """
  _Asked.has_begun = not unbegun
  before = signal.signal(signal.SIGTERM, _ask)
  try:
    with _ends_unbegun(unbegun) if unbegun else contextlib.nullcontext():
      yield
  finally:
    signal.signal(signal.SIGTERM, before)
    _Asked.by_signal, _Asked.has_begun = 0, True


def begin() -> None:
  """Marks the point from which there is something to save."""
  _Asked.has_begun = True


@contextlib.contextmanager
def _ends_unbegun(text: str) -> Iterator[None]:
  """Ends the process from a thread: the main one may wait in C++."""
  ours, theirs = socket.socketpair()
  ours.setblocking(False)

  def watch():
    for byte in iter(lambda: theirs.recv(1), b""):
      if byte[0] == signal.SIGTERM and not _Asked.has_begun:
        print(text, file=sys.stderr, flush=True)
        os._exit(REQUEUE)

  thread = threading.Thread(target=watch, daemon=True, name="unbegun")
  before = signal.set_wakeup_fd(ours.fileno(), warn_on_full_buffer=False)
  thread.start()
  try:
    yield
  finally:
    signal.set_wakeup_fd(before)
    ours.close()
    thread.join()
    theirs.close()


def _ask(number: int, _) -> None:
  _Asked.by_signal = number


def asked() -> bool:
  """Whether this process was asked to stop; others may not know yet."""
  return _Asked.by_signal != 0
