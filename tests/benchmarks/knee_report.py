"""Table, JSON and plot of the results of knee.py."""

from collections.abc import Mapping, Sequence
import json
import math
from pathlib import Path
import statistics
from typing import Any

from grid_arms import Arm
from grid_run import interval, read_results


def summarise(
  arms: Mapping[str, Arm], lines: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
  """One entry an arm, by falling KL.

  "kept" is the part of the way from hard labels to the whole teacher, both on
  as many rows, and paired: each seed has its own floor and top.
  """
  by = {(line["arm"], line["seed"]): line for line in lines}
  out = []
  for name, arm in arms.items():
    there = sorted(seed for found, seed in by if found == name)
    if not there:
      continue
    got = [by[name, seed] for seed in there]
    floor, top = (
      next(n for n, a in arms.items() if a.kind == k and a.data == arm.data)
      for k in ("hard", "dense")
    )
    kept = []
    for seed in there:
      if (floor, seed) in by and (top, seed) in by:
        ends = by[floor, seed]["kl"], by[top, seed]["kl"]
        kept.append((ends[0] - by[name, seed]["kl"]) / (ends[0] - ends[1]))
    entry: dict[str, Any] = {"arm": name, "seeds": len(there)}
    entry["kept"], entry["kept_half_width"] = interval(kept)
    for field in ("kl", "cross_entropy", "agreement"):
      values = [line[field] for line in got]
      entry[field], entry[f"{field}_half_width"] = interval(values)
    for field in ("bytes_per_token", "ids_per_token", "cache_bytes"):
      entry[field] = statistics.fmean(line[field] for line in got)
    out.append(entry)
  return sorted(out, key=lambda e: -e["kl"])


def to_markdown(summary: Sequence[Mapping[str, Any]]) -> str:
  head = "arm|seeds|ids|B/token|cache, MB|KL, nats|agreement|kept, %"
  head = head.split("|")
  lines = [head, ["---"] * len(head)]
  for e in summary:
    cells = [
      e["arm"],
      f"{e['seeds']}",
      f"{e['ids_per_token']:.1f}",
      f"{e['bytes_per_token']:.1f}",
      f"{e['cache_bytes'] / 1e6:.2f}",
      _pm(e, "kl"),
      f"{e['agreement']:.3f}",
      _percent(e["kept"], e["kept_half_width"]),
    ]
    lines.append(cells)
  return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _pm(entry: Mapping[str, Any], field: str) -> str:
  half_width = entry[f"{field}_half_width"]
  more = "" if math.isnan(half_width) else f" +- {half_width:.3f}"
  return f"{entry[field]:.3f}{more}"


def _percent(value: float, half_width: float) -> str:
  if math.isnan(value):
    return "-"
  more = "" if math.isnan(half_width) else f" +- {100 * half_width:.1f}"
  return f"{100 * value:.1f}{more}"


def plot(
  arms: Mapping[str, Arm], summary: Sequence[Mapping[str, Any]], path: Path
) -> None:
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot as plt

  figure, axes = plt.subplots(figsize=(8, 5))
  for e in summary:
    if not e["bytes_per_token"]:
      axes.axhline(e["kl"], linestyle="--", linewidth=0.8, color="gray")
      axes.text(1, e["kl"], e["arm"], fontsize=7, verticalalignment="bottom")
      continue
    arm = arms[e["arm"]]
    plain = arm == Arm(kind="threshold", value=arm.value)
    size = e["bytes_per_token"] * arm.data
    axes.errorbar(
      size, e["kl"], e["kl_half_width"], fmt="o" if plain else "s", capsize=2
    )
    axes.annotate(e["arm"], (size, e["kl"]), fontsize=7)
  axes.set_xscale("log")
  axes.set_xlabel("bytes kept for each token of the single set of rows")
  axes.set_ylabel("held-out KL to the teacher, nats per token")
  figure.tight_layout()
  figure.savefig(path, dpi=150)
  plt.close(figure)


def report(
  arms: Mapping[str, Arm], workdir: Path, learning_rate: float
) -> None:
  lines = read_results(workdir)
  lines = [line for line in lines if line["learning_rate"] == learning_rate]
  summary = summarise(arms, lines)
  (workdir / "knee.json").write_text(json.dumps(summary, indent=2) + "\n")
  table = to_markdown(summary)
  (workdir / "knee.md").write_text(table)
  plot(arms, summary, workdir / "knee.png")
  print(table)
