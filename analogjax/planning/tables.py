"""A plan as tables of 80 columns."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import itertools
from typing import Any

import rich.box
import rich.console
import rich.table

from analogjax.planning.memory import Fit
from analogjax.planning.program_cost import ProgramCost
from analogjax.planning.report import Report
from analogjax.planning.roofline import RESOURCES

_MEMORY = ("resident", "argument", "temporary", "output", "code")


def print_outline(
  plan: Mapping[str, Any], console: rich.console.Console
) -> None:
  """Prints what does not depend on machines; see closed_form.make_outline."""
  table = _table("parameters", "teacher", "student")
  for key in ("embedding", "layers", "final_norm", "head", "parameters"):
    cells = (f"{plan[model][key]:,}" for model in ("teacher", "student"))
    table.add_row("total" if key == "parameters" else key, *cells)
  _print(table, console)
  window = plan["size_window"]
  colour = "green" if window["inside"] else "red"
  console.print(f"Size window: {window['verdict']}.", style=colour)
  if not window["inside"]:
    refuses = window["policy"] == "refuse"
    console.print(
      "student.size_window='refuse': the other stages will refuse this student."
      if refuses
      else "student.size_window='warn': it can be trained, not released.",
      style=colour,
    )

  cache = plan["cache"]
  table = _table("stage", "steps", "tokens", "epochs", "compute")
  flops = {name: si(n, "FLOP") for name, n in plan["flops"].items()}
  table.add_row("cache", "", f"{cache['tokens']:,}", "", flops["cache"])
  for name, phase in plan["phases"].items():
    epochs = "" if phase["epochs"] is None else f"{phase['epochs']:.3g}"
    table.add_row(
      f"train.{name}",
      f"{phase['steps']:,}",
      f"{phase['tokens']:,}",
      epochs,
      flops[f"train.{name}"],
    )
  held_out = f"{cache['held_out_tokens']:,}"
  table.add_row("measure", "", held_out, "", flops["measure"])
  table.add_row("total", "", "", "", flops["total"])
  _print(table, console)

  console.print(
    f"Cache: {cache['rows']:,} rows, {cache['slots']} slots a token;"
    f" {cache['bytes_per_token_in_memory']} bytes a token in a batch, about"
    f" {cache['expected_bytes_per_token']:.1f} on disk"
    f" ({si(cache['expected_bytes'], 'B')})."
  )


def print_reports(
  reports: Sequence[Report],
  gates: Sequence[Mapping[str, Any]],
  console: rich.console.Console,
) -> None:
  """Prints plans for machines: side by side, then each."""
  _print_comparison(reports, console)
  for report in reports:
    topology = report.topology
    mesh = " x ".join(f"{a}={n}" for a, n in report.mesh.items() if n > 1)
    console.print()
    console.print(
      f"{topology.name}: {topology.num_devices} devices, mesh {mesh or 'of 1'}",
      style="bold",
    )
    console.print(f"Chip: {topology.chip.source}.")
    _print_memory(report.programs, report.fits, console)
    _print_bounds(report, console)
    _print_exchanges(report, console)
    _print_costs(report, console)
    _print_cache(report, console)
    _print_table_1(report, console)
    if report.search is not None:
      _print_search(report, console)
  console.print()
  for gate in gates:
    says = {True: "passes", False: "fails", None: "not decided here"}
    colour = {True: "green", False: "red", None: "yellow"}[gate["passes"]]
    console.print(
      f"Gate, {gate['gate']}: {says[gate['passes']]}; {gate['because']}.",
      style=colour,
    )


def _print_comparison(
  reports: Sequence[Report], console: rich.console.Console
) -> None:
  table = _table("", *(report.topology.name for report in reports))

  def line(name, value):
    table.add_row(name, *(value(report) for report in reports))

  def of_total(value):
    return lambda r: "" if r.total is None else value(r.total)

  line("devices", lambda r: f"{r.topology.num_devices:,}")
  line(
    "mesh",
    lambda r: " x ".join(f"{a} {n}" for a, n in r.mesh.items() if n > 1) or "1",
  )
  line("fits", lambda r: "yes" if r.is_whole else "NO")
  line("largest program", lambda r: _largest(r))
  line("of its memory", lambda r: si(r.topology.chip.memory_bytes, "B"))
  line("MFU, expected", of_total(lambda t: _percent(t.mfu)))
  line("days", of_total(lambda t: _short(t.days)))
  line("device-hours", of_total(lambda t: _short(t.device_hours)))
  line("dollars", of_total(lambda t: _dollars(t.dollars)))
  line("MWh", of_total(lambda t: _short(t.kwh / 1000)))
  _print(table, console)
  if not all(report.is_whole for report in reports):
    console.print(
      "Where not everything fits, totals are of the stages that could be made."
    )


def _largest(report: Report) -> str:
  known = [f.memory_bytes for f in report.fits if f.memory_bytes is not None]
  return si(max(known), "B") if known else "?"


def print_mesh(
  plan: Mapping[str, Any],
  programs: Sequence[ProgramCost],
  console: rich.console.Console,
) -> None:
  """Prints the memory of a device of the config's mesh."""
  mesh = dict(plan["mesh"])
  devices = mesh.pop("devices")
  axes = " x ".join(f"{axis}={size}" for axis, size in mesh.items())
  if programs:
    _print_memory(programs, [], console)
  noun = "device" if devices == 1 else "devices"
  console.print(f"Mesh: {axes}, {devices} {noun}.")


def _print_memory(
  programs: Sequence[ProgramCost],
  fits: Sequence[Fit],
  console: rich.console.Console,
) -> None:
  """Prints the memory of programs, beside the limit if there is one."""
  sizes = [f.memory_bytes for f in fits] or [p.memory_bytes for p in programs]
  most = max((size for size in sizes if size is not None), default=0)
  unit, scale = ("GB", 1e-9) if most >= 1e9 else ("MB", 1e-6)
  columns = ["beside", "arguments", "temporary", "outputs", "code", "all"]
  table = _table(f"memory, {unit}", *columns, *(["limit"] if fits else []))
  for i, program in enumerate(programs):
    parts = [getattr(program, f"{part}_bytes") for part in _MEMORY]
    cells = [_short(part * scale) for part in parts]
    if program.too_large:
      cells = ["-"] * len(parts)
    size, style = sizes[i], ""
    cells.append("too large" if size is None else _short(size * scale))
    if fits:
      limit = fits[i].limit_bytes
      cells.append("" if size is None else _percent(size / limit))
      style = "" if fits[i].fits else "red"
    table.add_row(program.stage, *cells, style=style)
  _print(table, console)
  for how in dict.fromkeys(program.how for program in programs):
    console.print(f"Figures: {how}.")
  for group in _alike(programs, lambda p: (p.largest, p.too_large)):
    if group[0].largest:
      most = [f"{what} {si(size, 'B')}" for what, size in group[0].largest[:4]]
      stages = ", ".join(program.stage for program in group)
      console.print(f"Largest of {stages}: {'; '.join(most)}.")
  for fit in fits:
    if not fit.fits:
      _print_remedies(fit, console)


def _print_remedies(fit: Fit, console: rich.console.Console) -> None:
  console.print(f"Does not fit: {fit.stage}.", style="red")
  if fit.said:
    console.print(f"  {fit.said.splitlines()[0]}", style="red")
  for remedy in fit.remedies:
    fields = " ".join(_fields(remedy.changes))
    notes = [remedy.note] if remedy.note else []
    if remedy.factor > 1:
      notes.append(f"counted times {remedy.factor:.3g}, which was too little")
    console.print(
      f"  Would fit with {fields}: {si(remedy.memory_bytes, 'B')} by formulas"
      + (f" ({'; '.join(notes)})." if notes else ".")
    )
  if not fit.remedies:
    console.print("  No single change was found that is enough.")


def _print_bounds(report: Report, console: rich.console.Console) -> None:
  if not report.bounds:
    return
  unit, scale = _unit(bound.serial_seconds for bound in report.bounds.values())
  table = _table(f"step, {unit}", *RESOURCES, "bound", "serial", "MFU", "binds")
  for stage, bound in report.bounds.items():
    parts = [bound.parts.get(name) for name in RESOURCES]
    parts += [bound.seconds, bound.serial_seconds]
    cells = ["?" if s is None else _short(s * scale) for s in parts]
    table.add_row(stage, *cells, _percent(bound.mfu), bound.binds)
  _print(table, console)
  if any(not bound.is_whole for bound in report.bounds.values()):
    console.print("Exchanges in loops of unknown length are counted once.")


def _print_exchanges(report: Report, console: rich.console.Console) -> None:
  table = _table("exchanged in a step", "what", "along", "runs", "sent")
  table.columns[1].justify = table.columns[2].justify = "left"
  for group in _alike(report.programs, lambda p: p.exchanges):
    most = sorted(group[0].exchanges, key=lambda e: -e.sent_bytes)[:6]
    stages = [program.stage for program in group] if most else []
    for stage, exchange in itertools.zip_longest(stages, most):
      if exchange is None:
        table.add_row(stage, "(the same)")
        continue
      more = "" if exchange.is_whole else " or more"
      table.add_row(
        stage,
        exchange.kind,
        " x ".join(exchange.axes) or "slices",
        f"{exchange.runs:,}{more}",
        si(exchange.sent_bytes, "B"),
      )
  if table.row_count:
    _print(table, console)


def _alike(
  programs: Sequence[ProgramCost], what: Callable[[ProgramCost], Any]
) -> list[list[ProgramCost]]:
  """Groups of programs for which `what` gives the same."""
  groups: list[list[ProgramCost]] = []
  for program in programs:
    same = [group for group in groups if what(group[0]) == what(program)]
    if same:
      same[0].append(program)
    else:
      groups.append([program])
  return groups


def _print_costs(report: Report, console: rich.console.Console) -> None:
  if report.total is None:
    return
  steps = [c.step_seconds for c in report.costs if c.step_seconds is not None]
  unit, scale = _unit(steps)
  columns = ("tokens/s", "MFU", "days", "device-h", "dollars", "kWh")
  table = _table("expected", f"step, {unit}", *columns)
  for cost in (*report.costs, report.total):
    step = cost.step_seconds
    table.add_row(
      cost.stage,
      "" if step is None else _short(step * scale),
      "" if cost is report.total else si(cost.tokens_per_second, ""),
      _percent(cost.mfu),
      _short(cost.days),
      _short(cost.device_hours),
      _dollars(cost.dollars),
      _short(cost.kwh),
    )
  _print(table, console)
  if report.total.dollars is None:
    chip = report.topology.chip.name
    console.print(f"plan.{chip}.dollars_per_hour is 0 or missing: no dollars.")


def _print_cache(report: Report, console: rich.console.Console) -> None:
  cache = report.cache
  console.print(
    f"Cache: {si(cache.bytes, 'B')} in {cache.objects:,} objects of"
    f" {si(cache.bytes_per_object, 'B')}; {_dollars(cache.dollars)} dollars."
  )
  if cache.write_requests_per_second and cache.write_bytes_per_second:
    console.print(
      f"Filling it writes {si(cache.write_bytes_per_second, 'B')}/s in"
      f" {cache.write_requests_per_second:.3g} requests/s."
    )
  for name, speed in cache.read_bytes_per_second.items():
    console.print(
      f"train.{name} reads {si(speed, 'B')}/s in"
      f" {cache.read_requests_per_second[name]:,.3g} requests/s."
    )


def _print_table_1(report: Report, console: rich.console.Console) -> None:
  table = _table(
    "table 1 of the paper", "device-hours", "dollars", "in the paper"
  )
  for row in report.table_1:
    hours = "-" if row.device_hours is None else _short(row.device_hours)
    note = "yes" if row.is_paper_s else "no"
    note += f"; {row.note}" if row.note else ""
    table.add_row(row.step, hours, _dollars(row.dollars), note)
  _print(table, console)


def _print_search(report: Report, console: rich.console.Console) -> None:
  found = report.search
  assert found is not None
  console.print(
    f"Search: {found.counted:,} configs by formulas, {found.fit:,} meshes"
    f" with a remat fit, {len(found.trials)} were made."
  )
  for trial in found.trials:
    fields = " ".join(_fields(trial.changes))
    days = None if trial.seconds is None else trial.seconds / 86_400
    took = "" if days is None else f" {_short(days)} days,"
    verdict = "fits" if trial.fits else "does not fit"
    console.print(
      f"  {verdict},{took} {trial.how}: {fields}"
      + (f" ({trial.said})" if trial.said else "")
    )
  if found.best is None:
    console.print("Nothing was found that fits.", style="red")


def _fields(changes: Mapping[str, Any]) -> list[str]:
  return [f"--config.{path}={value}" for path, value in changes.items()]


def _percent(part: float) -> str:
  return f"{100 * part:.0f} %" if part >= 0.0995 else f"{100 * part:.1g} %"


def _dollars(dollars: float | None) -> str:
  if dollars is None:
    return "?"
  return f"{dollars:,.0f}" if dollars >= 10 else f"{dollars:.2g}"


def _short(number: float) -> str:
  if number >= 100:
    return f"{number:,.0f}"
  return f"{number:.3g}" if number >= 0.01 or not number else f"{number:.1g}"


def _unit(seconds: Iterable[float]) -> tuple[str, float]:
  """A unit for all of these, and the factor from seconds to it."""
  return ("s", 1.0) if max(seconds) >= 10 else ("ms", 1000.0)


def _print(table: rich.table.Table, console: rich.console.Console) -> None:
  """Prints a table at its full width, if need be beyond the console's."""
  usual = console.width
  wide = console.options.update(width=1000)
  console.width = max(usual, console.measure(table, options=wide).maximum)
  console.print(table)
  console.width = usual


def _table(first: str, *columns: str) -> rich.table.Table:
  """An empty table of names on the left and numbers."""
  table = rich.table.Table(
    box=rich.box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
  )
  table.add_column(first, no_wrap=True)
  for column in columns:
    table.add_column(column, justify="right")
  return table


def si(count: float, unit: str) -> str:
  """A number with three digits and a prefix, e.g. 1.23 GB."""
  for prefix in ("", "k", "M", "G", "T", "P", "E", "Z"):
    if count < 999.5:
      return f"{count:.3g} {prefix}{unit}".rstrip()
    count /= 1000
  return f"{count:,.3g} Y{unit}"
