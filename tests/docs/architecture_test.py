"""docs/architecture.md names the rooms and floors of the layering test."""

import importlib.util
import re

from docs_pages import ROOT


def floors():
  path = ROOT / "tests/layering_test.py"
  spec = importlib.util.spec_from_file_location("layering", path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.FLOORS


def test_the_page_has_every_room_on_its_floor():
  text = (ROOT / "docs/architecture.md").read_text("utf-8")
  section = text.split("## The rooms")[1].split("## ")[0]
  found = {}
  for number, *cells in re.findall(
    r"^\| (\d+) \| (.*) \| (.*) \|$", section, re.M
  ):
    rooms = re.findall(r"`(\w+)`", cells[0]) + re.findall(
      r"`(\w+)` stands", cells[1]
    )
    found.setdefault(int(number), set()).update(rooms)
  assert found == dict(enumerate(floors()))


def test_every_file_that_it_names_is_there():
  for page in ("architecture", "how_it_works"):
    text = (ROOT / f"docs/{page}.md").read_text("utf-8")
    for name in re.findall(r"`([\w/]+\.(?:py|md|json))`", text):
      bases = ("", "analogjax/", "analogjax/models/")
      found = any((ROOT / base / name).exists() for base in bases)
      outputs = ("config.json", "fidelity.json", "safety.json")
      loose = name in ("schema.json", "document.py", "__main__.py", *outputs)
      assert found or loose, f"{page}.md: {name}"
