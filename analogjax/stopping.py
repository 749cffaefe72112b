"""Runs that stop early to be started again, and the signal that asks for it."""

from collections.abc import Iterator
import contextlib
import signal

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: schedulers start the job again.


class Stopped(Exception):
  """Every process stops here, all is saved, the same command goes on."""


class Stalled(Exception):
  """This process cannot go on now, alone; the same command goes on later."""


class _Asked:
  """Whether this process was asked to stop: a signal is the process's own."""

  by_signal = 0  # Its number.


@contextlib.contextmanager
def listening() -> Iterator[None]:
  """Meanwhile SIGTERM asks the stages to save and stop; see `asked`.

  A second one asks no louder: schedulers send it to a process and to its group.
  """
  before = signal.signal(signal.SIGTERM, _ask)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)
    _Asked.by_signal = 0


def _ask(number: int, _) -> None:
  _Asked.by_signal = number


def asked() -> bool:
  """Whether this process was asked to stop; other processes need not know."""
  return _Asked.by_signal != 0
