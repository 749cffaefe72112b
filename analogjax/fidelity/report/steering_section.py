"""The report's sections on interventions: steering and stitching."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
import xml.etree.ElementTree as ET

from analogjax.fidelity import claims
from analogjax.fidelity.report.parts import Models, interval_rows
from analogjax.rendering import charts, html
from analogjax.rendering.html import interval_cell, table, tag
from analogjax.rendering.numbers import interval, number

# kind -> (name of the curve, style).
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

Json = Mapping[str, Any]
Curve = tuple[str, int, Json]  # Name, style, and one of the report's arms.


def steering(part: Json, models: Models) -> Iterator[ET.Element]:
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
  key: str, behaviour: str, value: Json, models: Models
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
    for m in claims.STEERING_MAPPERS
    if any(a["kind"] == "mapped" and a["mapper"] == m for a in value["arms"])
  ]
  for mapper in mappers:
    figures = _by_strength(f"{key}-{mapper}", mapper, value["arms"], models)
    content = tag("div", *figures, class_="figures")
    if mapper == mappers[0]:
      yield content
    else:
      yield html.details(f"The same with the {mapper} map", content)
  own = [
    (models.label(model), number(of["depth"]), interval_cell(of["effect"]))
    for model, of in models.ordered(value.get("own", {})).items()
  ]
  if own:
    title = "What each model's own direction does to itself"
    head = ("model", "its depth", "effect, nats")
    yield html.details(title, table(f"{title}, {behaviour}", head, own))
  ratios: dict[tuple[str, str], dict[str, Json | None]] = {}
  for t in value["transfer"]:
    row = (t["model"], _MAPS.get(t["mapper"]) or t["mapper"])
    ratio = None if value["undefined"] else t["ratio"]
    ratios.setdefault(row, {})[t["matched"]] = ratio
  rows = (
    (models.label(model), mapper, *(interval_cell(of.get(m)) for m in _MATCHED))
    for (model, mapper), of in ratios.items()
  )
  if ratios:
    head = ("direction from", "map", *_MATCHED.values())
    yield table(f"Transfer ratios, {behaviour}", head, rows)


def _by_strength(
  key: str, mapper: str, arms: Sequence[Json], models: Models
) -> Iterator[ET.Element]:
  """Behaviour and harm against strength, for all arms with one map."""
  wanted = (models.analog, *models.controls[:1])
  curves = []
  for arm in arms:
    name, style = _KINDS[arm["kind"]]
    if arm["kind"] == "mapped":
      if arm["mapper"] != mapper or arm["model"] not in wanted:
        continue
      style = models.style(arm["model"])
    curves.append((name.format(model=arm["model"]), style, arm))
  yield _strength_figure(
    f"{key}-score",
    f"Behaviour by strength, {mapper} map",
    curves,
    fields=("score", "score_low", "score_high"),
    titles=("score, nats", "from", "to"),
    reference="zero",
  )
  yield _strength_figure(
    f"{key}-perplexity",
    f"Harm: perplexity by strength, {mapper} map",
    curves,
    fields=("perplexity_ratio",),
    titles=("perplexity, times that without a push",),
    reference="one",
  )


def _strength_figure(
  key: str,
  title: str,
  curves: Sequence[Curve],
  *,
  fields: Sequence[str],
  titles: Sequence[str],
  reference: str,
) -> ET.Element:
  """A curve for each arm: the first field, and a band if there are three."""
  value, *band = fields
  picture = charts.curves(
    key,
    title=title,
    description="One curve per direction; bands are intervals.",
    series=[
      charts.Series(
        name=name,
        style=style,
        x=arm["strengths"],
        y=arm[value],
        low=arm[band[0]] if band else (),
        high=arm[band[1]] if band else (),
      )
      for name, style, arm in curves
    ],
    x_label="strength, norms of the native direction",
    y_label=titles[0],
    reference=reference,
  )
  rows = [
    (name, *map(number, line))
    for name, _, arm in curves
    for line in zip(*(arm[k] for k in ("strengths", *fields)), strict=True)
  ]
  cells = table(title, ("direction", "strength", *titles), rows)
  legend = [(name, style) for name, style, _ in curves]
  return charts.figure(title, picture, cells, legend=legend)


def stitching(part: Json, models: Models) -> Iterator[ET.Element]:
  entropy = part["cross_entropy_nats"]
  yield tag(
    "p",
    "The frontier model's upper layers go on from a student's activations,"
    " through a linear map. 1 recovers all of what it can do, 0 no more than"
    " the mean activation does. By itself its cross-entropy is"
    f" {number(entropy['teacher'])} nats.",
  )
  stitches = [
    (name, stitch)
    for name, some in models.ordered(part["models"]).items()
    for stitch in some
  ]
  fits = [fit for fit in _FITS if any(s["fit"] == fit for _, s in stitches)]
  figures = (_recovered(fit, stitches, models) for fit in fits)
  yield tag("div", *figures, class_="figures")
  rows = (
    (
      models.label(name),
      number(stitch["student_depth"]),
      number(stitch["teacher_depth"]),
      _FITS[stitch["fit"]],
      interval_cell(stitch["recovered"]),
    )
    for name, stitch in stitches
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
  fit: str, stitches: Sequence[tuple[str, Json]], models: Models
) -> ET.Element:
  """A line for each model and pair of depths."""
  title = f"Recovered, {_FITS[fit]}"
  lines = [(name, stitch) for name, stitch in stitches if stitch["fit"] == fit]
  lines.sort(key=lambda line: line[1]["student_depth"])
  rows = interval_rows(
    (
      f"{html.short(name, 8)} {stitch['student_depth']:.2g}",
      stitch["recovered"],
      models.style(name),
    )
    for name, stitch in lines
  )
  cells = (
    (
      name,
      number(stitch["student_depth"]),
      number(stitch["teacher_depth"]),
      interval_cell(stitch["recovered"]),
    )
    for name, stitch in lines
  )
  head = ("model", "its depth", "frontier depth", "recovered")
  words = table(title, head, cells)
  if not rows:
    return tag("div", words)
  picture = charts.intervals(
    f"stitching-{fit}",
    title=title,
    description="One line per model and depth, with its interval.",
    rows=rows,
    x_label="part of the cross-entropy; 0 is the mean activation",
    references=((claims.TOO_LITTLE, "too little"), (claims.ENOUGH, "enough")),
  )
  return charts.figure(title, picture, words)
