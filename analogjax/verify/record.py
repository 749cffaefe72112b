"""Claims about the record of facts: its form, licence and gates.

Facts that only the lab can know are `declared`, with what it would take to
check them. regulator.py examines some of these claims again with the private
facts.
"""

from collections.abc import Mapping
import datetime
from typing import Any

from analogjax.bundle import layout, licences, record as record_lib
from analogjax.bundle.layout import expect
from analogjax.bundle.strict_json import Refused
from analogjax.config import release, window
from analogjax.verify import model as verify_model
from analogjax.verify.rules import (
  DECLARED,
  VERIFIED,
  Evidence,
  Rules,
  shown,
  told,
)
from analogjax.workdir import public_costs

_MOST_LICENCE = 1 << 20  # Bytes.
RULES = Rules()


def expect_digest(evidence: Evidence, path: str, expected: str) -> None:
  """Refuses a file whose SHA-256 differs from the record's."""
  expect(
    evidence.tree.sha256(path) == expected,
    f"{path} has another SHA-256 than the record says",
  )


@RULES.add("record", "The record of facts is complete and valid.")
def _record(evidence: Evidence):
  value, where = evidence.record, layout.RECORD
  wrong = record_lib.problem(value)
  expect(not wrong, f"{where}: {told(wrong)}")
  expect(value["view"] == "public", f"{where}: expected the public view")
  expect(
    evidence.tree.read_text(where) == record_lib.to_text(value),
    f"{where}: not in the form in which analogjax writes a record",
  )
  return VERIFIED, "It has every public fact and no other."


@RULES.add(
  "licence",
  "The licence text is that of the named licence.",
  needs=("record",),
)
def _licence(evidence: Evidence):
  model, tree = evidence.record["model"], evidence.tree
  said = model["licence"]
  data = tree.read("LICENSE", _MOST_LICENCE)
  expect(
    tree.read("model/LICENSE", _MOST_LICENCE) == data,
    "model/LICENSE is not the same as LICENSE",
  )
  expect_digest(evidence, "LICENSE", said["text_sha256"])
  try:
    text = data.decode("utf-8")
  except UnicodeDecodeError:
    raise Refused("LICENSE: not text in UTF-8") from None
  year = int(model["released_on"][:4])  # The record's form ensures a date.
  wrong = licences.problem(
    said["spdx"], text, holder=model["provider"], year=year
  )
  expect(not wrong, told(wrong))
  permissive = said["spdx"] in licences.PERMISSIVE
  category = licences.IS_PERMISSIVE if permissive else licences.IS_LIMITED
  expect(
    said["category"] == category,
    f"model.licence.category: expected {category!r}",
  )
  if not permissive:
    return DECLARED, f"A text of the provider's own, {said['name']!r}; read it."
  found = f"LICENSE is the text of {said['spdx']}, word for word."
  # The holder is free text of the record, so the reader has to see it.
  if licences.has_holder(said["spdx"]):
    found += f" Copyright {year} {shown(model['provider'])}."
  return VERIFIED, found


@RULES.add(
  "gates",
  "Every gate has a verdict, and every waiver a reason.",
  needs=("record",),
)
def _gates(evidence: Evidence):
  gates = evidence.record["gates"]
  found = [gate["id"] for gate in gates]
  expect(
    sorted(found) == sorted(release.GATES),
    f"gates: expected each of {', '.join(release.GATES)} once",
  )
  by_verdict = {"passed": [], "warning": [], "waived": []}
  for gate in gates:
    verdict, waiver = gate["verdict"], gate["waiver"]
    where = f"gate {gate['id']}"
    expect(verdict != "failed", f"{where} failed: {shown(gate['evidence'])}")
    expect(
      (verdict == "waived") == (waiver is not None),
      f"{where} is {verdict!r}; a waiver and its reason go together",
    )
    if waiver is not None:
      expect(len(waiver.split()) >= 3, f"{where} is waived without a reason")
    if verdict == "passed":
      because = _contradiction(gate["id"], evidence.record)
      expect(not because, f"{where} passed, though {because}")
    by_verdict[verdict].append(gate["id"])
  return VERIFIED, (
    "; ".join(
      f"{verdict}: {', '.join(ids)}"
      for verdict, ids in by_verdict.items()
      if ids
    ).capitalize()
    + ". Other claims say which of these the bytes confirm."
  )


def _contradiction(gate: str, record: Mapping[str, Any]) -> str:
  """Reason in the record itself why a gate cannot have passed; else ""."""
  pair, safety = record["pair"], record["safety"]
  judged = any(test["verdict"] == "passed" for test in safety["tests"])
  facts = {
    "family": (
      pair["same_family"] and pair["same_tokenizer"],
      "the two models do not share a family and a tokenizer",
    ),
    "data": (pair["same_data"], "the record does not state the same data"),
    "licence": (
      record["model"]["licence"]["category"] == licences.IS_PERMISSIVE,
      "the licence is not permissive",
    ),
    "safety": (
      safety["verdict"] == "passed" and judged and not safety["quick"],
      "the tests did not pass, had no threshold or were a quick run",
    ),
    "fidelity": (not record["fidelity"]["quick"], "it was a quick run"),
  }
  holds, why = facts.get(gate, (True, ""))
  return "" if holds else why


@RULES.add(
  "config", "The public config is the recorded one.", needs=("record",)
)
def _config(evidence: Evidence):
  path = "repro/config.json"
  evidence.value(path)
  expect_digest(evidence, path, evidence.record["repro"]["config_sha256"])
  return VERIFIED, "Its SHA-256 matches the record."


@RULES.add("training", "The model was trained as recorded.", needs=("record",))
def _training(evidence: Evidence):
  value = evidence.record
  phases = value["training"]["phases"]
  total, said = sum(p["tokens"] for p in phases), value["data"]["train_tokens"]
  expect(
    total == said,
    f"data.train_tokens is {said:,}; the phases have {total:,}",
  )
  taught = any(p["teaches"] != "hard labels" for p in phases)
  expect(
    taught == value["distillation"]["used"],
    "distillation.used is not what the phases say",
  )
  return DECLARED, (
    f"The {len(phases)} phases and their {total:,} tokens are consistent."
    " Weights do not show what a model was trained on."
  )


@RULES.add(
  "cost", "The model cost what the record says.", needs=("record", "parameters")
)
def _cost(evidence: Evidence):
  wrong = public_costs.problem(
    evidence.record["cost"], verify_model.count(evidence)
  )
  expect(not wrong, told(wrong))
  return DECLARED, (
    "The sums add up, and the frontier model's range follows from the size"
    " window. Hours and prices are the lab's statement."
  )


@RULES.add(
  "size_window",
  "The model has 0.5 % to 5 % of the frontier model's parameters.",
  needs=("record", "parameters"),
)
def _size_window(evidence: Evidence):
  frontier = evidence.record["frontier"]
  expect(
    frontier["window"] == window.RECORD,
    f"frontier.window: expected {window.RECORD}, found"
    f" {shown(frontier['window'])}",
  )
  total = evidence.record["model"]["parameters"]["total"]
  least, most = window.TIMES
  return DECLARED, (
    f"The frontier model then has {least * total:,} to {most * total:,}"
    " parameters. The bundle holds a commitment to the number; the regulator,"
    " who has the opening, can check it."
  )


@RULES.add(
  "date_window",
  "It was released one to three months after the frontier model.",
  needs=("record",),
)
def _date_window(evidence: Evidence):
  day = evidence.record["model"]["released_on"]
  try:
    datetime.date.fromisoformat(day)
  except ValueError:
    raise Refused(f"model.released_on: {shown(day)} is not a date") from None
  return DECLARED, (
    f"Released on {day}. The bundle holds a commitment to the frontier model's"
    " day of deployment; the regulator, who has the opening, can check it."
  )


@RULES.add(
  "pair",
  "The model shares the frontier model's family, tokenizer and data.",
  needs=("record",),
)
def _pair(evidence: Evidence):
  words = {True: "yes", False: "no", None: "not stated"}
  said = ", ".join(
    f"{name.replace('_', ' ')}: {words[value]}"
    for name, value in sorted(evidence.record["pair"].items())
  )
  return DECLARED, f"{said.capitalize()}. Checking takes the frontier model."


@RULES.add(
  "leaks",
  "Nothing in the bundle reveals the frontier model's private facts.",
  needs=("gates",),
)
def _leaks(evidence: Evidence):
  (gate,) = (g for g in evidence.record["gates"] if g["id"] == "leaks")
  return DECLARED, (
    f"The lab's leak linter: {gate['verdict']}. Looking for private facts takes"
    " knowing them."
  )
