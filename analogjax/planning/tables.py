"""What a plan knows in closed form, as tables of 80 columns."""

from collections.abc import Mapping
from typing import Any

import rich.box
import rich.console
import rich.table


def print_outline(
  plan: Mapping[str, Any], console: rich.console.Console
) -> None:
  """Writes what does not depend on machines."""
  table = make_table("parameters", "teacher", "student")
  for key in ("embedding", "layers", "final_norm", "head", "parameters"):
    cells = (f"{plan[model][key]:,}" for model in ("teacher", "student"))
    table.add_row("total" if key == "parameters" else key, *cells)
  console.print(table)
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
  table = make_table("stage", "steps", "tokens", "epochs", "compute")
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
  console.print(table)

  console.print(
    f"Cache: {cache['rows']:,} rows, {cache['slots']} slots a token;"
    f" {cache['bytes_per_token_in_memory']} bytes a token in a batch, about"
    f" {cache['expected_bytes_per_token']:.1f} on disk"
    f" ({si(cache['expected_bytes'], 'B')})."
  )


def print_memory(
  plan: Mapping[str, Any], console: rich.console.Console
) -> None:
  """Writes the arrays of a device, and what will be refused on the mesh."""
  mesh = dict(plan["mesh"])
  devices = mesh.pop("devices")
  axes = " x ".join(f"{axis}={size}" for axis, size in mesh.items())
  table = make_table(
    "per device",
    *("params", "gradients", "moments", "activations", "logits", "total"),
  )
  for stage, parts in plan["memory_bytes_per_device"].items():
    cells = [
      si(parts[c.header], "B") if c.header in parts else ""
      for c in table.columns[1:]
    ]
    table.add_row(stage, *cells)
  console.print(table)
  noun = "device" if devices == 1 else "devices"
  console.print(f"Mesh: {axes}, {devices} {noun}. Activations: an estimate.")
  for stage, parts in plan["memory_bytes_per_device"].items():
    if "teacher" in parts:
      size = si(parts["teacher"], "B")
      console.print(f"The total of {stage} has the live teacher, {size}.")
  for problem in plan["problems"]:
    console.print(f"Will be refused: {problem}", style="red")


def make_table(first: str, *columns: str) -> rich.table.Table:
  """A table of numbers beside names."""
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
