"""Elements of a page.

A page is a tree of elements that the standard library writes: every text and
attribute is escaped there, so no string from a config or a model can become
markup.
"""

from collections.abc import Iterable, Sequence
import pathlib
from typing import Any
import xml.etree.ElementTree as ET

Child = str | ET.Element | None


def tag(name: str, /, *children: Child, **attributes: Any) -> ET.Element:
  """An element.

  Args:
    name: of the element.
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
  """The text with a sign for whatever is no character to be seen.

  Control characters end what XML can hold, lone surrogates what UTF-8 can, and
  marks that turn the direction let a name rewrite the line that it stands in.
  """
  return "".join(
    c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text
  )


def stylesheet() -> str:
  """The style of every page."""
  path = pathlib.Path(__file__).with_name("report.css")
  return path.read_text(encoding="utf-8")


def to_html(page: ET.Element) -> str:
  body = ET.tostring(page, encoding="unicode", method="html")
  return f"<!DOCTYPE html>\n{body}\n"


def short(text: str, most: int = 16) -> str:
  """For a label in a drawing; the table beside it has all of it."""
  return text if len(text) <= most else text[: most - 1] + "\u2026"


def table(
  caption: str, head: Sequence[str], rows: Iterable[Sequence[Child]]
) -> ET.Element:
  """A table in a box of its own that scrolls sideways, by keyboard too.

  Args:
    caption: says what is in it.
    head: titles of the columns.
    rows: cells; the first of each is the title of its row.
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
  """Numbers stay on one line, sentences do not."""
  sentence = isinstance(content, str) and len(content) > 40
  return tag("td", content, class_="long" if sentence else None)


def scroll(child: ET.Element, label: str) -> ET.Element:
  return tag(
    *("div", child),
    class_="scroll",
    tabindex="0",
    role="region",
    aria_label=label,
  )


def command(words: str) -> ET.Element:
  """What can be typed; lines end between arguments alone."""
  first, *rest = (tag("span", word) for word in words.split(" "))
  spaced = (child for word in rest for child in (" ", word))
  return tag("pre", first, *spaced, class_="command")


def details(summary: str, *children: Child, printed: bool = True) -> ET.Element:
  """What is shown when it is asked for, and on paper if `printed`."""
  title = tag("summary", summary)
  return tag("details", title, *children, class_="more" if printed else None)
