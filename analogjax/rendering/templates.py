"""Jinja2 environments in which no value can become markup.

A template names its values: `{{ model.name }}`. Each is escaped when it is
inserted, so text from a config or a file stays literal. A missing value is an
error and never an empty place. A bare number is an error too: a filter of
rendering/numbers.py must format it.
"""

from collections.abc import Callable
import functools
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from analogjax.rendering import markdown, numbers


def markdown_pages(folder: Path) -> jinja2.Environment:
  """The environment of the pages of Markdown in a folder.

  `markdown.page` lays out what a template gives.
  """
  environment = _environment(folder, markdown.text)
  environment.filters |= {
    "code": _safe(markdown.code),
    "fence": _safe(markdown.fence),
    "table": _safe(markdown.table),
  }
  return environment


def plain_texts(folder: Path) -> jinja2.Environment:
  """The environment of texts that another program escapes."""
  return _environment(folder, str)


def _environment(
  folder: Path, escape: Callable[[str], str]
) -> jinja2.Environment:
  def finalize(value: Any) -> markupsafe.Markup:
    if isinstance(value, markupsafe.Markup):
      return value.strip()  # A macro's lines may be anywhere in a sentence.
    if isinstance(value, jinja2.Undefined):
      str(value)  # Raises, and names the value.
    if not isinstance(value, str):
      raise TypeError(f"a template writes {value!r} without a filter")
    return markupsafe.Markup(escape(value))

  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(folder),
    undefined=jinja2.StrictUndefined,
    finalize=finalize,
    # Makes the results of macros and filters Markup, which is not escaped
    # twice.
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters |= {**numbers.FILTERS, "sentence": markdown.sentence}
  return environment


def _safe(function: Callable[..., str]) -> Callable[..., markupsafe.Markup]:
  @functools.wraps(function)
  def made(*args: Any, **kwargs: Any) -> markupsafe.Markup:
    return markupsafe.Markup(function(*args, **kwargs))

  return made
