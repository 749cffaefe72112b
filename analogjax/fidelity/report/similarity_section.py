"""The report's section on how models represent the same text."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
import xml.etree.ElementTree as ET

from analogjax.fidelity.report.parts import TEACHER, Models
from analogjax.rendering import charts, html
from analogjax.rendering.html import table, tag
from analogjax.rendering.numbers import number

_METRICS = {
  "mutual_knn": "Shared nearest neighbours",
  "unbiased_cka": "Unbiased CKA",
  "procrustes": "Procrustes",
}


def similarity(part: Mapping[str, Any], models: Models) -> Iterator[ET.Element]:
  found = models.ordered(part["models"])
  yield tag(
    "p",
    f"Activations of {number(part['points'])} tokens in each model. Nothing"
    " here is causal: models can be alike and not exchange anything. Chance is"
    f" what {number(part['permutations'])} permutations of the text give, the"
    " best pair of depths being chosen anew in each.",
  )
  head = ("model", "measure", "calibrated", "p", "raw", "chance, 95 % below")
  head += ("best depth of the student", "of the frontier model")
  shown = [m for m in _METRICS if any(m in v for v in found.values())]
  rows = [
    (
      models.label(name),
      _METRICS[metric],
      *(number(value[metric][k]) for k in _CALIBRATED),
      number(value[metric]["best"]["student_depth"]),
      number(value[metric]["best"]["teacher_depth"]),
    )
    for metric in shown
    for name, value in found.items()
    if metric in value
  ]
  yield table("Similarity to the frontier model", head, rows)
  yield from _same_depth(found, models)
  for metric in shown:
    name = _METRICS[metric]
    values = {m: v[metric] for m, v in found.items() if metric in v}
    figures = _heat_maps(metric, values, part["depths"], models)
    figures += _nulls(metric, values, models)
    content = tag("div", *figures, class_="figures")
    if metric == shown[0]:
      yield tag("h3", f"{name}, by depth")
      yield content
    else:
      yield html.details(f"{name}, by depth", content)
  yield from _embeddings(part, models)
  yield from _maps(part, models)


def _same_depth(
  found: Mapping[str, Any], models: Models
) -> Iterator[ET.Element]:
  """What needs no choice of depths."""
  by_pair = {
    (name, metric): {_pair(line): line for line in value["same_depth"]}
    for name, metrics in found.items()
    for metric, value in metrics.items()
    if value.get("same_depth")
  }
  pairs = sorted({pair for lines in by_pair.values() for pair in lines})
  rows = (
    (
      models.label(name),
      _METRICS[metric],
      *(
        f"{number(lines[pair]['calibrated'])} (p {number(lines[pair]['p'])})"
        if pair in lines
        else "n/a"
        for pair in pairs
      ),
    )
    for (name, metric), lines in by_pair.items()
  )
  if pairs:
    head = ("model", "measure", *map(_from_to, pairs))
    text = "Calibrated similarity of layers at the same depth"
    yield html.details("At the same depth", table(text, head, rows))


_CALIBRATED = ("calibrated", "p", "raw", "null_q95")


def _heat_maps(
  metric: str,
  values: Mapping[str, Any],
  depths: Mapping[str, Sequence[float]],
  models: Models,
) -> list[ET.Element]:
  most = max(x for v in values.values() for line in v["matrix"] for x in line)
  columns = depths[TEACHER]
  figures = []
  for i, (name, value) in enumerate(values.items()):
    rows, best = depths[name], value["best"]
    title = f"{name}: {_METRICS[metric].lower()}"

    def draw(key, rows=rows, value=value, best=best, title=title, name=name):
      return charts.heat_map(
        key,
        title=title,
        description="A row for each depth of the student, a column for each of"
        " the frontier model; the more alike, the darker, on one scale for all"
        " models. The frame is around the best pair.",
        rows=rows,
        columns=columns,
        values=value["matrix"],
        most=most,
        best=(best["student_depth"], best["teacher_depth"]),
        row_label=f"depth of {html.short(name)}",
        column_label="depth of the frontier model",
      )

    lines = (
      (number(depth), *map(number, line))
      for depth, line in zip(rows, value["matrix"], strict=True)
    )
    head = ("student depth", *(f"frontier {number(c)}" for c in columns))
    figures.append(
      charts.figure(title, draw, table(title, head, lines), key=f"{metric}-{i}")
    )
  return figures


def _nulls(
  metric: str, values: Mapping[str, Any], models: Models
) -> list[ET.Element]:
  figures = []
  for i, (name, value) in enumerate(values.items()):
    if name not in (models.analog, *models.controls[:1]):
      continue
    title = f"{name}: {_METRICS[metric].lower()}, against chance"

    def draw(key, value=value, title=title):
      return charts.histogram(
        key,
        title=title,
        description="Bars: how often chance gives a number. Bold line: the"
        " observed one. Dashed: 95 % of chance lie below.",
        null=value["null"],
        observed=value["raw"],
        quantile=value["null_q95"],
        x_label="best pair of depths, text permuted",
      )

    numbers = (
      ("observed", number(value["raw"])),
      ("least of chance", number(min(value["null"]))),
      ("95 % of chance lie below", number(value["null_q95"])),
      ("most of chance", number(max(value["null"]))),
      ("p", number(value["p"])),
    )
    figures.append(
      charts.figure(
        title,
        draw,
        table(title, ("what", "number"), numbers),
        key=f"{metric}-null-{i}",
      )
    )
  return figures


def _embeddings(
  part: Mapping[str, Any], models: Models
) -> Iterator[ET.Element]:
  found = models.ordered(part.get("embeddings", {}))
  if not found:
    return
  yield tag("h3", "The vocabulary")
  rows = (
    (
      models.label(name),
      *(number(value[k]) for k in _CALIBRATED),
      number(value["tokens"]),
    )
    for name, value in found.items()
  )
  head = ("model", "calibrated", "p", "raw", "chance, 95 % below", "tokens")
  yield table(
    "Unembeddings: unbiased CKA with the frontier model's", head, rows
  )


def _maps(part: Mapping[str, Any], models: Models) -> Iterator[ET.Element]:
  found = models.ordered(part.get("maps", {}))
  if not found:
    return
  yield tag("h3", "How much a linear map explains")
  by_pair = {
    name: {_pair(line): number(line["unexplained"]) for line in lines}
    for name, lines in found.items()
  }
  pairs = sorted({pair for lines in by_pair.values() for pair in lines})
  rows = (
    (models.label(name), *(lines.get(pair, "n/a") for pair in pairs))
    for name, lines in by_pair.items()
  )
  yield table(
    "Variance that an affine map to the frontier model leaves unexplained, on"
    " text that it was not fitted on, by depth",
    ("model", *map(_from_to, pairs)),
    rows,
  )


def _from_to(pair: tuple[float, float]) -> str:
  return f"{number(pair[0])} to {number(pair[1])}"


def _pair(line: Mapping[str, Any]) -> tuple[float, float]:
  return line["student_depth"], line["teacher_depth"]
