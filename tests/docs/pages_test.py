"""Tests of links, and of rules for every page."""

import re

from docs_pages import PAGES, ROOT, name_of, without_blocks
import pytest


def anchors(text):
  """The anchors that a viewer makes of the headings."""
  headings = re.findall(r"^#+ (.*)$", without_blocks(text), re.MULTILINE)
  plain = [re.sub(r"[^\w\- ]", "", h.lower()) for h in headings]
  return {h.replace(" ", "-") for h in plain}


def broken_links(page, text):
  """Links of a page that lead nowhere; those to other hosts are not tried."""
  found = []
  for link in re.findall(r"\]\(([^)\s]+)\)", without_blocks(text)):
    if link.startswith("https://"):
      continue
    path, _, anchor = link.partition("#")
    target = (page.parent / path) if path else page
    if not target.exists():
      found.append(link)
    elif anchor and anchor not in anchors(target.read_text("utf-8")):
      found.append(link)
  return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_page(page):
  text = page.read_text("utf-8")
  assert broken_links(page, text) == []
  assert text.isascii()
  # Tables cannot be broken.
  lines = [x for x in text.splitlines() if "](https" not in x]
  assert [x for x in lines if len(x) > (140 if x[:1] == "|" else 80)] == []


def test_broken_links_are_found():
  page = ROOT / "README.md"
  text = "[a](docs/none.md) [b](#none) [c](#not-yet) [d](docs/config.md#none)"
  wrong = ["docs/none.md", "#none", "docs/config.md#none"]
  assert broken_links(page, text + "\n## Not yet\n") == wrong


def broken_tables(text):
  """First lines of tables that a viewer would show as text, or cut."""
  found, table = [], []
  for line in [*without_blocks(text).splitlines(), ""]:
    if re.match(r"\|[ -]", line):
      table.append(line)
      continue
    if table:
      columns = {len(re.findall(r"(?<!\\)\|", row)) for row in table}
      is_table = re.fullmatch(r"[|\-: ]+", "".join(table[1:2]))
      if not is_table or len(columns) > 1:
        found.append(table[0])
    table = []
  return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tables_are_whole(page):
  assert broken_tables(page.read_text("utf-8")) == []


def test_broken_tables_are_found():
  good = "| a | b |\n|---|:-:|\n| 1 | `x \\| y` |\n"
  assert broken_tables(f"{good}\ntext\n\n{good}") == []
  parted = "| a | b |\n|---|---|\n| 1 | 2 |\n\n| 3 | 4 |\n"
  assert broken_tables(parted) == ["| 3 | 4 |"]
  assert broken_tables("| a | b |\n|---|---|\n| 1 |\n") == ["| a | b |"]
  assert broken_tables("```\n| a |\n| b |\n```\n") == []


def missing_files(text):
  """Files of this repository that a page names and that are not there."""
  folders = "analogjax|configs|docs|launch|tests"
  names = re.findall(
    rf"`((?:{folders})/[\w/.]+\.\w+)`(?! of\s+commit)", without_blocks(text)
  )
  written = {f"configs/{name}.py" for name in ("lab", "ours")}
  return [n for n in names if n not in written and not (ROOT / n).exists()]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_a_page_names_are_there(page):
  if page.name != "CHANGELOG.md":
    assert missing_files(page.read_text("utf-8")) == []


def test_missing_files_are_found():
  text = "`tests/none_test.py` `analogjax/main.py` `tests/old.py` of commit 1"
  assert missing_files(text) == ["tests/none_test.py"]


def unfenced_commands(text):
  """Lines of indented blocks that would be commands, were they fenced."""
  found = re.findall(r"^(?: {4}|\t)(.*)$", without_blocks(text), re.MULTILINE)
  begins = re.compile(
    r"(?:\$ |(?:[A-Z_]+=\S+ )*(?:analogjax|make|python|pip) )"
  )
  # A synopsis has what no command has.
  return [x for x in found if begins.match(x) and not re.search(r"<| \[-", x)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_command_is_outside_of_a_fence(page):
  assert unfenced_commands(page.read_text("utf-8")) == []


def test_commands_outside_of_a_fence_are_found():
  text = "a\n\n    make soak\n    A=1 pip install x\n    maker x\n    $ ls\n"
  fenced = "\n```sh\n    make demo\n```\n"
  found = unfenced_commands(
    text + fenced + "    analogjax <command>\n    make a [-b]\n"
  )
  assert found == ["make soak", "A=1 pip install x", "$ ls"]


def test_every_page_is_named_in_the_one_above_it():
  assert "(docs/index.md)" in (ROOT / "README.md").read_text("utf-8")
  text = (ROOT / "docs/index.md").read_text("utf-8")
  for page in (ROOT / "docs").glob("*.md"):
    assert page.name == "index.md" or f"({page.name})" in text
  text = (ROOT / "docs/running.md").read_text("utf-8")
  for page in (ROOT / "docs/running").glob("*.md"):
    assert f"(running/{page.name})" in text
