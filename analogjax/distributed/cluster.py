"""How this process belongs to a cluster: read from the environment, and joined.

Every process of a cluster runs the same command. What it has to know is where
process 0 listens, how many processes there are, and which one it is itself; the
variables of the launcher say so, and docs/running.md lists them. jax can look
for itself, too, but waits for processes that are not there in a batch script,
does not know Open MPI 5, and wants a package for Kubernetes.
"""

from collections.abc import Mapping
import glob
import importlib.util
import socket
import sys
import threading
import time
from typing import Any

import jax

from analogjax.distributed import launchers
from analogjax.distributed.launchers import Cluster

INITIALIZATION_SECONDS = 300  # For all processes to be there.
HEARTBEAT_SECONDS = 30  # Until one that is silent counts as dead.
SHUTDOWN_SECONDS = 30  # For all to be done, once one is.


def find(env: Mapping[str, str], *, on_tpu: bool = False) -> Cluster | None:
  """What the environment says of a cluster; None: this process is alone.

  The first of these that is there decides: variables of our own, Open MPI,
  SLURM, a TPU, Kubernetes. (`mpirun` within SLURM leaves SLURM's variables
  about its daemons. So Open MPI comes first.)

  Args:
    env: the environment.
    on_tpu: this machine has a TPU, which knows if it is part of a pod.

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
  """Whether this machine has a TPU that jax would use, and that it may ask.

  Only then is it asked for its pod: elsewhere nobody would answer, slowly.
  """
  platforms = env.get("JAX_PLATFORMS", "")
  if env.get("TPU_SKIP_MDS_QUERY") or (platforms and "tpu" not in platforms):
    return False
  if not glob.glob("/dev/accel*") and not glob.glob("/dev/vfio/[0-9]*"):
    return False
  return bool(env.get("TPU_LIBRARY_PATH") or importlib.util.find_spec("libtpu"))


def join(
  cluster: Cluster,
  seconds: int = INITIALIZATION_SECONDS,
  *,
  binds_elsewhere: bool = False,
) -> None:
  """Makes this process one of the cluster; all of them have to call this.

  Before anything else of jax, as it counts the devices of all.

  Args:
    cluster: what `find` found.
    seconds: that all processes have to come.
    binds_elsewhere: jax is told another address to listen at.

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
    # Where jax cannot reach process 0, it aborts this one.
    _reach(cluster, seconds)
  elif not binds_elsewhere:
    # Where jax cannot listen, it may crash.
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
  """Returns once process 0 listens."""
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
  # jax ends the process next, with a stack of C++.
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
