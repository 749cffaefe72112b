"""The shorter pages: the guide, cost, and how to make the analog again."""

from collections.abc import Iterator, Mapping
import json
from typing import Any

from analogjax.bundle.record_table import CACHED
from analogjax.documents import sections
from analogjax.rendering import markdown, numbers
from analogjax.rendering.markdown import (
  code,
  heading,
  paragraph,
  sentence,
  text,
)


def cost(record: Mapping[str, Any]) -> str:
  return markdown.page(_cost(record))


def _cost(record: Mapping[str, Any]) -> Iterator[str]:
  private = record["view"] == "regulator"
  found = record["cost_in_full" if private else "cost"]
  yield heading(1, f"What {text(record['model']['name'])} cost")
  yield paragraph(
    "The first lines are those of Table 1 of the paper that proposes analogs"
    " (Require Frontier AI Labs To Release Small Analog Models); the others are"
    " costs that the table leaves out. The largest of these is often the"
    " frontier model's own run over the text, which distillation cannot do"
    " without."
  )
  if not private:
    yield paragraph(
      "What the frontier model's run took would tell how large it is. So a"
      " line that it is part of is withheld, or shows a range: what it would be"
      " for a frontier model of any size of which the analog has"
      f" {sections.size_window(record)}. A regulator has the numbers."
    )
  yield _cost_table(found, "" if private else "withheld")
  if found.get("compared"):
    yield paragraph(
      "Not part of the total: phases that were trained to compare with, without"
      " which nobody could tell what distillation adds."
    )
  yield markdown.bullets(_notes(found))
  yield heading(2, "Not recorded")
  yield sections.gaps(record)


def _notes(found: Mapping[str, Any]) -> Iterator[str]:
  yield (
    f"The frontier model ran over {numbers.exact(found['teacher_tokens'])}"
    " tokens for what the analog learned from, held-out ones included."
  )
  yield (
    f"Energy: {sentence(found['energy']['method'])} Power of the site over that"
    f" of its machines (PUE): {numbers.number(found['energy']['pue'])}."
  )
  steps: dict[str, list[str]] = {}
  for row in (*found["rows"], found["total"]):
    if row["note"]:
      steps.setdefault(row["note"], []).append(row["step"])
  for note, noted in steps.items():
    yield f"{text(', '.join(noted))}: {sentence(note)}"
  for lack in found["missing"]:
    yield f"Missing: {sentence(lack)}"
  yield (
    f"{numbers.NOT_STATED.capitalize()}: the run or the config does not have"
    " it, such as a price or a power."
  )


def _cost_table(found: Mapping[str, Any], withheld: str) -> str:
  """Lines of costs.

  Args:
    found: of the record.
    withheld: what stands in a line of the frontier model that has no value.
  """
  of = {True: "frontier model", False: "analog"}
  ordered = sorted(found["rows"], key=lambda row: not row["is_paper_s"])
  rows = [
    (
      text(row["step"]),
      text(", ".join(row["stages"])) or "none",
      of[row["of_teacher"]],
      *_amounts(row, withheld if row["of_teacher"] else ""),
    )
    for row in ordered
  ]
  total, compared = found["total"], found["compared"]
  step = f"**{text(total['step'])}**"
  rows.append((step, "all above", "both", *_amounts(total, "")))
  if compared:
    stages = text(", ".join(compared["stages"]))
    step = text(compared["step"])
    rows.append((step, stages, "controls", *_amounts(compared, "")))
  head = ("step", "stages", "of which model", "device-hours", "US dollars")
  return markdown.table((*head, "kWh", "FLOPs"), rows)


def _amounts(row: Mapping[str, Any], withheld: str) -> tuple[str, ...]:
  shown = (
    numbers.amount(row["device_hours"]),
    numbers.amount(row["dollars"], unit=numbers.USD),
    numbers.amount(row["kwh"]),
    numbers.amount(row["flops"], large=True),
  )
  unknown = withheld or numbers.NOT_STATED
  return tuple(unknown if s == numbers.NOT_STATED else s for s in shown)


def reproduction(record: Mapping[str, Any]) -> str:
  """repro/README.md."""
  return markdown.page(_reproduction(record))


def _reproduction(record: Mapping[str, Any]) -> Iterator[str]:
  repro = record["repro"]
  yield heading(1, f"How {text(record['model']['name'])} was made")
  source = "analogjax, from a package"
  if repro["commit"] is not None:
    changed = " with changes that are not committed" if repro["dirty"] else ""
    source = f"analogjax at commit {code(repro['commit'])}{changed}"
  yield paragraph(
    f"{source}, under Python {text(repro['python'])}. These commands were run,"
    " in this order; CONFIG is the config and WORKDIR the folder of the run:"
  )
  yield markdown.fence("sh", repro["commands"])
  yield paragraph(
    "[config.json](config.json) is the config without what is private: paths,"
    " the frontier model, the mixture of data, the optimizer, prices. Its"
    f" SHA-256 is {code(repro['config_sha256'])}."
    " [software.json](software.json) has the version of every package that"
    " matters to the numbers."
  )
  yield paragraph(
    "Without the frontier model and its data the analog cannot be made again."
    " What anyone can do is run the same steps at toy size, twice, and see that"
    " losses and weights are the same:"
  )
  yield markdown.fence("sh", ["analogjax reproduce BUNDLE --check"])
  if repro["seeds"]:
    yield heading(2, "Seeds")
    yield markdown.table(
      ("of", "seed"),
      [(text(k), numbers.exact(v)) for k, v in repro["seeds"].items()],
    )
  yield heading(2, "Digests")
  found = record["data"]
  rows = [
    ("pipeline of the data", found["pipeline_sha256"]),
    ("tokenizer", found["tokenizer_sha256"]),
  ]
  if sections.taught_by(record, CACHED):
    rows.append(
      ("the frontier model's records", record["distillation"]["cache_sha256"])
    )
  yield markdown.table(
    ("what", "SHA-256"), [(name, code(value)) for name, value in rows]
  )
  yield heading(2, "Openness")
  yield paragraph(
    "By the Model Openness Framework (arXiv:2403.13784):"
    f" {sentence(record['mof'])}"
  )


def software(record: Mapping[str, Any]) -> str:
  """repro/software.json."""
  repro = record["repro"]
  value = {"python": repro["python"], "packages": repro["software"]}
  return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def guide(record: Mapping[str, Any]) -> str:
  """README.md of a bundle."""
  return markdown.page(_guide(record))


def _guide(record: Mapping[str, Any]) -> Iterator[str]:
  model = record["model"]
  yield heading(1, f"{text(model['name'])}, version {text(model['version'])}")
  yield paragraph(
    f"Released by {text(model['provider'])} on {model['released_on']}: an"
    f" analog of {numbers.exact(model['parameters']['total'])} parameters. An"
    " analog is a small open model that stands in for a large closed one, the"
    " frontier model, in research on safety and interpretability.",
    sections.how_made(record),
  )
  yield heading(2, "What is what")
  rows = _files(record["data"]["shares_rows"])
  yield markdown.table(("file", "what it is", "for whom"), rows)
  yield heading(2, "Checking it")
  yield paragraph(
    "What bytes can prove need not be believed. With analogjax and without a"
    " network, this recomputes digests, the signature, the number of parameters"
    " and every document from record.json, and says of each claim whether it is"
    " verified, declared or cannot be checked:"
  )
  yield markdown.fence("sh", ["analogjax verify BUNDLE --key=PUBLIC_KEY"])
  yield paragraph(
    "Take the public key from the provider, not from where the bundle came"
    " from. Digests alone can be checked with any tool: manifest.json lists"
    " SHA-256 and size of every file."
  )
  yield heading(2, "Loading it")
  yield markdown.fence("python", sections.LOAD)
  yield heading(2, "Gates")
  yield paragraph(
    f"{_tally(record)} [COMPLIANCE.md](COMPLIANCE.md) has the evidence of each,"
    " and the reason wherever one was waived."
  )
  yield markdown.table(
    ("gate", "verdict"),
    [(text(gate["title"]), gate["verdict"]) for gate in record["gates"]],
  )
  yield heading(2, "Not recorded")
  yield sections.gaps(record)
  yield heading(2, "Licence and contact")
  yield paragraph(
    sections.licence(record), f"Contact: {text(model['contact'])}."
  )


def _tally(record: Mapping[str, Any]) -> str:
  found = [gate["verdict"] for gate in record["gates"]]
  names = {
    "passed": "passed",
    "warning": "passed with a warning",
    "waived": "did not pass and were waived",
    "failed": "failed",
  }
  words = [
    f"{numbers.exact(found.count(verdict))} {name}"
    for verdict, name in names.items()
    if verdict in found
  ]
  return f"Of {numbers.exact(len(found))} gates: {', '.join(words)}."


def _files(has_rows: bool) -> list[tuple[str, str, str]]:
  rows = [
    ("model/", "weights, tokenizer and model card", "everyone"),
    ("COMPLIANCE.md, compliance.json", "gates and the EU's form", "lawyers"),
    (
      "TRAINING_DATA.md, TRAINING_DATA.json",
      "what it learned from",
      "rightsholders",
    ),
    ("fidelity.html, fidelity.json", "what it keeps", "researchers"),
    ("SAFETY.md, safety.json", "what it was tested for", "everyone"),
    ("COST.md", "what it took", "policy makers"),
    ("repro/", "config, versions and commands", "engineers"),
    ("mlbom.cdx.json", "the same as a bill of materials, CycloneDX", "tools"),
    ("record.json", "every fact; all documents are made of it", "auditors"),
    ("LICENSE", "the licence's text", "lawyers"),
    (
      "manifest.json, signature.json",
      "digests, and their signature",
      "auditors",
    ),
    (
      "signer.pem",
      "the key that signed; whose it is, it cannot say",
      "auditors",
    ),
  ]
  if has_rows:
    rows.insert(
      7, ("rows/held_out.safetensors", "held-out rows, to measure again", "")
    )
  shown = []
  for files, what, whom in rows:
    names = ", ".join(code(name) for name in files.split(", "))
    shown.append((names, what, whom or "researchers"))
  return shown
