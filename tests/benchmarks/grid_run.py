"""Trains the students of a benchmark's arms and keeps what came out.

The teacher runs once; its final hidden states stay on disk and give its logits
again, for the caches that arms read and for the dense KL on held-out rows.
Every pair of (arm, seed) that is finished is a line of results.jsonl; a rerun
does the others.
"""

import argparse
from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
from pathlib import Path
import statistics
import time
from typing import Any, NamedTuple

from grid_arms import Arm, Draw, Settings, draw_of, say
from grid_compare import evaluate, hold
from grid_records import Kept, draw_all, keep, open_rows, size_of
from grid_train import pretrained, train

from analogjax.cache import logit_cache
from analogjax.data import rows as rows_lib

# 0.975 quantile of Student's t for 1 to 9 degrees of freedom.
T_QUANTILE = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
# At least, so that grids of few rows have the same starts, whatever their rows.
_OTHERS_FROM = 432


class Prepared(NamedTuple):
  """Rows of three kinds, none twice."""

  kept: Kept  # To train on.
  held: Kept
  others: rows_lib.Rows  # For the start of every arm.


def prepare(s: Settings, workdir: Path, most: int = 1) -> Prepared:
  """All rows, and the teacher over those it is needed for.

  Args:
    s: settings; a workdir has one.
    workdir: where the hidden states are.
    most: the most `data` that an arm has.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  path, now = workdir / "settings.json", dataclasses.asdict(s)
  if path.exists() and json.loads(path.read_text()) != now:
    raise ValueError(f"{path}: made with other settings; use another workdir.")
  path.write_text(json.dumps(now, indent=2))
  num_rows = s.rows * most
  source = open_rows(s, "train")
  rows = source.read(range(num_rows))
  first = max(num_rows, _OTHERS_FROM)
  others = source.read(range(first, first + s.pretrain_rows))
  held = open_rows(s, "held_out").read(range(s.held_out_rows))
  kept = keep(s, workdir, "train", rows)
  return Prepared(kept, keep(s, workdir, "held_out", held), others)


def run_grid(
  s: Settings,
  workdir: Path,
  prepared: Prepared,
  arms: Mapping[str, Arm],
  seeds: Sequence[int],
  learning_rate: float,
) -> None:
  """Trains what is not in results.jsonl yet; all arms of a seed, then on."""
  kept = prepared.kept
  held_out = None
  for seed in seeds:
    done = {key_of(line) for line in read_results(workdir)}
    todo = [n for n in arms if (n, seed, learning_rate) not in done]
    if not todo:
      continue
    held_out = held_out or hold(s, prepared.held)
    params = pretrained(s, workdir, prepared.others, len(kept.head_VW), seed)
    wanted: dict[Draw, int] = {}
    for arm in (arms[name] for name in todo):
      if (draw := draw_of(arm)) is not None:
        wanted[draw] = max(wanted.get(draw, 0), s.rows * arm.data)
    began = time.time()
    caches = draw_all(s, kept, workdir / "caches", wanted, seed)
    say(f"seed {seed}: drew {len(caches)} in {time.time() - began:.0f} s")
    for name in todo:
      arm, began = arms[name], time.time()
      trained = train(
        s, arm, params, kept, caches, seed=seed, learning_rate=learning_rate
      )
      train_s = time.time() - began
      line = {"arm": name, "seed": seed, "learning_rate": learning_rate}
      line |= evaluate(s, trained, held_out)
      line |= _sizes(s, arm, caches)
      line["train_s"] = train_s
      with (workdir / "results.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
      say(json.dumps(line))


def _sizes(
  s: Settings, arm: Arm, caches: Mapping[Draw, logit_cache.LogitCache]
) -> dict[str, float]:
  draw, num_rows = draw_of(arm), s.rows * arm.data
  if draw is None:
    return {"bytes_per_token": 0.0, "ids_per_token": 0.0, "cache_bytes": 0.0}
  size = size_of(caches[draw], num_rows)
  return size._asdict() | {"cache_bytes": size.bytes_per_token * num_rows * s.L}


def read_results(workdir: Path) -> list[dict[str, Any]]:
  path = workdir / "results.jsonl"
  if not path.exists():
    return []
  return [json.loads(line) for line in path.read_text().splitlines()]


def key_of(line: Mapping[str, Any]) -> tuple[str, int, float]:
  return line["arm"], line["seed"], line["learning_rate"]


def interval(values: Sequence[float]) -> tuple[float, float]:
  """Mean, and half the width of its 95 % interval (Student's t)."""
  n = len(values)
  if n < 2:
    return (values[0] if values else math.nan), math.nan
  width = T_QUANTILE[n - 2] * statistics.stdev(values) / math.sqrt(n)
  return statistics.fmean(values), width


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--teacher", required=True)
  parser.add_argument("--workdir", required=True, type=Path)
  parser.add_argument("--large", action="store_true", help="for a GPU")
  for name in "rows epochs held_out_rows pretrain_rows L D Y".split():
    parser.add_argument(f"--{name}", type=int)
  parser.add_argument("--seeds", type=int, default=3, help="how many")
  parser.add_argument("--arms", default="", help="names, split at ';'")
  parser.add_argument("--learning_rate", type=float, default=4e-3)


def make_settings(
  args: argparse.Namespace, large: Mapping[str, int], **defaults: int
) -> Settings:
  """The defaults, `large` if asked for, and what is given by itself."""
  values: dict[str, Any] = defaults | (dict(large) if args.large else {})
  fields = {f.name for f in dataclasses.fields(Settings)}
  given = vars(args).items()
  values |= {k: v for k, v in given if k in fields and v is not None}
  return Settings(**values)


def pick(arms: Mapping[str, Arm], names: str) -> dict[str, Arm]:
  """The arms of these names, split at ';'; all for no name."""
  wanted = names.split(";") if names else list(arms)
  for name in wanted:
    if name not in arms:
      raise ValueError(
        f"--arms: {name!r} is none of {', '.join(map(repr, arms))}."
      )
  return {name: arms[name] for name in wanted}
