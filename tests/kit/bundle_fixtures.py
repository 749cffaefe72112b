"""Shared fixtures of the tests of documents, bundles and verification."""

import json

import facts_example
import pytest
import synthetic_report
import tiny_bundle

from analogjax.bundle import record
from analogjax.documents import render as documents
from analogjax.fidelity import document
from analogjax.fidelity.report import page


@pytest.fixture(scope="session")
def fidelity():
  return document.public(synthetic_report.make(synthetic_report.parts()))


@pytest.fixture(scope="session")
def rendered(fidelity):
  """A function of (facts, view): the documents of a release."""

  def render(facts=None, view="public"):
    made = record.project(facts or facts_example.facts(), view)
    return documents.render(made, fidelity=fidelity, safety={})

  return render


@pytest.fixture(scope="session")
def made(tmp_path_factory):
  """(folder of a bundle, private key, its files, its facts): read only."""
  scratch = tmp_path_factory.mktemp("bundle")
  key = tiny_bundle.write_key(scratch / "key.pem")
  files, facts = tiny_bundle.contents(scratch)
  tiny_bundle.write(scratch / "bundle", files, key)
  return scratch / "bundle", key, files, facts


@pytest.fixture
def quick_pages(monkeypatch):
  """Draws fidelity.html of one document once: it takes most of the time."""
  monkeypatch.setattr(page, "render", _rendered_once)


_PAGES = {}
_render = page.render


def _rendered_once(value):
  key = json.dumps(value)
  if key not in _PAGES:
    _PAGES[key] = _render(value)
  return _PAGES[key]
