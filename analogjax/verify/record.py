"""Claims of the record: its form, its licence, its gates, and what follows.

What only the lab can know is `declared` here, with what would be needed to
tell; verify_regulator.py examines some of it again with the openings.
"""

from collections.abc import Mapping
import datetime
import hashlib
from typing import Any

from analogjax.bundle import layout, licences, record as record_lib
from analogjax.bundle.layout import expect
from analogjax.bundle.strict_json import Refused
from analogjax.config import release
from analogjax.verify import model as verify_model
from analogjax.verify.rules import (
  DECLARED,
  VERIFIED,
  Evidence,
  Outcome,
  Rule,
  shown,
  told,
)
from analogjax.workdir import costs

# The paper's: 0.5 % to 5 % of the parameters, one to three months later.
WINDOW = {"size": [0.005, 0.05], "months": [1, 3]}
_MOST_LICENCE = 1 << 20


def _record(evidence: Evidence) -> Outcome:
  value = evidence.record
  if wrong := record_lib.problem(value):
    raise Refused(f"{layout.RECORD}: {told(wrong)}")
  expect(
    value["view"] == "public", f"{layout.RECORD}: expected the public view"
  )
  text = evidence.tree.read_text(layout.RECORD)
  expect(
    text == record_lib.to_text(value),
    f"{layout.RECORD}: not in the form in which analogjax writes a record",
  )
  return Outcome(
    VERIFIED,
    "It has every fact of the public view, and none that the view lacks.",
  )


def _licence(evidence: Evidence) -> Outcome:
  model, tree = evidence.record["model"], evidence.tree
  said = model["licence"]
  data = tree.read("LICENSE", _MOST_LICENCE)
  expect(
    tree.read("model/LICENSE", _MOST_LICENCE) == data,
    "model/LICENSE is not the same as LICENSE",
  )
  expect(
    hashlib.sha256(data).hexdigest() == said["text_sha256"],
    "LICENSE has another SHA-256 than the record says",
  )
  try:
    text = data.decode("utf-8")
  except UnicodeDecodeError:
    raise Refused("LICENSE: not text in UTF-8") from None
  # The record's form has ensured that it is a day.
  year = int(model["released_on"][:4])
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
    return Outcome(
      DECLARED, f"Its own text, {said['name']!r}, which nobody here has read."
    )
  evidence_text = f"LICENSE is the text of {said['spdx']}, word for word."
  # Who holds it is a free text of the record: whoever reads has to see it.
  if licences.has_holder(said["spdx"]):
    evidence_text += f" The copyright is of {year} {shown(model['provider'])}."
  return Outcome(VERIFIED, evidence_text)


def _gates(evidence: Evidence) -> Outcome:
  gates = evidence.record["gates"]
  found = [gate["id"] for gate in gates]
  expect(
    sorted(found) == sorted(release.GATES),
    f"gates: expected each of {', '.join(release.GATES)} once",
  )
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
      because = _against(gate["id"], evidence.record)
      expect(not because, f"{where} passed, though {because}")
  by_verdict = {
    verdict: [gate["id"] for gate in gates if gate["verdict"] == verdict]
    for verdict in ("passed", "warning", "waived")
  }
  return Outcome(
    VERIFIED,
    ". ".join(
      f"{verdict}: {', '.join(ids)}"
      for verdict, ids in by_verdict.items()
      if ids
    ).capitalize()
    + ". Which of them bytes can tell, the other lines say.",
  )


def _against(gate: str, record: Mapping[str, Any]) -> str:
  """Why a gate cannot have passed, by the record itself; else ""."""
  pair, safety = record["pair"], record["safety"]
  same = pair["same_family"] and pair["same_tokenizer"]
  judged = any(test["verdict"] == "passed" for test in safety["tests"])
  facts = {
    "family": (same, "the pair has not the same family and tokenizer"),
    "data": (pair["same_data"], "the pair is not stated to have the same data"),
    "licence": (
      record["model"]["licence"]["category"] == licences.IS_PERMISSIVE,
      "the licence is not a permissive one",
    ),
    "safety": (
      safety["verdict"] == "passed" and judged and not safety["quick"],
      "the tests were not passed, had no threshold or were a quick run",
    ),
    "fidelity": (not record["fidelity"]["quick"], "it was a quick run"),
  }
  holds, why = facts.get(gate, (True, ""))
  return "" if holds else why


def _config(evidence: Evidence) -> Outcome:
  path = "repro/config.json"
  evidence.value(path)
  expect(
    evidence.tree.sha256(path) == evidence.record["repro"]["config_sha256"],
    f"{path} has another SHA-256 than the record says",
  )
  return Outcome(VERIFIED, "Its SHA-256 is the record's.")


def _training(evidence: Evidence) -> Outcome:
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
  return Outcome(
    DECLARED,
    f"{len(phases)} phases of {total:,} tokens, which agree with each other;"
    " what a model was trained on cannot be read from its weights.",
  )


def _cost(evidence: Evidence) -> Outcome:
  wrong = costs.problem(evidence.record["cost"], verify_model.count(evidence))
  expect(not wrong, told(wrong))
  return Outcome(
    DECLARED,
    "Sums follow from their rows, and the frontier model's line from the"
    " window; hours and prices are the lab's.",
  )


def _size_window(evidence: Evidence) -> Outcome:
  frontier = evidence.record["frontier"]
  expect(
    frontier["window"] == WINDOW,
    f"frontier.window: expected {WINDOW}, found {shown(frontier['window'])}",
  )
  total = evidence.record["model"]["parameters"]["total"]
  return Outcome(
    DECLARED,
    f"The bundle commits to the frontier model's size without saying it:"
    f" between {20 * total:,} and {200 * total:,} parameters, if this is so."
    " The regulator, who has the opening, can tell.",
  )


def _date_window(evidence: Evidence) -> Outcome:
  day = evidence.record["model"]["released_on"]
  try:
    datetime.date.fromisoformat(day)
  except ValueError:
    raise Refused(f"model.released_on: {shown(day)} is no day") from None
  return Outcome(
    DECLARED,
    f"Released on {day}. The bundle commits to the day on which the frontier"
    " model was deployed; the regulator, who has the opening, can tell.",
  )


def _pair(evidence: Evidence) -> Outcome:
  pair = evidence.record["pair"]
  words = {True: "yes", False: "no", None: "not stated"}
  return Outcome(
    DECLARED,
    ", ".join(
      f"{name.replace('_', ' ')}: {words[pair[name]]}" for name in sorted(pair)
    ).capitalize()
    + ". It takes the frontier model to tell.",
  )


def _leaks(evidence: Evidence) -> Outcome:
  (gate,) = (g for g in evidence.record["gates"] if g["id"] == "leaks")
  return Outcome(
    DECLARED,
    f"The lab's linter: {gate['verdict']}. It takes the secrets to look for"
    " them.",
  )


def rules() -> tuple[Rule, ...]:
  return (
    Rule("record", "The record of facts is complete and of its form.", _record),
    Rule(
      "licence",
      "The licence is the one that is named.",
      _licence,
      needs=("record",),
    ),
    Rule(
      "gates",
      "Every gate has its verdict, and every waiver its reason.",
      _gates,
      needs=("record",),
    ),
    Rule(
      "config",
      "The public config is the one that the record names.",
      _config,
      needs=("record",),
    ),
    Rule(
      "training",
      "The model was trained as the record says.",
      _training,
      needs=("record",),
    ),
    Rule(
      "cost",
      "It cost what the record says.",
      _cost,
      needs=("record", "parameters"),
    ),
    Rule(
      "size_window",
      "It has 0.5 % to 5 % of the frontier model's parameters.",
      _size_window,
      needs=("record", "parameters"),
    ),
    Rule(
      "date_window",
      "It was released one to three months after the frontier model.",
      _date_window,
      needs=("record",),
    ),
    Rule(
      "pair",
      "It has the frontier model's family, tokenizer and data.",
      _pair,
      needs=("record",),
    ),
    Rule(
      "leaks",
      "Nothing in it gives the frontier model away.",
      _leaks,
      needs=("gates",),
    ),
  )
