"""A SLURM of one node on this machine: munged, slurmctld and slurmd.

It uses a separate folder, listens on loopback, and knows nothing of another
SLURM that may be here. Missing programs are installed, unless that needs
interaction: by root, with apt-get, without a terminal.
"""

import dataclasses
import os
from pathlib import Path
import re
import signal
import socket
import subprocess
import time

import debian
from debian import PATH
import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")

# cred_expire: a job that was put back waits that long and a second more.
# config_overrides: jobs that do nothing may run at once, on any machine.
_CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=16
PartitionName=all Nodes=localhost Default=YES MaxTime=INFINITE
"""


def _install():
  """Why SLURM cannot be installed here, or "" if it is."""
  why = debian.why_missing(PROGRAMS, ["slurm-wlm", "munge"])
  is_root = os.geteuid() == 0
  return why or ("" if is_root else "slurmd and slurmctld need root")


@dataclasses.dataclass(frozen=True)
class Slurm:
  """A cluster of one node."""

  folder: Path

  @property
  def environment(self):
    return os.environ | {
      "PATH": PATH,
      "SLURM_CONF": str(self.folder / "slurm.conf"),
    }

  def ask(self, *command, check=True):
    """The output of a command of SLURM."""
    done = subprocess.run(
      command,
      env=self.environment,
      capture_output=True,
      text=True,
      timeout=60,
    )
    assert not check or done.returncode == 0, (command, done.stderr)
    return done.stdout

  def submit(self, folder, *arguments, options=(), programs=None, **variables):
    """Submits launch/slurm.sbatch as a user would; returns the job's number.

    Args:
      folder: where the job runs, and its slurm-N.out is.
      arguments: of launch/slurm.sbatch.
      options: of sbatch.
      programs: a folder that comes first on the PATH.
      variables: of the environment.
    """
    environment = self.environment | variables
    if programs is not None:
      environment["PATH"] = f"{programs}:{PATH}"
    script = ROOT / "launch/slurm.sbatch"
    done = subprocess.run(
      ["sbatch", "--parsable", "--time=5", *options, script, *arguments],
      env=environment,
      cwd=folder,
      capture_output=True,
      text=True,
      timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)

  def job(self, number):
    """SLURM's facts about a job, by name."""
    said = self.ask("scontrol", "show", "job", "--oneliner", str(number))
    return dict(re.findall(r"(\w+)=(\S*)", said))

  def wait(self, number, seconds=120):
    """Waits for the end of a job; returns SLURM's facts about it."""
    deadline = time.monotonic() + seconds
    while True:
      job = self.job(number)
      if job["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"):
        return job
      assert time.monotonic() < deadline, job
      time.sleep(0.2)


def _free_ports(count):
  sockets = [socket.socket() for _ in range(count)]
  for s in sockets:
    s.bind(("127.0.0.1", 0))
  ports = [s.getsockname()[1] for s in sockets]
  for s in sockets:
    s.close()
  return ports


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
  if why := _install():
    pytest.skip(why)
  # The path of a socket has to be short.
  folder = tmp_path_factory.mktemp("slurm")
  cluster = Slurm(folder)
  for name in ("state", "spool"):
    (folder / name).mkdir()
  host = socket.gethostname().split(".")[0]
  (folder / "slurm.conf").write_text(
    _CONFIG.format(host=host, folder=folder, ports=_free_ports(2))
  )
  key = folder / "munge.key"
  key.write_bytes(os.urandom(128))
  key.chmod(0o400)
  munge = {
    "key-file": key,
    "socket": folder / "munge.socket",
    "pid-file": folder / "munge.pid",
    "log-file": folder / "munge.log",
    "seed-file": folder / "munge.seed",
  }
  daemons = []

  def begin(name, *command):
    log = open(folder / f"{name}.log", "w")
    daemons.append(
      subprocess.Popen(
        command,
        env=cluster.environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
      )
    )
    log.close()

  def logs():
    return "".join(p.read_text()[-2000:] for p in folder.glob("*.log"))

  try:
    # --force: the folder belongs to whoever runs the tests, not to munge.
    flags = [f"--{name}={path}" for name, path in munge.items()]
    begin("munged", "munged", "--foreground", "--force", *flags)
    deadline = time.monotonic() + 30
    while not munge["socket"].exists():
      assert time.monotonic() < deadline, logs()
      time.sleep(0.05)
    begin("slurmctld", "slurmctld", "-D")
    begin("slurmd", "slurmd", "-D", "-N", "localhost")
    state = ["sinfo", "--noheader", "--format=%T"]
    while cluster.ask(*state, check=False).strip() != "idle":
      assert time.monotonic() < deadline, logs()
      assert all(d.poll() is None for d in daemons), logs()
      time.sleep(0.2)
    yield cluster
  finally:
    if len(daemons) == 3:
      cluster.ask("scancel", "--user=root", check=False)
    # slurmd before the one that it speaks to.
    for daemon in reversed(daemons):
      daemon.send_signal(signal.SIGTERM)
      try:
        daemon.wait(20)
      except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
