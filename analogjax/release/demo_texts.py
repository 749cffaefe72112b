"""Recognizes the demo's texts in the config of another release.

A lab may begin with a copy of configs/demo.py. Its texts about the demo's data,
model and provider must not reach the lab's documents.
"""

from collections.abc import Mapping
import hashlib
import json
from pathlib import Path
import re
from typing import Any

from analogjax.config.schema import Sections

_NAME = "analogjax-demo-3M"
# SHA-256 of values of configs/demo.py as JSON; a test keeps them in step.
_DIGESTS = {
  "release.about.provider": (
    "e04c9fc130b65e66cd075cbfa86bdc5ab7d56aff3200f61f86eb74cc79d28b1b"
  ),
  "release.about.contact": (
    "b730d3f2758b709d447de3f524ddbbb015b25610ddb11f9bf9b334e3701f0fff"
  ),
  "release.about.intended_use": (
    "92c89912a437073bd9ed503911be93a1956bfea544268a3af11880d6559cf5ee"
  ),
  "release.about.out_of_scope": (
    "a9a607633981c2cedfcc1099543c5fd1dd3c8f2d8c3d42ac1b1e7bb2dd63ae1e"
  ),
  "release.about.limitations": (
    "9a3e5f8c1ceb71b6b0f06923d6a4f09ab0b50e8329292d250afa1c815a36ffe2"
  ),
  "release.about.curation": (
    "c841e8698dc0d42a0c61201c92aaf0c8c27dae426c841a1d8ab8b4ae76a2ae31"
  ),
  "release.sources.documentation": (
    "816bdd75130ad785c5487ae26b6101335800735dd7034077fbd8784fc49e7e09"
  ),
  "safety.template": (
    "127c82e72d1e86d90b8f8e93815bd25b1920aa095a16b260ece2fefb0ec2f64f"
  ),
}
_TEMPLATE = "safety.template"


def copied(config: Sections, tokenizer: Path) -> list[str]:
  """Fields of a config that hold the demo's texts; none in the demo itself.

  `tokenizer` is tokenizer.json of the analog. The demo's chat template is right
  for every tokenizer that has its markers, such as <|im_start|>.
  """
  if config.release.about.name == _NAME:
    return []
  found = [
    path for path, sha256 in _DIGESTS.items() if digest(config, path) == sha256
  ]
  if _TEMPLATE in found and _has_markers(config.safety.template, tokenizer):
    found.remove(_TEMPLATE)
  return found


def digest(config: Sections, path: str) -> str:
  """SHA-256 of the value at a path of a config, as JSON."""
  value: Any = config
  for name in path.split("."):
    is_dict = isinstance(value, Mapping)
    value = value.get(name) if is_dict else getattr(value, name)
  text = json.dumps(value, sort_keys=True, default=dict)
  return hashlib.sha256(text.encode()).hexdigest()


def _has_markers(template: str, tokenizer: Path) -> bool:
  added = json.loads(tokenizer.read_text("utf-8")).get("added_tokens", ())
  tokens = {token.get("content") for token in added}
  return set(re.findall(r"<\|.*?\|>", template)) <= tokens
