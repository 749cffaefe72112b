"""Items of the EU's Model Documentation Form, answered from the record.

Each is a line of a table: what it asks, whom it is for, and a function that
answers it. What no fact answers is "not recorded", in so many words.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from analogjax.bundle.record_table import CACHED
from analogjax.documents import sections
from analogjax.rendering import numbers

Record = Mapping[str, Any]

OFFICE, NATIONAL, DOWNSTREAM = "AI Office", "national authorities", "downstream"
AUTHORITIES = (OFFICE, NATIONAL)
ALL = (*AUTHORITIES, DOWNSTREAM)
REGULATOR_ALONE = ("compute", "energy")  # Sections.
NOT_RECORDED = "not recorded"

_SECTIONS = {
  "document": "This document",
  "general": "General information",
  "properties": "Model properties",
  "distribution": "Methods of distribution and licence",
  "use": "Use",
  "training": "Training process",
  "data": "Data used for training, testing and validation",
  "compute": "Computational resources, training",
  "energy": "Energy consumption",
}


@dataclasses.dataclass(frozen=True)
class Item:
  """One item; an answer that is empty means that it is not recorded."""

  key: str
  asks: str
  readers: tuple[str, ...]
  answer: Callable[[Record], str]


def items(record: Record) -> list[dict[str, Any]]:
  """The answers that a reader of this view gets, in the form's order."""
  private = record["view"] == "regulator"
  return [
    _answered(item, record)
    for item in _items()
    if private or item.key.split(".")[0] not in REGULATOR_ALONE
  ]


def _answered(item: Item, record: Record) -> dict[str, Any]:
  answer = item.answer(record)
  return {
    "id": item.key,
    "section": _SECTIONS[item.key.split(".")[0]],
    "item": item.asks,
    "for": list(item.readers),
    "status": "stated" if answer else NOT_RECORDED,
    "answer": answer or f"{NOT_RECORDED.capitalize()}.",
  }


def _unknown(record: Record) -> str:
  del record
  return ""


def _items() -> tuple[Item, ...]:
  return (
    Item("document.updated", "Date of this document", ALL, _released),
    Item("document.version", "Version", ALL, lambda r: r["model"]["version"]),
    Item(
      *("general.provider", "Legal name of the provider", ALL),
      lambda r: r["model"]["provider"],
    ),
    Item("general.name", "Name of the model", ALL, _name),
    Item(
      *("general.authenticity", "How to know that it is the model", ALL),
      _authenticity,
    ),
    Item("general.released", "Release date", ALL, _released),
    Item("general.union_market", "Date on the Union market", ALL, _unknown),
    Item("general.depends", "Models it depends on", ALL, _dependencies),
    Item("properties.architecture", "Architecture", ALL, _architecture),
    Item("properties.design", "Design of the model", AUTHORITIES, _design),
    Item("properties.inputs", "Inputs and their most", ALL, _modalities),
    Item("properties.outputs", "Outputs and their most", ALL, _modalities),
    Item(
      *("properties.size", "Number of parameters", ALL),
      lambda r: numbers.exact(r["model"]["parameters"]["total"]),
    ),
    Item(
      *("properties.size_band", "Band of the number of parameters", ALL),
      lambda r: numbers.size_band(r["model"]["parameters"]["total"]),
    ),
    Item("distribution.channels", "Channels", ALL, _channels),
    Item("distribution.licence", "Licence", ALL, _licence),
    Item("use.policy", "Acceptable use policy", ALL, _policy),
    Item(
      *("use.intended", "Intended uses", ALL),
      lambda r: r["model"]["intended_use"],
    ),
    Item(
      *("use.restricted", "Uses it is not for", ALL),
      lambda r: r["model"]["out_of_scope"],
    ),
    Item("use.systems", "Systems it can be part of", ALL, _unknown),
    Item("use.means", "Technical means to integrate it", ALL, _means),
    Item("use.hardware", "Hardware it needs", (DOWNSTREAM,), _hardware),
    Item("use.software", "Software it needs", (DOWNSTREAM,), _means),
    Item("training.design", "Design of the training", AUTHORITIES, _training),
    Item("training.decisions", "Why so", AUTHORITIES, _decisions),
    Item(
      *("data.modality", "Modalities of the data", ALL),
      lambda r: ", ".join(
        sorted({s["modality"] for s in r["data"]["sources"].values()})
      ),
    ),
    Item("data.provenance", "Where it is from", ALL, _provenance),
    Item(
      *("data.obtained", "How it was obtained and selected", AUTHORITIES),
      lambda r: " ".join(s["about"] for s in r["data"]["sources"].values()),
    ),
    Item("data.points", "Number of data points", AUTHORITIES, _points),
    Item("data.scope", "Scope and main traits", AUTHORITIES, _scope),
    Item(*("data.curation", "Curation", ALL), lambda r: r["data"]["curation"]),
    Item(
      *("data.unsuitable", "Finding unsuitable sources", AUTHORITIES),
      _unknown,
    ),
    Item("data.bias", "Finding biases", AUTHORITIES, _unknown),
    Item("compute.time", "Training time", AUTHORITIES, _time),
    Item("compute.flops", "FLOPs of the training", (OFFICE,), _flops),
    Item(
      *("compute.magnitude", "Their order of magnitude", (NATIONAL,)),
      _magnitude,
    ),
    Item("compute.method", "How they were counted", AUTHORITIES, _counting),
    Item("energy.training", "Energy of the training", AUTHORITIES, _energy),
    Item(
      *("energy.method", "How it was found", AUTHORITIES),
      lambda r: r["cost_in_full"]["energy"]["method"],
    ),
    Item("energy.inference", "FLOPs of inference", AUTHORITIES, _inference),
  )


def _released(record: Record) -> str:
  return record["model"]["released_on"]


def _name(record: Record) -> str:
  return f"{record['model']['name']}, version {record['model']['version']}"


def _authenticity(record: Record) -> str:
  weights = {
    name: digest
    for name, digest in record["model"]["files"].items()
    if name.endswith(".safetensors")
  }
  shown = "; ".join(f"{name} {digest}" for name, digest in weights.items())
  return (
    f"SHA-256 of the weights: {shown}. Every other file is in manifest.json,"
    " and signature.json signs all of them."
  )


def _dependencies(record: Record) -> str:
  if record["distillation"]["used"]:
    return (
      "Distilled from the provider's frontier model, which is larger and is not"
      " part of this release. No parameters were taken over."
    )
  return "None: trained from random parameters."


def _architecture(record: Record) -> str:
  model, shape = record["model"], record["model"]["architecture"]
  return (
    f"A decoder-only transformer of the family {model['family']} with"
    f" {numbers.exact(shape['layers'])} layers of width"
    f" {numbers.exact(shape['width'])}."
  )


def _design(record: Record) -> str:
  model, shape = record["model"], record["model"]["architecture"]
  tied = "the same as" if shape["tied_embeddings"] else "apart from"
  shared = record["pair"]["same_family"] and record["pair"]["same_tokenizer"]
  why = (
    " Family and tokenizer are the frontier model's, so that what is found on"
    " it can be tried on the other."
  )
  return (
    f"It has {numbers.exact(shape['heads'])} attention heads of width"
    f" {numbers.exact(shape['head_width'])},"
    f" {numbers.exact(shape['kv_heads'])} for keys and values, a feed-forward"
    f" width of {numbers.exact(shape['feed_forward'])}, and a vocabulary of"
    f" {numbers.exact(model['vocabulary_size'])} tokens whose output"
    f" embedding is {tied} the input's.{why if shared else ''}"
  )


def _modalities(record: Record) -> str:
  model = record["model"]
  most = numbers.exact(model["context_tokens"])
  return (
    f"{', '.join(model['modalities'])}: {most} tokens, in and out together."
  )


def _channels(record: Record) -> str:
  del record
  return (
    "Open weights: this bundle. Where it is offered for download is not"
    " recorded in it."
  )


def _licence(record: Record) -> str:
  found = record["model"]["licence"]
  return (
    f"{found['name']} ({found['spdx']}), {found['category']}; its text is the"
    " file LICENSE."
  )


def _policy(record: Record) -> str:
  if record["model"]["licence"]["category"] == "permissive":
    return "None beside the licence, which restricts no use."
  return "The restrictions of the licence, in the file LICENSE."


def _means(record: Record) -> str:
  del record
  return (
    "Any program that loads safetensors weights of this architecture, such as"
    " transformers; no code comes with the model."
  )


def _hardware(record: Record) -> str:
  model = record["model"]
  return (
    f"Memory for {numbers.exact(model['weights_bytes'])} bytes of weights and"
    " for activations; no accelerator is required."
  )


def _training(record: Record) -> str:
  phases = (
    f"{p['name']}: {p['teaches']}, from"
    f" {p['begins_from'] or 'random parameters'},"
    f" {numbers.exact(p['steps'])} steps, {numbers.exact(p['tokens'])} tokens"
    for p in record["training"]["phases"]
  )
  return f"In phases. {'; '.join(phases)}."


def _decisions(record: Record) -> str:
  if not sections.taught_by(record, CACHED):
    return ""
  if record["distillation"]["record_kind"] != "threshold":
    return ""
  return (
    "The frontier model's distributions were sampled without bias rather than"
    " cut to their likeliest tokens, which is biased (arXiv:2503.16870); the"
    " phases follow the paper that proposes analogs."
  )


def _provenance(record: Record) -> str:
  kinds = {s["kind"] for s in record["data"]["sources"].values()}
  found = [kind.replace("_", " ") for kind in sorted(kinds)]
  if record["distillation"]["used"]:
    found.append("outputs of the frontier model on these")
  return f"{'; '.join(found)}."


def _points(record: Record) -> str:
  data = record["data"]
  return (
    f"{numbers.exact(data['train_tokens'])} tokens, each counted as often as it"
    f" was used, of {numbers.exact(data['train_rows'])} rows; held out:"
    f" {numbers.exact(data['held_out_rows'])} rows."
  )


def _scope(record: Record) -> str:
  return (
    f"Languages: {', '.join(record['model']['languages'])}. Known limitations:"
    f" {record['model']['limitations']}"
  )


def _trained(record: Record, name: str) -> tuple[float | None, float | None]:
  """Sums of a cost: (of the analog's training, of the teacher for it).

  None where a line of it is not known.
  """
  rows = record["cost_in_full"]["rows"]

  def total(of_teacher: bool) -> float | None:
    found = [
      row[name]
      for row in rows
      if row["of_teacher"] == of_teacher
      and any(_trains(stage) for stage in row["stages"])
    ]
    known = [value for value in found if isinstance(value, int | float)]
    return sum(known) if known and len(known) == len(found) else None

  return total(False), total(True)


def _trains(stage: str) -> bool:
  return stage.startswith("train/") or stage == "cache"


def _time(record: Record) -> str:
  ours, teacher = _trained(record, "device_hours")
  if ours is None:
    return ""
  days = record["training"]["wall_seconds"] / 86_400
  words = (
    f"{numbers.month_band(days).capitalize()}: {numbers.two_figures(days)} days"
    f" by the clock; {numbers.two_figures(ours / 24)} device-days of the analog"
  )
  if teacher is not None:
    words += (
      f", and {numbers.two_figures(teacher / 24)} device-days of the frontier"
      " model's run over its text"
    )
  return f"{words}."


def _flops(record: Record) -> str:
  ours, teacher = _trained(record, "flops")
  if ours is None:
    return ""
  words = f"{numbers.two_figures(ours)} of the analog"
  if teacher is not None:
    words += (
      f"; {numbers.two_figures(teacher)} of the frontier model's run over its"
      f" text; together {numbers.two_figures(ours + teacher)}"
    )
  return f"{words}."


def _magnitude(record: Record) -> str:
  ours, teacher = _trained(record, "flops")
  return "" if ours is None else numbers.magnitude(ours + (teacher or 0))


def _counting(record: Record) -> str:
  del record
  return (
    "In closed form, from shapes and tokens: of the matrix products, attention"
    " included, without what was computed twice to save memory."
  )


def _energy(record: Record) -> str:
  ours, teacher = _trained(record, "kwh")
  if ours is None:
    return ""
  whole = ours + (teacher or 0)
  return f"{numbers.two_figures(whole / 1000)} MWh."


def _inference(record: Record) -> str:
  active = record["model"]["parameters"]["active"]
  return (
    f"About {numbers.two_figures(2 * active)} for each token, two for each"
    " parameter that it uses; not benchmarked on hardware."
  )
