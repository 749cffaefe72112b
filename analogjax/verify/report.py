"""Prints the results of a verification on a terminal and as an HTML page."""

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
  VERIFIED,
  Check,
  Report,
)

MEANINGS = {
  FAILED: "the bytes contradict these claims",
  DECLARED: "stated by the signer; nothing in the bundle contradicts it",
  NOT_CHECKABLE: "checking these takes something that is missing here",
  VERIFIED: "recomputed from the bytes; nobody has to be trusted",
}
# status -> (sign, style on a terminal, class on the page).
_LOOKS = {
  FAILED: ("\u2715", "bold red", "no"),
  DECLARED: ("\u2022", "", ""),
  NOT_CHECKABLE: ("?", "yellow", "open"),
  VERIFIED: ("\u2713", "green", "yes"),
}
_STYLE = """
.checks {
  display: grid;
  gap: 0 2.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 28rem), 1fr));
}
.checks div { border-top: 1px solid var(--rule); padding: .2rem 0 .6rem; }
.about {
  display: grid;
  gap: .2rem 1rem;
  grid-template-columns: max-content 1fr;
}
.about dt { margin: 0; }
.about dd, .checks dd { overflow-wrap: anywhere; }
"""


def headline(report: Report) -> str:
  """One sentence: whether a claim failed, and how many have each status."""
  found = {status: len(report.by_status(status)) for status in _LOOKS}
  counts = ", ".join(f"{n} {status}" for status, n in found.items() if n)
  if report.failed:
    return f"This bundle is NOT what it claims to be: {counts}."
  but = "" if _has_signer(report) else ", but the signer was not checked"
  return f"No claim failed{but}: {counts}."


def _has_signer(report: Report) -> bool:
  return any(c.id == "signer" for c in report.by_status(VERIFIED))


def _title(report: Report) -> str:
  about = report.about
  return (
    f"{about.name} {about.version}".strip() or "Bundle without valid record"
  )


def _identity(report: Report) -> Iterator[tuple[str, str]]:
  about = report.about
  yield "Provider", about.provider or "unknown"
  yield "Released", about.released_on or "unknown"
  yield "Signer", about.signer or "unknown"
  if about.key_sha256:
    yield "Key's SHA-256", about.key_sha256


def print_report(
  report: Report, console: rich.console.Console, *, verbose: bool = False
) -> None:
  """Prints the bundle's identity, its claims by status, and the verdict.

  Args:
    verbose: also prints the evidence of claims that need no action.
  """
  _print_line(console, _title(report), style="bold")
  for name, text in _identity(report):
    _print_line(console, f"{name}: {text}")
  for gate, reason in report.about.waived.items():
    _print_line(console, f"Waived gate {gate}: {reason}", style="yellow")
  # The last lines stay on the screen, so there the order is the other way.
  for status in reversed(_LOOKS):
    found = report.by_status(status)
    if not found:
      continue
    sign, style, _ = _LOOKS[status]
    title = f"{status.upper()} ({len(found)}): {MEANINGS[status]}"
    console.print()
    _print_line(console, title, style=f"bold {style}".strip())
    for check in found:
      claim = rich.text.Text(f"{sign} ", style=style)
      claim.append(f"{check.text} ", style="default")
      claim.append(f"[{check.id}]", style="dim")
      console.print(rich.padding.Padding(claim, (0, 0, 0, 2), expand=False))
      if verbose or status in (FAILED, NOT_CHECKABLE):
        _print_line(console, check.evidence, style="dim", indent=6)
  console.print()
  style = "bold red" if report.failed else "bold"
  _print_line(console, headline(report), style=style)
  if not verbose:
    _print_line(console, "--verbose shows the evidence for each claim.", "dim")


def _print_line(
  console: rich.console.Console, text: str, style: str = "", indent: int = 0
) -> None:
  """Prints text from a bundle, in which nothing is markup."""
  line = rich.text.Text(html.printable(text), style=style, overflow="fold")
  console.print(rich.padding.Padding(line, (0, 0, 0, indent), expand=False))


def render(report: Report) -> str:
  """An HTML page that needs no script and no network."""
  return html.page(
    f"Verification of {_title(report)}",
    tag(
      "header",
      tag("h1", _title(report)),
      tag("dl", *_pairs(_identity(report)), class_="about"),
      tag("p", *_verdict(report), headline(report), class_="lead"),
    ),
    tag("main", *_sections(report)),
    tag("footer", tag("p", "Made by analogjax verify, without a network.")),
    style=_STYLE,
  )


def _sections(report: Report) -> Iterator[ET.Element]:
  """Yields what needs attention first, and what passed last, folded."""
  for status, (sign, _, class_) in _LOOKS.items():
    found = report.by_status(status)
    cards = tag("dl", *map(_claim, found), class_="checks")
    title = f"{status.capitalize()} ({len(found)})"
    if not found:
      pass
    elif status == FAILED:
      box = tag("div", cards, class_=f"claim {class_}")
      yield _section(f"{sign} {title}", MEANINGS[status], box)
    elif status == VERIFIED:
      summary = f"{sign} Show all {len(found)} claims and the evidence"
      yield _section(title, MEANINGS[status], html.details(summary, cards))
    else:
      yield _section(f"{sign} {title}", MEANINGS[status], cards)
    if status == FAILED and (waived := report.about.waived):
      reasons = (tag("div", *_pairs([pair])) for pair in waived.items())
      yield _section(
        f"Waived gates ({len(waived)})",
        "the provider released the model although these gates did not pass",
        tag("dl", *reasons, class_="checks"),
      )


def _section(title: str, meaning: str, content: ET.Element) -> ET.Element:
  text = f"{meaning[:1].upper()}{meaning[1:]}."
  return tag("section", tag("h2", title), tag("p", text), content)


def _pairs(pairs) -> Iterator[ET.Element]:
  for name, text in pairs:
    yield tag("dt", name)
    yield tag("dd", text)


def _claim(check: Check) -> ET.Element:
  key = tag("code", check.id, class_="faint")
  return tag("div", tag("dt", check.text, " ", key), tag("dd", check.evidence))


def _verdict(report: Report) -> Iterator[html.Child]:
  """The status of the whole, unless anyone may have signed it."""
  if report.failed or _has_signer(report):
    sign, _, class_ = _LOOKS[status := FAILED if report.failed else VERIFIED]
    sign = tag("span", sign, aria_hidden="true")
    yield tag("span", sign, f" {status}", class_=f"verdict {class_}")
    yield ". "
