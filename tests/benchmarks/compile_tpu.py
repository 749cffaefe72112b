"""Compiles training steps for absent TPUs: memory, traffic.

It needs only libtpu (`pip install libtpu`; or TPU_LIBRARY_PATH names its
libtpu.so). A line takes two minutes on two cores.

  python tests/benchmarks/compile_tpu.py --list
  python tests/benchmarks/compile_tpu.py --only=8b --only=loss-1
  python tests/benchmarks/compile_tpu.py --json=compile_tpu.json --write-docs
"""

import argparse
from collections.abc import Sequence
import dataclasses
import datetime
import json
import os
from pathlib import Path
import re
import sys
import time
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # It would look for a TPU's own machine.

import jax  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec as P  # noqa: E402
import students  # noqa: E402

from analogjax.cache import teacher_programs
from analogjax.distributed import sharding  # noqa: E402
from analogjax.planning import (  # noqa: E402
  collectives,
  compiled as compiling,
  hlo as hlo_lib,
)
from analogjax.training import losses

_DOCS = Path(__file__).parents[2] / "docs" / "benchmarks.md"
_BEGIN, _END = "<!-- compile tpu: begin -->", "<!-- compile tpu: end -->"
# HBM of a chip, GB. Source: Google Cloud, "TPU v5p" and "TPU v5e".
_HBM = {"v5p": 95, "v5e": 16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
  """A program to compile."""

  name: str
  topology: str  # As get_topology_desc has it: "v5p:4x4x4".
  student: str  # Of students.SHAPES.
  mesh: dict[str, int]
  rows: int  # Of a batch.
  L: int
  remat: str = "full"
  chunk: int = 1024
  microbatches: int = 1
  attention: str = "splash"
  whole_step: bool = True  # False: the loss and its gradient alone.

  def __str__(self):
    mesh = " x ".join(f"{a}={n}" for a, n in self.mesh.items()) or "one chip"
    if not self.whole_step:
      return f"loss alone, {mesh}, {self.rows * self.L:,} tokens"
    parts = "" if self.microbatches == 1 else f" in {self.microbatches} parts"
    return (
      f"{self.student}, {mesh}, {self.rows} x {self.L:,}{parts}, {self.remat},"
      f" {self.attention}"
    )


def _lines():
  v5p = dict(topology="v5p:4x4x4", student="8B", L=8192)
  split = dict(mesh=dict(fsdp=16, tensor=4), rows=16)
  yield Line(name="8b", **split, **v5p)
  yield Line(name="8b-dots", remat="dots", **split, **v5p)
  yield Line(name="8b-xla", attention="xla", **split, **v5p)
  short = v5p | split | dict(rows=32, L=4096)
  yield Line(name="8b-xla-L4096", attention="xla", **short)
  parts = split | dict(rows=64, microbatches=4)
  yield Line(name="8b-parts", **parts, **v5p)
  yield Line(name="8b-fsdp64", mesh=dict(fsdp=64), rows=64, **v5p)
  mesh = dict(data=4, fsdp=16)
  yield Line(name="8b-data4", mesh=mesh, rows=64, **v5p)
  v5e = dict(topology="v5e:4x4", student="1B", mesh=dict(fsdp=8, tensor=2))
  yield Line(name="1b", rows=8, L=8192, **v5e)
  yield Line(name="1b-xla", rows=8, L=8192, attention="xla", **v5e)
  yield Line(name="1b-xla-L4096", rows=16, L=4096, attention="xla", **v5e)
  v5e |= dict(mesh=dict(fsdp=16))
  yield Line(name="1b-fsdp16", rows=16, L=8192, **v5e)
  loss = dict(topology="v5p:2x2x1", student="8B", rows=1, L=8192)
  yield Line(name="loss-1", mesh={}, whole_step=False, **loss)
  mesh = dict(tensor=4)
  yield Line(name="loss-tensor4", mesh=mesh, whole_step=False, **loss)


LINES = {line.name: line for line in _lines()}


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--list", action="store_true")
  parser.add_argument("--only", action="append", choices=LINES)
  parser.add_argument("--json", type=Path, help="adds to what is there")
  parser.add_argument("--hlo", type=Path, help="a folder for the programs")
  parser.add_argument("--attention", help="for all lines")
  parser.add_argument("--write-docs", action="store_true")
  args = parser.parse_args(argv)
  if args.list:
    for line in LINES.values():
      print(f"{line.name}: {line}")
    return 0
  results = _read(args.json)
  for name in args.only or LINES:
    line = LINES[name]
    if args.attention:
      line = dataclasses.replace(line, attention=args.attention)
    results[name] = _attempt(line, args.hlo)
    print(_describe(results[name]), flush=True)
    if args.json:
      args.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
  results = {name: results[name] for name in LINES if name in results}
  text = "\n".join(markdown(results))
  print(text)
  if args.write_docs:
    page = _DOCS.read_text(encoding="utf-8")
    head, rest = page.split(_BEGIN)
    _, tail = rest.split(_END)
    page = f"{head}{_BEGIN}\n\n{text}\n\n{_END}{tail}"
    _DOCS.write_text(page, encoding="utf-8")
  return 0


def _read(path: Path | None) -> dict[str, Any]:
  if path is None or not path.exists():
    return {}
  return json.loads(path.read_text(encoding="utf-8"))


def _attempt(line: Line, hlo: Path | None) -> dict[str, Any]:
  found = {
    "line": dataclasses.asdict(line),
    "is": str(line),
    "date": datetime.date.today().isoformat(),
    "jax": jax.__version__,
  }
  began = time.perf_counter()
  compiled = _compile(line)
  if compiled.too_large:
    return found | {"too_large": compiled.too_large[:4000]}
  memory = compiled.memory
  if hlo is not None:
    hlo.mkdir(parents=True, exist_ok=True)
    (hlo / f"{line.name}.hlo").write_text(compiled.text, encoding="utf-8")
    usage = hlo / f"{line.name}.memory"
    usage.write_text(compiled.usage, encoding="utf-8")
  axis_sizes = {a: line.mesh.get(a, 1) for a in sharding.MESH_AXES}
  exchanged = collectives.find(hlo_lib.parse(compiled.text), axis_sizes)
  largest = sorted(exchanged, key=lambda one: -one.sent * one.times)
  return found | {
    "seconds": round(time.perf_counter() - began, 1),
    "bytes": {
      "arguments": memory.argument_size_in_bytes,
      "outputs": memory.output_size_in_bytes,
      "aliased": memory.alias_size_in_bytes,
      "temporaries": memory.temp_size_in_bytes,
      "code": memory.generated_code_size_in_bytes,
    },
    "largest_buffers": _largest(compiled.usage),
    "collectives": [
      {
        "kind": one.kind,
        "axes": " x ".join(one.axes),
        "runs": one.runs,
        "sent": one.sent_bytes,
        "known": one.is_whole,
      }
      for one in collectives.by_kind(exchanged)
    ],
    "largest_collectives": [dataclasses.asdict(one) for one in largest[:12]],
  }


def _compile(line: Line) -> compiling.Compiled:
  number = 1
  for size in line.mesh.values():
    number *= size
  topology = topologies.get_topology_desc(line.topology, "tpu")
  mesh = sharding.make_mesh(line.mesh, list(topology.devices)[:number])
  batch = jax.tree.map(
    lambda x: teacher_programs.shape_of(x, NamedSharding(mesh, sharding.ROWS)),
    students.make_batch("threshold", line.rows, line.L),
  )
  cfg = students.config(
    line.student, remat=line.remat, attention=line.attention
  )
  training = students.training(
    cfg=cfg,
    mesh=mesh,
    objective=losses.Objective(chunk=line.chunk),
    microbatches=line.microbatches,
  )
  with jax.set_mesh(mesh):
    if line.whole_step:
      lowered = training.step.lower(training.abstract, batch, None)
    else:
      lowered = _lower_loss(training, batch.targets)
    return compiling.compile_text(lowered)


def _lower_loss(training, targets):
  """The loss and its gradient by hidden states and unembedding."""
  B, L = targets.labels_BL.shape
  mesh, cfg = training.mesh, training.cfg
  rows = NamedSharding(mesh, sharding.ROWS)
  head = NamedSharding(mesh, sharding.weight_spec("VD"))

  def loss(x_BLD, head_VD, targets):
    return losses.distillation_loss(
      x_BLD, head_VD, targets, 0.9, training.objective
    )[0]

  gradient = jax.value_and_grad(loss, argnums=(0, 1))
  jitted = jax.jit(
    gradient, out_shardings=(NamedSharding(mesh, P()), (rows, head))
  )
  return jitted.lower(
    jax.ShapeDtypeStruct((B, L, cfg.D), cfg.dtype, sharding=rows),
    jax.ShapeDtypeStruct((cfg.V, cfg.D), "float32", sharding=head),
    targets,
  )


def _largest(report: str) -> list[str]:
  """The largest regions of the heap, and their contents over time."""
  found = re.findall(
    r"%\);\s+([\d.]+[KMG]iB);\s+\d+;\s+\d+;\s+(.+)", report.split("\n\n")[0]
  )
  return [f"{size}: {what}" for size, what in found[:8]]


def _total(result) -> int:
  size = result["bytes"]
  return sum(size.values()) - 2 * size["aliased"]


def _chip(result) -> str:
  return result["line"]["topology"].split(":")[0]


def _describe(result) -> str:
  if "too_large" in result:
    return f"{result['is']}: does not fit.\n{result['too_large']}"
  lines = [f"{result['is']}: {_total(result) / 1e9:.2f} GB a device"]
  lines += [f"  buffer {what}" for what in result["largest_buffers"]]
  for one in result["largest_collectives"]:
    each = f"{one['times']} x {one['sent'] / 1e6:.1f} MB"
    axes = " x ".join(one["axes"])
    lines.append(f"  {one['kind']} {axes} {each}: {one['shape']}")
    lines.append(f"    {one['source']}")
  return "\n".join(lines)


def markdown(results: dict[str, Any]) -> list[str]:
  """Two tables: memory, and traffic between devices."""
  about = {(r["date"], r["jax"]) for r in results.values()}
  lines = [
    "; ".join(f"{date}, jax {version}" for date, version in sorted(about))
    + ".",
    "",
    "| name | program | arguments | outputs | temporaries | all | of HBM |",
    "|---|---|---|---|---|---|---|",
  ]
  for name, result in results.items():
    chip, gb = _chip(result), _HBM[_chip(result)]
    row = f"| {name} | {result['is']} |"
    if "too_large" in result:
      lines.append(f"{row} - | - | - | does not fit | {gb} ({chip}) |")
      continue
    size, total = result["bytes"], _total(result)
    new = size["outputs"] - size["aliased"]
    parts = (size["arguments"], new, size["temporaries"], total)
    cells = " | ".join(f"{part / 1e9:.2f}" for part in parts)
    percent = f"{100 * total / (gb * 1e9):.0f} %"
    lines.append(f"{row} {cells} | {percent} of {gb} ({chip}) |")
  lines += ["", "| name | collective | axes | runs | MB sent |"]
  lines.append("|---|---|---|---|---|")
  for name, result in results.items():
    for one in result.get("collectives", []):
      if one["sent"] < 1e7:
        continue
      more = "" if one["known"] else " or more"
      lines.append(
        f"| {name} | {one['kind']} | {one['axes']} | {one['runs']:,}{more}"
        f" | {one['sent'] / 1e6:,.0f}{more} |"
      )
  return lines


if __name__ == "__main__":
  sys.exit(main())
