"""Kills and stops whole runs at random moments, and checks for losses.

  make soak        # or, into another folder:
  python tests/benchmarks/soak.py --workdir=runs/soak --minutes=18

Runs `analogjax run` on a tiny pair from cache to export, again and again: with
one process, with two, and alternating in the same workdir. Each is ended by
SIGKILL or SIGTERM until it finishes. SIGKILL hits all processes, or one, and
then the other has to end by itself. After each end, committed results must
exist and equal those of an undisturbed run; the results of a finished run must
equal those of the undisturbed one. soak_checks.py has the checks, durability.py
those of the caches.

It stops after --kills and --terms, or when time is up, and finishes the current
run. Prints a line for each end, then a table; writes soak.json; exit code 0:
nothing was lost. The folder keeps every damaged workdir.
"""

import argparse
import collections
import dataclasses
import itertools
import json
import os
from pathlib import Path
import random
import shutil
import signal
import statistics
import sys
import time

import durability
from durability import Damage
import jax
import soak_checks
import soak_ends

# How many processes the starts of a run have, by turns.
CASES = {"1 process": (1,), "1 and 2 by turns": (1, 2), "2 processes": (2,)}
MOST_DAMAGE = 5  # Then it stops.
ROWS, STEPS = 1024, 40  # Steps of a phase.


def overrides(steps):
  """Overrides of the config: many short steps, checkpoints and records."""
  values = {"measure.batch_rows": 4}
  for phase in ("pretrain", "control", "distill"):
    values |= {
      f"train.{phase}.num_steps": steps,
      f"train.{phase}.checkpoint_every_steps": 5,
      f"train.{phase}.keep_best_checkpoints": 1,
      f"train.{phase}.eval_every_steps": 5,
    }
  return [f"--config.{name}={value}" for name, value in values.items()]


@dataclasses.dataclass(frozen=True)
class Plan:
  """Limits of the disturbance."""

  kills: int
  terms: int
  seconds: float
  cases: tuple[str, ...] = tuple(CASES)


class Soak:
  """Disturbs runs until there was enough."""

  def __init__(self, pair, folder, plan, *, seed, say, steps=STEPS, rows=ROWS):
    self._folder, self._plan, self._say = folder, plan, say
    more = overrides(steps)
    runs = durability.Runs(pair, rows=rows, command="run", overrides=more)
    arguments = runs.arguments(folder / "any")
    self._inspector = soak_checks.Inspector(arguments)
    last = self._inspector.phases[-1]
    steps_of_last = self._inspector.num_steps(last)
    self._ender = soak_ends.Ender(
      runs, random.Random(seed), (last, steps_of_last)
    )
    self._since = time.monotonic()
    self._wanted = {}
    self._counts = collections.Counter()
    self._where = collections.defaultdict(collections.Counter)
    self._waits = collections.defaultdict(list)
    self._goodput = collections.Counter()
    self._finished = collections.Counter()
    self._damage = []

  def run(self):
    """Runs everything; returns the report."""
    self._undisturbed()
    cases = itertools.cycle(self._plan.cases)
    for number in itertools.count():
      if self._is_enough() or len(self._damage) >= MOST_DAMAGE:
        break
      workdir = self._folder / f"run{number:03d}"
      case = next(cases)
      try:
        self._one_run(workdir, case)
      except Damage as damage:
        text = f"{case}: {damage}"
        self._damage.append(text)
        self._say(f"DAMAGE {text}\n{durability.logs(workdir)}")
      else:
        shutil.rmtree(workdir)
    return self._report()

  def _undisturbed(self):
    for count in sorted({CASES[case][0] for case in self._plan.cases}):
      workdir = self._folder / f"undisturbed{count}"
      seconds = self._ender.undisturbed(workdir, count)
      wanted = soak_checks.Undisturbed(workdir, self._inspector.phases)
      self._wanted[count] = wanted
      self._say(f"undisturbed, processes: {count}: {seconds:.1f} s")

  def _next_signal(self):
    """The signal that ends the next start; None: it is not ended."""
    if self._is_enough():
      return None
    terms, kills = self._counts["SIGTERM"], self._counts["SIGKILL"]
    due = terms * self._plan.kills < kills * self._plan.terms
    return signal.SIGTERM if due else signal.SIGKILL

  def _is_enough(self):
    ended = self._counts
    enough = ended["SIGKILL"] >= self._plan.kills
    enough &= ended["SIGTERM"] >= self._plan.terms
    return enough or time.monotonic() - self._since > self._plan.seconds

  def _one_run(self, workdir, case):
    """Runs once from nothing to the export, with all interruptions."""
    counts = CASES[case]
    wanted, exact = self._wanted[counts[0]], len(counts) == 1
    seen, seconds = soak_checks.Seen(), 0.0
    lost = dict.fromkeys(self._inspector.phases, (0, 0))
    for turn in itertools.count():
      num_processes = counts[turn % len(counts)]
      written = soak_ends.times(workdir)
      before = self._progress(workdir)
      began = time.monotonic()
      end = self._ender.start(workdir, num_processes, seen, self._next_signal())
      seconds += time.monotonic() - began
      if not end.what or soak_ends.is_done(workdir, end):
        break
      seen = self._inspector.look(workdir, wanted, seen, exact=exact)
      for phase, at in soak_ends.times(workdir).items():
        if at != written.get(phase):
          steps, ends = lost[phase]
          again = self._done_again(workdir, phase, seen, end)
          lost[phase] = steps + again, ends + 1
      self._count(workdir, end, num_processes, before, seen)
    goodput = self._inspector.finished(
      workdir, wanted, seen, exact=exact, seconds=seconds, done_again=lost
    )
    for fields in goodput.values():
      self._goodput.update(fields)
    self._finished[case] += 1
    steps = sum(count for count, _ in lost.values())
    self._counts["steps done again"] += steps
    self._say(
      f"{workdir.name}, {case}: whole after {turn} ends, {steps} steps again"
    )

  def _done_again(self, workdir, phase, seen, end):
    """Steps that were reported but not committed."""
    last = soak_checks.last_step(workdir, phase)
    lost = max(last - seen.newest[phase], 0)
    was_asked = end.what == "SIGTERM" and set(end.codes) == {soak_ends.REQUEUE}
    if was_asked and lost:
      raise Damage(f"{workdir}: SIGTERM lost {lost} steps of {phase}")
    return lost

  def _count(self, workdir, end, num_processes, before, seen):
    self._counts[end.what] += 1
    where = self._stage(workdir, before)
    self._where[end.what][where] += 1
    one = num_processes == 2 and end.victims == 1
    kind = f"{end.what} of one of two" if one else end.what
    if one:
      self._counts[kind] += 1
    if one or end.what == "SIGTERM":
      self._waits[kind].append(end.waited)
    steps = "/".join(str(seen.newest[p]) for p in self._inspector.phases)
    rows = sum(int(done.sum()) for done in seen.rows.values())
    self._say(
      f"{end.what} {self._counts[end.what]}: {end.victims} of {num_processes},"
      f" {end.moment}, in {where}; exit codes {end.codes} after"
      f" {end.waited:.1f} s; committed: {rows} rows, steps {steps}"
    )

  def _progress(self, workdir):
    """A value that changes whenever a run writes results."""
    saved = tuple(sorted(workdir.glob("train/*/checkpoints/*")))
    done = (workdir / "fidelity.json").exists()
    count = durability.count_files(workdir)
    return count, saved, done, tuple(sorted(soak_ends.times(workdir).items()))

  def _stage(self, workdir, before):
    """Where a run was when it ended."""
    if self._progress(workdir) == before and not self._ender.is_trained(
      workdir
    ):
      return "start"
    if (workdir / "fidelity.json").exists():
      return "export"
    if self._ender.is_trained(workdir):
      return "measure"
    if any(".orbax" in p.name for p in workdir.glob("train/*/checkpoints/*")):
      return "save"
    return "train" if soak_ends.times(workdir) else "cache"

  def _report(self):
    waits = {
      kind: {
        "count": len(seconds),
        "median_seconds": round(statistics.median(seconds), 2),
        "longest_seconds": round(max(seconds), 2),
      }
      for kind, seconds in self._waits.items()
    }
    return {
      "kills": self._counts["SIGKILL"],
      "kills_wanted": self._plan.kills,
      "terms": self._counts["SIGTERM"],
      "terms_wanted": self._plan.terms,
      "kills_of_one_of_two": self._counts["SIGKILL of one of two"],
      "where": {what: dict(where) for what, where in self._where.items()},
      "until_all_had_ended": waits,
      "runs_whole": dict(self._finished),
      "rows_compared": self._inspector.rows,
      "checkpoints_restored": self._inspector.restored,
      "steps_done_again": self._counts["steps done again"],
      "largest_difference_by_turns": self._inspector.largest_difference,
      "goodput_seconds": {k: round(v, 1) for k, v in self._goodput.items()},
      "damage": self._damage,
      "seconds": round(time.monotonic() - self._since, 1),
    }


def table(report):
  """The report for people."""
  lines = [
    f"kills {report['kills']} of {report['kills_wanted']}, of one of two"
    f" {report['kills_of_one_of_two']}; SIGTERM {report['terms']} of"
    f" {report['terms_wanted']}; {report['seconds']:.0f} s"
  ]
  for what, where in report["where"].items():
    spread = ", ".join(f"{k} {v}" for k, v in sorted(where.items()))
    lines.append(f"{what}: {spread}")
  for kind, wait in report["until_all_had_ended"].items():
    lines.append(
      f"after {kind} all had ended within {wait['longest_seconds']} s"
      f" (median {wait['median_seconds']} s, {wait['count']} times)"
    )
  whole = ", ".join(f"{k}: {v}" for k, v in report["runs_whole"].items())
  lines += [
    f"runs that came through: {whole or 'none'}",
    f"looked at: {report['rows_compared']} rows,"
    f" {report['checkpoints_restored']} checkpoints",
    f"steps done again: {report['steps_done_again']}; largest difference of a"
    f" loss by turns: {report['largest_difference_by_turns']:.3g}",
    f"seconds of training: {report['goodput_seconds']}",
  ]
  lines += [f"DAMAGE {text}" for text in report["damage"]]
  good = is_good(report)
  lines.append(f"soak: {'nothing was lost' if good else 'FAILED'}.")
  return "\n".join(lines)


def is_good(report):
  """Whether nothing was lost, and something was tried."""
  return not report["damage"] and report["kills"] > 0


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  parser.add_argument("--workdir", type=Path, required=True)
  parser.add_argument("--minutes", type=float, default=18.0)
  parser.add_argument("--kills", type=int, default=100)
  parser.add_argument("--terms", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args(argv)
  os.environ["JAX_PLATFORMS"] = "cpu"
  jax.config.update("jax_platforms", "cpu")
  folder = args.workdir / time.strftime("%Y%m%d-%H%M%S")
  folder.mkdir(parents=True)
  soak = Soak(
    durability.make_pair(folder / "pair"),
    folder,
    Plan(args.kills, args.terms, 60 * args.minutes),
    seed=args.seed,
    say=lambda text: print(text, flush=True),
  )
  report = soak.run()
  text = json.dumps({"seed": args.seed, **report}, indent=1)
  (folder / "soak.json").write_text(text + "\n")
  print(f"{table(report)}\n{folder / 'soak.json'}")
  return 0 if is_good(report) else 1


if __name__ == "__main__":
  sys.exit(main())
