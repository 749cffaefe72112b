"""Formats the measurements of accelerator.py as Markdown."""

from collections.abc import Iterator
from typing import Any

_KINDS = {
  "plain": "full logits, hard labels",
  "hard": "hard labels",
  "threshold": "cached, threshold, K = 26",
  "topk": "cached, top 16 and tail",
}


def markdown(results: dict[str, Any]) -> str:
  return "\n".join(_markdown(results)) + "\n"


def _markdown(results) -> Iterator[str]:
  lines = results["lines"]
  devices = {x["device"] for x in lines.values() if "device" in x}
  versions = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
  a = results["arguments"]
  yield f"{' and '.join(sorted(devices)) or 'no device'}, one; {versions};"
  yield f"{results['date']}. Rows of {a['length']:,} tokens, chunks of"
  yield f"{a['chunk']:,}; {a['groups']} groups of {a['group']} steps."
  if a["toy"]:
    yield "Toy sizes: the times say nothing."
  if results["missing"]:
    yield f"Not installed, not needed: {', '.join(results['missing'])}."
  yield ""
  yield "| step | rows, remat | ms: median (min, p90) | tokens/s | MFU | GB |"
  yield "|---|---|---|---|---|---|"
  for name, found in lines.items():
    if not name.startswith("loss"):
      yield _row(name, found)
  yield ""
  yield "GB: the most that was held; * planned by XLA for the step, no more."
  yield "The loss alone, as a multiple of its three matrix products at peak:"
  yield ""
  yield "| value and gradient | ms: median (min, p90) | x 3 GEMM | GB |"
  yield "|---|---|---|---|"
  for name, found in lines.items():
    if name.startswith("loss"):
      yield _loss_row(name, found)
  yield ""
  yield "| student | teacher | cached / live | FLOPs allow | reached |"
  yield "|---|---|---|---|---|"
  yield from _cached_and_live(lines)


def _row(name, found) -> str:
  student, kind, *teacher = name.split("-")
  what = f"live {teacher[0]}" if teacher else _KINDS[kind]
  if found["status"] != "ok":
    return f"| {student}, {what} | - | {found['status']} | - | - | - |"
  return (
    f"| {student}, {what} | {found['rows']}, {found['remat']} | {_times(found)}"
    f" | {found['tokens_per_s']:,.0f} | {_percent(found['of_peak'])}"
    f" | {_bytes(found)} |"
  )


def _loss_row(name, found) -> str:
  what = _KINDS[name.removeprefix("loss-")]
  if found["status"] != "ok":
    return f"| {what} | {found['status']} | - | - |"
  share = found["of_peak"]
  floor = "-" if share is None else f"{1 / share:.2f}"
  return f"| {what} | {_times(found)} | {floor} | {_bytes(found)} |"


def _cached_and_live(lines) -> Iterator[str]:
  for name, live in lines.items():
    student, kind, *teacher = name.split("-")
    cached = lines.get(f"{student}-threshold", {})
    if kind != "live" or {live["status"], cached.get("status")} != {"ok"}:
      continue
    faster, allowed = compare(cached, live)
    yield (
      f"| {student} | {teacher[0]} | {faster:.2f} | {allowed:.2f}"
      f" | {100 * faster / allowed:.0f} % |"
    )


def compare(cached, live) -> tuple[float, float]:
  """Tokens per second of cached over live: as measured, and by FLOPs.

  The latter is (teacher forward + student) / student.
  """
  faster = cached["tokens_per_s"] / live["tokens_per_s"]
  student = live["student_flops"]
  return faster, (live["teacher_flops"] + student) / student


def _times(found) -> str:
  median, low, high = (1000 * found[k] for k in ("median_s", "min_s", "p90_s"))
  return f"{median:,.1f} ({low:,.1f}, {high:,.1f})"


def _bytes(found) -> str:
  planned = "" if found["peak_is"] == "measured" else " *"
  return f"{found['peak_bytes'] / 1e9:.2f}{planned}"


def _percent(share) -> str:
  return "-" if share is None else f"{100 * share:.1f} %"
