"""Which way of distilling makes the better student, and which do not differ?

One student, the same start, rows and order of rows in every arm of a seed;
only what it is compared with differs. Threshold sampling and RS-KD (independent
draws) take equal bytes on disk; top-k takes what it takes.

  python tests/benchmarks/quality.py --teacher=FOLDER --workdir=runs/quality \
    --write-docs

Killed and started again it goes on after the last finished student.
"""

import argparse
from collections.abc import Callable, Sequence
import functools
import json
import os
from pathlib import Path
import platform
import tempfile
import textwrap

import docs_page
from grid_arms import LARGE, Arm, Draw, Settings, say
from grid_records import Kept, draw_all, size_of, take
from grid_run import (
  add_arguments,
  make_settings,
  pick,
  prepare,
  run_grid,
)
from grid_train import student_config
import jax
from quality_report import report

from analogjax.cache import sampling

DOCS = Path(__file__).parents[2] / "docs" / "experiments.md"

# Of the arms below, what each choice alone changes.
PAIRS = (
  ("threshold", "random"),
  ("threshold", "top-k + bin"),
  ("threshold", "top-k teacher renormalised"),
  ("threshold 0.9", "top-k both renormalised 0.9"),
  ("top-k + bin", "top-k teacher renormalised"),
  ("top-k + bin", "top-k both renormalised"),
  ("top-k + bin JS", "top-k + bin"),
  ("dense JS", "dense"),
  ("threshold 0.9", "threshold"),
  ("threshold 0.9 as the rate", "threshold"),
  ("threshold 0.9 as the rate", "threshold 0.9"),
)
_MATCH_ROWS = 16  # Enough for bytes per token to 1 % of each other.


def make_arms(tau: float, top_k: int, num_draws: int) -> dict[str, Arm]:
  top = functools.partial(Arm, kind="topk", value=top_k)
  threshold = functools.partial(Arm, kind="threshold", value=tau)
  return {
    "start": Arm(kind="start"),
    "hard": Arm(kind="hard", alpha=0.0),
    "dense": Arm(kind="dense"),
    "dense JS": Arm(kind="dense", divergence="jensen_shannon"),
    "threshold": threshold(),
    "threshold 0.9": threshold(alpha=0.9),
    "threshold 0.9 as the rate": threshold(
      alpha=0.9, alpha_schedule="learning_rate"
    ),
    "random": Arm(kind="random", value=num_draws),
    "top-k + bin": top(),
    "top-k + bin JS": top(divergence="jensen_shannon"),
    "top-k teacher renormalised": top(renormalised="teacher"),
    "top-k both renormalised": top(renormalised="both"),
    "top-k both renormalised 0.9": top(renormalised="both", alpha=0.9),
  }


def matching_draws(
  wanted: float, bytes_of: Callable[[int], float], most: int = 255
) -> int:
  """The fewest draws that take at least as many bytes; `most` if none does."""
  # Few draws first: each number of them is a program to compile.
  low, high = 0, 1  # Too few; enough.
  while high < most and bytes_of(high) < wanted:
    low, high = high, min(2 * high, most)
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (low, middle) if bytes_of(middle) >= wanted else (middle, high)
  return high


def match(s: Settings, workdir: Path, kept: Kept, tau: float) -> int:
  """How many draws RS-KD may have at the bytes of this tau, measured."""
  path = workdir / "matched.json"
  matched = json.loads(path.read_text()) if path.exists() else {}
  if f"{tau:g}" in matched:
    return matched[f"{tau:g}"]
  num_rows = min(_MATCH_ROWS, s.rows)
  first = slice(num_rows)
  few = kept._replace(
    rows=take(kept.rows, first), hidden_RLW=kept.hidden_RLW[first]
  )

  def bytes_of(sampler) -> float:
    draw = Draw(sampler)
    with tempfile.TemporaryDirectory() as folder:
      caches = draw_all(s, few, Path(folder), {draw: num_rows}, seed=0)
      size = size_of(caches[draw], num_rows).bytes_per_token
    say(f"{sampler}: {size:.2f} bytes per token")
    return size

  num_draws = matching_draws(
    bytes_of(sampling.Threshold(tau=tau)),
    lambda n: bytes_of(sampling.Random(num_draws=n)),
  )
  path.write_text(json.dumps(matched | {f"{tau:g}": num_draws}))
  return num_draws


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  add_arguments(parser)
  parser.add_argument("--tau", type=float, default=0.04)
  parser.add_argument("--top_k", type=int, default=16)
  parser.add_argument("--num_draws", type=int, help="instead of equal bytes")
  parser.add_argument("--write-docs", action="store_true")
  args = parser.parse_args(argv)
  workdir = args.workdir
  # One pass, as over a cache: no arm sees a row twice.
  s = make_settings(args, LARGE, rows=432, epochs=1)
  prepared = prepare(s, workdir)
  num_draws = args.num_draws or match(s, workdir, prepared.kept, args.tau)
  arms = make_arms(args.tau, args.top_k, num_draws)
  rate = args.learning_rate
  chosen = pick(arms, args.arms)
  run_grid(s, workdir, prepared, chosen, range(args.seeds), rate)
  cfg = student_config(s, len(prepared.kept.head_VW))
  text = textwrap.fill(
    f"{platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__};"
    f" {s.rows} rows of {s.L} tokens, {s.epochs} pass(es), {s.num_steps} steps"
    f" of {s.batch_rows} rows; {s.held_out_rows} held-out rows; a student of"
    f" {cfg.num_parameters / 1e6:.1f} million parameters (D = {s.D}, {s.Y}"
    f" layers) after {s.pretrain_rows} other rows with hard labels; peak"
    f" learning rate {rate:g}. threshold: tau {args.tau:g}; random:"
    f" {num_draws} draws; top-k: {args.top_k} ids.",
    80,
  )
  text += "\n\n" + report(workdir, list(arms), PAIRS, rate)
  print(text)
  if args.write_docs:
    docs_page.put(DOCS, "quality", text)


if __name__ == "__main__":
  main()
