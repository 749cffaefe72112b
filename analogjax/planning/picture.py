"""A plan for machines as a picture: memory, times and cost by stage."""

from collections.abc import Sequence
import math
from pathlib import Path

from matplotlib import figure
from matplotlib.axes import Axes

from analogjax.planning.report import Report
from analogjax.planning.roofline import RESOURCES

_MEMORY = (
  ("beside it", "resident_bytes", "#9d9d9d"),
  ("arguments", "argument_bytes", "#4c78a8"),
  ("temporary", "temporary_bytes", "#f58518"),
  ("outputs", "output_bytes", "#54a24b"),
  ("code", "code_bytes", "#b279a2"),
)
_COLOURS = ("#4c78a8", "#72b7b2", "#f58518", "#e45756")  # Of RESOURCES.


def draw(reports: Sequence[Report], path: Path) -> None:
  """Writes a PNG: a line of three panels for each topology."""
  height = max(3.4, 0.9 + 0.42 * max(len(r.programs) for r in reports))
  fig = figure.Figure(
    figsize=(14, height * len(reports)), layout="constrained", dpi=110
  )
  axes = fig.subplots(len(reports), 3, squeeze=False)
  for (memory, times, hours), report in zip(axes, reports, strict=True):
    _memory(memory, report)
    _times(times, report)
    _hours(hours, report)
  fig.savefig(path, format="png")


def _memory(ax: Axes, report: Report) -> None:
  stages = [program.stage for program in report.programs]
  left = [0.0] * len(stages)
  for label, field, colour in _MEMORY:
    gb = [getattr(program, field) / 1e9 for program in report.programs]
    ax.barh(stages, gb, left=left, label=label, color=colour)
    left = [a + b for a, b in zip(left, gb, strict=True)]
  for i, fit in enumerate(report.fits):
    if not fit.fits:
      size = fit.memory_bytes
      says = "too large" if size is None else f"{size / 1e9:.3g} GB: too large"
      ax.text(left[i], i, f" {says}", va="center", color="#c00000")
  limit = report.fits[0].limit_bytes / 1e9
  end = max(left)
  # A line far off to the right would press the bars together.
  if limit < 8 * end:
    ax.axvline(limit, color="#c00000", linestyle="--", label="limit")
    end = max(end, limit)
  ax.set_xlabel(f"GB of a device, of {limit:.3g}")
  ax.set_title(f"{report.topology.name}: memory")
  _finish(ax, end)


def _times(ax: Axes, report: Report) -> None:
  bounds = report.bounds
  width = 0.8 / len(RESOURCES)
  for i, (name, colour) in enumerate(zip(RESOURCES, _COLOURS, strict=True)):
    at = [row + (i - 1.5) * width for row in range(len(bounds))]
    seconds = [bound.parts.get(name, math.nan) for bound in bounds.values()]
    ax.barh(at, seconds, height=width, label=name, color=colour)
  for row, bound in enumerate(bounds.values()):
    ax.text(bound.seconds, row, f" MFU <= {100 * bound.mfu:.0f} %", va="center")
  ax.set_yticks(range(len(bounds)), list(bounds))
  ax.set_xlabel("least seconds of a step")
  ax.set_title("what a step waits for")
  _finish(ax, max((bound.seconds for bound in bounds.values()), default=0.0))


def _hours(ax: Axes, report: Report) -> None:
  ax.barh(
    [cost.stage for cost in report.costs],
    [cost.device_hours for cost in report.costs],
    color="#4c78a8",
  )
  for row, cost in enumerate(report.costs):
    dollars = "" if cost.dollars is None else f", {cost.dollars:,.3g} dollars"
    says = f" {cost.days:.3g} days{dollars}"
    ax.text(cost.device_hours, row, says, va="center")
  ax.margins(x=0.5)
  ax.set_xlabel("device-hours")
  total = report.total
  ax.set_title(
    "expected" if total is None else f"expected: {total.days:.3g} days in all"
  )
  ax.invert_yaxis()
  ax.locator_params(axis="x", nbins=4)
  ax.spines[["top", "right"]].set_visible(False)


def _finish(ax: Axes, end: float) -> None:
  """Stages from the top; a legend to the right of bars as long as `end`."""
  ax.invert_yaxis()
  ax.set_xlim(0, 1.6 * end or 1)
  ax.locator_params(axis="x", nbins=4)
  ax.spines[["top", "right"]].set_visible(False)
  ax.legend(fontsize="small", frameon=False, loc="lower right")
