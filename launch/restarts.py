"""Restarts a run, for the launchers that stay beside it."""

import argparse
from collections.abc import Callable
import signal
import time

import arguments

POLL_SECONDS = 0.1


class _Asked:
  """The process-wide signal that asked this launcher to end."""

  by_signal = 0


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds --max-restarts and --pause."""
  number = arguments.number(0)
  parser.add_argument(
    "--max-restarts", type=number, default=100, metavar="N", help="100"
  )
  parser.add_argument(
    "--pause",
    type=number,
    default=10,
    metavar="SECONDS",
    help="before each restart, 10",
  )


def until_done(
  start: Callable[[], tuple[int, bool]], options: argparse.Namespace
) -> int:
  """Starts a run until it is done; returns its last code.

  SIGTERM and ^C are left to `start`, through `asked`; after one of them nothing
  is started again. `start` runs once and returns its code and whether to start
  again.
  """
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, _ask)
  restarts = 0
  while True:
    code, again = start()
    if not again or _Asked.by_signal:
      return code
    if restarts == options.max_restarts:
      arguments.say(
        f"code {code} after {restarts} restarts, which is --max-restarts; the"
        " same command goes on."
      )
      return code
    restarts += 1
    arguments.say(
      f"code {code}; starts again in {options.pause} s: restart {restarts} of"
      f" at most {options.max_restarts}."
    )
    sleep(options.pause)
    if _Asked.by_signal:
      return code


def asked() -> int:
  """The signal that asked to end; 0 if none did."""
  return _Asked.by_signal


def sleep(seconds: float) -> None:
  """Sleeps, or until a signal asks to end."""
  end = time.monotonic() + seconds
  while time.monotonic() < end and not _Asked.by_signal:
    time.sleep(POLL_SECONDS)


def _ask(number: int, _) -> None:
  _Asked.by_signal = number
