"""fidelity.html: one page that says what was found, and how far to trust it.

It is made of fidelity.json alone and needs nothing else: no network, no
script, no font. Verdicts come first, then what they rest on.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
import xml.etree.ElementTree as ET

from analogjax.fidelity import claims, verdicts
from analogjax.fidelity.report import (
  parts,
  similarity_section,
  steering_section,
)
from analogjax.rendering import charts, html
from analogjax.rendering.html import table, tag
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
# verdict -> (class, sign, words).
_VERDICTS = {
  verdicts.TRANSFERS: ("yes", "\u2713", "transfers"),
  verdicts.DOES_NOT: ("no", "\u2715", "does not transfer"),
  verdicts.OPEN: ("open", "?", "not enough evidence"),
}
# Nothing is fetched, whatever a string may turn out to hold.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def render(value: Mapping[str, Any]) -> str:
  """The page of a document that `document.check` has passed."""
  models = parts.Models.of(value)
  title = "Fidelity report: does the analog stand in for the frontier model?"
  policy = {"http-equiv": "Content-Security-Policy", "content": _POLICY}
  style = ET.Element("style")
  style.text = html.stylesheet()  # Ours: needs no escapes.
  page = tag(
    "html",
    tag(
      "head",
      tag("meta", charset="utf-8"),
      ET.Element("meta", policy),
      tag(
        "meta", name="viewport", content="width=device-width, initial-scale=1"
      ),
      tag("title", title),
      style,
    ),
    tag(
      "body",
      tag("header", tag("h1", title), *_lead(value, models), _contents()),
      tag(
        "main",
        *_verdicts(value, models),
        *(_part(part, value, models) for part in _SECTIONS),
        _cost(value),
        _inputs(value),
        _reproduce(value),
        _glossary(),
      ),
      tag(
        "footer",
        tag(
          "p",
          "Made by analogjax from fidelity.json, which holds every number of"
          " this page.",
        ),
      ),
    ),
    lang="en",
  )
  return html.to_html(page)


def _lead(
  value: Mapping[str, Any], models: parts.Models
) -> Iterator[ET.Element]:
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
  names = {
    "verdicts": "Verdicts",
    "output": "Output",
    "similarity": "Similarity",
    "steering": "Steering",
    "stitching": "Stitching",
    "cost": "Cost",
    "inputs": "Inputs",
    "reproduce": "Reproduce",
    "glossary": "Glossary",
  }
  links = (
    tag("li", tag("a", name, href=f"#{id_}")) for id_, name in names.items()
  )
  return tag("nav", tag("ul", *links), aria_label="Contents")


def _verdicts(
  value: Mapping[str, Any], models: parts.Models
) -> Iterator[ET.Element]:
  found = value["claims"]
  counts = [
    tag("li", _badge(verdict), ": ", *_links(verdict, found))
    for verdict in verdicts.VERDICTS
    if any(claim["verdict"] == verdict for claim in found)
  ]
  cards = (_card(f"claim{i}", claim, models) for i, claim in enumerate(found))
  rules = (
    (rule["part"], rule["transfers"], rule["does_not"])
    for rule in value["rules"]
  )
  head = ("part", "transfers if", "does not if")
  yield tag(
    "section",
    tag("h2", "Verdicts", id="verdicts"),
    tag("ul", *counts, class_="tally"),
    tag("ol", *cards, class_="claims"),
    html.details(
      "By which rules",
      tag(
        "p",
        "They are fixed before anything is measured. What meets neither is"
        " called not enough evidence.",
      ),
      table("When a claim transfers and when it does not", head, rules),
    ),
    aria_labelledby="verdicts",
  )


def _links(
  verdict: str, found: Sequence[Mapping[str, Any]]
) -> Iterator[html.Child]:
  comma = ""
  for i, claim in enumerate(found):
    if claim["verdict"] == verdict:
      yield comma
      yield tag("a", claim["id"], href=f"#claim{i}")
      comma = ", "


def _badge(verdict: str) -> ET.Element:
  class_, sign, words = _VERDICTS[verdict]
  return tag(
    "span",
    tag("span", sign, aria_hidden="true"),
    f" {words}",
    class_=f"verdict {class_}",
  )


def _card(
  key: str, claim: Mapping[str, Any], models: parts.Models
) -> ET.Element:
  words = tag(
    "div",
    tag("p", _badge(claim["verdict"]), class_="faint"),
    tag("p", claim["text"], class_="text"),
    tag("p", claim["because"]),
  )
  return tag(
    "li",
    tag("div", words, _picture(key, claim, models), class_="split"),
    html.command(claim["command"]),
    class_=f"claim {_VERDICTS[claim['verdict']][0]}",
    id=key,
  )


def _picture(
  key: str, claim: Mapping[str, Any], models: parts.Models
) -> ET.Element | None:
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
  return charts.intervals(
    key,
    title=f"{claim['id']}: the analog and the best control",
    description=claim["because"],
    rows=rows,
    reference=claim["threshold"],
  )


def _part(
  part: str, value: Mapping[str, Any], models: parts.Models
) -> ET.Element:
  title, show = _SECTIONS[part]
  quick = value["inputs"]["quick"]
  again = html.command(claims.command(part, quick=quick))
  heading = tag("h2", title, id=part)
  if part not in value:
    missing = tag("p", "This was not measured. The command that does it:")
    content = [tag("div", missing, again, class_="missing")]
  else:
    content = [*show(value[part], models), again]
  return tag("section", heading, *content, aria_labelledby=part)


def _cost(value: Mapping[str, Any]) -> ET.Element:
  rows = (
    (
      part,
      number(cost["seconds"]),
      number(cost["device_seconds"]),
      number(cost["tokens"]),
    )
    for part, cost in value["cost"].items()
  )
  head = ("part", "seconds", "device-seconds", "tokens through models")
  withheld = tag(
    "p",
    "Not published: it would tell how large the frontier model is.",
  )
  found = table("Time and tokens of each part", head, rows)
  return tag(
    "section",
    tag("h2", "What it cost to measure", id="cost"),
    found if value["cost"] else withheld,
    aria_labelledby="cost",
  )


def _inputs(value: Mapping[str, Any]) -> ET.Element:
  software = value["software"].items()
  return tag(
    "section",
    tag("h2", "Inputs and software", id="inputs"),
    tag(
      "p",
      "A digest names the bytes of a model or of rows without showing them:"
      " who has them can check that it was these.",
    ),
    table("Versions", ("package", "version"), software),
    html.details(
      "Every input",
      table("Inputs", ("input", "value"), _flat(value["inputs"])),
    ),
    aria_labelledby="inputs",
  )


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
  """(dotted name, text) of whatever is nested."""
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


def _reproduce(value: Mapping[str, Any]) -> ET.Element:
  quick = " --quick" if value["inputs"]["quick"] else ""
  all_of_it = f"analogjax measure --config=CONFIG --workdir=WORKDIR{quick}"
  return tag(
    "section",
    tag("h2", "How to reproduce it", id="reproduce"),
    tag(
      "p",
      "The lab runs this with its config and the folder of its run. All draws"
      " come from the seed, so the same inputs give the same numbers on the"
      " same kind of device, and the same up to rounding on others.",
    ),
    html.command(all_of_it),
    tag(
      "p",
      "Only the lab can: the frontier model and its text are needed. What"
      " others can check is that the digests are those of the released analog.",
    ),
    aria_labelledby="reproduce",
  )


def _glossary() -> ET.Element:
  entries: list[ET.Element] = []
  for word, meaning in _WORDS.items():
    entries += [tag("dt", word), tag("dd", meaning)]
  return tag(
    "section",
    tag("h2", "Glossary", id="glossary"),
    tag("dl", *entries),
    aria_labelledby="glossary",
  )


_WORDS = {
  "analog": "The small open model that stands in for the frontier model, and"
  " learned from its predictions.",
  "frontier model, teacher": "The large closed model.",
  "control": "A model of the same kind that learned from text alone. What it"
  " does as well is no merit of the analog.",
  "random": "A model of the analog's shape that learned nothing.",
  "interval": "Where the number lies with a confidence of 95 %, found by"
  " drawing the rows or prompts again and again (bootstrap).",
  "row": "A stretch of text of fixed length; rows are independent, their tokens"
  " are not.",
  "token": "A word or a piece of one.",
  "nats": "Unit of information: 1 nat is 1.44 bits.",
  "cross-entropy": "How surprised a model is by the next token; lower is"
  " better.",
  "KL": "How much is lost by taking the analog's predictions for those of the"
  " frontier model; 0 if they are the same.",
  "agreement": "How often both find the same token the likeliest.",
  "calibration error": "How far a model's confidence is from how often it is"
  " right.",
  "kappa": "How often two models are right or wrong on the same tokens, beyond"
  " chance: 0 is chance, 1 always.",
  "AUC": "How often the analog finds a token that the frontier model gets wrong"
  " harder than one that it gets right: 0.5 is a coin, 1 always.",
  "depth": "How far up in a model a layer is: 0 is the input, 1 the last"
  " layer.",
  "shared nearest neighbours": "Of the tokens that lie nearest to a token in"
  " one model, the part that does so in the other, too (mutual k-NN).",
  "unbiased CKA": "How alike two models see which tokens are similar, by an"
  " estimate that is 0 for unrelated models of any width.",
  "Procrustes": "How well one model's activations can be turned onto the"
  " other's without stretching.",
  "calibrated": "A similarity less what chance gives, so that 0 is chance and 1"
  " is the same.",
  "null distribution": "The same number for texts that are mixed up on"
  " purpose: what chance gives. p is the part of it that is as high.",
  "map": "A function from the analog's activations to the frontier model's;"
  " fitted on other text than it is tested on.",
  "steering": "Adding a direction to a model's activations to change what it"
  " does.",
  "native": "The direction that is found on the frontier model itself.",
  "mapped": "The direction that is found on a student and mapped to the"
  " frontier model.",
  "shuffled map": "A map that was fitted on pairs that do not belong together:"
  " what a map does without knowing anything.",
  "wrong behaviour": "The direction of another behaviour, mapped alike.",
  "transfer ratio": "What the mapped direction does beyond a random one, as a"
  " part of what the native one does: 1 is all of it, 0 nothing.",
  "matched perplexity": "Compared where both harm the model's language alike.",
  "stitch": "The lower layers of a student, a map, and the upper layers of the"
  " frontier model.",
  "recovered": "How much of the frontier model's ability a stitch keeps: 1 all,"
  " 0 as much as without any information.",
}
