"""The report's section on predictions, and the roles of the models."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
from typing import Any
import xml.etree.ElementTree as ET

from analogjax.rendering import charts
from analogjax.rendering.html import interval_cell, table, tag
from analogjax.rendering.numbers import interval, number

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
# Axes of the figures, by metric.
_DRAWN = {
  "kl_to_teacher_nats": "nats per token",
  "top1_agreement": "part of the tokens",
}

Json = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Models:
  """The role of each model, and how it is drawn everywhere on the page."""

  analog: str
  controls: tuple[str, ...]
  random: str

  @classmethod
  def of(cls, value: Json) -> "Models":
    inputs = value["inputs"]
    return cls(inputs["analog"], tuple(inputs["controls"]), inputs["random"])

  def style(self, name: str) -> int:
    """Index of svg.STYLES: black, blue, orange, grey; others after."""
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

  def ordered(self, found: Json) -> dict[str, Any]:
    """By name: the teacher, the analog, controls, others, the random one."""
    first = (TEACHER, self.analog, *self.controls)
    rest = [name for name in found if name not in (*first, self.random)]
    names = (*first, *rest, self.random)
    return {name: found[name] for name in names if name in found}


def interval_rows(
  found: Iterable[tuple[str, Json | None, int]],
) -> list[charts.Interval]:
  """Rows of (name, estimate, style), without undefined estimates."""
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


def output(part: Json, models: Models) -> Iterator[ET.Element]:
  found = models.ordered(part["models"])
  yield tag(
    "p",
    "Every model reads the same held-out text and predicts each next token."
    " In brackets: the interval.",
  )
  # Models are the columns: there are fewer of them than metrics.
  yield table(
    "Predictions on held-out text",
    ("metric", *map(models.label, found)),
    (
      (title, *(interval_cell(v["metrics"].get(m)) for v in found.values()))
      for m, title in METRICS.items()
      if any(m in v["metrics"] for v in found.values())
    ),
  )
  metrics = [_metric_figure(metric, found, models) for metric in _DRAWN]
  figures = [_by_entropy(found, models), _reliability(found, models)]
  yield tag("div", tag("div", *metrics), *figures, class_="figures")
  yield from _outcomes(found, models)
  yield from _domains(found, models)


def _metric_figure(
  metric: str, found: Json, models: Models
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
  picture = charts.intervals(
    f"output-{metric}",
    title=title,
    description="One line per model, with its interval.",
    rows=rows,
    x_label=_DRAWN[metric],
  )
  cells = ((name, interval_cell(value)) for name, value, _ in values)
  title = title[0].upper() + title[1:]
  return charts.figure(title, picture, table(title, ("model", title), cells))


def _by_entropy(found: Json, models: Models) -> ET.Element | None:
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
      estimates = [estimate for _, estimate in points]
      series.append(
        charts.Series(
          name=name,
          style=models.style(name),
          x=[x for x, _ in points],
          y=[e["value"] for e in estimates],
          low=[e["low"] for e in estimates],
          high=[e["high"] for e in estimates],
        )
      )
      rows += [(name, number(x), interval(e)) for x, e in points]
  return _curves_figure(
    "output-entropy",
    "KL by how unsure the frontier model is",
    "One curve per model, with its interval as a band.",
    series,
    axes=("frontier model's entropy from, nats", "KL, nats"),
    rows=rows,
    reference="zero",
  )


def _reliability(found: Json, models: Models) -> ET.Element | None:
  series, rows = [], []
  for name, value in found.items():
    bins = [
      b for b in value.get("reliability", ()) if b["confidence"] is not None
    ]
    x, y = ([b[k] for b in bins] for k in ("confidence", "accuracy"))
    if bins:
      style = models.style(name)
      series.append(charts.Series(name=name, style=style, x=x, y=y))
    rows += [
      (name, *(number(b[k]) for k in ("confidence", "accuracy", "tokens")))
      for b in bins
    ]
  return _curves_figure(
    "output-reliability",
    "Reliability: how often a model is right, by its confidence",
    "One curve per model; on the diagonal, confidence equals accuracy.",
    series,
    axes=("confidence", "accuracy", "tokens"),
    rows=rows,
    reference="diagonal",
  )


def _curves_figure(
  key: str,
  title: str,
  description: str,
  series: Sequence[charts.Series],
  *,
  axes: Sequence[str],
  rows: Iterable[Sequence[str]],
  reference: str,
) -> ET.Element | None:
  """Curves of models; `axes` are also the titles of the table's columns."""
  if not series:
    return None
  picture = charts.curves(
    key,
    title=title,
    description=description,
    series=series,
    x_label=axes[0],
    y_label=axes[1],
    reference=reference,
  )
  legend = [(s.name, s.style) for s in series]
  cells = table(title, ("model", *axes), rows)
  return charts.figure(title, picture, cells, legend=legend)


def _outcomes(found: Json, models: Models) -> Iterator[ET.Element]:
  names = {
    "auc": "AUC of telling its failures (0.5 is a coin)",
    "kappa": "kappa of right and wrong (0 is chance)",
    "spearman": "Spearman correlation of documents' losses",
  }
  rows = [
    (
      models.label(name),
      *(interval_cell(value["outcomes"].get(key)) for key in names),
    )
    for name, value in found.items()
    if value.get("outcomes")
  ]
  if rows:
    yield tag("h3", "Does a student fail where the frontier model fails?")
    yield table(
      "Right and wrong, token by token", ("model", *names.values()), rows
    )


def _domains(found: Json, models: Models) -> Iterator[ET.Element]:
  shown = ("kl_to_teacher_nats", "top1_agreement", "cross_entropy_nats")
  rows = [
    (tag("bdi", domain), models.label(name))
    + tuple(interval_cell(metrics.get(m)) for m in shown)
    for name, value in found.items()
    for domain, metrics in value.get("by_domain", {}).items()
  ]
  if rows:
    rows.sort(key=lambda row: row[0].text or "")
    yield tag("h3", "By domain")
    head = ("domain", "model", *(METRICS[m] for m in shown))
    yield table("Predictions on text of each domain", head, rows)
