"""Starts runs and ends them at random moments, some or all of the processes."""

import dataclasses
import re
import signal
import time

import durability
from durability import Damage
import soak_checks

REQUEUE = 75
ENDS_SECONDS = 60.0  # For a run that was asked, or whose other process died.
# Where a moment falls: so many of ten while it starts, after it has said
# something (what is there is read, programs are compiled), after some work.
MOMENTS = ("starting",) * 2 + ("spoke",) * 2 + ("worked",) * 6
STARTING_SECONDS = 5.0
SPOKE_SECONDS = 1.5  # For each process.
WORKED_SECONDS = 0.1
MOST_WORK = 60  # Objects and steps: of some 250 in all.
_SPOKE = re.compile(r"^(?:cache|train|measure|export)\b.*", re.M)


@dataclasses.dataclass(frozen=True)
class End:
  """How a start ended."""

  what: str  # "SIGKILL", "SIGTERM", or "" where nobody ended it.
  moment: str  # One of MOMENTS.
  victims: int
  codes: list[int]
  waited: float  # Seconds from the signal until those left had ended.


class Ender:
  """Ends the runs that it starts.

  Attributes:
    late_seconds: from the last step to the end of a run, by its number of
      processes, where known.
  """

  def __init__(self, runs, rng, last):
    """Keeps the Runs; `last` is the last phase and its number of steps."""
    self._runs, self._rng, self._last = runs, rng, last
    self.late_seconds = {}

  def is_trained(self, workdir):
    """Whether the last step of the last phase is committed."""
    phase, num_steps = self._last
    place = workdir / "train" / phase / "checkpoints"
    return (place / str(num_steps)).exists()

  def undisturbed(self, workdir, num_processes):
    """Lets a run finish; returns its time in seconds."""
    began = time.monotonic()
    processes = self._runs.start(workdir, num_processes)
    trained = None
    while trained is None and all(p.poll() is None for p in processes):
      if self.is_trained(workdir):
        trained = time.monotonic()
      time.sleep(0.05)
    durability.finish(processes, workdir)
    now = time.monotonic()
    self.late_seconds[num_processes] = now - (trained or began)
    return now - began

  def start(self, workdir, num_processes, seen, number):
    """Starts a run, and ends it at some moment; returns the End.

    Args:
      num_processes: of the run.
      seen: its committed results, a soak_checks.Seen.
      number: the signal that ends it; None: it runs to its end.

    Raises:
      Damage: it did not end as it should, or printed something unwanted.
    """
    offset = _size(workdir)
    written, begun = times(workdir), count_objects(workdir)

    def has_said():
      return _SPOKE.search(_said(workdir, offset, 1)) is not None

    def work():
      """Objects and steps that this start has done."""
      new = count_objects(workdir) - begun
      for phase, at in times(workdir).items():
        if at != written.get(phase):
          # At first those after the last checkpoint may still be there.
          last = soak_checks.last_step(workdir, phase)
          new += max(last - seen.newest.get(phase, 0), 0)
      return new

    processes = self._runs.start(workdir, num_processes)
    try:
      moment = self._rng.choice(MOMENTS)
      if number is not None:
        self._wait(processes, workdir, moment, has_said, work)
      if number is None or any(
        process.poll() is not None for process in processes
      ):
        durability.finish(processes, workdir)
        return End("", moment, 0, [0] * num_processes, 0.0)
      return self._end(processes, workdir, moment, number)
    finally:
      durability.kill(processes)
      text = _said(workdir, offset, num_processes)
      if found := soak_checks.unwanted(text):
        raise Damage(f"{workdir}: a process says {found[:3]}")

  def _wait(self, processes, workdir, moment, has_said, work):
    """Waits until the moment has come, or one of the processes has ended."""
    rng, count = self._rng, len(processes)
    if moment == "starting":
      _sleep(processes, rng.uniform(0.2, STARTING_SECONDS))
      return
    later, enough = SPOKE_SECONDS * count, 0
    if self.is_trained(workdir):
      # Later work writes little; a moment may be anywhere in it.
      later = 1.2 * self.late_seconds.get(count, 2 * later)
    elif moment == "worked":
      later, enough = WORKED_SECONDS, rng.randint(1, MOST_WORK)
    until = time.monotonic() + durability.HANGS_SECONDS
    while all(process.poll() is None for process in processes):
      if work() >= enough if enough else has_said():
        break
      if time.monotonic() > until:
        raise Damage(f"{workdir}: hangs before it has done anything")
      time.sleep(0.02)
    _sleep(processes, rng.uniform(0, later))

  def _end(self, processes, workdir, moment, number):
    """Ends some or all processes, and waits for all."""
    victims = list(processes)
    self._rng.shuffle(victims)
    # A process that is alone at its start is waited for, for minutes, as
    # intended.
    if moment != "starting" and self._rng.random() < 0.5:
      victims = victims[:1]
    for victim in victims:
      victim.send_signal(number)
      if number == signal.SIGKILL and victim is not victims[-1]:
        time.sleep(self._rng.uniform(0, 0.3))
    since = time.monotonic()
    while any(process.poll() is None for process in processes):
      if time.monotonic() - since > ENDS_SECONDS:
        codes = [process.poll() for process in processes]
        raise Damage(
          f"{workdir}: {ENDS_SECONDS:.0f} s after {number.name} of"
          f" {len(victims)} of {len(processes)}: exit codes {codes}"
        )
      time.sleep(0.02)
    waited = time.monotonic() - since
    codes = [process.returncode for process in processes]
    end = End(number.name, moment, len(victims), codes, waited)
    for process in processes:
      good = allowed_codes(
        end, is_victim=process in victims, is_done=is_done(workdir, end)
      )
      if process.returncode not in good:
        raise Damage(
          f"{workdir}: exit codes {end.codes} after {end.what} of"
          f" {end.victims}; expected one of {sorted(good)}"
        )
    return end


def allowed_codes(end, *, is_victim, is_done):
  """Exit codes that a process may have.

  Args:
    end: of the start that it was one of.
    is_victim: whether it got the signal.
    is_done: whether the run had its summary: the signal came too late.
  """
  allowed = {REQUEUE, 0} if is_done else {REQUEUE}
  if is_victim and end.what == "SIGKILL":
    allowed |= {-signal.SIGKILL}
  # While it starts, nobody listens yet.
  if is_victim and end.what == "SIGTERM" and end.moment == "starting":
    allowed |= {-signal.SIGTERM}
  return allowed


def times(workdir):
  """Time of the last write to the metrics of each phase."""
  files = workdir.glob("train/*/metrics.jsonl")
  return {path.parent.name: path.stat().st_mtime_ns for path in files}


def count_objects(workdir):
  """Objects of the caches that are committed."""
  return sum(1 for _ in workdir.glob("*/digest/c/*"))


def is_done(workdir, end):
  return (workdir / "summary.json").exists() and 0 in end.codes


def _sleep(processes, seconds):
  until = time.monotonic() + seconds
  while time.monotonic() < until:
    if any(process.poll() is not None for process in processes):
      return
    time.sleep(0.01)


def _size(workdir):
  """Size of each process's output, over all starts."""
  sizes = []
  for i in range(2):
    path = durability.log_path(workdir, i)
    sizes.append(path.stat().st_size if path.exists() else 0)
  return sizes


def _said(workdir, sizes, count):
  """Output of the processes since then."""
  parts = []
  for i in range(count):
    data = durability.log_path(workdir, i).read_bytes()[sizes[i] :]
    parts.append(data.decode(errors="replace"))
  return "\n".join(parts)
