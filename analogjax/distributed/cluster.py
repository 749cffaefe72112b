"""Detects the cluster from the environment and joins it.

Every process of a cluster runs the same command. It has to know where process 0
listens, how many processes there are and its own number; the launcher's
variables say so (docs/running.md lists them). jax can detect a cluster itself,
but in a batch script it waits for processes that do not exist, it does not know
Open MPI 5, and for Kubernetes it needs a package.
"""

from collections.abc import Mapping
import glob
import importlib.util
import os
import socket
import sys
import threading
import time
import traceback
from typing import Any

import jax

import analogjax
from analogjax.cli import progress
from analogjax.distributed import launchers, liveness, stopping
from analogjax.distributed.launchers import Cluster

INITIALIZATION_SECONDS = 300  # Until all processes have arrived.
HEARTBEAT_SECONDS = 30  # Until a silent process counts as dead.
SHUTDOWN_SECONDS = 30  # Until all are done, once one is.
# Longer than it takes to learn that another process has died.
_REPORT_SECONDS = 5.0

_CONTINUES = "Run the same command again to continue."
_USER_ERROR = 2  # As in main.py.


def find(env: Mapping[str, str], *, on_tpu: bool = False) -> Cluster | None:
  """Reads the cluster from the environment; None if this process is alone.

  The first of these that is set decides: our own variables, Open MPI, SLURM, a
  TPU, Kubernetes. (Open MPI comes before SLURM, since `mpirun` within SLURM
  leaves SLURM's variables for its daemons.)

  Args:
    on_tpu: whether this machine has a TPU, which knows if it is part of a pod.

  Raises:
    ValueError: a variable is missing, is no number, or contradicts another.
  """
  kind = env.get("ANALOGJAX_CLUSTER", "")
  if kind not in ("", "none", *launchers.KINDS):
    raise ValueError(
      f"ANALOGJAX_CLUSTER={kind!r}: expected nothing, or one of none,"
      f" {', '.join(launchers.KINDS)}."
    )
  if kind == "none":
    return None
  # A pod has its number from Kubernetes, and shares the other two.
  numbered = "JOB_COMPLETION_INDEX" in env and not env.get(launchers.OURS[2])
  if any(env.get(name) for name in launchers.OURS) and not numbered:
    if kind:
      raise ValueError(
        f"ANALOGJAX_CLUSTER={kind!r}: {', '.join(launchers.OURS)} say all by"
        " themselves; leave out one or the others."
      )
    found = launchers.explicit(env)
  else:
    found = _detected(env, kind, on_tpu)
  if found is None or found.num_processes == 1:
    return None
  return found


def _detected(env, kind: str, on_tpu: bool) -> Cluster | None:
  for name in [kind] if kind else launchers.KINDS:
    marks, read = launchers.KINDS[name]
    if not any(launchers.said(env, mark) for mark in marks):
      continue
    found = read(env)
    given = env.get("ANALOGJAX_NUM_PROCESSES", "")
    if given and given != str(found.num_processes):
      raise ValueError(
        f"ANALOGJAX_NUM_PROCESSES={given!r}: {found.how} says"
        f" {found.num_processes}; leave it out, or set all of"
        f" {', '.join(launchers.OURS)}."
      )
    return found
  if on_tpu and kind in ("", "tpu"):
    return Cluster(
      how="the TPU's machine",
      coordinator=None,
      num_processes=None,
      process_id=None,
    )
  if kind:
    raise ValueError(
      f"ANALOGJAX_CLUSTER={kind!r}: {launchers.KINDS[kind][0][-1]} is not set;"
      " start this with the launcher, or leave ANALOGJAX_CLUSTER out."
    )
  if env.get("JAX_COORDINATOR_ADDRESS"):
    raise ValueError(
      "JAX_COORDINATOR_ADDRESS is set, but nothing says how many processes"
      " there are; set ANALOGJAX_NUM_PROCESSES and ANALOGJAX_PROCESS_ID too, or"
      " ANALOGJAX_CLUSTER=none."
    )
  return None


def on_tpu(env: Mapping[str, str]) -> bool:
  """Whether this machine has a TPU that jax would use and may ask for its pod.

  On other machines the question would hang.
  """
  platforms = env.get("JAX_PLATFORMS", "")
  if env.get("TPU_SKIP_MDS_QUERY") or (platforms and "tpu" not in platforms):
    return False
  if not glob.glob("/dev/accel*") and not glob.glob("/dev/vfio/[0-9]*"):
    return False
  return bool(env.get("TPU_LIBRARY_PATH") or importlib.util.find_spec("libtpu"))


def connect(
  cluster: Cluster,
  seconds: int = INITIALIZATION_SECONDS,
  *,
  binds_elsewhere: bool = False,
) -> None:
  """Initializes jax.distributed; all processes of the cluster call this.

  It has to come before any other use of jax, which counts the devices of all.

  Args:
    binds_elsewhere: whether jax is told another address to listen at.

  Raises:
    ValueError: process 0 cannot be reached, or cannot listen.
  """
  arguments: dict[str, Any] = dict(
    initialization_timeout=seconds,
    heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    shutdown_timeout_seconds=SHUTDOWN_SECONDS,
  )
  if cluster.coordinator is None:
    _ask_tpu(arguments)
    return
  if cluster.process_id != 0:
    # If jax cannot reach process 0, it aborts this one.
    _reach(cluster, seconds)
  elif not binds_elsewhere:
    # If jax cannot listen, it may crash.
    _try_to_listen(cluster)
  missing = threading.Timer(max(seconds - 2, 0), _say_who_is_missing, [cluster])
  missing.daemon = True
  missing.start()
  try:
    jax.distributed.initialize(
      coordinator_address=cluster.coordinator,
      num_processes=cluster.num_processes,
      process_id=cluster.process_id,
      local_device_ids=cluster.gpus,
      cluster_detection_method="deactivate",
      **arguments,
    )
  except jax.errors.JaxRuntimeError as error:
    raise _cannot_listen(cluster, error) from error
  finally:
    missing.cancel()


def _try_to_listen(cluster: Cluster) -> None:
  assert cluster.coordinator is not None
  _, port = launchers.host_and_port(cluster.coordinator)
  both = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if both else socket.AF_INET
  try:
    socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
  except OSError as error:
    raise _cannot_listen(cluster, error) from error


def _cannot_listen(cluster: Cluster, error: Exception) -> ValueError:
  return ValueError(
    f"cluster: {_me(cluster)} cannot listen at {cluster.coordinator}"
    f" ({error}). Is the port in use? Another one stands in"
    " ANALOGJAX_COORDINATOR or JAX_COORDINATOR_PORT, and an address to listen"
    " at in JAX_COORDINATOR_BIND_ADDRESS."
  )


def _ask_tpu(arguments) -> None:
  try:
    jax.distributed.initialize(cluster_detection_method="gcetpu", **arguments)
  except (ValueError, OSError) as error:
    raise ValueError(
      "cluster: there is a TPU, but nothing says whether its machine is one of"
      f" several ({error}). ANALOGJAX_CLUSTER=none runs this process alone;"
      f" {', '.join(launchers.OURS)} say what others there are."
    ) from error


def _reach(cluster: Cluster, seconds: float) -> None:
  """Waits until process 0 listens."""
  assert cluster.coordinator is not None
  end = time.monotonic() + seconds
  while True:
    try:
      socket.create_connection(
        launchers.host_and_port(cluster.coordinator), timeout=5
      ).close()
      return
    except OSError as error:
      if time.monotonic() > end:
        raise ValueError(
          f"cluster: {_me(cluster)} cannot reach process 0 at"
          f" {cluster.coordinator} for {seconds:.0f} s ({error}). Check that it"
          " was started, that the name resolves here, and that no firewall"
          " closes the port. ANALOGJAX_CLUSTER=none runs this process alone."
        ) from error
    time.sleep(0.5)


def _say_who_is_missing(cluster: Cluster) -> None:
  # jax then ends the process with a C++ stack.
  print(
    f"cluster: {_me(cluster)} is at {cluster.coordinator}, and not all others"
    " came. Check that each was started, with an id of its own, and can reach"
    " this address; variables like http_proxy may keep jax from it.",
    file=sys.stderr,
    flush=True,
  )


def _me(cluster: Cluster) -> str:
  return (
    f"process {cluster.process_id} of {cluster.num_processes} ({cluster.how})"
  )


class Member:
  """This process as one of several of a run, which end together."""

  def __init__(self, name: str, watched: liveness.Peers | None):
    self._name, self._watched = name, watched

  def leave(self, code: int) -> None:
    """Ends this process without ending the others."""
    liveness.exit_on_abort(code, "")
    if self._watched is not None:
      self._watched.leave(badly=code != 0)

  def fail(self, code: int, reason: str) -> None:
    """Ends this process with an error, and the others too."""
    liveness.exit_on_abort(code, "")
    if self._watched is not None:
      self._watched.fail(code, reason)

  def sleep_until_losses_are_reported(self, error: Exception) -> None:
    """Sleeps after an error of a library, which a lost process may have caused.

    A collective fails with some network error if a process is gone. Meanwhile
    the watching thread learns who died, says so and ends this process.
    """
    frames = traceback.extract_tb(error.__traceback__)
    ours = os.path.dirname(os.path.abspath(analogjax.__file__))
    if self._watched is not None and not frames[-1].filename.startswith(ours):
      time.sleep(_REPORT_SECONDS)


def join(name: str, env: Mapping[str, str]) -> Member | None:
  """Joins the cluster of the environment; None if this process is alone.

  From now on this process ends when another one does: with code 75 if that
  died, with its code if it failed.

  `name` is the command, for messages.

  Raises:
    ValueError: the environment contradicts itself.
  """
  mine = find(env, on_tpu=on_tpu(env))
  if mine is None:
    return None
  liveness.exit_on_abort(
    stopping.REQUEUE,
    f"{name}: another process or its machine is gone; {_CONTINUES}",
  )
  # Otherwise jax takes SIGTERM for itself.
  jax.config.update("jax_enable_preemption_service", False)
  try:
    elsewhere = "JAX_COORDINATOR_BIND_ADDRESS" in env
    connect(mine, binds_elsewhere=elsewhere)
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
      f" ends too. {_CONTINUES}",
      file=sys.stderr,
      flush=True,
    )
    exit_now(stopping.REQUEUE if loss.code is None else loss.code)

  try:
    return Member(name, liveness.Peers(on_loss, host=mine.coordinator_host))
  except OSError as error:
    # jax's own heartbeat remains, which is slower.
    progress.warn(f"{error}; a process that dies is noticed after 30 s.")
    return Member(name, None)


def exit_now(code: int) -> None:
  """Ends the process without waiting for threads or other processes."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
