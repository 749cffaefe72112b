"""How few bytes a token does a student notice? Records against held-out KL.

Trains one small student many times: the same start, the same rows in the same
order, as many steps; only what the teacher's records keep differs. The teacher
runs once; its final hidden states stay on disk and give its logits again, for
each arm's records and for the dense KL on held-out rows. Every pair of (arm,
seed) that is finished is a line of results.jsonl; a rerun does the others.

  python tests/benchmarks/knee.py --teacher=FOLDER --workdir=runs/knee
"""

import argparse
from collections.abc import Sequence
import dataclasses
import json
from pathlib import Path
import time
from typing import Any

from knee_arms import ARMS, LARGE, Draw, Settings, draws_of, say
from knee_records import (
  Kept,
  bytes_per_token,
  draw_all,
  expected_ids,
  keep,
  open_rows,
  take,
)
from knee_report import key_of, read_results, report
from knee_train import evaluate, hold, pretrained, train

from analogjax.data import rows as rows_lib


def run_grid(
  s: Settings,
  workdir: Path,
  names: Sequence[str],
  seeds: Sequence[int],
  learning_rate: float,
) -> None:
  """Trains what is not in results.jsonl yet; all arms of a seed, then on."""
  kept, held, others = prepare(s, workdir)
  held_out = hold(s, held)
  for seed in seeds:
    done = {key_of(line) for line in read_results(workdir)}
    todo = [n for n in names if (n, seed, learning_rate) not in done]
    if not todo:
      continue
    params = pretrained(s, workdir, others, len(kept.head_VW), seed)
    wanted: dict[Draw, int] = {}
    for arm in (ARMS[name] for name in todo):
      for draw in draws_of(arm):
        wanted[draw] = max(wanted.get(draw, 0), s.rows * arm.data)
    began = time.time()
    records = draw_all(s, kept, wanted, seed)
    say(f"seed {seed}: drew {len(records)} in {time.time() - began:.0f} s")
    for name in todo:
      arm, began = ARMS[name], time.time()
      trained = train(
        s, arm, params, kept, records, seed=seed, learning_rate=learning_rate
      )
      train_s = time.time() - began
      line = {"arm": name, "seed": seed, "learning_rate": learning_rate}
      line |= evaluate(s, trained, held_out)
      line |= _sizes(s, arm, kept, records)
      line["train_s"] = train_s
      with (workdir / "results.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
      say(json.dumps(line))


def _sizes(s, arm, kept, records) -> dict[str, float]:
  replicas = [records[draw] for draw in draws_of(arm)]
  if not replicas:
    return {"bytes_per_token": 0.0, "ids_per_token": 0.0, "cache_bytes": 0.0}
  rows = take(kept.rows, slice(s.rows))
  draw = draws_of(arm)[0]
  size = bytes_per_token(rows, draw, replicas, expected_ids(kept))
  count = [(r.p_RLK[: s.rows] != 0).sum(-1).mean() for r in replicas]
  return {
    "bytes_per_token": size,
    "ids_per_token": float(sum(count)),
    "cache_bytes": size * s.rows * arm.data * s.L,
  }


def prepare(s: Settings, workdir: Path) -> tuple[Kept, Kept, rows_lib.Rows]:
  """Training rows and held-out rows with the teacher, and rows without."""
  workdir.mkdir(parents=True, exist_ok=True)
  path, now = workdir / "settings.json", dataclasses.asdict(s)
  if path.exists() and json.loads(path.read_text()) != now:
    raise ValueError(f"{path}: made with other settings; use another workdir.")
  path.write_text(json.dumps(now, indent=2))
  num_rows = s.rows * max(arm.data for arm in ARMS.values())
  source = open_rows(s, "train")
  rows = source.read(range(num_rows))
  others = source.read(range(num_rows, num_rows + s.pretrain_rows))
  held = open_rows(s, "held_out").read(range(s.held_out_rows))
  kept = keep(s, workdir, "train", rows)
  return kept, keep(s, workdir, "held_out", held), others


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--teacher", required=True)
  parser.add_argument("--workdir", required=True, type=Path)
  parser.add_argument("--large", action="store_true", help="for a GPU")
  for name in "rows epochs held_out_rows pretrain_rows L D Y".split():
    parser.add_argument(f"--{name}", type=int)
  parser.add_argument("--seeds", type=int, default=3, help="how many")
  parser.add_argument("--arms", default="", help="names, split at ';'")
  parser.add_argument("--learning_rate", type=float, default=4e-3)
  parser.add_argument(
    "--scan",
    default="",
    help="rates to try with hard labels and dense, then stop",
  )
  args = parser.parse_args(argv)
  values: dict[str, Any] = dict(LARGE) if args.large else {}
  given = vars(args).items()
  fields = {f.name for f in dataclasses.fields(Settings)}
  values |= {k: v for k, v in given if k in fields and v is not None}
  s = Settings(**values)
  if args.scan:
    rates = [float(rate) for rate in args.scan.split(",")]
    for rate in rates:
      run_grid(s, args.workdir, ["hard", "dense"], [0], rate)
    for line in read_results(args.workdir):
      print(f"{line['learning_rate']:g} {line['arm']}: {line['kl']:.4f}")
    return
  names = args.arms.split(";") if args.arms else list(ARMS)
  run_grid(s, args.workdir, names, range(args.seeds), args.learning_rate)
  report(args.workdir, args.learning_rate)


if __name__ == "__main__":
  main()
