"""The model card, model/README.md.

Its head is metadata for the Hugging Face Hub. The Hub checks some of it only
when a card is uploaded, so `metadata_problem` checks the rules known to us.
"""

from collections.abc import Mapping
import math
import re
from typing import Any

import huggingface_hub
import yaml

from analogjax.documents import pages

_TAGS = ("analog-model", "distillation", "interpretability", "safety")
# Permissive licences with an identifier on the Hub, which is the SPDX one in
# lower case.
_HUB_LICENCES = (
  "apache-2.0",
  "bsd-2-clause",
  "bsd-3-clause",
  "bsl-1.0",
  "cc-by-4.0",
  "cc0-1.0",
  "isc",
  "mit",
  "postgresql",
  "unlicense",
  "zlib",
)
_LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")


def render(record: Mapping[str, Any]) -> str:
  page = f"---\n{_metadata(record)}---\n\n{pages.page('model_card', record)}"
  assert not (wrong := metadata_problem(page)), wrong
  return page


def metadata_problem(text: str) -> str:
  """Why the Hub would refuse a card; "" if no reason is known.

  The rules follow the Hub's documentation of model cards. They are not
  verified, because the check itself is a service.
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
  """The metadata as YAML. base_model is not used: the Hub lacks this relation.

  Of base_model_relation it knows adapter, merge, quantized and finetune, and
  base_model names a model on the Hub, which a frontier model is not.

  PyYAML writes it rather than huggingface_hub, whose order of fields may change
  with its version, while verify compares bytes.
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
      "name": pages.metric_name(name),
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
