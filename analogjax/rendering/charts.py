"""Charts of the report, as SVG.

They are drawn here rather than by a plotting library because a bundle's page is
rendered again by whoever verifies it and compared byte for byte.

Every chart takes `key`, an id that no other one of the page has, and `title`
and `description`, which a screen reader reads aloud.

Colours are classes of report.css, which has a light, a dark and a printed
form. Nothing depends on colour alone: curves differ in dash and marker, cells
show their numbers, and the table of a figure says all that the figure does.
"""

from collections.abc import Sequence
import dataclasses
import xml.etree.ElementTree as ET

from analogjax.rendering import html, svg
from analogjax.rendering.html import tag
from analogjax.rendering.numbers import number
from analogjax.rendering.svg import Scale

WIDTH, HEIGHT = 320, 226
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 28, 40
CELL, CELL_HEIGHT = 52, 30
HISTOGRAM_BINS = 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
  """A curve."""

  name: str
  style: int  # Index of svg.STYLES, modulo their number.
  x: Sequence[float]
  y: Sequence[float]
  low: Sequence[float] = ()  # The band, if there is one.
  high: Sequence[float] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
  """A row of `intervals`."""

  name: str
  style: int
  value: float
  low: float
  high: float


def figure(
  title: str,
  picture: ET.Element,
  table: ET.Element,
  *,
  legend: Sequence[tuple[str, int]] = (),
) -> ET.Element:
  """A chart with its caption, its legend and the table of its numbers.

  `legend` has (name, style) of each curve.
  """
  swatches = [
    tag("li", svg.swatch(style), " ", tag("bdi", name))
    for name, style in legend
  ]
  return tag(
    "figure",
    tag("figcaption", title),
    picture,
    tag("ul", *swatches, class_="legend") if swatches else None,
    html.details("Numbers of this figure", table, printed=False),
  )


def curves(
  key: str,
  *,
  title: str,
  description: str,
  series: Sequence[Series],
  x_label: str,
  y_label: str,
  reference: str = "",
) -> ET.Element:
  """Curves with their bands.

  Args:
    x_label: below the axis, with the unit.
    reference: a thin line at y = "zero" or "one", or the "diagonal".
  """
  xs = [x for s in series for x in s.x]
  ys = [0.0, *(y for s in series for y in (*s.y, *s.low, *s.high))]
  if reference == "diagonal":
    xs, ys = [0, *xs, 1], [*ys, 1]
  x_scale = Scale.over(xs, LEFT, WIDTH - RIGHT, most=5)
  y_scale = Scale.over(ys, HEIGHT - BOTTOM, TOP, most=5)

  def at(x, y):
    return x_scale.at(x), y_scale.at(y)

  corner = (LEFT, HEIGHT - BOTTOM)
  parts = [
    *svg.x_axis(x_scale, HEIGHT - BOTTOM, x_label),
    svg.line(corner, (LEFT, TOP), class_="axis"),
    svg.text((4, 14), y_label, "start"),
  ]
  for tick in y_scale.ticks:
    y = y_scale.at(tick)
    parts.append(svg.line((LEFT - 4, y), (LEFT, y)))
    parts.append(svg.text((LEFT - 7, y + 4), number(tick), "end", "scale"))
  if reference == "diagonal":
    parts.append(svg.line(at(0, 0), at(1, 1), class_="reference"))
  elif reference:
    y = y_scale.at({"zero": 0, "one": 1}[reference])
    ends = (LEFT, y), (WIDTH - RIGHT, y)
    parts.append(svg.line(*ends, class_="reference"))
  for s in series:
    if s.low:
      edge = [*zip(s.x, s.low, strict=True)]
      edge += reversed([*zip(s.x, s.high, strict=True)])
      points = svg.points(at(*p) for p in edge)
      band = f"band {svg.colour(s.style)}"
      parts.append(tag("polygon", points=points, class_=band))
  for s in series:
    places = [at(x, y) for x, y in zip(s.x, s.y, strict=True)]
    parts.append(svg.curve(places, s.style))
    parts += [svg.marker(place, s.style) for place in places]
  return svg.picture(key, title, description, (WIDTH, HEIGHT), parts)


def intervals(
  key: str,
  *,
  title: str,
  description: str,
  rows: Sequence[Interval],
  x_label: str,
  references: Sequence[tuple[float, str]] = (),
) -> ET.Element:
  """One number of each model with its interval, on a scale that has 0.

  Args:
    references: dashed lines between 0 and 1 and their labels, two at most,
      rising; with them the scale has 1, too.
  """
  row_height, left, top = 24, 104, 22 if references else 8
  bottom = top + row_height * len(rows)
  ends = [n for r in rows for n in (r.low, r.value, r.high)]
  ends += [0.0, 1.0 if references else 0.0]
  scale = Scale.over(ends, left, WIDTH - 18, most=4)
  parts = svg.x_axis(scale, bottom, x_label)
  for i, (value, label) in enumerate(references):
    x = scale.at(value)
    parts.append(svg.line((x, top - 6), (x, bottom), class_="reference"))
    # The labels of two lines stand away from each other.
    is_first = i < len(references) - 1
    place = (x - 3 if is_first else x + 3, 12)
    words = f"{label} {number(value)}"
    parts.append(svg.text(place, words, "end" if is_first else "start"))
  for i, row in enumerate(rows):
    y = top + row_height * (i + 0.5)
    parts += [
      svg.text((left - 10, y + 4), html.short(row.name, 15), "end"),
      svg.curve([(scale.at(row.low), y), (scale.at(row.high), y)], row.style),
      svg.marker((scale.at(row.value), y), row.style),
    ]
  return svg.picture(key, title, description, (WIDTH, bottom + 38), parts)


def heat_map(
  key: str,
  *,
  title: str,
  description: str,
  rows: Sequence[float],
  columns: Sequence[float],
  values: Sequence[Sequence[float]],
  most: float,
  best: tuple[float, float],
  row_label: str,
  column_label: str,
) -> ET.Element:
  """A matrix with its numbers, darker where they are higher.

  Args:
    rows: titles, from the bottom up: depths grow as in pictures of models.
    most: the darkest value, of all matrices that are compared.
    best: (row, column) that gets a frame.
  """
  left, top = 50, 22
  width = max(WIDTH, left + CELL * len(columns) + 4)
  cell = (width - left - 4) / len(columns)
  bottom = top + CELL_HEIGHT * len(rows)
  parts = [svg.text((left, 12), row_label, "start")]
  frames = []
  for i, (row, line) in enumerate(zip(rows, values, strict=True)):
    y = bottom - CELL_HEIGHT * (i + 1)
    middle = y + CELL_HEIGHT / 2 + 4
    parts.append(svg.text((left - 8, middle), number(row), "end"))
    for j, (column, value) in enumerate(zip(columns, line, strict=True)):
      shade = min(1.0, max(0.0, value / most)) if most > 0 else 0.0
      box = (left + cell * j, y), (cell, CELL_HEIGHT)
      parts.append(svg.rectangle(*box, "cell", fill_opacity=f"{shade:.2f}"))
      at = (left + cell * (j + 0.5), middle)
      contrast = "deep" if shade > 0.5 else "value"
      parts.append(svg.text(at, number(value), "middle", contrast))
      if (row, column) == best:
        frames.append(svg.rectangle(*box, "best"))
  for j, column in enumerate(columns):
    at = (left + cell * (j + 0.5), bottom + 15)
    parts.append(svg.text(at, number(column), "middle"))
  parts.append(svg.text((width - 4, bottom + 31), column_label, "end"))
  size = (width, bottom + 38)
  drawing = svg.picture(key, title, description, size, [*parts, *frames])
  # On a phone a small matrix shrinks to fit; a large one scrolls in its box.
  if width == WIDTH:
    return drawing
  drawing.set("style", f"max-width: none; width: {width}px")
  return html.scroll(drawing, title)


def histogram(
  key: str,
  *,
  title: str,
  description: str,
  null: Sequence[float],
  observed: float,
  quantile: float,
  x_label: str,
) -> ET.Element:
  """The null distribution of a statistic, and the observed value.

  Args:
    observed: a bold line.
    quantile: of null, at 95 %; a dashed line.
  """
  height, top, bottom, left = 164, 26, 124, 14
  scale = Scale.over([*null, observed, quantile], left, WIDTH - left, most=4)
  low, high = scale.ticks[0], scale.ticks[-1]
  counts = [0] * HISTOGRAM_BINS
  for value in null:
    bin_ = int((value - low) / (high - low) * HISTOGRAM_BINS)
    counts[min(bin_, HISTOGRAM_BINS - 1)] += 1
  width = (WIDTH - 2 * left) / HISTOGRAM_BINS
  parts = []
  for i, count in enumerate(counts):
    tall = (bottom - top) * count / max(counts)
    if count:
      corner = (left + width * i + 0.5, bottom - tall)
      parts.append(svg.rectangle(corner, (width - 1, tall), "bar"))
  parts += svg.x_axis(scale, bottom, x_label)
  at = scale.at(quantile)
  parts.append(svg.line((at, top), (at, bottom), class_="reference"))
  at = scale.at(observed)
  parts.append(svg.line((at, top - 6), (at, bottom), class_="observed"))
  anchor = "end" if at > WIDTH / 2 else "start"
  at += 6 if anchor == "end" else -6
  words = f"observed {number(observed)}"
  parts.append(svg.text((at, 12), words, anchor, "deepest"))
  return svg.picture(key, title, description, (WIDTH, height), parts)
