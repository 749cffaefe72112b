"""What several documents say in the same words."""

from collections.abc import Iterator, Mapping
from typing import Any

from analogjax.bundle.record_table import CACHED, LIVE
from analogjax.fidelity.report import parts
from analogjax.rendering import markdown, numbers
from analogjax.rendering.markdown import code, paragraph, text

LOAD = (
  "from transformers import AutoModelForCausalLM, AutoTokenizer",
  "",
  'tokenizer = AutoTokenizer.from_pretrained("model")',
  'model = AutoModelForCausalLM.from_pretrained("model")',
)
_COMMITTED = {
  "parameters": "number of parameters",
  "active_parameters": "number of parameters that a token uses",
  "deployed_on": "day of deployment",
  "name": "name",
}


def size_window(record: Mapping[str, Any]) -> str:
  low, high = record["frontier"]["window"]["size"]
  return f"{numbers.percent(low)} to {numbers.percent(high)}"


def month_window(record: Mapping[str, Any]) -> str:
  low, high = record["frontier"]["window"]["months"]
  return f"{numbers.exact(low)} to {numbers.exact(high)} months"


def size(record: Mapping[str, Any]) -> str:
  """How large it is beside the frontier model, as far as the gate says."""
  window = size_window(record)
  if _verdict(record, "size") == "passed":
    return f"The analog has {window} of the frontier model's parameters."
  return (
    f"An analog should have {window} of the frontier model's parameters; of"
    f" this one the gate says: {_verdict(record, 'size')}."
  )


def lag(record: Mapping[str, Any]) -> str:
  """How long after the frontier model, as far as the gate says."""
  window = month_window(record)
  if _verdict(record, "window") == "passed":
    return (
      f"The analog was released {window} after the frontier model's deployment."
    )
  return (
    f"An analog should be released {window} after the frontier model's"
    f" deployment; of this one the gate says: {_verdict(record, 'window')}."
  )


def _verdict(record: Mapping[str, Any], gate: str) -> str:
  found = (g["verdict"] for g in record["gates"] if g["id"] == gate)
  return next(found, "not judged")


def how_made(record: Mapping[str, Any]) -> str:
  if record["distillation"]["used"]:
    return (
      "It was trained on text and on the frontier model's predictions of that"
      " text (distillation)."
    )
  return "It was trained on text alone; the frontier model did not teach it."


def same_data(record: Mapping[str, Any]) -> str:
  return {
    True: "The analog's text comes from the pipeline that trained the frontier"
    " model, by the digest of that pipeline.",
    False: "The analog's text is not that of the frontier model.",
    None: "Whether the analog's text is that of the frontier model is not"
    " stated.",
  }[record["pair"]["same_data"]]


def licence(record: Mapping[str, Any]) -> str:
  found = record["model"]["licence"]
  return (
    f"{text(found['name'])} ({text(found['spdx'])},"
    f" {text(found['category'])}); its text is in [LICENSE](LICENSE)."
  )


def phases_table(record: Mapping[str, Any]) -> str:
  rows = [
    (
      text(phase["name"]),
      phase["teaches"],
      text(phase["begins_from"]) or "random parameters",
      numbers.exact(phase["steps"]),
      numbers.exact(phase["tokens"]),
    )
    for phase in record["training"]["phases"]
  ]
  head = ("phase", "what teaches", "begins from", "steps", "tokens")
  return markdown.table(head, rows)


def taught_by(record: Mapping[str, Any], teacher: str) -> list[str]:
  """Names of the phases that it taught."""
  phases = record["training"]["phases"]
  return [phase["name"] for phase in phases if phase["teaches"] == teacher]


def distillation(record: Mapping[str, Any]) -> Iterator[str]:
  found = record["distillation"]
  if not found["used"]:
    yield paragraph(how_made(record))
  if live := taught_by(record, LIVE):
    yield paragraph(
      f"In {text(', '.join(live))} the frontier model ran beside the analog,"
      " over the rows of each step."
    )
  if not taught_by(record, CACHED):
    return
  gram = (
    " Cosines between the frontier model's inner states of some tokens were"
    " kept, too; they say nothing of its width."
    if found["gram"]
    else ""
  )
  yield paragraph(
    "The frontier model ran once over"
    f" {numbers.exact(found['cached_tokens'])} tokens in"
    f" {numbers.exact(found['cached_rows'])} rows, at a temperature of"
    f" {numbers.number(found['temperature'])}. Of each of its distributions a"
    f" record of kind {code(found['record_kind'])} was kept,"
    f" {numbers.number(found['bytes_per_token'])} bytes a token on average, and"
    f" the analog learned from these.{gram} The records themselves are not"
    " released; their digest is"
    f" {code(found['cache_sha256'])}."
  )


def sources_table(record: Mapping[str, Any]) -> str:
  rows = [
    (
      text(name),
      text(source["kind"].replace("_", " ")),
      text(source["modality"]),
      text(source["about"]),
      text(source["licence"]) or numbers.NOT_STATED,
      text(source["period"]) or numbers.NOT_STATED,
    )
    for name, source in record["data"]["sources"].items()
  ]
  head = ("source", "kind", "modality", "what it is", "licence", "period")
  return markdown.table(head, rows)


def estimated(estimate: Mapping[str, Any]) -> str:
  """An estimate with its interval, or why there is none."""
  return text(numbers.interval(estimate))


def metric_name(name: str) -> str:
  """As the fidelity report calls it."""
  return parts.METRICS.get(name, name.replace("_", " "))


def fidelity(record: Mapping[str, Any]) -> Iterator[str]:
  found = record["fidelity"]
  quick = (
    " by the quick run, which does less of everything,"
    if (found["quick"])
    else ""
  )
  yield paragraph(
    f"Measured{quick} beside controls that never saw the frontier model, on"
    f" {numbers.exact(record['data']['held_out_rows'])} held-out rows; in"
    " brackets the interval of 95 %.",
    "[fidelity.html](../fidelity.html) is the whole report.",
  )
  yield markdown.table(
    ("metric", "analog"),
    [
      (text(metric_name(name)), estimated(estimate))
      for name, estimate in found["metrics"].items()
    ],
  )
  yield markdown.table(
    ("claim", "verdict", "because"),
    [
      (text(c["text"]), text(c["verdict"]), text(c["because"]))
      for c in found["claims"]
    ],
  )


def pair(record: Mapping[str, Any]) -> Iterator[str]:
  """What is said of the frontier model, and how the rest is committed to."""
  found = record["pair"]
  same = {True: "the same", False: "not the same"}
  yield paragraph(
    f"The architecture family is {same[found['same_family']]} as the frontier"
    f" model's, and the tokenizer is {same[found['same_tokenizer']]}.",
    same_data(record),
    size(record),
    lag(record),
    "[COMPLIANCE.md](../COMPLIANCE.md) has the evidence.",
  )
  yield from commitments(record)


def commitments(record: Mapping[str, Any]) -> Iterator[str]:
  """The hashes that bind the lab to what it does not publish."""
  yield paragraph(
    "The frontier model's name, size and day of deployment are not published."
    " The lab is bound to them all the same: each is hashed with a secret salt,"
    " and a regulator who is given value and salt can check the hash."
  )
  found = record["frontier"]["commitments"]
  yield markdown.table(
    ("committed to", "SHA-256"),
    [(_COMMITTED[name], code(value)) for name, value in found.items()],
  )


def gaps(record: Mapping[str, Any]) -> str:
  if not record["not_recorded"]:
    return paragraph("The run recorded all that these documents ask for.")
  return markdown.bullets(map(text, record["not_recorded"]))


def gates_table(record: Mapping[str, Any]) -> str:
  private = record["view"] == "regulator"
  head = ["gate", "verdict", "evidence", "waiver"]
  rows = [
    [
      text(gate["title"]),
      gate["verdict"],
      text(gate["evidence"]),
      text(gate["waiver"] or "") or "none",
      text(gate.get("private_evidence", "")) or "none",
    ]
    for gate in record["gates"]
  ]
  if private:
    return markdown.table([*head, "for the regulator alone"], rows)
  return markdown.table(head, [row[:-1] for row in rows])
