"""What drawings are made of: lines, texts and markers.

Places are (x, y) in units of the drawing, y downwards.
"""

from collections.abc import Iterable
from typing import Any
import xml.etree.ElementTree as ET

from analogjax.rendering.html import tag

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


def colour(style: int) -> str:
  """A class of report.css."""
  return f"c{style % len(STYLES)}"


def short(value: float) -> str:
  """A tenth of a unit is less than can be seen."""
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
  """Words that begin, have their middle or end at a place: `anchor`."""
  x, y = map(short, at)
  return tag("text", words, x=x, y=y, text_anchor=anchor, class_=class_)


def swatch(style: int) -> ET.Element:
  """A piece of curve for a legend."""
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
  """The drawing, with what a screen reader says of it.

  Args:
    key: an id that no other one of the page has.
    title: its name.
    description: how to read it.
    size: width and height.
    parts: what is in it.
  """
  labels: dict[str, Any] = {
    "aria_labelledby": f"{key}-title",
    "aria_describedby": f"{key}-desc",
  }
  return tag(
    "svg",
    tag("title", title, id=f"{key}-title"),
    tag("desc", description, id=f"{key}-desc"),
    *parts,
    viewBox=f"0 0 {short(size[0])} {short(size[1])}",
    role="img",
    class_="chart",
    **labels,
  )
