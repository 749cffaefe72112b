"""Tests for analogjax/distributed/cluster.py and launchers.py."""

import fnmatch
import os
import re
import socket
import subprocess
import sys

import pytest

from analogjax.distributed import cluster
from analogjax.distributed.launchers import Cluster

# What launchers set. Open MPI: as 4.1.8 and 5.0.11. BATCH: a batch script that
# starts no step, so that SLURM describes the job alone.
LAUNCHERS = {
  "EXPLICIT": "ANALOGJAX_COORDINATOR=host0:8476 ANALOGJAX_NUM_PROCESSES=4"
  " ANALOGJAX_PROCESS_ID=3",
  "SLURM": "SLURM_JOB_ID=4097 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=16"
  " SLURM_STEP_NODELIST=gpu[007-009,012],big1 SLURM_PROCID=9 SLURM_LOCALID=1",
  "BATCH": "SLURM_JOB_ID=4097 SLURM_NTASKS=16 SLURM_NODELIST=gpu[007-008]"
  " SLURM_PROCID=0 SLURM_LOCALID=0",
  "MPI4": "OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_RANK=1"
  " OMPI_COMM_WORLD_LOCAL_RANK=1 OMPI_COMM_WORLD_LOCAL_SIZE=2"
  " OMPI_MCA_orte_hnp_uri=1438253056.0;tcp://192.0.2.2,10.1.1.1:54781;"
  "tcp6://[fd00::2]:36213 PMIX_NAMESPACE=1438253057",
  "MPI5": "OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_RANK=0"
  " OMPI_COMM_WORLD_LOCAL_RANK=0 OMPI_COMM_WORLD_LOCAL_SIZE=2"
  " PMIX_NAMESPACE=prterun-gpu-07-14673@1",
  "TPU": "TPU_WORKER_HOSTNAMES=t0.svc,t1.svc TPU_WORKER_ID=1",
  "SLICES": "TPU MEGASCALE_NUM_SLICES=3 MEGASCALE_SLICE_ID=2"
  " MEGASCALE_COORDINATOR_ADDRESS=ours-workers-0-0.ours:8081",
  "POD": "JOB_COMPLETION_INDEX=2 ANALOGJAX_NUM_PROCESSES=4 JOBSET_NAME=ours"
  " REPLICATED_JOB_NAME=workers",
}
ALL = "EXPLICIT SLURM BATCH MPI4 MPI5 SLICES POD"


def environment(text):
  """`A B=c -D`: what launcher A sets, B as well, and D not."""
  env = {}
  for word in text.split():
    name, equals, value = word.partition("=")
    if equals:
      env[name] = value
    elif word.startswith("-"):
      env.pop(word[1:])
    else:
      env |= environment(LAUNCHERS[word])
  return env


def rows(table):
  """The cells of a table in text, and the lines as names of tests."""
  lines = [line for line in table.strip().splitlines() if line[0] != "#"]
  return [
    pytest.param(*(cell.strip() for cell in line.split(" | ")), id=line)
    for line in lines
  ]


# Environment, how, coordinator, number of processes, this one, and its GPU.
FOUND = """
EXPLICIT | ANALOGJAX_COORDINATOR | host0:8476 4 3
EXPLICIT -ANALOGJAX_COORDINATOR JAX_COORDINATOR_ADDRESS=head:1 | \
ANALOGJAX_COORDINATOR | head:1 4 3
# Whatever else is there.
SLURM EXPLICIT | ANALOGJAX_COORDINATOR | host0:8476 4 3
POD EXPLICIT | ANALOGJAX_COORDINATOR | host0:8476 4 3
SLURM | SLURM | gpu007:61441 16 9 1
SLURM BATCH | SLURM | gpu007:61441 16 0 0
SLURM SLURM_STEP_ID=2 | SLURM | gpu007:61563 16 9 1
SLURM JAX_COORDINATOR_ADDRESS=head:1234 | SLURM | head:1234 16 9 1
SLURM JAX_COORDINATOR_PORT=1234 | SLURM | gpu007:1234 16 9 1
# Where each task sees a GPU of its own, that is number 0.
SLURM CUDA_VISIBLE_DEVICES=1 | SLURM | gpu007:61441 16 9
SLURM CUDA_VISIBLE_DEVICES=0,1 | SLURM | gpu007:61441 16 9 1
SLURM JAX_LOCAL_DEVICE_IDS=0,1 | SLURM | gpu007:61441 16 9
# 1438253056 / 4096 = 351136 = 2976 (mod 4096).
MPI4 | Open MPI | 192.0.2.2:64416 4 1 1
MPI4 OMPI_MCA_orte_hnp_uri=4096.0;tcp6://[fd00::2,fd00::3]:43 | \
Open MPI | [fd00::2]:61441 4 1 1
# 14673 = 2385 (mod 4096).
MPI5 | Open MPI | gpu-07:63825 4 0 0
MPI5 OMPI_COMM_WORLD_LOCAL_SIZE=4 | Open MPI | localhost:63825 4 0 0
MPI5 -PMIX_NAMESPACE JAX_COORDINATOR_ADDRESS=head:1234 | \
Open MPI | head:1234 4 0 0
# What SLURM says there is about the daemons of mpirun.
SLURM SLURM_STEP_NUM_TASKS=2 MPI4 | Open MPI | 192.0.2.2:64416 4 1 1
TPU | a TPU | t0.svc:8482 2 1
TPU TPU_PROCESS_ADDRESSES=h0:8471,h1:8471,h2:8471 | a TPU | h0:8482 3 1
TPU TPU_WORKER_HOSTNAMES=h0:8471:10.0.0.1,h1:8471:10.0.0.2 | a TPU | h0:8482 2 1
TPU TPU_WORKER_HOSTNAMES=[fd00::1]:8471,[fd00::2]:8471 | \
a TPU | [fd00::1]:8482 2 1
SLICES | a TPU | ours-workers-0-0.ours:8482 6 5
SLICES TPU_WORKER_HOSTNAMES=localhost TPU_WORKER_ID=0 | \
a TPU | ours-workers-0-0.ours:8482 3 2
TPU JAX_COORDINATOR_PORT=1234 | a TPU | t0.svc:1234 2 1
# A TPU's pod is one of Kubernetes, too.
TPU JOB_COMPLETION_INDEX=1 | a TPU | t0.svc:8482 2 1
POD | Kubernetes | ours-workers-0-0.ours:8476 4 2
# Pod 1 of the third Job of three, with two pods each.
POD JOB_INDEX=2 PROCESSES_IN_JOB=2 JOB_COMPLETION_INDEX=1 \
ANALOGJAX_NUM_PROCESSES=6 | Kubernetes | ours-workers-0-0.ours:8476 6 5
JOB_COMPLETION_INDEX=0 ANALOGJAX_NUM_PROCESSES=2 \
ANALOGJAX_COORDINATOR=ours-0.pods:99 | Kubernetes | ours-0.pods:99 2 0
"""


@pytest.mark.parametrize(("text", "how", "expected"), rows(FOUND))
def test_find(text, how, expected):
  coordinator, number, process, *gpu = expected.split()
  env, found = environment(text), cluster.find(environment(text))
  assert found == Cluster(
    how=how,
    coordinator=coordinator,
    num_processes=int(number),
    process_id=int(process),
    gpus=tuple(map(int, gpu)) or None,
  )
  assert cluster.find(env | dict(ANALOGJAX_CLUSTER="none")) is None
  host, _, _ = coordinator.rpartition(":")
  assert found.coordinator_host == host.strip("[]")


@pytest.mark.parametrize(
  "text",
  [
    "",
    "BATCH",
    "KUBERNETES_SERVICE_HOST=10.0.0.1 HOSTNAME=ours-0",
    "EXPLICIT ANALOGJAX_NUM_PROCESSES=1 ANALOGJAX_PROCESS_ID=0",
    "SLURM_STEP_NUM_TASKS=1 SLURM_JOB_ID=4",
    # mpirun -n 1, as the one task of several that it is not.
    "SLURM MPI5 OMPI_COMM_WORLD_SIZE=1",
    "TPU_WORKER_HOSTNAMES=localhost TPU_WORKER_ID=0",
    "TPU_WORKER_HOSTNAMES=localhost MEGASCALE_NUM_SLICES=1",
    "TPU_WORKER_HOSTNAMES=",
    "JOB_COMPLETION_INDEX=3 ANALOGJAX_NUM_PROCESSES=1",
  ],
)
def test_a_process_that_is_alone(text):
  assert cluster.find(environment(text)) is None


def test_a_tpu_that_does_not_know_its_hosts_is_alone():
  text = "WARNING: could not determine them, please set"
  assert cluster.find(dict(TPU_WORKER_HOSTNAMES=text)) is None


def test_a_tpu_is_asked_where_nothing_else_is_said():
  asked = cluster.find({}, on_tpu=True)
  assert asked is not None and asked.coordinator_host is None
  assert cluster.find(dict(ANALOGJAX_CLUSTER="tpu"), on_tpu=True) == asked
  assert cluster.find(dict(ANALOGJAX_CLUSTER="none"), on_tpu=True) is None
  assert cluster.find(dict(TPU_WORKER_HOSTNAMES="one"), on_tpu=True) is None
  slurm = environment("SLURM")
  assert cluster.find(slurm, on_tpu=True) == cluster.find(slurm)


# Environment, and what the error says.
REFUSED = """
EXPLICIT -ANALOGJAX_COORDINATOR | ANALOGJAX_COORDINATOR='': expected
EXPLICIT -ANALOGJAX_NUM_PROCESSES | ANALOGJAX_NUM_PROCESSES='': expected
EXPLICIT -ANALOGJAX_PROCESS_ID | ANALOGJAX_PROCESS_ID='': expected
ANALOGJAX_PROCESS_ID=0 | ANALOGJAX_NUM_PROCESSES='': expected
EXPLICIT ANALOGJAX_PROCESS_ID=4 | ANALOGJAX_PROCESS_ID=4: .* 4,
EXPLICIT ANALOGJAX_NUM_PROCESSES=0 | ANALOGJAX_NUM_PROCESSES=0
EXPLICIT ANALOGJAX_COORDINATOR=host0 | 'host0': expected host:p
JAX_COORDINATOR_ADDRESS=head:1234 | JAX_COORDINATOR_ADDRESS is set, but
ANALOGJAX_CLUSTER=lsf | ANALOGJAX_CLUSTER='lsf': expected nothing
EXPLICIT ANALOGJAX_CLUSTER=slurm | leave out one
BATCH ANALOGJAX_CLUSTER=slurm | 'slurm': SLURM_STEP_NUM_TASKS is not set
BATCH ANALOGJAX_CLUSTER=openmpi | 'openmpi': OMPI_COMM_WORLD_SIZE is not set
BATCH ANALOGJAX_CLUSTER=tpu | 'tpu': TPU_WORKER_HOSTNAMES is not set
BATCH ANALOGJAX_CLUSTER=kubernetes | 'kubernetes': JOB_COMPLETION_INDEX is not
SLURM -SLURM_JOB_ID | SLURM_JOB_ID='': expected
SLURM -SLURM_STEP_ID | SLURM_STEP_ID='': expected
SLURM -SLURM_STEP_NODELIST | SLURM_STEP_NODELIST='': expected
SLURM -SLURM_PROCID | SLURM_PROCID='': expected
SLURM -SLURM_LOCALID | SLURM_LOCALID='': expected
SLURM JAX_COORDINATOR_PORT=x | JAX_COORDINATOR_PORT='x'
MPI5 -PMIX_NAMESPACE | PMIX_NAMESPACE='': expected
MPI5 -OMPI_COMM_WORLD_RANK | OMPI_COMM_WORLD_RANK=''
TPU -TPU_WORKER_ID | TPU_WORKER_ID='': expected a number
TPU TPU_WORKER_ID=2 | TPU_WORKER_ID=2: expected less than 2
SLICES -MEGASCALE_SLICE_ID | MEGASCALE_SLICE_ID=''
SLICES -MEGASCALE_COORDINATOR_ADDRESS | MEGASCALE_COORDINATOR_ADDRESS=''
TPU POD | ANALOGJAX_NUM_PROCESSES='4': a TPU says 2
POD -ANALOGJAX_NUM_PROCESSES | ANALOGJAX_NUM_PROCESSES=''
POD -JOBSET_NAME | ANALOGJAX_COORDINATOR='': .* JOBSET_NAME
POD JOB_COMPLETION_INDEX=4 | JOB_COMPLETION_INDEX='4': .*=4;
POD JOB_INDEX=1 | PROCESSES_IN_JOB='': expected
"""


@pytest.mark.parametrize(("text", "message"), rows(REFUSED))
def test_what_is_missing_or_contradicts_is_named(text, message):
  with pytest.raises(ValueError, match=message):
    cluster.find(environment(text))


@pytest.mark.parametrize(
  ("env", "devices", "libtpu", "expected"),
  [
    ({}, "/dev/accel0", True, True),
    (dict(JAX_PLATFORMS="tpu,cpu"), "/dev/vfio/0", True, True),
    (dict(TPU_LIBRARY_PATH="libtpu.so"), "/dev/accel0", False, True),
    ({}, "/dev/accel0", False, False),
    ({}, "/dev/vfio/vfio", True, False),
    (dict(JAX_PLATFORMS="cpu"), "/dev/accel0", True, False),
    (dict(TPU_SKIP_MDS_QUERY="1"), "/dev/accel0", True, False),
  ],
)
def test_on_tpu(env, devices, libtpu, expected, monkeypatch):
  def glob(pattern):
    return [devices] if fnmatch.fnmatch(devices, pattern) else []

  monkeypatch.setattr("glob.glob", glob)
  monkeypatch.setattr("importlib.util.find_spec", lambda name: libtpu or None)
  assert cluster.on_tpu(env) is expected


# Real processes.

# Gloo writes to standard output too, from its own threads and in pieces.
_MEMBER = """
import os, sys
sys.stdout = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
import jax
from jax.experimental import multihost_utils
import numpy as np
from analogjax.distributed import cluster
jax.config.update("jax_num_cpu_devices", 2)
found = cluster.find(os.environ)
try:
  cluster.connect(found, seconds=int(sys.argv[1]))
except ValueError as error:
  sys.exit(str(error))
ids = multihost_utils.process_allgather(np.int32(jax.process_index()))
# A result is there before each device of this process has met all others, and
# at exit one waits in vain for a process that is gone. The next collective ends
# only when the first has ended everywhere.
multihost_utils.sync_global_devices("the first has ended")
print(found.how, jax.process_index(), ids.tolist(), jax.device_count())
"""


def start(text, seconds):
  ours = environment(ALL)
  others = {k: v for k, v in os.environ.items() if k not in ours}
  return subprocess.Popen(
    [sys.executable, "-c", _MEMBER, str(seconds)],
    env=others | environment(text),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(processes):
  """[(exit code, stdout, stderr)]"""
  try:
    said = [process.communicate(timeout=120) for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [
    (process.returncode, *each)
    for process, each in zip(processes, said, strict=True)
  ]


def free_port():
  with socket.socket() as s:
    s.bind(("localhost", 0))
    return s.getsockname()[1]


# How, the environment of both, and the variable that tells them apart.
JOBS = """
ANALOGJAX_COORDINATOR | EXPLICIT ANALOGJAX_COORDINATOR=localhost:{port} \
ANALOGJAX_NUM_PROCESSES=2 | ANALOGJAX_PROCESS_ID
SLURM | SLURM SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NODELIST=localhost \
JAX_COORDINATOR_PORT={port} | SLURM_PROCID
Open MPI | MPI5 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_SIZE=2 \
JAX_COORDINATOR_PORT={port} | OMPI_COMM_WORLD_RANK
"""


@pytest.mark.parametrize(("how", "shared", "place"), rows(JOBS))
def test_two_processes_join(how, shared, place):
  shared = shared.format(port=free_port())
  # The one that waits comes first.
  processes = [start(f"{shared} {place}={i}", 60) for i in (1, 0)]
  for i, (code, out, err) in zip((1, 0), finish(processes), strict=True):
    assert code == 0, err
    assert out == f"{how} {i} [0, 1] 4\n"


def test_process_0_that_cannot_be_reached():
  mine = Cluster(
    how="SLURM",
    coordinator=f"localhost:{free_port()}",
    num_processes=2,
    process_id=1,
    gpus=None,
  )
  message = re.escape(
    "cluster: process 1 of 2 (SLURM) cannot reach process 0 at"
    f" {mine.coordinator}"
  )
  with pytest.raises(ValueError, match=message):
    cluster.connect(mine, seconds=0)


@pytest.mark.medium
def test_process_0_that_cannot_listen_or_is_left_alone():
  with socket.socket(socket.AF_INET6) as s:
    s.bind(("::", 0))
    s.listen()
    taken, free = (
      f"EXPLICIT ANALOGJAX_COORDINATOR=localhost:{port} ANALOGJAX_PROCESS_ID=0"
      for port in (s.getsockname()[1], free_port())
    )
    said = finish([start(taken, 60), start(free, 4)])
  assert said[0][0] == 1
  assert "process 0 of 4 (ANALOGJAX_COORDINATOR) cannot listen" in said[0][2]
  assert said[1][0] != 0
  assert "and not all others came" in said[1][2]
