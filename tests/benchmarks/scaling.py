"""Plans of `analogjax plan` for one analog on more and more chips.

An 8B of a 405B over a trillion rows' tokens, cached and not. GPUs are counted;
TPUs are compiled for, which takes minutes each and libtpu.

  python tests/benchmarks/scaling.py --write-docs
  python tests/benchmarks/scaling.py --only=gpu:h100:4096
"""

import argparse
from collections.abc import Mapping, Sequence
import dataclasses
import json
from pathlib import Path
import subprocess
import sys
from typing import Any

import docs_page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "scaling.md"
CONFIG = ROOT / "configs" / "llama_8b_from_405b.py"
L = 8192  # Tokens of a row of that config.
TOKENS = 2**40  # Of each phase, and of the cache.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """Chips, and the layout of the work on them."""

  topology: str
  mesh: Mapping[str, int] = dataclasses.field(hash=False)
  rows: int = 512  # Of a training batch: 4.2 million tokens.
  teacher_rows: int = 512  # Of a step of the teacher, which has no batch size.
  microbatches: int = 1

  def overrides(self) -> dict[str, Any]:
    values: dict[str, Any] = {
      "cache.num_rows": TOKENS // L,
      "cache.batch_rows": self.teacher_rows,
      "cache.rows_per_object": self.teacher_rows,
      "measure.batch_rows": self.teacher_rows,
    }
    values |= {f"mesh.{axis}": size for axis, size in self.mesh.items()}
    for phase in ("pretrain", "distill"):
      values |= {
        f"train.{phase}.num_steps": TOKENS // L // self.rows,
        f"train.{phase}.batch_rows": self.rows,
        f"train.{phase}.microbatches": self.microbatches,
      }
    return values


def _mesh(data: int, fsdp: int, tensor: int) -> dict[str, int]:
  return dict(data=data, fsdp=fsdp, expert=1, tensor=tensor)


# A training batch takes a few rows at a time where the chips are few.
CASES = (
  Case(topology="gpu:h100:1", mesh=_mesh(1, 1, 1), microbatches=128),
  Case(topology="gpu:h100:8", mesh=_mesh(1, 1, 8), microbatches=128),
  Case(topology="gpu:h100:64", mesh=_mesh(1, 8, 8), microbatches=16),
  Case(topology="gpu:h100:256", mesh=_mesh(1, 32, 8), microbatches=4),
  Case(topology="gpu:h100:1024", mesh=_mesh(2, 64, 8)),
  Case(
    topology="gpu:h100:4096",
    mesh=_mesh(8, 64, 8),
    rows=1024,
    teacher_rows=4096,
  ),
  Case(topology="v5p:4x8x8", mesh=_mesh(1, 64, 4), microbatches=2),
  Case(
    topology="v5p:16x16x16",
    mesh=_mesh(4, 256, 4),
    rows=1024,
    teacher_rows=4096,
  ),
)


def plan(case: Case) -> dict[str, Any]:
  """The command's output as JSON."""
  overrides = [f"--config.{k}={v}" for k, v in case.overrides().items()]
  done = subprocess.run(
    [
      *(sys.executable, "-m", "analogjax.main", "plan", f"--config={CONFIG}"),
      *(f"--topology={case.topology}", "--json", *overrides),
    ],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return json.loads(done.stdout)


def _number(value: float | None) -> str:
  """Three digits, or the text for a missing value."""
  if value is None:
    return "-"
  return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def memory_table(plans: Mapping[Case, Mapping[str, Any]]) -> list[str]:
  """Memory of a device in each program, and the resource its step waits for."""
  stages = ("cache", "train.pretrain", "train.distill")
  lines = [f"| chips | mesh | {' | '.join(stages)} | of |"]
  lines.append("|---|---|---|---|---|---|")
  for case, found in plans.items():
    (of,) = found["topologies"]
    mesh = " x ".join(f"{a} {n}" for a, n in case.mesh.items() if n > 1)
    cells = [case.topology, mesh or "one"]
    by_name = {stage["stage"]: stage for stage in of["stages"]}
    for name in stages:
      stage = by_name[name]
      if stage["too_large"]:
        cells.append("too large")
        continue
      gb = f"{stage['memory_bytes'] / 1e9:.1f} GB"
      if not stage["fits"]:
        cells.append(f"{gb}: too large")
        continue
      bound = stage["bound"]
      cells.append(f"{gb}; {bound['binds']} {100 * bound['mfu']:.0f} %")
    limit = of["topology"]["chip"]["memory_bytes"] / 1e9
    lines.append(f"| {' | '.join(cells)} | {limit:.0f} GB |")
  return lines


def cost_table(plans: Mapping[Case, Mapping[str, Any]]) -> list[str]:
  """Days and dollars by stage, and the load on the cache's store."""
  head = (
    *("chips", "cache, days", "pretrain", "distill", "all, days"),
    *("device-hours", "million dollars", "cache read, GB/s", "requests/s"),
  )
  lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
  for case, found in plans.items():
    (of,) = found["topologies"]
    if not of["fits"]:
      continue
    costs = {cost["stage"]: cost for cost in of["costs"]}
    days = [
      costs[stage]["days"]
      for stage in ("cache", "train.pretrain", "train.distill")
    ]
    total, cache = of["total"], of["cache"]
    dollars = total["dollars"]
    cells = [
      *map(_number, (*days, total["days"], total["device_hours"])),
      _number(dollars and dollars / 1e6),
      _number(cache["read_bytes_per_second"]["distill"] / 1e9),
      _number(cache["read_requests_per_second"]["distill"]),
    ]
    lines.append(f"| {case.topology} | {' | '.join(cells)} |")
  return lines


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  names = [case.topology for case in CASES]
  parser.add_argument("--only", action="append", choices=names)
  parser.add_argument("--write-docs", action="store_true")
  args = parser.parse_args(argv)
  chosen = [c for c in CASES if not args.only or c.topology in args.only]
  plans = {}
  for case in chosen:
    plans[case] = plan(case)
    print(case.topology, file=sys.stderr, flush=True)
  text = "\n".join([*memory_table(plans), "", *cost_table(plans)])
  print(text)
  if args.write_docs:
    docs_page.put(DOCS, "scaling", text)


if __name__ == "__main__":
  main()
