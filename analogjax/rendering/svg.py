"""Parts of charts: scales with round ticks, lines, texts and markers.

Places are (x, y) in units of the drawing, y downwards.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import math
import xml.etree.ElementTree as ET

from analogjax.rendering.html import tag
from analogjax.rendering.numbers import number

Place = tuple[float, float]

# Dash and marker of the n-th style; report.css has the colours c0 to c5.
STYLES = (
  ("", "circle"),
  ("", "square"),
  ("7 3", "triangle"),
  ("2 3", "diamond"),
  ("9 3 2 3", "cross"),
  ("4 2", "ring"),
)
_RADII = {"circle": 3.4, "ring": 3.8}
_PATHS = {
  "square": "M-3.6-3.6h7.2v7.2h-7.2z",
  "triangle": "M-4.4 3.4h8.8l-4.4-7.6z",
  "diamond": "M0-4.8l4.8 4.8-4.8 4.8-4.8-4.8z",
  "cross": "M-3.6-3.6l7.2 7.2m0-7.2l-7.2 7.2",
}
_HOLLOW = ("ring", "cross")


@dataclasses.dataclass(frozen=True)
class Scale:
  """Places of numbers along an axis, from its first round tick to its last."""

  ticks: tuple[float, ...]
  start: float  # Place of the first tick.
  end: float  # Place of the last one.

  @classmethod
  def over(
    cls, values: Sequence[float], start: float, end: float, *, most: int
  ) -> "Scale":
    """A scale that holds all values, with at most `most` + 1 ticks."""
    low, high = min(values), max(values)
    if low == high:
      low, high = low - 0.5, high + 0.5
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (power, 2 * power, 5 * power, 10 * power, 20 * power):
      # Rounding must not add a tick beyond an end that is one.
      first = math.floor(round(low / step, 9))
      last = math.ceil(round(high / step, 9))
      if last - first <= most:
        break
    digits = 2 - math.floor(math.log10(step))
    ticks = tuple(round(i * step, digits) for i in range(first, last + 1))
    return cls(ticks, start, end)

  def at(self, value: float) -> float:
    """The place of a number."""
    low, high = self.ticks[0], self.ticks[-1]
    return self.start + (value - low) / (high - low) * (self.end - self.start)


def x_axis(scale: Scale, y: float, label: str) -> list[ET.Element]:
  """A horizontal axis at `y` with its ticks, and its label below them."""
  parts = [line((scale.start, y), (scale.end, y), class_="axis")]
  for tick in scale.ticks:
    x = scale.at(tick)
    parts.append(line((x, y), (x, y + 4)))
    parts.append(text((x, y + 16), number(tick), "middle", "scale"))
  middle = (scale.start + scale.end) / 2
  return [*parts, text((middle, y + 32), label, "middle")]


def colour(style: int) -> str:
  """A class of report.css."""
  return f"c{style % len(STYLES)}"


def short(value: float) -> str:
  """A coordinate to a tenth of a unit, which is finer than the eye sees."""
  return f"{value:.1f}".removesuffix(".0")


def points(places: Iterable[Place]) -> str:
  return " ".join(f"{short(x)},{short(y)}" for x, y in places)


def line(a: Place, b: Place, class_: str = "tick") -> ET.Element:
  (x1, y1), (x2, y2) = (map(short, place) for place in (a, b))
  return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def curve(places: Iterable[Place], style: int) -> ET.Element:
  return tag(
    "polyline",
    points=points(places),
    class_=f"curve {colour(style)}",
    stroke_dasharray=STYLES[style % len(STYLES)][0] or None,
  )


def marker(at: Place, style: int) -> ET.Element:
  shape = STYLES[style % len(STYLES)][1]
  class_ = f"{'hollow' if shape in _HOLLOW else 'mark'} {colour(style)}"
  x, y = map(short, at)
  if shape in _RADII:
    return tag("circle", cx=x, cy=y, r=_RADII[shape], class_=class_)
  place = f"translate({x} {y})"
  return tag("path", d=_PATHS[shape], transform=place, class_=class_)


def text(
  at: Place, words: str, anchor: str, class_: str | None = None
) -> ET.Element:
  """Words whose start, middle or end (`anchor`) is at a place."""
  x, y = map(short, at)
  return tag("text", words, x=x, y=y, text_anchor=anchor, class_=class_)


def rectangle(
  corner: Place, size: Place, class_: str, **attributes: str
) -> ET.Element:
  """A box, by its upper left corner."""
  (x, y), (width, height) = (map(short, pair) for pair in (corner, size))
  return tag(
    "rect",
    x=x,
    y=y,
    width=width,
    height=height,
    class_=class_,
    **attributes,
  )


def swatch(style: int) -> ET.Element:
  """A piece of a curve, for a legend."""
  return tag(
    "svg",
    curve([(1, 7), (33, 7)], style),
    marker((17, 7), style),
    viewBox="0 0 34 14",
    width=34,
    height=14,
    class_="swatch",
    aria_hidden="true",
  )


def picture(
  key: str,
  title: str,
  description: str,
  size: Place,
  parts: Iterable[ET.Element],
) -> ET.Element:
  """The drawing, with its title and description for a screen reader.

  `key` is an id that no other drawing of the page has.
  """
  return tag(
    "svg",
    tag("title", title, id=f"{key}-title"),
    tag("desc", description, id=f"{key}-desc"),
    *parts,
    viewBox=f"0 0 {short(size[0])} {short(size[1])}",
    role="img",
    class_="chart",
    aria_labelledby=f"{key}-title",
    aria_describedby=f"{key}-desc",
  )
