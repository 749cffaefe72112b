"""Draws plans for machines: memory, times and cost by stage."""

from collections.abc import Sequence
import math
from pathlib import Path

from matplotlib import figure, ticker
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
_COLOURS = ("#4c78a8", "#72b7b2", "#f58518", "#e45756")  # Colours of RESOURCES.
_RED = "#c00000"


def draw(reports: Sequence[Report], path: Path) -> None:
  """Writes a PNG: a row of three panels for each topology."""
  height = max(3.8, 1.5 + 0.42 * max(len(r.programs) for r in reports))
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
      ax.text(left[i], i, f" {says}", va="center", color=_RED)
  limit = report.fits[0].limit_bytes / 1e9
  end = max(left)
  # A line far to the right would squeeze the bars.
  if limit < 8 * end:
    ax.axvline(limit, color=_RED, linestyle="--", label="limit")
    end = max(end, limit)
  ax.set_xlabel(f"GB on a device; the limit is {limit:.3g}")
  ax.set_title(f"{report.topology.name}: memory")
  _finish(ax, 1.6 * end)


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
  ax.set_title("time that a step needs of each resource")
  _finish(ax, 1.6 * max((b.seconds for b in bounds.values()), default=0.0))


def _hours(ax: Axes, report: Report) -> None:
  hours = [cost.device_hours for cost in report.costs]
  ax.barh([cost.stage for cost in report.costs], hours, color="#4c78a8")
  for row, cost in enumerate(report.costs):
    says = duration(cost.seconds)
    if cost.dollars is not None:
      says += f", ${cost.dollars:,.0f}"
    ax.text(cost.device_hours, row, f" {says}", va="center")
  ax.set_xlabel("device-hours")
  title = "expected"
  if report.total is not None:
    title += f": {duration(report.total.seconds)}"
    if report.total.dollars is not None:
      title += f" and ${report.total.dollars:,.0f} in all"
  ax.set_title(title)
  _finish(ax, 1.9 * max(hours, default=0.0))


def duration(seconds: float) -> str:
  """Seconds in the largest unit of which there is one, e.g. 3.2 days."""
  for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
    if seconds >= size:
      number = seconds / size
      return (
        f"{number:,.0f} {unit}" if number >= 100 else f"{number:.2g} {unit}"
      )
  return f"{seconds:.2g} seconds"


def _finish(ax: Axes, end: float) -> None:
  """Puts stages in order from the top, and the legend below the axis."""
  ax.invert_yaxis()
  ax.set_xlim(0, end or 1)
  ax.locator_params(axis="x", nbins=4)
  ax.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,g}"))
  ax.spines[["top", "right"]].set_visible(False)
  handles, labels = ax.get_legend_handles_labels()
  if handles:
    ax.legend(
      handles,
      labels,
      fontsize="small",
      frameon=False,
      loc="upper center",
      bbox_to_anchor=(0.4, -0.17),
      ncols=len(handles),
      columnspacing=1.0,
      handlelength=1.0,
    )
