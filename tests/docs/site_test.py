"""The site: built without a warning, and readable without the network."""

import pathlib
import re
import shlex
import shutil
import sys
import urllib.parse

from docs_commands import run
from docs_pages import PAGES, ROOT, name_of
import pytest


def build(source, where):
  """Runs `make docs` in `source`, with `where` instead of build/."""
  plan = run(["make", "-n", "docs"], cwd=ROOT).stdout.replace("\\\n", " ")
  (line,) = (x for x in plan.splitlines() if " -m sphinx " in x)
  program, *words = shlex.split(line)
  assert program == ".venv/bin/python"
  words = [word.replace("build/", f"{where}/") for word in words]
  return run([sys.executable, *words], cwd=source)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  where = tmp_path_factory.mktemp("site")
  done = build(ROOT, where)
  assert done.returncode == 0, done.stderr
  return where / "site"


@pytest.mark.slow
def test_every_page_is_in_the_site(site):
  for page in PAGES:
    built = site / pathlib.Path(name_of(page)).with_suffix(".html")
    assert "</html>" in built.read_text("utf-8")
  first = (site / "index.html").read_text("utf-8")
  (target,) = re.findall(r'href="([^"]+)"', first)
  assert (site / target).is_file()


@pytest.mark.slow
def test_every_module_is_in_the_site(site):
  text = "".join(
    (site / f"docs/{name}.html").read_text("utf-8")
    for name in ("api", "internals")
  )
  modules = [
    ".".join(p.relative_to(ROOT).with_suffix("").parts)
    for p in (ROOT / "analogjax").rglob("*.py")
    if p.name != "__init__.py"
  ]
  assert len(modules) > 50
  assert [m for m in modules if text.count(f'id="module-{m}"') != 1] == []
  # A docstring, with its sections.
  assert "Opens the frontier run" in text and "Raises" in text


@pytest.mark.slow
def test_the_site_needs_no_network(site):
  """No script, style, font or picture comes from elsewhere."""
  loads = re.compile(
    r"<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)\s*=\s*\"([^\"]*)\""
  )
  styles = re.compile(r"(?:url\(\s*|@import\s+)[\"']?([^\"')\s]+)")
  found = []
  for page in site.rglob("*.html"):
    found += [(page, x) for x in loads.findall(page.read_text("utf-8"))]
  for sheet in site.rglob("*.css"):
    found += [(sheet, x) for x in styles.findall(sheet.read_text("utf-8"))]
  assert len(found) > 100
  for file, address in found:
    assert not urllib.parse.urlsplit(address).netloc, (file, address)
    if not address.startswith(("data:", "#")):
      assert (file.parent / address.partition("?")[0]).exists(), (file, address)


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("# A\n\n[a](#a)\n", ""),
    ("# A\n\n[a](none.md)\n", "docs/index.md:3: WARNING"),
    ("# A\n\n[a](#none)\n", "docs/index.md:3: WARNING"),
    ("# A\n\n[a](../README.md#none)\n", "docs/index.md:3: WARNING"),
  ],
)
def test_a_link_that_leads_nowhere_is_an_error(tmp_path, text, expected):
  (tmp_path / "docs/site_root").mkdir(parents=True)
  shutil.copyfile(ROOT / "docs/conf.py", tmp_path / "docs/conf.py")
  (tmp_path / "docs/index.md").write_text(text)
  (tmp_path / "README.md").write_text("# B\n")
  done = build(tmp_path, tmp_path / "built")
  assert (done.returncode == 0) == (expected == ""), done.stderr
  assert expected in done.stderr
