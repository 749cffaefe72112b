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
# Fields of a calibrated similarity, and the titles of their columns.
_CALIBRATED = {
  "calibrated": "calibrated",
  "p": "p",
  "raw": "raw",
  "null_q95": "chance, 95 % below",
}

Json = Mapping[str, Any]
DepthPair = tuple[float, float]  # Of a student and of the frontier model.


def similarity(part: Json, models: Models) -> Iterator[ET.Element]:
  found = models.ordered(part["models"])
  yield tag(
    "p",
    f"Activations of {number(part['points'])} tokens in each model. Nothing"
    " here is causal: models can be alike and not exchange anything. Chance is"
    f" what {number(part['permutations'])} permutations of the text give, the"
    " best pair of depths being chosen anew in each.",
  )
  shown = [m for m in _METRICS if any(m in v for v in found.values())]
  yield table(
    "Similarity to the frontier model",
    ("model", "measure", *_CALIBRATED.values(), "best depths"),
    [
      (
        models.label(name),
        _METRICS[metric],
        *(number(value[metric][k]) for k in _CALIBRATED),
        _from_to(_pair(value[metric]["best"])),
      )
      for metric in shown
      for name, value in found.items()
      if metric in value
    ],
  )
  yield from _same_depth(found, models)
  for metric in shown:
    name = _METRICS[metric]
    values = {m: v[metric] for m, v in found.items() if metric in v}
    figures = _heat_maps(metric, values, part["depths"])
    figures += _nulls(metric, values, models)
    content = tag("div", *figures, class_="figures")
    if metric == shown[0]:
      yield tag("h3", f"{name}, by depth")
      yield content
    else:
      yield html.details(f"{name}, by depth", content)
  yield from _embeddings(part, models)
  yield from _maps(part, models)


def _same_depth(found: Json, models: Models) -> Iterator[ET.Element]:
  """Similarity at equal depths, where no depth has to be chosen."""
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


def _heat_maps(
  metric: str, values: Json, depths: Mapping[str, Sequence[float]]
) -> list[ET.Element]:
  most = max(x for v in values.values() for line in v["matrix"] for x in line)
  columns = depths[TEACHER]
  figures = []
  for i, (name, value) in enumerate(values.items()):
    rows = depths[name]
    title = f"{name}: {_METRICS[metric].lower()}"
    picture = charts.heat_map(
      f"{metric}-{i}",
      title=title,
      description="A row for each depth of the student, a column for each of"
      " the frontier model; the more alike, the darker, on one scale for all"
      " models. The frame is around the best pair.",
      rows=rows,
      columns=columns,
      values=value["matrix"],
      most=most,
      best=_pair(value["best"]),
      row_label=f"depth of {html.short(name)}",
      column_label="depth of the frontier model",
    )
    lines = (
      (number(depth), *map(number, line))
      for depth, line in zip(rows, value["matrix"], strict=True)
    )
    head = ("student depth", *(f"frontier {number(c)}" for c in columns))
    figures.append(charts.figure(title, picture, table(title, head, lines)))
  return figures


def _nulls(metric: str, values: Json, models: Models) -> list[ET.Element]:
  figures = []
  for i, (name, value) in enumerate(values.items()):
    if name not in (models.analog, *models.controls[:1]):
      continue
    title = f"{name}: {_METRICS[metric].lower()}, against chance"
    picture = charts.histogram(
      f"{metric}-null-{i}",
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
    cells = table(title, ("what", "number"), numbers)
    figures.append(charts.figure(title, picture, cells))
  return figures


def _embeddings(part: Json, models: Models) -> Iterator[ET.Element]:
  found = models.ordered(part.get("embeddings", {}))
  if not found:
    return
  yield tag("h3", "The vocabulary")
  yield table(
    "Unembeddings: unbiased CKA with the frontier model's",
    ("model", *_CALIBRATED.values(), "tokens"),
    (
      (
        models.label(name),
        *(number(value[k]) for k in (*_CALIBRATED, "tokens")),
      )
      for name, value in found.items()
    ),
  )


def _maps(part: Json, models: Models) -> Iterator[ET.Element]:
  found = models.ordered(part.get("maps", {}))
  if not found:
    return
  yield tag("h3", "How much a linear map explains")
  by_pair = {
    name: {_pair(line): number(line["unexplained"]) for line in lines}
    for name, lines in found.items()
  }
  pairs = sorted({pair for lines in by_pair.values() for pair in lines})
  yield table(
    "Variance that an affine map to the frontier model leaves unexplained, on"
    " text that it was not fitted on, by depth",
    ("model", *map(_from_to, pairs)),
    (
      (models.label(name), *(lines.get(pair, "n/a") for pair in pairs))
      for name, lines in by_pair.items()
    ),
  )


def _from_to(pair: DepthPair) -> str:
  return f"{number(pair[0])} to {number(pair[1])}"


def _pair(line: Json) -> DepthPair:
  return line["student_depth"], line["teacher_depth"]
