"""cache --inspect: reports the caches, as a table, JSON and a picture."""

from collections.abc import Sequence
import dataclasses
from pathlib import Path
from typing import Any

import jax
import matplotlib.figure
from ml_collections import ConfigDict
import numpy as np
import rich.table

from analogjax.cache import damage, logit_cache
from analogjax.cli import progress
from analogjax.config import loading, schema
from analogjax.run.run import Run

_MOST_ROWS = 4096  # Rows of one cache that are read.


def run(cfg: ConfigDict, workdir: Path) -> None:
  """Writes workdir/<cache>_inspect.json and .png, and prints the table."""
  if jax.process_index() != 0:
    return
  run = Run(schema.to_sections(cfg), workdir)
  for name in run.cache_names:
    cache = logit_cache.open_cache(run.cache_place(name))
    summary = damage.summarize(cache, _some_objects(cache))
    report = _report(cache, summary)
    loading.write_json(workdir / f"{name}_inspect.json", report)
    _draw(summary, report, workdir / f"{name}_inspect.png")
    _print(name, report)


def _some_objects(cache: logit_cache.LogitCache) -> Sequence[range]:
  """Whole objects, spread over the cache, of about _MOST_ROWS rows."""
  done = cache.committed()
  whole = [o for o in cache.objects() if done[o.start : o.stop].all()]
  count = max(1, _MOST_ROWS // cache.manifest.rows_per_object)
  if len(whole) <= count:
    return whole
  at = np.linspace(0, len(whole) - 1, count).round().astype(int)
  return [whole[i] for i in at]


def _report(
  cache: logit_cache.LogitCache, summary: damage.Summary
) -> dict[str, Any]:
  values = dataclasses.asdict(summary)
  for field in ("entropy_nats", "ids"):
    counts, edges = np.histogram(values.pop(field), bins=_edges(field))
    values[f"{field}_histogram"] = {
      "edges": edges.tolist(),
      "counts": counts.tolist(),
    }
  values["holes"] = [[hole.start, hole.stop] for hole in summary.holes]
  # An empty cache has no means; JSON has no NaN.
  for field, value in values.items():
    if isinstance(value, float) and not np.isfinite(value):
      values[field] = None
  return {
    "format": "analogjax.cache_inspection",
    "format_version": 1,
    "location": str(cache.location),
    "manifest": dataclasses.asdict(cache.manifest),
    **values,
  }


def _edges(field: str) -> np.ndarray:
  return (
    np.arange(0, 14.25, 0.25)
    if field == "entropy_nats"
    else (np.concatenate([np.arange(0, 64), [128, 256, 512, 1026]]) - 0.5)
  )


def _print(name: str, report: dict[str, Any]) -> None:
  m = report["manifest"]
  table = rich.table.Table(title=f"{name}: {report['location']}")
  table.add_column("what")
  table.add_column("value", justify="right")
  parameter = {
    "threshold": f"tau {m['tau']}",
    "random": f"{m['num_draws']} draws",
    "topk": f"{m['top_k']} ids",
  }[m["kind"]]
  missing = sum(stop - start for start, stop in report["holes"])
  rows = [
    ("kind", f"{m['kind']}, {parameter}"),
    ("rows of tokens", f"{report['num_rows']:,} of {m['sequence_length']:,}"),
    ("rows not committed", f"{missing:,}"),
    ("rows looked at", f"{report['sampled_rows']:,}"),
    ("positions with a record", _share(report["captured"])),
    ("positions x depths of a Gram", _gram(m)),
    ("ids per record", _number(report["ids_per_record"])),
    ("of these with a value", _number(report["head_ids_per_record"])),
    ("mass of these", _share(report["head_mass"])),
    ("teacher's entropy, nats", _number(report["mean_entropy_nats"])),
    ("its cross-entropy, nats", _number(report["label_nats"])),
    ("gradient noise, at most", _number(report["noise"], 5)),
    ("gradient noise, measured", _number(report["noise_between_replicas"], 5)),
  ]
  for what, value in rows:
    table.add_row(what, value)
  table.add_section()
  for array, size in report["bytes_per_token"].items():
    table.add_row(f"bytes per token: {array}", f"{size:.2f}")
  total = sum(report["bytes_per_token"].values())
  table.add_row("bytes per token, all", f"{total:.2f}")
  table.add_row(
    "all but tokens", f"{total - report['bytes_per_token']['tokens']:.2f}"
  )
  progress.console().print(table)


def _gram(m: dict[str, Any]) -> str:
  depths = len(m["gram_depths"])
  return f"{m['gram_positions']} x {depths}" if depths else "-"


def _number(value: float | None, digits: int = 3) -> str:
  return "-" if value is None else f"{value:,.{digits}f}"


def _share(value: float | None) -> str:
  return "-" if value is None else f"{value:.2%}"


def _draw(summary: damage.Summary, report: dict[str, Any], path: Path) -> None:
  figure = matplotlib.figure.Figure(figsize=(12, 3.6), layout="constrained")
  left, middle, right = figure.subplots(1, 3)
  left.hist(summary.entropy_nats, bins=_edges("entropy_nats"), color="C0")
  left.set(xlabel="teacher's entropy, nats", ylabel="positions")
  most = max(int(summary.ids.max(initial=0)), 1)
  middle.hist(summary.ids, bins=np.arange(most + 2) - 0.5, color="C1")
  middle.set(xlabel="ids in a record", ylabel="positions")
  sizes = sorted(summary.bytes_per_token.items(), key=lambda item: item[1])
  right.barh([name for name, _ in sizes], [s for _, s in sizes], color="C2")
  right.set(xlabel=f"bytes per token, {sum(s for _, s in sizes):.2f} in all")
  figure.suptitle(f"{report['location']}: {report['manifest']['kind']}")
  figure.savefig(path, dpi=110)
