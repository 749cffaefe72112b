"""The chat template around prompts: the config's or the tokenizer's.

A tokenizer's template is a Jinja program that comes with the teacher's folder.
It runs in Jinja's sandbox, once, for a conversation of one user's message.
"""

from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import jinja2.sandbox

from analogjax.models import hf_tokenizer

PROMPT = "{prompt}"
CONFIG, TOKENIZER, NONE = "config", "tokenizer", "none"


class Template(NamedTuple):
  """A text with PROMPT in it, once, and its source."""

  text: str
  source: str  # CONFIG, TOKENIZER or NONE.


def choose(given: str, folder: Path) -> Template:
  """The template of the config if it has one, else that of the tokenizer.

  Args:
    given: `safety.template`; empty: the tokenizer's.
    folder: of the tokenizer. Without a template in it, prompts stand alone.

  Raises:
    ValueError: a template that is not usable; names the file, and what to set.
  """
  if given:
    return Template(given, CONFIG)
  path = folder / hf_tokenizer.CHAT_TEMPLATE
  settings_path = folder / "tokenizer_config.json"
  settings: Mapping[str, Any] = {}
  if settings_path.exists():
    settings = json.loads(settings_path.read_text(encoding="utf-8"))
  if path.exists():
    source: Any = path.read_text(encoding="utf-8")
  else:
    path, source = settings_path, settings.get("chat_template")
  if isinstance(source, list):  # Several, by name.
    named = {x["name"]: x["template"] for x in source}
    source = named.get("default")
  if not source:
    return Template(PROMPT, NONE)
  why = ""
  try:
    text = _render(source, settings)
  except (jinja2.TemplateError, TypeError, ValueError) as error:
    text, why = "", f": {type(error).__name__}: {error}"
  if text.count(PROMPT) != 1:
    raise ValueError(
      f"{path}: the chat template cannot be used for one message{why}. Set"
      f" safety.template to a text with {PROMPT} in it, once."
    )
  return Template(text, TOKENIZER)


def _render(source: str, settings: Mapping[str, Any]) -> str:
  """The conversation up to the answer, as transformers renders it."""

  def refuse(message: str):
    raise jinja2.TemplateError(message)

  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
  )
  environment.globals["raise_exception"] = refuse
  tokens = {
    name: value["content"] if isinstance(value, Mapping) else value
    for name, value in settings.items()
    if name.endswith("_token")
  }
  return environment.from_string(source).render(
    messages=[{"role": "user", "content": PROMPT}],
    add_generation_prompt=True,
    **{name: text for name, text in tokens.items() if isinstance(text, str)},
  )
