"""summary: the closing table of a run, summary.json and the curves."""

from pathlib import Path
from typing import Any

import matplotlib.figure
from ml_collections import ConfigDict
import rich.table

from analogjax.cache import logit_cache
from analogjax.cli import progress
from analogjax.config import loading, schema
from analogjax.distributed import processes
from analogjax.run.run import Run
from analogjax.workdir import files, ledger, metrics


def run(cfg: ConfigDict, workdir: Path) -> None:
  """Prints the table; writes summary.json (its numbers) and curves.png."""
  run = Run(schema.to_sections(cfg), workdir)
  teacher = run.teacher.cfg

  def conclude() -> None:
    summary = _collect(run, teacher.num_parameters)
    loading.write_json(workdir / "summary.json", summary)
    _draw(run)
    _print(summary, run)

  processes.on_first(conclude)


def _collect(run: Run, teacher_parameters: int) -> dict[str, Any]:
  fidelity = files.read_json(run.workdir / "fidelity.json")
  place = run.cache_place(run.cache_names[0])
  cache = logit_cache.open_cache(place)
  tokens = cache.manifest.num_rows * cache.manifest.sequence_length
  sizes = cache.bytes_by_array(cache.objects())
  by_array = {name: size / tokens for name, size in sizes.items()}
  # The cost of a token beyond the rows themselves, which any training needs.
  rows = ("tokens", "segments", "position_offsets", "weights")
  student = run.student.num_parameters
  spent = ledger.totals(run.workdir)
  models = ("teacher", *run.config.measure.phases)
  return {
    "parameters": {
      "teacher": teacher_parameters,
      "student": student,
      "ratio": student / teacher_parameters,
    },
    "models": {
      name: fidelity["output"]["models"][name]["metrics"] for name in models
    },
    "cache": {
      "tokens": tokens,
      "kind": cache.manifest.kind,
      "tau": cache.manifest.tau,
      "bytes_per_token": sum(by_array.values()),
      "bytes_per_token_without_rows": sum(
        size for name, size in by_array.items() if name not in rows
      ),
      "bytes_per_token_by_array": by_array,
    },
    "seconds": {
      stage: round(fields["seconds"], 1) for stage, fields in spent.items()
    },
    "spent": spent,
    "goodput": ledger.goodput(run.workdir),
  }


def _print(summary: dict[str, Any], run: Run) -> None:
  sizes = summary["parameters"]
  models = rich.table.Table(
    title=(
      f"held-out rows; analog of {sizes['student']:,} parameters,"
      f" {sizes['ratio']:.2%} of the teacher's {sizes['teacher']:,}"
    )
  )
  models.add_column("model")
  columns = {
    "cross_entropy_nats": "cross-entropy, nats",
    "kl_to_teacher_nats": "KL to teacher, nats",
    "top1_agreement": "top-1 agreement",
  }
  for title in columns.values():
    models.add_column(title, justify="right")
  for name, values in summary["models"].items():
    models.add_row(name, *(_number(values.get(key)) for key in columns))
  costs = rich.table.Table(title="cost")
  costs.add_column("what")
  costs.add_column("", justify="right")
  cache = summary["cache"]
  costs.add_row("cached tokens", f"{cache['tokens']:,}")
  costs.add_row("bytes per cached token", f"{cache['bytes_per_token']:.1f}")
  costs.add_row(
    "  of which not tokens and segments",
    f"{cache['bytes_per_token_without_rows']:.1f}",
  )
  for stage, seconds in summary["seconds"].items():
    costs.add_row(f"seconds, {stage}", f"{seconds:.1f}")
  out = progress.console()
  out.print(models)
  out.print(costs)
  out.print(_goodput(summary["goodput"]))
  progress.say(
    f"numbers: {run.workdir / 'summary.json'}"
    f"  curves: {run.workdir / 'curves.png'}  analog: {run.export_folder}"
  )


def _number(estimate: dict[str, Any] | None) -> str:
  """A measured number with half of its interval, e.g. 3.26 +-0.15."""
  if estimate is None or estimate["value"] is None:
    return "-"
  half = (estimate["high"] - estimate["low"]) / 2
  return f"{estimate['value']:.4f} +-{half:.2f}"


def _goodput(phases: dict[str, dict[str, float]]) -> rich.table.Table:
  """Fractions of the training time of all runs, by activity."""
  table = rich.table.Table(title="time of training, % of all runs")
  table.add_column("spent on")
  for phase in phases:
    table.add_column(phase.removeprefix("train/"), justify="right")
  for name in ledger.ACTIVITIES:
    cells = []
    for seconds in phases.values():
      total = max(sum(seconds.values()) - seconds["down"], 1e-9)
      cells.append(f"{100 * seconds[name] / total:.1f}")
    table.add_row("between runs" if name == "down" else name, *cells)
  return table


def _draw(run: Run) -> None:
  """Held-out curves: each phase starts where the one before it ended."""
  figure = matplotlib.figure.Figure(figsize=(10, 4), layout="constrained")
  panels = figure.subplots(1, 2)
  curves = (
    ("held_out/hard_label_nats", "cross-entropy to the next token"),
    ("held_out/kl_estimate_nats", "KL to the teacher, from the cache"),
  )
  begins: dict[str, int] = {"": 0}
  styles = ("-", "--", "-.", ":")  # Distinguishable in black and white too.
  for i, name in enumerate(run.config.train.phases):
    phase = run.config.train.phase[name]
    begin = begins[phase.init_from]
    begins[name] = begin + phase.num_steps
    records = metrics.read(run.phase_folder(name))
    for panel, (key, _) in zip(panels, curves, strict=True):
      points = [
        (begin + r["step"], r[key]) for r in records if r.get(key) is not None
      ]
      x, y = zip(*points, strict=True) if points else ((), ())
      panel.plot(x, y, styles[i % len(styles)], marker="o", label=name)
  for panel, (_, title) in zip(panels, curves, strict=True):
    panel.set_title(f"held-out {title}")
    panel.set_xlabel("step")
    panel.set_ylabel("nats per token")
    panel.grid(alpha=0.3)
    panel.legend()
  # The earlier picture stays until the new one is complete.
  temporary = run.workdir / ".curves.incomplete.png"
  figure.savefig(temporary, dpi=120)
  temporary.replace(run.workdir / "curves.png")
