"""This process as one of several: it joins them, and they end together."""

from collections.abc import Mapping
import os
import sys
import time
import traceback

import jax

import analogjax
from analogjax.cli import progress
from analogjax.distributed import cluster, liveness, stopping

_GOES_ON = "the same command goes on where it was."
_USER_ERROR = 2  # As in main.py.
# Longer than it takes to hear that another process has died.
_CAUSE_SECONDS = 5.0


class Member:
  """One of several processes that share a run."""

  def __init__(self, name: str, watched: liveness.Peers | None):
    self._name, self._watched = name, watched

  def leave(self, code: int) -> None:
    """It ends, as all do."""
    liveness.exit_on_abort(code, "")
    if self._watched is not None:
      self._watched.leave(badly=code != 0)

  def fail(self, code: int, reason: str) -> None:
    """It ends with an error, and the others have to."""
    liveness.exit_on_abort(code, "")
    if self._watched is not None:
      self._watched.fail(code, reason)

  def wait_for_the_cause(self, error: Exception) -> None:
    """Ends this process if another one's death is what was behind an error.

    A collective fails where a process is gone, with whatever error the network
    gives; who died is heard in a moment, by the thread that watches.
    """
    frames = traceback.extract_tb(error.__traceback__)
    ours = os.path.dirname(os.path.abspath(analogjax.__file__))
    if self._watched is not None and not frames[-1].filename.startswith(ours):
      time.sleep(_CAUSE_SECONDS)


def join(name: str, env: Mapping[str, str]) -> Member | None:
  """Joins the processes that the environment names; None if there are none.

  From now on this process ends when another one does: with code 75 if that
  died, with its code if it failed.

  Args:
    name: of the command, for messages.
    env: environment variables.

  Raises:
    ValueError: what the environment says does not hold.
  """
  mine = cluster.find(env, on_tpu=cluster.on_tpu(env))
  if mine is None:
    return None
  liveness.exit_on_abort(
    stopping.REQUEUE,
    f"{name}: another process or its machine is gone; {_GOES_ON}",
  )
  # jax would take SIGTERM for itself.
  jax.config.update("jax_enable_preemption_service", False)
  try:
    elsewhere = "JAX_COORDINATOR_BIND_ADDRESS" in env
    cluster.join(mine, binds_elsewhere=elsewhere)
  except ValueError as error:
    # Threads of a jax that could not start may crash an ordinary exit.
    print(f"{name}: error: {error}", file=sys.stderr)
    exit_now(_USER_ERROR)
  if jax.process_count() == 1:
    return None

  def on_loss(loss: liveness.Loss) -> None:
    what = f"failed: {loss.reason}" if loss.code else loss.reason
    print(
      f"{name}: process {loss.process} {what}; process {jax.process_index()}"
      f" ends too. {_GOES_ON.capitalize()}",
      file=sys.stderr,
      flush=True,
    )
    exit_now(stopping.REQUEUE if loss.code is None else loss.code)

  try:
    return Member(name, liveness.Peers(on_loss, host=mine.coordinator_host))
  except OSError as error:
    # jax's own heartbeat is left, which is slower.
    progress.warn(f"{error}; a process that dies is noticed after 30 s.")
    return Member(name, None)


def exit_now(code: int) -> None:
  """Ends the process without waiting for threads or other processes."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
