"""Cost of several processes and of checkpoints, in time per step.

Arms take turns: all of them are alive at once, and all but one wait. It runs on
CPUs, with gloo between processes.

  python tests/benchmarks/train_loop.py --write-docs
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import multiprocessing
from multiprocessing import connection
import os
from pathlib import Path
import platform
import socket
import statistics
import tempfile
import textwrap
import time

import docs_page
import jax
import numpy as np
from train_loop_worker import Place, Spent, Student, Turn, work

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks.md"
# Aims: the ratio of a step on two processes to one on one, and the share of
# saves in the time of this many steps.
STEP, SHARE, SAVE_EVERY = 1.15, 0.03, 100

AXES = "fsdp", "data"  # The mesh of two devices splits them by turns.
# One process with two devices, two with one each, these without the board.
ONE, TWO, BARE = "one", "two", "bare"
HANGS_SECONDS = 300.0


class Arm:
  """Processes that work together, and wait together."""

  def __init__(self, places: Sequence[Place]):
    """Starts them, and waits until each is ready for a turn."""
    context = multiprocessing.get_context("spawn")
    self._links: list[connection.Connection] = []
    self._processes = []
    for place in places:
      ours, theirs = context.Pipe()
      process = context.Process(target=work, args=(theirs, place), daemon=True)
      process.start()
      theirs.close()  # So that the end of the process is the end of the pipe.
      self._links.append(ours)
      self._processes.append(process)
    try:
      (self.state_bytes, *_) = self._answers()
    except BaseException:
      self.kill()
      raise

  def take(self, turn: Turn) -> Spent:
    """Runs a turn of all processes; returns the time of the slowest one."""
    for link in self._links:
      link.send(turn)
    return max(self._answers(), key=lambda spent: spent.seconds)

  def _answers(self) -> list:
    answers = []
    for link in self._links:
      if not link.poll(HANGS_SECONDS):
        raise TimeoutError(f"a process is silent for {HANGS_SECONDS:.0f} s")
      answers.append(link.recv())  # EOFError: it died, and said why.
    return answers

  def close(self) -> None:
    for link in self._links:
      link.send(None)
    for process in self._processes:
      process.join(60)

  def kill(self) -> None:
    for process in self._processes:
      if process.is_alive():
        process.kill()
      process.join()


@contextlib.contextmanager
def started(places: Sequence[Place]) -> Iterator[Arm]:
  """An arm that is ended in any case."""
  arm = Arm(places)
  try:
    yield arm
    arm.close()
  finally:
    arm.kill()


def free_port() -> int:
  with socket.socket() as s:
    s.bind(("localhost", 0))
    return s.getsockname()[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
  """Times of steps on one process, and on two."""

  student: Student
  axis: str
  steps: int  # Of a turn.
  spent: Mapping[str, Sequence[Spent]]  # ONE, TWO, BARE.

  def ratios(self, name: str, base: str) -> np.ndarray:
    """Seconds of one arm over those of another, by round."""
    seconds = ([s.seconds for s in self.spent[arm]] for arm in (name, base))
    return np.divide(*seconds)


def measure_processes(
  student: Student, axis: str, *, rounds: int, steps: int
) -> Processes:
  """Seconds of each round, by arm.

  Raises:
    ValueError: the arms do not compute the same.
  """
  one = Place(student=student, num_devices=2, axis=axis)
  pair = [
    dataclasses.replace(
      one, num_devices=1, num_processes=2, process=i, port=port
    )
    for port in [free_port()]
    for i in range(2)
  ]
  with started([one]) as alone, started(pair) as both:
    bare = Turn(steps=steps, with_board=False)
    arms = {
      ONE: (alone, Turn(steps=steps)),
      TWO: (both, Turn(steps=steps)),
      BARE: (both, bare),
    }
    first = {name: arms[name][0].take(arms[name][1]) for name in (ONE, TWO)}
    check_losses(first)
    spent = take_turns(arms, rounds)
  return Processes(student=student, axis=axis, steps=steps, spent=spent)


def check_losses(first: Mapping[str, Spent]) -> None:
  """Refuses a comparison of steps that compute different things.

  Raises:
    ValueError: two losses after as many steps differ by more than 1e-4.
  """
  base, *others = first.items()
  for name, spent in others:
    if not abs(spent.loss - base[1].loss) <= 1e-4 * abs(base[1].loss):
      raise ValueError(
        f"{name}: loss {spent.loss:.6f}, but {base[1].loss:.6f} of {base[0]!r}:"
        " these are not the same steps."
      )


def measure_saves(
  student: Student, folder: Path, *, rounds: int, steps: int
) -> tuple[int, dict[str, list[Spent]]]:
  """Bytes of the state, and seconds of each round: with a save, and without."""
  place = Place(student=student, num_devices=1, folder=folder)
  with started([place]) as arm:
    turns = {
      name: (arm, Turn(steps=steps, with_save=name == "with"))
      for name in ("without", "with")
    }
    return arm.state_bytes, take_turns(turns, rounds)


def take_turns(
  arms: Mapping[str, tuple[Arm, Turn]], rounds: int
) -> dict[str, list[Spent]]:
  """Runs all arms once in each round, in random order; one warm-up round."""
  spent: dict[str, list[Spent]] = {name: [] for name in arms}
  rng = np.random.default_rng(0)
  names = list(arms)
  for i in range(rounds + 1):
    for place in rng.permutation(len(names)):
      arm, turn = arms[names[place]]
      # Threads that worked before wait for more in a loop.
      time.sleep(0.1)
      taken = arm.take(turn)
      if i:  # The first round compiles.
        spent[names[place]].append(taken)
  return spent


def processes_table(measured: Sequence[Processes]) -> str:
  head = (
    *("student", "mesh", "a step of one process, s", "of 2 processes, s"),
    *("times one process (10 % to 90 %)", "with the board, times without"),
  )
  lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
  for m in measured:
    seconds = {
      arm: statistics.median(s.seconds for s in m.spent[arm]) / m.steps
      for arm in (ONE, TWO)
    }
    cells = (
      f"D = {m.student.D}, {_millions(m.student)}",
      f"`{m.axis}=2`",
      f"{seconds[ONE]:.3f}",
      f"{seconds[TWO]:.3f}",
      _middle(m.ratios(TWO, ONE)),
      _middle(m.ratios(TWO, BARE), 3),
    )
    lines.append(f"| {' | '.join(cells)} |")
  lines.append("")
  for m in measured:
    found = float(np.median(m.ratios(TWO, ONE)))
    verdict = "met" if found <= STEP else "missed"
    lines.append(
      f"Aim {verdict}: D = {m.student.D} on `{m.axis}=2` takes {found:.3f}"
      f" times one process; at most {STEP:.3f}."
    )
  return "\n".join(lines)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saves:
  """Measurements of the saves of one student."""

  student: Student
  state_bytes: int
  steps: int  # Of a turn.
  spent: Mapping[str, Sequence[Spent]]  # "with" and "without" a save.

  @property
  def step_seconds(self) -> float:
    without = [s.seconds for s in self.spent["without"]]
    return statistics.median(without) / self.steps

  @property
  def added(self) -> np.ndarray:
    """Seconds by which a save made a round longer, by round."""
    rounds = zip(self.spent["with"], self.spent["without"], strict=True)
    return np.array([a.seconds - b.seconds for a, b in rounds])

  @property
  def share(self) -> float:
    """Share of the time of the steps from one save to the next."""
    return float(np.median(self.added)) / (SAVE_EVERY * self.step_seconds)


def saves_table(measured: Sequence[Saves]) -> str:
  head = (
    *("student", "state, MB", "rounds x steps", "step, s"),
    *("it holds the loop, s", "waited at the end, s"),
    *("it adds, s (10 to 90 %)", f"of {SAVE_EVERY} steps"),
  )
  lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
  for m in measured:
    saves = m.spent["with"]
    cells = (
      f"D = {m.student.D}, {_millions(m.student)}",
      f"{m.state_bytes / 1e6:,.0f}",
      f"{len(saves)} x {m.steps}",
      f"{m.step_seconds:.3f}",
      f"{statistics.median(s.held for s in saves):.3f}",
      f"{statistics.median(s.waited for s in saves):.3f}",
      _middle(m.added),
      f"{100 * m.share:.2f} %",
    )
    lines.append(f"| {' | '.join(cells)} |")
  lines.append("")
  for m in measured:
    verdict = "met" if m.share < SHARE else "missed"
    lines.append(
      f"Aim {verdict}: saves of D = {m.student.D} take {100 * m.share:.2f} %;"
      f" less than {100 * SHARE:.0f} %."
    )
  return "\n".join(lines)


def _middle(values: np.ndarray, digits: int = 2) -> str:
  low, median, high = np.quantile(values, [0.1, 0.5, 0.9])
  return f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _millions(student: Student) -> str:
  return f"{student.config().num_parameters / 1e6:.1f} million parameters"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__.split("\n", 1)[0],
    epilog="What has 0 rounds is left out.",
  )
  sizes = dict(V=49_152, D=64, wide_D=256, large_D=512, layers=4)
  sizes |= dict(rows=8, saving_rows=4, length=256, chunk=64)
  sizes |= dict(rounds=10, wide_rounds=10, steps=3)
  sizes |= dict(save_rounds=8, save_steps=8)
  sizes |= dict(large_rounds=5, large_steps=5)
  for name, value in sizes.items():
    parser.add_argument(
      f"--{name.replace('_', '-')}", dest=name, type=int, default=value
    )
  parser.add_argument(
    "--folder", type=Path, help="for checkpoints; else a temporary one"
  )
  parser.add_argument("--write-docs", action="store_true")
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
  args = _arguments(argv)
  student = Student(
    V=args.V,
    D=args.D,
    layers=args.layers,
    rows=args.rows,
    length=args.length,
    chunk=args.chunk,
  )
  processes = [
    measure_processes(
      dataclasses.replace(student, D=D), axis, rounds=rounds, steps=args.steps
    )
    for D, rounds in ((args.D, args.rounds), (args.wide_D, args.wide_rounds))
    for axis in AXES
    if rounds
  ]
  what = (
    f"V = {args.V:,}, {args.layers} layers, {args.rows} rows of {args.length}"
    f" tokens; {platform.machine()}, {os.cpu_count()} cores, jax"
    f" {jax.__version__}, {args.rounds} rounds of {args.steps} steps; a process"
    " has one device where there are two, and both where there is one:"
  )
  parts = [textwrap.fill(what, 80), processes_table(processes)]
  print("\n\n".join(parts), flush=True)
  measured = []
  with tempfile.TemporaryDirectory(dir=args.folder) as folder:
    for D, rounds, steps in (
      (args.D, args.save_rounds, args.save_steps),
      (args.large_D, args.large_rounds, args.large_steps),
    ):
      if not rounds:
        continue
      one = dataclasses.replace(student, D=D, rows=args.saving_rows)
      size, spent = measure_saves(one, Path(folder), rounds=rounds, steps=steps)
      measured.append(
        Saves(student=one, state_bytes=size, steps=steps, spent=spent)
      )
  what = (
    f"Saves, one process with one device, {args.saving_rows} rows of"
    f" {args.length} tokens:"
  )
  saves = [textwrap.fill(what, 80), saves_table(measured)]
  print("\n" + "\n\n".join(saves), flush=True)
  if args.write_docs:
    docs_page.put(DOCS, "train loop", "\n\n".join(parts + saves))


if __name__ == "__main__":
  main()
