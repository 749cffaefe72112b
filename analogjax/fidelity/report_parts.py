"""The report's sections on what is said and how it is represented."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
from typing import Any
import xml.etree.ElementTree as ET

from analogjax.fidelity import charts, markup
from analogjax.fidelity.markup import interval, number, table, tag

TEACHER = "teacher"

METRICS = {
  "kl_to_teacher_nats": "KL to frontier model, nats (lower is nearer)",
  "top1_agreement": "top-1 agreement",
  "top5_agreement": "top-5 agreement",
  "jensen_shannon_nats": "Jensen-Shannon, nats (lower is nearer)",
  "cross_entropy_nats": "cross-entropy, nats (lower is better)",
  "cross_entropy_gap_nats": "gap to frontier model, nats",
  "accuracy": "accuracy",
  "expected_calibration_error": "calibration error (lower is better)",
}
SIMILARITIES = {
  "mutual_knn": "Shared nearest neighbours",
  "unbiased_cka": "Unbiased CKA",
  "procrustes": "Procrustes",
}


@dataclasses.dataclass(frozen=True)
class Models:
  """Which model is what, and how each is drawn, everywhere on the page."""

  analog: str
  controls: tuple[str, ...]
  random: str

  @classmethod
  def of(cls, value: Mapping[str, Any]) -> "Models":
    inputs = value["inputs"]
    return cls(inputs["analog"], tuple(inputs["controls"]), inputs["random"])

  def style(self, name: str) -> int:
    """Index of charts.STYLES: black, blue, orange, grey; others after."""
    known = (TEACHER, self.analog, *self.controls[:1], self.random)
    if name in known:
      fixed = {TEACHER: 0, self.analog: 1, self.random: 3}
      return fixed.get(name, 2)
    return 4 + (name in self.controls)

  def role(self, name: str) -> str:
    if name == TEACHER:
      return "the frontier model"
    if name == self.analog:
      return "the analog"
    if name == self.random:
      return "never trained"
    return "control" if name in self.controls else "student"

  def label(self, name: str) -> ET.Element:
    role = self.role(name)
    return tag("span", tag("bdi", name), f", {role}" if role != name else None)

  def legend(self, names: Iterable[str]) -> list[tuple[str, int]]:
    return [(name, self.style(name)) for name in names]


def interval_rows(
  found: Iterable[tuple[str, Mapping[str, Any] | None, int]],
) -> list[charts.Interval]:
  """Those that are defined, of (name, estimate, style)."""
  return [
    charts.Interval(
      name=name,
      style=style,
      value=estimate["value"],
      low=estimate["low"],
      high=estimate["high"],
    )
    for name, estimate, style in found
    if estimate is not None and estimate["value"] is not None
  ]


def output(part: Mapping[str, Any], models: Models) -> Iterator[ET.Element]:
  found = part["models"]
  yield tag(
    "p",
    "Every model reads the same held-out text and predicts each next token."
    " In brackets: the interval.",
  )
  shown = [m for m in METRICS if any(m in v["metrics"] for v in found.values())]
  yield table(
    "Predictions on held-out text",
    ("model", *(METRICS[m] for m in shown)),
    (
      (
        models.label(name),
        *(
          interval(value["metrics"][m]) if m in value["metrics"] else "n/a"
          for m in shown
        ),
      )
      for name, value in found.items()
    ),
  )
  low = [
    _metric_figure(metric, found, models)
    for metric in ("kl_to_teacher_nats", "top1_agreement")
  ]
  figures = [_by_entropy(found, models), _reliability(found, models)]
  yield tag("div", tag("div", *low), *figures, class_="figures")
  yield from _outcomes(found, models)
  yield from _domains(found, models)


def _metric_figure(
  metric: str, found: Mapping[str, Any], models: Models
) -> ET.Element | None:
  values = [
    (name, value["metrics"].get(metric), models.style(name))
    for name, value in found.items()
    if name != TEACHER
  ]
  rows = interval_rows(values)
  if not rows:
    return None
  title = METRICS[metric]
  return charts.figure(
    title[0].upper() + title[1:],
    lambda key: charts.intervals(
      key,
      title=title,
      description="One line a model, with its interval.",
      rows=rows,
      label="",
    ),
    table(
      title,
      ("model", title),
      ((name, interval(value)) for name, value, _ in values),
    ),
    key=f"output-{metric}",
  )


def _by_entropy(found: Mapping[str, Any], models: Models) -> ET.Element | None:
  """KL where the frontier model is sure, and where it is not."""
  metric = "kl_to_teacher_nats"
  series, rows = [], []
  for name, value in found.items():
    points = [
      (bin_["from"] or 0.0, bin_["metrics"][metric])
      for bin_ in value.get("by_entropy", ())
      if bin_["metrics"].get(metric, {}).get("value") is not None
    ]
    if name != TEACHER and points:
      series.append(_series(name, models.style(name), points))
      rows += [(name, number(x), interval(e)) for x, e in points]
  if not series:
    return None
  title = "KL by how unsure the frontier model is"
  return charts.figure(
    title,
    lambda key: charts.curves(
      key,
      title=title,
      description="One curve a model, with its interval as a band.",
      series=series,
      x_label="frontier model's entropy from, nats",
      y_label="KL, nats",
      reference="zero",
    ),
    table(title, ("model", "entropy from, nats", "KL, nats"), rows),
    legend=[(s.name, s.style) for s in series],
    key="output-entropy",
  )


def _series(
  name: str, style: int, points: Sequence[tuple[float, Mapping[str, Any]]]
) -> charts.Series:
  return charts.Series(
    name=name,
    style=style,
    x=[x for x, _ in points],
    y=[e["value"] for _, e in points],
    low=[e["low"] for _, e in points],
    high=[e["high"] for _, e in points],
  )


def _reliability(found: Mapping[str, Any], models: Models) -> ET.Element | None:
  series, rows = [], []
  for name, value in found.items():
    bins = [
      b for b in value.get("reliability", ()) if b["confidence"] is not None
    ]
    if bins:
      series.append(
        charts.Series(
          name=name,
          style=models.style(name),
          x=[b["confidence"] for b in bins],
          y=[b["accuracy"] for b in bins],
        )
      )
    rows += [
      (
        name,
        number(b["confidence"]),
        number(b["accuracy"]),
        number(b["tokens"]),
      )
      for b in bins
    ]
  if not series:
    return None
  title = "Reliability: how often a model is right, by its confidence"
  return charts.figure(
    title,
    lambda key: charts.curves(
      key,
      title=title,
      description="One curve a model; on the diagonal confidence is honest.",
      series=series,
      x_label="confidence",
      y_label="accuracy",
      reference="diagonal",
    ),
    table(title, ("model", "confidence", "accuracy", "tokens"), rows),
    legend=[(s.name, s.style) for s in series],
    key="output-reliability",
  )


def _outcomes(found: Mapping[str, Any], models: Models) -> Iterator[ET.Element]:
  names = {
    "auc": "AUC of telling its failures (0.5 is a coin)",
    "kappa": "kappa of right and wrong (0 is chance)",
    "spearman": "Spearman correlation of documents' losses",
  }
  rows = [
    (
      models.label(name),
      *(interval(value["outcomes"].get(key)) for key in names),
    )
    for name, value in found.items()
    if value.get("outcomes")
  ]
  if rows:
    yield tag("h3", "Does a student fail where the frontier model fails?")
    yield table(
      "Right and wrong, token by token", ("model", *names.values()), rows
    )


def _domains(found: Mapping[str, Any], models: Models) -> Iterator[ET.Element]:
  shown = ("kl_to_teacher_nats", "top1_agreement", "cross_entropy_nats")
  rows = [
    (tag("bdi", domain), models.label(name))
    + tuple(interval(metrics.get(m)) for m in shown)
    for name, value in found.items()
    for domain, metrics in value.get("by_domain", {}).items()
  ]
  if rows:
    rows.sort(key=lambda row: row[0].text or "")
    yield tag("h3", "By domain")
    head = ("domain", "model", *(METRICS[m] for m in shown))
    yield table("Predictions on text of each domain", head, rows)


def similarity(part: Mapping[str, Any], models: Models) -> Iterator[ET.Element]:
  found = part["models"]
  yield tag(
    "p",
    f"Activations of {number(part['points'])} tokens in each model. Nothing"
    " here is causal: models can be alike and not exchange anything. Chance is"
    f" what {number(part['permutations'])} permutations of the text give, the"
    " best pair of depths being chosen anew in each.",
  )
  head = ("model", "measure", "calibrated", "p", "raw", "chance, 95 % below")
  head += ("best depth of the student", "of the frontier model")
  shown = [m for m in SIMILARITIES if any(m in v for v in found.values())]
  rows = [
    (
      models.label(name),
      SIMILARITIES[metric],
      *(number(value[metric][k]) for k in _CALIBRATED),
      number(value[metric]["best"]["student_depth"]),
      number(value[metric]["best"]["teacher_depth"]),
    )
    for metric in shown
    for name, value in found.items()
    if metric in value
  ]
  yield table("Similarity to the frontier model", head, rows)
  for metric in shown:
    name = SIMILARITIES[metric]
    values = {m: v[metric] for m, v in found.items() if metric in v}
    figures = _heat_maps(metric, values, part["depths"], models)
    figures += _nulls(metric, values, models)
    content = tag("div", *figures, class_="figures")
    if metric == shown[0]:
      yield tag("h3", f"{name}, by depth")
      yield content
    else:
      yield markup.details(f"{name}, by depth", content)
  yield from _embeddings(part, models)
  yield from _maps(part, models)


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
    title = f"{name}: {SIMILARITIES[metric].lower()}"

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
        row_label=f"depth of {markup.short(name)}",
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
    title = f"{name}: {SIMILARITIES[metric].lower()}, against chance"

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
  found = part.get("embeddings", {})
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
  found = part.get("maps", {})
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
    ("model", *(f"{number(p)} to {number(q)}" for p, q in pairs)),
    rows,
  )


def _pair(line: Mapping[str, Any]) -> tuple[float, float]:
  return line["student_depth"], line["teacher_depth"]
