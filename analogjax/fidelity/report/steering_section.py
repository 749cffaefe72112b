"""The report's sections on interventions: steering and stitching."""

from collections.abc import Iterator, Mapping
from typing import Any
import xml.etree.ElementTree as ET

from analogjax.fidelity import verdicts
from analogjax.fidelity.report.parts import Models, interval_rows
from analogjax.rendering import charts, html
from analogjax.rendering.html import table, tag
from analogjax.rendering.numbers import interval, number

# kind -> (what a curve is called, style).
_KINDS = {
  "native": ("frontier model's own direction", 0),
  "mapped": ("mapped from {model}", 1),
  "random": ("random directions", 3),
  "shuffled": ("shuffled map", 4),
  "wrong_behaviour": ("wrong behaviour", 5),
}
_MAPS = {"wrong_behaviour": "none; wrong behaviour"}
_MATCHED = {
  "perplexity": "ratio at matched perplexity",
  "norm": "ratio at matched norm",
}
_FITS = {"least_squares": "least squares", "trained": "trained on text"}


def steering(part: Mapping[str, Any], models: Models) -> Iterator[ET.Element]:
  yield tag(
    "p",
    "A direction for a behaviour is found on each student, mapped to the"
    " frontier model and added to its activations there. It has to do what the"
    " frontier model's own direction does, and more than directions that know"
    " nothing.",
  )
  for i, (behaviour, value) in enumerate(part["behaviours"].items()):
    yield from _behaviour(f"steering-{i}", behaviour, value, models)
  rows = [
    (
      models.label(model),
      mapper,
      number(value["unexplained"]),
      number(value["cosine"]),
    )
    for model, mappers in models.ordered(part.get("maps", {})).items()
    for mapper, value in mappers.items()
  ]
  if rows:
    yield tag("h3", "The maps")
    head = ("model", "map", "variance unexplained", "cosine")
    yield table("Maps, on text that they were not fitted on", head, rows)


def _behaviour(
  key: str, behaviour: str, value: Mapping[str, Any], models: Models
) -> Iterator[ET.Element]:
  yield tag("h3", "Behaviour: ", tag("bdi", behaviour))
  yield tag(
    "p",
    f"{number(value['pairs'])} pairs make the direction,"
    f" {number(value['prompts'])} prompts test it, at depth"
    f" {number(value['depth'])} of the frontier model. Its own direction moves"
    f" the score by {interval(value['native_effect'])} nats.",
  )
  if value["undefined"]:
    yield tag(
      "p", "No ratio is defined: ", value["undefined"], class_="missing"
    )
  mappers = [
    m
    for m in verdicts.STEERING_MAPPERS
    if any(a["kind"] == "mapped" and a["mapper"] == m for a in value["arms"])
  ]
  for mapper in mappers:
    figures = tag("div", *_doses(key, mapper, value, models), class_="figures")
    if mapper == mappers[0]:
      yield figures
    else:
      yield html.details(f"The same with the {mapper} map", figures)
  own = [
    (models.label(model), number(of["depth"]), interval(of["effect"]))
    for model, of in models.ordered(value.get("own", {})).items()
  ]
  if own:
    title = "What each model's own direction does to itself"
    head = ("model", "its depth", "effect, nats")
    yield html.details(title, table(f"{title}, {behaviour}", head, own))
  ratios: dict[tuple[str, str], dict[str, str]] = {}
  for t in value["transfer"]:
    ratio = "n/a" if value["undefined"] else interval(t["ratio"])
    row = (t["model"], _MAPS.get(t["mapper"]) or t["mapper"])
    ratios.setdefault(row, {})[t["matched"]] = ratio
  rows = (
    (models.label(model), mapper, *(of.get(m, "n/a") for m in _MATCHED))
    for (model, mapper), of in ratios.items()
  )
  if ratios:
    head = ("direction from", "map", *_MATCHED.values())
    yield table(f"Transfer ratios, {behaviour}", head, rows)


def _doses(
  key: str, mapper: str, value: Mapping[str, Any], models: Models
) -> Iterator[ET.Element]:
  """Behaviour and harm against strength, of all arms with one map."""
  wanted = (models.analog, *models.controls[:1])
  arms = [
    (_arm_name(arm), _arm_style(arm, models), arm)
    for arm in value["arms"]
    if arm["kind"] != "mapped"
    or (arm["mapper"] == mapper and arm["model"] in wanted)
  ]
  legend = [(name, style) for name, style, _ in arms]
  kinds = (
    ("score", "Behaviour by strength", "score, nats", "zero"),
    ("perplexity_ratio", "Harm: perplexity by strength", "times", "one"),
  )
  for field, title, unit, reference in kinds:
    series = [
      charts.Series(
        name=name,
        style=style,
        x=arm["strengths"],
        y=arm[field],
        low=arm["score_low"] if field == "score" else (),
        high=arm["score_high"] if field == "score" else (),
      )
      for name, style, arm in arms
    ]
    title = f"{title}, {mapper} map"
    columns = ("direction", "strength", unit)
    if field == "score":
      columns += ("from", "to")
    rows = [
      (
        name,
        *(
          number(arm[k][i])
          for k in (
            *("strengths", field),
            *(("score_low", "score_high") if field == "score" else ()),
          )
        ),
      )
      for name, _, arm in arms
      for i in range(len(arm["strengths"]))
    ]

    def draw(key, series=series, title=title, unit=unit, reference=reference):
      return charts.curves(
        key,
        title=title,
        description="One curve a direction; bands are intervals.",
        series=series,
        x_label="strength, norms of the native direction",
        y_label=unit,
        reference=reference,
      )

    yield charts.figure(
      title,
      draw,
      table(title, columns, rows),
      legend=legend,
      key=f"{key}-{mapper}-{field}",
    )


def _arm_name(arm: Mapping[str, Any]) -> str:
  return _KINDS[arm["kind"]][0].format(model=arm["model"])


def _arm_style(arm: Mapping[str, Any], models: Models) -> int:
  if arm["kind"] == "mapped":
    return models.style(arm["model"])
  return _KINDS[arm["kind"]][1]


def stitching(part: Mapping[str, Any], models: Models) -> Iterator[ET.Element]:
  entropy = part["cross_entropy_nats"]
  yield tag(
    "p",
    "The frontier model's upper layers go on from a student's activations,"
    " through a linear map. 1 recovers all of what it can do, 0 no more than"
    " the mean activation does. By itself its cross-entropy is"
    f" {number(entropy['teacher'])} nats.",
  )
  found = models.ordered(part["models"])
  fits = [
    fit
    for fit in _FITS
    if any(s["fit"] == fit for stitches in found.values() for s in stitches)
  ]
  figures = (_recovered(fit, found, models) for fit in fits)
  yield tag("div", *figures, class_="figures")
  rows = (
    (
      models.label(name),
      number(stitch["student_depth"]),
      number(stitch["teacher_depth"]),
      _FITS[stitch["fit"]],
      interval(stitch["recovered"]),
    )
    for name, stitches in found.items()
    for stitch in stitches
  )
  head = ("model", "its depth", "frontier depth", "fit", "recovered")
  yield table("What stitches recover", head, rows)
  ablated = (
    (number(float(depth)), number(nats))
    for depth, nats in entropy["mean_ablated"].items()
  )
  yield table(
    "The frontier model with the mean activation at one depth",
    ("depth", "cross-entropy, nats"),
    ablated,
  )


def _recovered(
  fit: str, found: Mapping[str, Any], models: Models
) -> ET.Element:
  """A line a model and pair of depths."""
  title = f"Recovered, {_FITS[fit]}"
  lines = [
    (name, stitch)
    for name, stitches in found.items()
    for stitch in stitches
    if stitch["fit"] == fit
  ]
  lines.sort(key=lambda line: line[1]["student_depth"])

  def label(name, stitch):
    depths = (stitch["student_depth"], stitch["teacher_depth"])
    return f"{html.short(name, 8)} {depths[0]:.2g}"

  rows = interval_rows(
    (label(name, stitch), stitch["recovered"], models.style(name))
    for name, stitch in lines
  )
  cells = (
    (
      name,
      number(stitch["student_depth"]),
      number(stitch["teacher_depth"]),
      interval(stitch["recovered"]),
    )
    for name, stitch in lines
  )
  words = table(
    title, ("model", "its depth", "frontier depth", "recovered"), cells
  )
  if not rows:
    return tag("div", words)
  return charts.figure(
    title,
    lambda key: charts.intervals(
      key,
      title=title,
      description="One line a model and depth, with its interval.",
      rows=rows,
      reference=0.0,
    ),
    words,
    key=f"stitching-{fit}",
  )
