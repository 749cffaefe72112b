"""Tests for analogjax/rendering/templates.py."""

import pathlib

import jinja2
import pytest

from analogjax.rendering import templates

MAKERS = (templates.markdown_pages, templates.plain_texts)


def rendered(make, source, **values):
  return make(pathlib.Path()).from_string(source).render(values)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("value", [1, 0.5, None, True, ["a"]])
def test_only_texts_are_written_without_a_filter(make, value):
  with pytest.raises(TypeError, match="without a filter"):
    rendered(make, "{{ x }}", x=value)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("source", ["{{ y }}", "{{ x.y }}", "{{ x.y | code }}"])
def test_a_value_that_is_missing_is_an_error(make, source):
  with pytest.raises((jinja2.UndefinedError, jinja2.TemplateAssertionError)):
    rendered(make, source, x={})


def test_macros_are_not_escaped_twice_and_join_their_sentence():
  source = """
{% macro named() %}
  *{{ x }}*
{% endmacro %}
So {{ named() }}."""
  assert rendered(templates.markdown_pages, source, x="a_b").endswith(
    "So *\1a\\_b*."
  )


def test_plain_texts_stay_as_they_are():
  assert rendered(templates.plain_texts, "{{ x }}", x="a < b_c") == "a < b_c"
