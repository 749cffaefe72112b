"""Reads a process's place in its cluster from the variables of each launcher.

Nothing here waits or uses the network. A reader raises ValueError if a variable
that it needs is missing, is not a number or contradicts another one.
"""

from collections.abc import Callable, Mapping
import dataclasses
import re

# Above Linux's range for clients, as in jax.
_FIRST_PORT, _NUM_PORTS = 65_536 - 4096, 4096
_TPU_HOSTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
_KUBERNETES_PORT, _TPU_PORT = 8476, 8482
OURS = (
  *("ANALOGJAX_COORDINATOR", "ANALOGJAX_NUM_PROCESSES"),
  "ANALOGJAX_PROCESS_ID",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
  """The place of this process among several.

  None stands for values that only jax can find out, by asking the machine of a
  TPU.
  """

  how: str  # The source, for messages.
  coordinator: str | None  # host:port, where process 0 listens.
  num_processes: int | None
  process_id: int | None
  gpus: tuple[int, ...] | None = None  # GPUs of this host; None: all.

  @property
  def coordinator_host(self) -> str | None:
    """Host of process 0, without the port."""
    if self.coordinator is None:
      return None
    return host_and_port(self.coordinator)[0]


def explicit(env: Mapping[str, str]) -> Cluster:
  """Reads our own variables, of which at least one is set."""
  why = f"{' and '.join(n for n in OURS if env.get(n))} is set"
  number = _count(env, "ANALOGJAX_NUM_PROCESSES", why)
  address = _address(env)
  if address is None:
    raise ValueError(
      f"ANALOGJAX_COORDINATOR='': expected host:port of process 0, as {why}."
    )
  return Cluster(
    how="ANALOGJAX_COORDINATOR",
    coordinator=address,
    num_processes=number,
    process_id=_place(env, "ANALOGJAX_PROCESS_ID", number, why),
  )


def _slurm(env) -> Cluster:
  """A task of a step. A batch script has SLURM_NTASKS, but is not a step."""
  why = "this is a step of SLURM"
  # Tasks of the step; SLURM_NTASKS may be that of the job.
  number = _count(env, "SLURM_STEP_NUM_TASKS", why)
  if number == 1:
    return _alone("SLURM")
  # node[007-009,012],other: the first host has task 0. No bracket is nested.
  first = re.match(r"(?:[^,[]|\[[^]]*\])+", env.get("SLURM_STEP_NODELIST", ""))
  if first is None:
    raise ValueError(f"SLURM_STEP_NODELIST='': expected hosts, as {why}.")
  host = re.sub(r"\[([^],-]+)[^]]*\]", r"\1", first[0])
  # Two steps of a job may run on one host.
  job, step = (
    _number(env, name, why) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")
  )
  return Cluster(
    how="SLURM",
    coordinator=_address(env) or _join(host, _port(env, _of(job + 61 * step))),
    num_processes=number,
    process_id=_place(env, "SLURM_PROCID", number, why),
    gpus=_gpus(env, _number(env, "SLURM_LOCALID", why)),
  )


def _open_mpi(env) -> Cluster:
  why = "OMPI_COMM_WORLD_SIZE is set"
  number = _count(env, "OMPI_COMM_WORLD_SIZE", why)
  if number == 1:
    return _alone("Open MPI")
  local = _number(env, "OMPI_COMM_WORLD_LOCAL_RANK", why)
  return Cluster(
    how="Open MPI",
    coordinator=_address(env) or _open_mpi_address(env, number),
    num_processes=number,
    process_id=_place(env, "OMPI_COMM_WORLD_RANK", number, why),
    gpus=_gpus(env, local),
  )


def _open_mpi_address(env, number: int) -> str:
  """The host of mpirun: process 0 is there, unless a list of hosts differs."""
  # 4: 1531576320.0;tcp://10.96.0.1,10.148.0.1:34911;tcp6://[fd00::1]:4337
  old = re.match(
    r"(\d+)\.\d+;(?:tcp://([^,:]+)|tcp6://\[([^],]+))",
    env.get("OMPI_MCA_orte_hnp_uri", ""),
  )
  space = env.get("PMIX_NAMESPACE", "")
  if old:
    # The low bits count the jobs of one mpirun.
    run, host = int(old[1]) // 4096, old[2] or old[3]
  elif new := re.match(r"prte(?:run)?-(.+)-(\d+)@\d+$", space):
    run, host = int(new[2]), new[1]
  else:
    raise ValueError(
      f"PMIX_NAMESPACE={space!r}: expected prterun-HOST-PID@JOB, as"
      " OMPI_COMM_WORLD_SIZE is set; set JAX_COORDINATOR_ADDRESS=HOST:PORT, the"
      " host of rank 0."
    )
  if env.get("OMPI_COMM_WORLD_LOCAL_SIZE") == str(number):
    host = "localhost"
  return _join(host, _port(env, _of(run)))


def _tpu(env) -> Cluster:
  """A host of slices on GKE; several slices are joined by MEGASCALE."""
  hosts = next(filter(None, (said(env, name) for name in _TPU_HOSTS))).split(
    ","
  )
  why = f"TPU_WORKER_HOSTNAMES names {len(hosts)} hosts"
  slices, mine, coordinator = 1, 0, hosts[0]
  if env.get("MEGASCALE_NUM_SLICES"):
    slices = _count(env, "MEGASCALE_NUM_SLICES", why)
  if slices * len(hosts) == 1:
    return _alone("a TPU")
  if slices > 1:
    apart = f"MEGASCALE_NUM_SLICES={slices}"
    mine = _place(env, "MEGASCALE_SLICE_ID", slices, apart)
    coordinator = env.get("MEGASCALE_COORDINATOR_ADDRESS", "")
    if not coordinator and not _address(env):
      raise ValueError(
        "MEGASCALE_COORDINATOR_ADDRESS='': expected the first host of slice 0,"
        f" as {apart}."
      )
  worker = _place(env, "TPU_WORKER_ID", len(hosts), why)
  # The port is libtpu's; an address may follow it.
  bracketed = re.match(r"\[([^]]*)\]", coordinator)
  host = bracketed[1] if bracketed else coordinator.split(":")[0]
  return Cluster(
    how="a TPU",
    coordinator=_address(env) or _join(host, _port(env, _TPU_PORT)),
    num_processes=slices * len(hosts),
    process_id=mine * len(hosts) + worker,
  )


def _kubernetes(env) -> Cluster:
  """A pod of an indexed Job, or of the Jobs of one part of a JobSet."""
  why = "JOB_COMPLETION_INDEX is set: this is a pod of an indexed Job"
  each_alone = f"{why} (1: each pod is a run of its own)"
  number = _count(env, "ANALOGJAX_NUM_PROCESSES", each_alone)
  if number == 1:
    return _alone("Kubernetes")
  index = _number(env, "JOB_COMPLETION_INDEX", why)
  if env.get("JOB_INDEX"):
    job, each = (
      _number(env, name, "JOB_INDEX is set: there are several Jobs")
      for name in ("JOB_INDEX", "PROCESSES_IN_JOB")
    )
    index += job * each
  if index >= number:
    raise ValueError(
      f"JOB_COMPLETION_INDEX={env['JOB_COMPLETION_INDEX']!r}: this would be"
      f" process {index} of ANALOGJAX_NUM_PROCESSES={number}; expected the"
      " number of all pods there."
    )
  address = _address(env)
  if address is None:
    names = [env.get(n, "") for n in ("JOBSET_NAME", "REPLICATED_JOB_NAME")]
    if not all(names):
      raise ValueError(
        "ANALOGJAX_COORDINATOR='': expected host:port of the pod with index 0,"
        f" or JOBSET_NAME and REPLICATED_JOB_NAME, as {why}."
      )
    host = f"{names[0]}-{names[1]}-0-0.{names[0]}"
    address = _join(host, _port(env, _KUBERNETES_PORT))
  return Cluster(
    how="Kubernetes",
    coordinator=address,
    num_processes=number,
    process_id=index,
  )


def said(env: Mapping[str, str], name: str) -> str:
  """The value of a variable, if any: libtpu may leave a complaint there."""
  value = env.get(name, "")
  return "" if value.startswith("WARNING") else value


def _alone(how: str) -> Cluster:
  return Cluster(how=how, coordinator=None, num_processes=1, process_id=0)


def _number(env, name: str, why: str) -> int:
  value = env.get(name, "")
  if not value.isdecimal():
    raise ValueError(f"{name}={value!r}: expected a number, as {why}.")
  return int(value)


def _count(env, name: str, why: str) -> int:
  number = _number(env, name, why)
  if number == 0:
    raise ValueError(f"{name}=0: expected 1 or more, as {why}.")
  return number


def _place(env, name: str, number: int, why: str) -> int:
  """One of 0 ... number - 1."""
  place = _number(env, name, why)
  if place >= number:
    raise ValueError(
      f"{name}={place}: expected less than {number}, as {why}; they count"
      " from 0."
    )
  return place


def _address(env) -> str | None:
  """Where process 0 listens, if given."""
  for name in ("ANALOGJAX_COORDINATOR", "JAX_COORDINATOR_ADDRESS"):
    address = env.get(name)
    if address:
      if host_and_port(address)[1] is None:
        raise ValueError(f"{name}={address!r}: expected host:port.")
      return address
  return None


def _port(env, otherwise: int) -> int:
  if not env.get("JAX_COORDINATOR_PORT"):
    return otherwise
  return _number(env, "JAX_COORDINATOR_PORT", "it is a port")


def _of(run: int) -> int:
  """A port that runs on one host at the same time are unlikely to share."""
  return _FIRST_PORT + run % _NUM_PORTS


def host_and_port(address: str) -> tuple[str, int | None]:
  """host:port, [host]:port or host."""
  match = re.fullmatch(r"\[([^]]+)\](?::(\d+))?|([^:]+)(?::(\d+))?", address)
  if match is None:
    return address, None
  host, port = match[1] or match[3], match[2] or match[4]
  return host, int(port) if port else None


def _join(host: str, port: int) -> str:
  return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _gpus(env, local: int) -> tuple[int, ...] | None:
  """One GPU per process, jax's rule for launchers, unless it sees only one."""
  if env.get("JAX_LOCAL_DEVICE_IDS"):
    return None  # jax reads it.
  for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
    if env.get(name) and "," not in env[name]:
      return None  # The launcher has assigned them.
  return (local,)


_Reader = Callable[[Mapping[str, str]], Cluster]
# Variables, one of which identifies the kind of environment; its reader.
KINDS: dict[str, tuple[tuple[str, ...], _Reader]] = {
  "openmpi": (("OMPI_COMM_WORLD_SIZE",), _open_mpi),
  "slurm": (("SLURM_STEP_NUM_TASKS",), _slurm),
  "tpu": (_TPU_HOSTS, _tpu),
  "kubernetes": (("JOB_COMPLETION_INDEX",), _kubernetes),
}
