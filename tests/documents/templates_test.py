"""Tests for the files of analogjax/documents/templates."""

import re

import pytest

from analogjax.documents import pages

FILES = sorted(pages.TEMPLATES.iterdir())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_template_gets_around_the_escaping(path):
  text = path.read_text(encoding="ascii")
  # `~` would escape by the rules of HTML, `safe` not at all.
  for expression in re.findall(r"\{[{%].*?[%}]\}", text, re.DOTALL):
    assert "~" not in expression and "safe" not in expression.split()
    assert "autoescape" not in expression


def test_every_page_is_rendered(rendered, monkeypatch):
  used, original = set(), pages.page

  def page(name, *args, **more):
    used.add(name)
    return original(name, *args, **more)

  monkeypatch.setattr(pages, "page", page)
  rendered()
  named = {p.name.split(".")[0] for p in FILES if p.name.endswith(".md.j2")}
  assert used == named - {"shared"}
