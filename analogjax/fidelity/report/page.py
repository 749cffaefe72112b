"""fidelity.html: a page with the findings and how far to trust them.

It is made from fidelity.json alone and needs no network, script or font.
Verdicts come first, then the numbers that support them.
"""

from collections.abc import Iterator, Mapping
from typing import Any
import xml.etree.ElementTree as ET

from analogjax.fidelity import claims, questions
from analogjax.fidelity.report import (
  glossary,
  parts,
  similarity_section,
  steering_section,
)
from analogjax.rendering import charts, html
from analogjax.rendering.html import section, table, tag
from analogjax.rendering.numbers import number

_SECTIONS = {
  "output": ("What the models say", parts.output),
  "similarity": (
    "How the models represent the same text",
    similarity_section.similarity,
  ),
  "steering": (
    "Interventions found on the analog, applied to the frontier model",
    steering_section.steering,
  ),
  "stitching": (
    "The analog's layers in place of the frontier model's",
    steering_section.stitching,
  ),
}
# verdict -> (sign, words, class).
_VERDICTS = {
  claims.TRANSFERS: ("\u2713", "transfers", "yes"),
  claims.DOES_NOT: ("\u2715", "does not transfer", "no"),
  claims.OPEN: ("?", "not enough evidence", "open"),
}
# Short names of claims, and the axes of their numbers; by id or by part.
_CLAIMS = {
  "output.kl": ("predictions", "KL to frontier model, nats"),
  "output.failures": ("where it fails", "AUC"),
  "similarity.mutual_knn": ("nearest neighbours", ""),
  "similarity.unbiased_cka": ("unbiased CKA", ""),
  "similarity.procrustes": ("Procrustes", ""),
  "steering": ("steering", "transfer ratio; 1 is all of it"),
  "stitching": ("stitching", "part recovered; 1 is all of it"),
}

Json = Mapping[str, Any]


def render(value: Json, measure: str = claims.COMMAND) -> str:
  """The page of a valid document.

  Args:
    measure: the command that measures everything. The default has placeholders
      for the lab's paths, which are not published.
  """
  models = parts.Models.of(value)
  title = "Fidelity report: does the analog stand in for the frontier model?"
  note = (
    "Made by analogjax from fidelity.json, which holds every number of this"
    " page."
  )
  lead = tag("div", *_lead(value, models), class_="columns")
  return html.page(
    title,
    tag("header", tag("h1", title), lead, _contents()),
    tag(
      "main",
      _verdicts(value, models),
      *(_part(part, value, models, measure) for part in _SECTIONS),
      _cost(value),
      _inputs(value),
      _reproduce(value, measure),
      section("glossary", "Glossary", glossary.render()),
    ),
    tag("footer", tag("p", note)),
  )


def _lead(value: Json, models: parts.Models) -> Iterator[ET.Element]:
  yield tag(
    "p",
    "An analog is a small open model that stands in for a large closed one, the"
    " frontier model. This page says which findings on the analog ",
    tag("bdi", tag("strong", models.analog)),
    " were found to hold for the frontier model, measured beside controls that"
    " never saw it.",
    class_="lead",
  )
  rows = value["inputs"]["rows"]
  test = rows["test"]["number"] if "test" in rows else None
  quick = value["inputs"]["quick"]
  yield tag(
    "p",
    f"It was measured on {number(test)} rows of held-out text"
    + (", by the quick run, which does less of everything" if quick else "")
    + ". It holds for these models, this text and these behaviours, and is no"
    " evidence for others. The analog is a small part of the frontier model's"
    " size: a claim that does not hold is a result, not a fault of the"
    " measurement.",
  )


def _contents() -> ET.Element:
  parts_of_page = ("verdicts", *_SECTIONS, "cost", "inputs", "reproduce")
  links = (
    tag("li", tag("a", name.capitalize(), href=f"#{name}"))
    for name in (*parts_of_page, "glossary")
  )
  return tag("nav", tag("ul", *links), aria_label="Contents")


def _verdicts(value: Json, models: parts.Models) -> ET.Element:
  found = value["claims"]
  counts = []
  for verdict in questions.VERDICTS:
    links: list[html.Child] = []
    for i, claim in enumerate(found):
      if claim["verdict"] == verdict:
        links += [", " if links else None, _link(i, claim)]
    if links:
      counts.append(tag("li", html.badge(*_VERDICTS[verdict]), ": ", *links))
  cards = (_card(f"claim{i}", claim, models) for i, claim in enumerate(found))
  rules = (
    (rule["part"], rule["transfers"], rule["does_not"])
    for rule in value["rules"]
  )
  head = ("part", "transfers if", "does not if")
  return section(
    "verdicts",
    "Verdicts",
    tag("ul", *counts, class_="tally"),
    tag("ol", *cards, class_="claims"),
    html.details(
      "The rules behind the verdicts",
      tag(
        "p",
        "They are fixed before anything is measured. What meets neither is"
        " called not enough evidence.",
      ),
      table("When a claim transfers and when it does not", head, rules),
    ),
  )


def _link(i: int, claim: Json) -> ET.Element:
  return tag("a", _words(claim)[0], href=f"#claim{i}")


def _words(claim: Json) -> tuple[str, str]:
  """A short name of a claim, and the label of its axis."""
  part, _, rest = claim["id"].partition(".")
  if claim["id"] in _CLAIMS or part not in _CLAIMS:
    return _CLAIMS.get(claim["id"], (part, ""))
  words, axis = _CLAIMS[part]
  rest = "half-way" if rest == "half" else rest
  return f"{words}, {rest}" if rest else words, axis


def _card(key: str, claim: Json, models: parts.Models) -> ET.Element:
  verdict = _VERDICTS[claim["verdict"]]
  return tag(
    "li",
    tag("p", html.badge(*verdict), class_="faint"),
    tag("p", claim["text"], class_="text"),
    tag("p", claim["because"]),
    _picture(key, claim, models),
    class_=f"claim {verdict[-1]}",
    id=key,
  )


def _picture(key: str, claim: Json, models: parts.Models) -> ET.Element | None:
  """The analog beside the best control; the sentence has the numbers."""
  both = (
    (claim["model"], claim["estimate"]),
    (claim["control"], claim["control_estimate"]),
  )
  rows = parts.interval_rows(
    (name, estimate, models.style(name)) for name, estimate in both
  )
  if not rows:
    return None
  references: list[tuple[float, str]] = []
  if claim["threshold"] == claims.COIN and claim["part"] == "output":
    references = [(claims.COIN, "a guess")]
  elif claim["threshold"] is not None:
    references = [
      (claims.TOO_LITTLE, "too little"),
      (claim["threshold"], "enough"),
    ]
  words, axis = _words(claim)
  return charts.intervals(
    key + "-picture",
    title=f"{words}: the analog and the best control",
    description=claim["because"],
    rows=rows,
    x_label=axis,
    references=references,
  )


def _part(
  part: str, value: Json, models: parts.Models, measure: str
) -> ET.Element:
  title, show = _SECTIONS[part]
  quick = value["inputs"]["quick"]
  again = html.command(claims.command(part, quick=quick, measure=measure))
  if part not in value:
    missing = tag("p", "This was not measured. The command that does it:")
    return section(part, title, tag("div", missing, again, class_="missing"))
  repeat = tag("p", "To measure this part again:", class_="faint")
  return section(part, title, *show(value[part], models), repeat, again)


def _cost(value: Json) -> ET.Element:
  if not value["cost"]:
    withheld = "Not published: it would tell how large the frontier model is."
    content = tag("p", withheld)
  else:
    fields = ("seconds", "device_seconds", "tokens")
    content = table(
      "Time and tokens of each part",
      ("part", "seconds", "device-seconds", "tokens through models"),
      (
        (part, *(number(cost[k]) for k in fields))
        for part, cost in value["cost"].items()
      ),
    )
  return section("cost", "What it cost to measure", content)


def _inputs(value: Json) -> ET.Element:
  return section(
    "inputs",
    "Inputs and software",
    tag(
      "p",
      "A digest identifies the bytes of a model or of rows without showing"
      " them: whoever has the bytes can check that they are the ones measured.",
    ),
    table("Versions", ("package", "version"), value["software"].items()),
    html.details(
      "Every input",
      table("Inputs", ("input", "value"), _flat(value["inputs"])),
    ),
  )


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
  """(dotted name, text) of every value in nested objects."""
  if isinstance(value, Mapping) and value:
    for key, item in value.items():
      yield from _flat(item, f"{name}.{key}" if name else key)
  elif isinstance(value, list) and value:
    yield name, ", ".join(map(_plain, value))
  else:
    yield name, _plain(value)


def _plain(value: Any) -> str:
  if isinstance(value, bool) or value is None:
    return {True: "yes", False: "no", None: "none"}[value]
  if isinstance(value, int | float):
    return number(value)
  return str(value) if value not in ({}, [], "") else "none"


def _reproduce(value: Json, measure: str) -> ET.Element:
  quick = value["inputs"]["quick"]
  return section(
    "reproduce",
    "How to reproduce it",
    tag(
      "p",
      "The lab runs this with its config and the folder of its run. All draws"
      " come from the seed, so the same inputs give the same numbers on the"
      " same kind of device, and the same up to rounding on others.",
    ),
    html.command(claims.command(quick=quick, measure=measure)),
    tag(
      "p",
      "Only the lab can: the frontier model and its text are needed. Others can"
      " check that the digests are those of the released analog.",
    ),
  )
