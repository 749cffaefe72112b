"""The model card: model/README.md, for whoever finds the weights.

Its head is the metadata that the Hugging Face Hub reads. The Hub checks some of
it only when a card is uploaded, so `metadata_problem` holds what is known of
its rules.
"""

from collections.abc import Iterator, Mapping
import math
import re
from typing import Any

import huggingface_hub
import yaml

from analogjax.documents import safety_summary, sections
from analogjax.rendering import markdown, numbers
from analogjax.rendering.markdown import code, heading, paragraph, text

_TAGS = ("analog-model", "distillation", "interpretability", "safety")
# Licences that the Hub has an identifier for, of those that are permissive
# here; an identifier is the SPDX one in small letters.
_HUB_LICENCES = (
  *("apache-2.0", "bsd-2-clause", "bsd-3-clause", "isc", "mit"),
  *("cc0-1.0", "cc-by-4.0", "unlicense", "zlib", "bsl-1.0", "postgresql"),
)
_LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")


def render(record: Mapping[str, Any]) -> str:
  page = f"---\n{_metadata(record)}---\n\n{markdown.page(_blocks(record))}"
  assert not (wrong := metadata_problem(page)), wrong
  return page


def metadata_problem(text: str) -> str:
  """What the Hub would not take of a card; "" if nothing is known.

  The rules are those of the Hub's documentation on model cards, as remembered:
  not verified, as the check itself is a service.
  """
  try:
    data = huggingface_hub.ModelCard(text).data.to_dict()
  except (ValueError, TypeError, yaml.YAMLError) as error:
    return f"metadata: not readable: {error}"
  licence = data.get("license")
  if licence not in (*_HUB_LICENCES, "other"):
    return f"license: expected an identifier of the Hub, found {licence!r}"
  name = str(data.get("license_name", ""))
  if licence == "other":
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
      return f"license_name: expected small letters and digits, found {name!r}"
    if data.get("license_link") != "LICENSE":
      return "license_link: expected LICENSE, the file beside the card"
  for language in data.get("language") or ():
    if not _LANGUAGE.fullmatch(str(language)):
      return f"language: expected a code of ISO 639, found {language!r}"
  for field, expected in (
    ("library_name", "transformers"),
    ("pipeline_tag", "text-generation"),
  ):
    if data.get(field) != expected:
      return f"{field}: expected {expected!r}, found {data.get(field)!r}"
  return ""


def _metadata(record: Mapping[str, Any]) -> str:
  """YAML. There is no base_model: the Hub has none of that relation.

  Of base_model_relation it knows adapter, merge, quantized and finetune, and
  base_model names a model on the Hub; a frontier model is none.

  PyYAML writes it rather than huggingface_hub, whose order of fields may change
  with its version, and verify compares bytes.
  """
  model, licence = record["model"], record["model"]["licence"]
  known = licence["spdx"].lower()
  value: dict[str, Any] = {"license": known}
  if known not in _HUB_LICENCES:
    name = re.sub(r"[^a-z0-9.]+", "-", licence["name"].lower()).strip("-.")
    value = {
      "license": "other",
      "license_name": name or "custom",
      "license_link": "LICENSE",
    }
  languages = [x for x in model["languages"] if _LANGUAGE.fullmatch(x)]
  if languages:
    value["language"] = languages
  value |= {
    "library_name": "transformers",
    "pipeline_tag": "text-generation",
    "tags": list(_TAGS),
  }
  if metrics := _metrics(record):
    value["model-index"] = [
      {"name": " ".join(model["name"].split()), "results": [metrics]}
    ]
  return yaml.safe_dump(
    value, sort_keys=False, allow_unicode=True, width=math.inf
  )


def _metrics(record: Mapping[str, Any]) -> dict[str, Any] | None:
  """One result of the model index: fidelity on the held-out rows."""
  metrics = [
    {
      "type": name,
      "value": estimate["value"],
      "name": sections.metric_name(name),
    }
    for name, estimate in record["fidelity"]["metrics"].items()
    if estimate["value"] is not None
  ]
  if not metrics:
    return None
  return {
    "task": {"type": "text-generation"},
    "dataset": {
      "name": "Held-out rows of the training data",
      "type": "held-out-rows",
    },
    "metrics": metrics,
  }


def _blocks(record: Mapping[str, Any]) -> Iterator[str]:
  model = record["model"]
  yield heading(1, text(model["name"]))
  yield paragraph(
    f"{text(model['name'])} is an analog: a small open model that stands in for"
    " a large closed one, here called the frontier model.",
    sections.size(record),
    sections.how_made(record),
    sections.same_data(record),
  )
  yield from _facts(record)
  yield heading(2, "Use")
  yield paragraph("**Intended.**", text(model["intended_use"]))
  yield paragraph("**Out of scope.**", text(model["out_of_scope"]))
  yield paragraph("**Limitations.**", text(model["limitations"]))
  yield markdown.fence("python", sections.LOAD)
  yield paragraph(
    "It needs no code from this repository: the architecture is one that"
    f" transformers has, {text(model['family'])}."
  )
  yield heading(2, "Training")
  yield sections.phases_table(record)
  yield from sections.distillation(record)
  yield heading(2, "Data")
  yield sections.sources_table(record)
  yield paragraph(
    text(record["data"]["curation"]),
    "The whole account, on the European Commission's template, is"
    " [TRAINING_DATA.md](../TRAINING_DATA.md).",
  )
  yield heading(2, "What it keeps of the frontier model")
  yield from sections.fidelity(record)
  yield heading(2, "Safety evaluation")
  yield paragraph(
    safety_summary.verdict(record),
    "[SAFETY.md](../SAFETY.md) has every test with its threshold.",
  )
  yield safety_summary.thresholds(record)
  yield heading(2, "The pair, and what is kept private")
  yield from sections.pair(record)
  yield heading(2, "Not recorded")
  yield sections.gaps(record)
  yield heading(2, "Licence and contact")
  yield paragraph(
    sections.licence(record),
    f"Provider: {text(model['provider'])}; contact: {text(model['contact'])}.",
  )
  yield paragraph(
    "How to check all of this from the bytes alone: [README.md](../README.md)."
  )


def _facts(record: Mapping[str, Any]) -> Iterator[str]:
  model, shape = record["model"], record["model"]["architecture"]
  parameters = model["parameters"]
  active = (
    []
    if parameters["active"] == parameters["total"]
    else [("parameters a token uses", numbers.exact(parameters["active"]))]
  )
  tied = "tied to the input's" if shape["tied_embeddings"] else "of its own"
  yield markdown.table(
    ("fact", "value"),
    [
      ("version", text(model["version"])),
      ("released", model["released_on"]),
      ("languages", text(", ".join(model["languages"]))),
      ("modalities", text(", ".join(model["modalities"]))),
      ("architecture", text(model["family"])),
      ("parameters", numbers.exact(parameters["total"])),
      *active,
      ("layers", numbers.exact(shape["layers"])),
      ("width", numbers.exact(shape["width"])),
      (
        "attention heads",
        f"{numbers.exact(shape['heads'])} of width"
        f" {numbers.exact(shape['head_width'])},"
        f" {numbers.exact(shape['kv_heads'])} for keys and values",
      ),
      ("feed-forward width", numbers.exact(shape["feed_forward"])),
      ("output embedding", tied),
      ("vocabulary", f"{numbers.exact(model['vocabulary_size'])} tokens"),
      ("context", f"{numbers.exact(model['context_tokens'])} tokens"),
      (
        "weights",
        f"{numbers.exact(model['tensors'])} tensors of"
        f" {code(model['dtype'])}, {numbers.exact(model['weights_bytes'])}"
        " bytes, safetensors",
      ),
      ("licence", text(model["licence"]["spdx"])),
    ],
  )
