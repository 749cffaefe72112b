"""Elements of a page.

A page is a tree of elements that the standard library writes. It escapes every
text and attribute, so no string from a config or a model can become markup.
"""

from collections.abc import Iterable, Mapping, Sequence
import pathlib
from typing import Any
import xml.etree.ElementTree as ET

from analogjax.rendering.numbers import interval

Child = str | ET.Element | None

# Nothing is fetched, whatever a string may hold.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def tag(name: str, /, *children: Child, **attributes: Any) -> ET.Element:
  """An element.

  Args:
    *children: texts and elements in order; None is left out.
    **attributes: `class_` is class, and other `_` are `-`; None is left out.
  """
  element = ET.Element(name)
  for key, value in attributes.items():
    if value is not None:
      # viewBox is the only name with a capital, and has no underscore.
      key = key.rstrip("_").replace("_", "-")
      element.set(key, printable(str(value)))
  last: ET.Element | None = None
  for child in children:
    if child is None:
      continue
    if not isinstance(child, str):
      element.append(child)
      last = child
    elif last is None:
      element.text = (element.text or "") + printable(child)
    else:
      last.tail = (last.tail or "") + printable(child)
  return element


def printable(text: str) -> str:
  """The text with a replacement for every character that is not printable.

  XML cannot hold control characters, UTF-8 cannot hold lone surrogates, and
  direction marks let a name rewrite the line around it.
  """
  return "".join(
    c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text
  )


def page(title: str, *body: Child, style: str = "") -> str:
  """The text of a page that needs nothing else: no script, no network.

  `style` is CSS that is added to report.css.
  """
  css = pathlib.Path(__file__).with_name("report.css")
  sheet = ET.Element("style")
  # Ours: needs no escapes.
  sheet.text = css.read_text(encoding="utf-8") + style
  policy = {"http-equiv": "Content-Security-Policy", "content": _POLICY}
  viewport = "width=device-width, initial-scale=1"
  head = tag(
    "head",
    tag("meta", charset="utf-8"),
    ET.Element("meta", policy),
    tag("meta", name="viewport", content=viewport),
    tag("title", title),
    sheet,
  )
  tree = tag("html", head, tag("body", *body), lang="en")
  text = ET.tostring(tree, encoding="unicode", method="html")
  return f"<!DOCTYPE html>\n{text}\n"


def section(key: str, title: str, *children: Child) -> ET.Element:
  """A section with its heading; `key` is the id that links point to."""
  heading = tag("h2", title, id=key)
  return tag("section", heading, *children, aria_labelledby=key)


def badge(sign: str, words: str, class_: str) -> ET.Element:
  """A verdict: a sign and the words."""
  hidden = tag("span", sign, aria_hidden="true")
  return tag("span", hidden, f" {words}", class_=f"verdict {class_}".strip())


def short(text: str, most: int = 16) -> str:
  """A label for a drawing; the table beside the drawing has the whole text."""
  return text if len(text) <= most else text[: most - 1] + "\u2026"


def table(
  caption: str, head: Sequence[Child], rows: Iterable[Sequence[Child]]
) -> ET.Element:
  """A table in a box that scrolls sideways, with the keyboard too.

  `rows` are cells; the first cell of a row is its title.
  """
  body = [
    tag("tr", tag("th", row[0], scope="row"), *map(_cell, row[1:]))
    for row in rows
  ]
  titles = (tag("th", title, scope="col") for title in head)
  return scroll(
    tag(
      "table",
      tag("caption", tag("span", caption)),
      tag("thead", tag("tr", *titles)),
      tag("tbody", *body),
    ),
    caption,
  )


def _cell(content: Child) -> ET.Element:
  """A cell: numbers stay on one line, sentences do not."""
  sentence = isinstance(content, str) and len(content) > 40
  return tag("td", content, class_="long" if sentence else None)


def interval_cell(estimate: Mapping[str, Any] | None) -> Child:
  """An estimate for a table; on a narrow screen its interval is below it."""
  value, *bounds = interval(estimate).split(" ", 1)
  if not bounds or estimate is None or estimate["value"] is None:
    return interval(estimate)
  return tag("span", f"{value} ", tag("span", bounds[0], class_="range"))


def scroll(child: ET.Element, label: str) -> ET.Element:
  """A box that scrolls sideways; shadows show that there is more."""
  return tag(
    "div", child, class_="scroll", tabindex="0", role="region", aria_label=label
  )


def command(words: str) -> ET.Element:
  """A command; its lines break between arguments only."""
  first, *rest = (tag("span", word) for word in words.split(" "))
  spaced = (child for word in rest for child in (" ", word))
  return tag("pre", first, *spaced, class_="command")


def details(summary: str, *children: Child, printed: bool = True) -> ET.Element:
  """Content that is shown on request, and on paper if `printed`."""
  title = tag("summary", summary)
  return tag("details", title, *children, class_="more" if printed else None)
