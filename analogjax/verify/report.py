"""What was verified, for people: lines on a terminal, a page to keep."""

from collections.abc import Iterator
import xml.etree.ElementTree as ET

import rich.console
import rich.padding
import rich.text

from analogjax.rendering import html
from analogjax.rendering.html import tag
from analogjax.verify.rules import (
  DECLARED,
  FAILED,
  NOT_CHECKABLE,
  STATUSES,
  VERIFIED,
  Check,
  Report,
)

MEANINGS = {
  FAILED: "The bytes say otherwise.",
  VERIFIED: "Computed again from the bytes; nobody has to be believed.",
  DECLARED: "Who signed says so, and nothing in the bundle contradicts it.",
  NOT_CHECKABLE: "It could be told, with something that was not at hand.",
}
# status -> (sign, style on a terminal, class on the page).
_LOOKS = {
  FAILED: ("\u2715", "bold red", "no"),
  VERIFIED: ("\u2713", "green", "yes"),
  DECLARED: ("\u2022", "", ""),
  NOT_CHECKABLE: ("?", "yellow", "open"),
}
# Nothing is fetched, whatever a string may turn out to hold.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def headline(report: Report) -> str:
  """One sentence: whether something failed, and how much of what."""
  counts = ", ".join(
    f"{report.count(status)} {status}"
    for status in STATUSES
    if report.count(status) or status == FAILED
  )
  if report.failed:
    return f"This bundle is NOT what it claims to be: {counts}."
  return f"Nothing in this bundle failed: {counts}."


def print_report(report: Report, console: rich.console.Console) -> None:
  """Status by status, failures first: each claim, and what was found."""
  for status in STATUSES:
    found = [check for check in report.checks if check.status == status]
    if not found:
      continue
    sign, style, _ = _LOOKS[status]
    title = f"{status.upper()} ({len(found)}): {MEANINGS[status]}"
    console.print(rich.text.Text(title, style=f"bold {style}".strip()))
    for check in found:
      claim = rich.text.Text(f"{sign} ", style=style)
      claim.append(f"{check.text} ", style="default")
      claim.append(f"[{check.id}]", style="dim")
      console.print(rich.padding.Padding(claim, (0, 0, 0, 2)))
      evidence = rich.text.Text(
        html.printable(check.evidence), style="dim", overflow="fold"
      )
      console.print(rich.padding.Padding(evidence, (0, 0, 0, 6)))
    console.print()
  style = "bold red" if report.failed else "bold"
  console.print(rich.text.Text(headline(report), style=style))


def render(report: Report) -> str:
  """A page that needs nothing else: no script, no network."""
  style = ET.Element("style")
  style.text = html.stylesheet()  # Ours: needs no escapes.
  policy = {"http-equiv": "Content-Security-Policy", "content": _POLICY}
  verdict = _badge(FAILED if report.failed else VERIFIED)
  return html.to_html(
    tag(
      "html",
      tag(
        "head",
        tag("meta", charset="utf-8"),
        ET.Element("meta", policy),
        tag(
          "meta", name="viewport", content="width=device-width, initial-scale=1"
        ),
        tag("title", "Verification of a bundle"),
        style,
      ),
      tag(
        "body",
        tag(
          "header",
          tag("h1", "Is this bundle what it claims to be?"),
          tag("p", verdict, ". ", headline(report), class_="lead"),
          tag("dl", *_meanings()),
        ),
        tag("main", *_sections(report)),
        tag("footer", tag("p", "Made by analogjax verify, without a network.")),
      ),
      lang="en",
    )
  )


def _meanings() -> Iterator[ET.Element]:
  for status in STATUSES:
    yield tag("dt", _badge(status))
    yield tag("dd", MEANINGS[status])


def _badge(status: str) -> ET.Element:
  sign, _, class_ = _LOOKS[status]
  return tag(
    "span",
    tag("span", sign, aria_hidden="true"),
    f" {status}",
    class_=f"verdict {class_}",
  )


def _sections(report: Report) -> Iterator[ET.Element]:
  for status in STATUSES:
    found = [check for check in report.checks if check.status == status]
    if found:
      key = status.replace(" ", "-")
      cards = (_card(check) for check in found)
      yield tag(
        "section",
        tag("h2", f"{status.capitalize()} ({len(found)})", id=key),
        tag("ol", *cards, class_="claims"),
        aria_labelledby=key,
      )


def _card(check: Check) -> ET.Element:
  return tag(
    "li",
    tag("p", _badge(check.status), " ", tag("code", check.id), class_="faint"),
    tag("p", check.text, class_="text"),
    tag("p", check.evidence),
    class_=f"claim {_LOOKS[check.status][2]}",
  )
