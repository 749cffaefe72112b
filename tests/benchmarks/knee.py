"""How few bytes a token does a student notice? Records against held-out KL.

Trains one small student many times: the same start, the same rows in the same
order, as many steps; only what the teacher's records keep differs.

  python tests/benchmarks/knee.py --teacher=FOLDER --workdir=runs/knee
"""

import argparse
from collections.abc import Sequence

from grid_arms import LARGE, Arm
from grid_run import (
  add_arguments,
  make_settings,
  pick,
  prepare,
  read_results,
  run_grid,
)
from knee_report import report


def _arms() -> dict[str, Arm]:
  def tau(value, **more):
    return Arm(kind="threshold", value=value, **more)

  arms = {
    "hard": Arm(kind="hard", alpha=0.0),
    "tau 0.01": tau(0.01),
    "tau 0.2": tau(0.2),
    "dense": Arm(kind="dense"),
    "tau 0.04": tau(0.04),
    "tau 1": tau(1.0),
    "tau 0.1": tau(0.1),
    "tau 0.5": tau(0.5),
    # As most do.
    "top-16": Arm(kind="topk", value=16, renormalised="teacher"),
    "tau 0.2, 3 replicas": tau(0.2, replicas=3),
    "tau 0.5, 3 replicas": tau(0.5, replicas=3),
    "tau 0.2, 3x rows": tau(0.2, data=3),
    "tau 0.04, 3x rows": tau(0.04, data=3),
    "hard, 3x rows": Arm(kind="hard", alpha=0.0, data=3),
    "tau 0.2, alpha 0.9": tau(0.2, alpha=0.9),
    "tau 0.2, alpha 0.5": tau(0.2, alpha=0.5),
    "tau 1, alpha 0.9": tau(1.0, alpha=0.9),
    "tau 1, alpha 0.5": tau(1.0, alpha=0.5),
    "tau 0.02": tau(0.02),
    # One pass over all rows: what a cache that is read once looks like.
    "dense, 3x rows": Arm(kind="dense", data=3),
    "tau 0.1, 3x rows": tau(0.1, data=3),
    "tau 0.5, 3x rows": tau(0.5, data=3),
    "tau 1, 3x rows": tau(1.0, data=3),
  }
  return arms


ARMS = _arms()


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  add_arguments(parser)
  parser.add_argument(
    "--scan",
    default="",
    help="rates to try with hard labels and dense, then stop",
  )
  args = parser.parse_args(argv)
  s = make_settings(args, LARGE)
  arms, workdir = pick(ARMS, args.arms), args.workdir
  prepared = prepare(s, workdir, max(arm.data for arm in ARMS.values()))
  if args.scan:
    arms = pick(ARMS, "hard;dense")
    for rate in map(float, args.scan.split(",")):
      run_grid(s, workdir, prepared, arms, [0], rate)
    for line in read_results(workdir):
      print(f"{line['learning_rate']:g} {line['arm']}: {line['kl']:.4f}")
    return
  rate = args.learning_rate
  run_grid(s, workdir, prepared, arms, range(args.seeds), rate)
  report(ARMS, workdir, rate)


if __name__ == "__main__":
  main()
