"""The report's section on what the models say, and which model is which."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
from typing import Any
import xml.etree.ElementTree as ET

from analogjax.rendering import charts
from analogjax.rendering.html import table, tag
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

  def ordered(self, found: Mapping[str, Any]) -> dict[str, Any]:
    """By name: the teacher, the analog, controls, others, the random one."""
    first = (TEACHER, self.analog, *self.controls)
    rest = [name for name in found if name not in (*first, self.random)]
    names = (*first, *rest, self.random)
    return {name: found[name] for name in names if name in found}


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
  found = models.ordered(part["models"])
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
