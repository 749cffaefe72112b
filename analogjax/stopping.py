"""Runs that stop early to be started again, and the signal that asks for it."""

import signal

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: schedulers start the job again.


class Stopped(Exception):
  """All is saved; the same command goes on where it was. Exit code 75."""


class _Asked:
  """Whether this process was asked to stop: a signal is the process's own."""

  by_signal = 0  # Its number.


def listen() -> None:
  """From now on SIGTERM asks the stages to save and stop; see `asked`."""
  signal.signal(signal.SIGTERM, lambda number, _: _ask(number))


def _ask(number: int) -> None:
  _Asked.by_signal = number


def asked() -> bool:
  """Whether this process was asked to stop; other processes need not know."""
  return _Asked.by_signal != 0


def forget() -> None:
  """As if nothing had been asked; for tests."""
  _Asked.by_signal = 0
