"""Tests for launch/Containerfile; they build nothing."""

from pathlib import Path
import re
import tomllib

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "launch/Containerfile").read_text("utf-8")


def test_what_it_copies_is_there_and_is_what_the_build_needs():
  copied = [
    path
    for line in re.findall(r"^COPY (.*) \S+$", TEXT, re.M)
    for path in line.split()
  ]
  assert all((ROOT / path).exists() for path in copied)
  project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
  wanted = [
    *("pyproject.toml", "constraints.txt", project["project"]["readme"]),
    *project["project"]["license-files"],
    *project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"],
  ]
  assert set(wanted) <= set(copied)


def test_it_installs_an_extra_by_the_constraints():
  extras = re.search(r"^# EXTRA: (\w+) .* or (\w+)\.", TEXT, re.M)
  project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
  assert set(extras.groups()) <= set(
    project["project"]["optional-dependencies"]
  )
  assert f"ARG EXTRA={extras[1]}\n" in TEXT
  assert '--constraint constraints.txt ".[${EXTRA}]"' in TEXT
