"""Drawings of the report, as SVG.

Colours are classes of report.css, which knows light, dark and paper. Nothing
is told by colour alone: curves differ in dash and marker, cells hold their
numbers, and the table of a figure says all that the figure does. Axes are
marked at numbers of the data, so that no other number is on the page.
"""

from collections.abc import Callable, Sequence
import dataclasses
import itertools
import xml.etree.ElementTree as ET

from analogjax.rendering import html, svg
from analogjax.rendering.html import tag
from analogjax.rendering.numbers import number

WIDTH, HEIGHT = 320, 226
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 40
CELL, CELL_HEIGHT = 52, 30
HISTOGRAM_BINS = 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
  """A curve."""

  name: str
  style: int  # Index of svg.STYLES, turning over.
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
  picture: Callable[[str], ET.Element],
  table: ET.Element,
  *,
  legend: Sequence[tuple[str, int]] = (),
  key: str,
) -> ET.Element:
  """A drawing with its caption, its legend and the table of its numbers.

  Args:
    title: the caption.
    picture: draws, given an id that no other figure has.
    table: text alternative.
    legend: (name, style) of what is in it.
    key: makes the id.
  """
  swatches = [
    tag("li", svg.swatch(style), " ", tag("bdi", name))
    for name, style in legend
  ]
  return tag(
    "figure",
    tag("figcaption", title),
    picture(key),
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
    key: an id that no other figure has.
    title: for those who hear the page.
    description: as above.
    series: at least one, with points.
    x_label: below the axis, with the unit.
    y_label: above the other one, with the unit.
    reference: "zero", "one" or "diagonal": a thin line of that.
  """
  xs = [x for s in series for x in s.x]
  ys = [y for s in series for y in (*s.y, *s.low, *s.high)]
  if reference == "diagonal":
    xs, ys = [0, *xs, 1], [0, *ys, 1]
  elif reference:
    ys = [*ys, 0 if reference == "zero" else 1]
  frame = _Frame(xs, ys)
  parts = frame.axes(x_label, y_label)
  if reference == "diagonal":
    parts.append(svg.line(frame.at(0, 0), frame.at(1, 1), class_="reference"))
  elif reference:
    at = 0 if reference == "zero" else 1
    ends = frame.at(min(xs), at), frame.at(max(xs), at)
    parts.append(svg.line(*ends, class_="reference"))
  for s in series:
    if s.low:
      edge = [*zip(s.x, s.low, strict=True)]
      edge += reversed([*zip(s.x, s.high, strict=True)])
      points = svg.points(frame.at(*p) for p in edge)
      band = f"band {svg.colour(s.style)}"
      parts.append(tag("polygon", points=points, class_=band))
  for s in series:
    places = [frame.at(x, y) for x, y in zip(s.x, s.y, strict=True)]
    parts.append(svg.curve(places, s.style))
    parts += [svg.marker(place, s.style) for place in places]
  return svg.picture(key, title, description, (WIDTH, HEIGHT), parts)


def intervals(
  key: str,
  *,
  title: str,
  description: str,
  rows: Sequence[Interval],
  reference: float | None = None,
) -> ET.Element:
  """A number of each model with its interval, one below the other.

  Args:
    key: an id that no other figure has.
    title: for those who hear the page.
    description: as above.
    rows: at least one.
    reference: a dashed line.
  """
  row_height, left, top = 24, 104, 8
  height = top + row_height * len(rows) + 22
  ends = [n for r in rows for n in (r.low, r.value, r.high)]
  ends += [] if reference is None else [reference]
  low, high = _spread(min(ends), max(ends))
  right = WIDTH - 18

  def x(value):
    return left + (value - low) / (high - low) * (right - left)

  bottom = top + row_height * len(rows)
  parts = [svg.line((left, bottom), (right, bottom), class_="axis")]
  for value, anchor in ((min(ends), "start"), (max(ends), "end")):
    # A tick, and its number where it does not leave the drawing.
    parts.append(svg.line((x(value), bottom), (x(value), bottom + 4)))
    at = max(left - 12, x(value)) if anchor == "start" else x(value) + 12
    parts.append(svg.text((at, bottom + 15), number(value), anchor))
  if reference is not None:
    at = x(reference)
    parts.append(svg.line((at, top), (at, bottom), class_="reference"))
    # Where its number would not run into those of the ends.
    if left + 40 < at < right - 40:
      parts.append(svg.text((at, bottom + 15), number(reference), "middle"))
  for i, row in enumerate(rows):
    y = top + row_height * (i + 0.5)
    parts += [
      svg.text((left - 10, y + 4), html.short(row.name, 15), "end"),
      svg.curve([(x(row.low), y), (x(row.high), y)], row.style),
      svg.marker((x(row.value), y), row.style),
    ]
  return svg.picture(key, title, description, (WIDTH, height), parts)


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
  """A matrix, the darker the higher, with its numbers.

  Args:
    key: an id that no other figure has.
    title: for those who hear the page.
    description: as above.
    rows: titles, from below upwards: depths grow as in pictures of models.
    columns: titles.
    values: by row and column.
    most: of all matrices that are compared: what is darkest.
    best: (row, column) that has a frame.
    row_label: what the rows are.
    column_label: what the columns are.
  """
  left, top = 50, 22
  width = max(WIDTH, left + CELL * len(columns) + 4)
  cell = (width - left - 4) / len(columns)
  height = top + CELL_HEIGHT * len(rows) + 38
  parts = [svg.text((left, 12), row_label, "start")]
  bottom = top + CELL_HEIGHT * len(rows)
  frames = []
  for i, (row, line) in enumerate(zip(rows, values, strict=True)):
    y = bottom - CELL_HEIGHT * (i + 1)
    middle = y + CELL_HEIGHT / 2 + 4
    parts.append(svg.text((left - 8, middle), number(row), "end"))
    for j, (column, value) in enumerate(zip(columns, line, strict=True)):
      x = left + cell * j
      shade = min(1.0, max(0.0, value / most)) if most > 0 else 0.0
      box = dict(x=svg.short(x), y=svg.short(y), width=svg.short(cell))
      box |= dict(height=CELL_HEIGHT)
      parts.append(
        tag("rect", **box, class_="cell", fill_opacity=f"{shade:.2f}")
      )
      deep = "deep" if shade > 0.5 else "value"
      at = (x + cell / 2, middle)
      parts.append(svg.text(at, number(value), "middle", class_=deep))
      if (row, column) == best:
        frames.append(tag("rect", **box, class_="best"))
  for j, column in enumerate(columns):
    at = (left + cell * (j + 0.5), bottom + 15)
    parts.append(svg.text(at, number(column), "middle"))
  parts.append(svg.text((width - 4, bottom + 31), column_label, "end"))
  # On a phone a small matrix shrinks to fit; a large one scrolls in its box.
  parts += frames
  drawing = svg.picture(key, title, description, (width, height), parts)
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
  """What chance gives, and where the observed number lies.

  Args:
    key: an id that no other figure has.
    title: for those who hear the page.
    description: as above.
    null: of the permutations.
    observed: a bold line.
    quantile: of null; a dashed line.
    x_label: below the axis.
  """
  ends = [*null, observed, quantile]
  low, high = _spread(min(ends), max(ends))
  counts = [0] * HISTOGRAM_BINS
  for value in null:
    bin_ = int((value - low) / (high - low) * HISTOGRAM_BINS)
    counts[min(bin_, HISTOGRAM_BINS - 1)] += 1
  height, top, bottom, left = 150, 26, 112, 14
  width = (WIDTH - 2 * left) / HISTOGRAM_BINS

  def x(value):
    return left + (value - low) / (high - low) * (WIDTH - 2 * left)

  parts = []
  for i, count in enumerate(counts):
    tall = (bottom - top) * count / max(counts)
    if count:
      parts.append(
        tag(
          *("rect",),
          x=svg.short(left + width * i + 0.5),
          y=svg.short(bottom - tall),
          width=svg.short(width - 1),
          height=svg.short(tall),
          class_="bar",
        )
      )
  parts.append(svg.line((left, bottom), (WIDTH - left, bottom), class_="axis"))
  parts.append(
    svg.line((x(quantile), top), (x(quantile), bottom), class_="reference")
  )
  at = x(observed)
  parts.append(svg.line((at, top - 6), (at, bottom), class_="observed"))
  anchor = "end" if at > WIDTH / 2 else "start"
  at += 6 if anchor == "end" else -6
  parts.append(
    svg.text((at, 12), f"observed {number(observed)}", anchor, "deepest")
  )
  smallest, largest = min(null), max(null)
  parts.append(svg.text((x(smallest), bottom + 15), number(smallest), "start"))
  # Where all of chance is one number there is one label.
  if x(largest) - x(smallest) > 60:
    parts.append(svg.text((x(largest), bottom + 15), number(largest), "end"))
  parts.append(svg.text((WIDTH / 2, bottom + 32), x_label, "middle"))
  return svg.picture(key, title, description, (WIDTH, height), parts)


class _Frame:
  """From numbers to places, and the axes."""

  def __init__(self, xs: Sequence[float], ys: Sequence[float]):
    self.xs, self.ys = xs, ys
    self.x_low, self.x_high = _spread(min(xs), max(xs))
    self.y_low, self.y_high = _spread(min(ys), max(ys))

  def at(self, x: float, y: float) -> tuple[float, float]:
    right = (x - self.x_low) / (self.x_high - self.x_low)
    up = (y - self.y_low) / (self.y_high - self.y_low)
    return (
      LEFT + right * (WIDTH - LEFT - RIGHT),
      HEIGHT - BOTTOM - up * (HEIGHT - TOP - 16 - BOTTOM),
    )

  def axes(self, x_label: str, y_label: str) -> list[ET.Element]:
    left, bottom = LEFT, HEIGHT - BOTTOM
    parts = [
      svg.line((left, bottom), (WIDTH - RIGHT, bottom), class_="axis"),
      svg.line((left, TOP + 16), (left, bottom), class_="axis"),
      svg.text((4, 14), y_label, "start"),
      svg.text(((left + WIDTH - RIGHT) / 2, HEIGHT - 6), x_label, "middle"),
    ]
    for value in _ticks(self.xs, 46, lambda v: self.at(v, self.y_low)[0]):
      x = self.at(value, self.y_low)[0]
      parts.append(svg.line((x, bottom), (x, bottom + 4)))
      parts.append(svg.text((x, bottom + 16), number(value), "middle"))
    for value in _ticks(self.ys, 24, lambda v: -self.at(self.x_low, v)[1]):
      y = self.at(self.x_low, value)[1]
      parts.append(svg.line((left - 4, y), (left, y)))
      parts.append(svg.text((left - 7, y + 4), number(value), "end"))
    return parts


def _ticks(
  values: Sequence[float], apart: float, place: Callable[[float], float]
) -> list[float]:
  """Numbers of the data to mark: both ends, 0, and others that have room."""
  ends = [min(values), max(values)]
  middle = (ends[0] + ends[1]) / 2
  rest = sorted(set(values), key=lambda v: abs(v - middle))
  if ends[0] < 0 < ends[1]:
    rest = [0.0, *rest]
  chosen: list[float] = []
  for value in itertools.chain(ends, rest):
    if all(abs(place(value) - place(other)) >= apart for other in chosen):
      chosen.append(value)
    if len(chosen) == 6:
      break
  return chosen


def _spread(low: float, high: float) -> tuple[float, float]:
  """The ends of a scale: never the same."""
  return (low, high) if high > low else (low - 0.5, high + 0.5)
