"""The pages, their blocks of code, and the commands in them.

Pages are the Markdown files at the root and everything below docs/. A command
is anything that a shell would run as one program: a line of a block of sh, bash
or console, a part of a pipe, or `code` in the text that begins with a name in
IN_TEXT.
"""

from collections.abc import Iterator
import pathlib
import re
import shlex
import typing

import yaml

ROOT = pathlib.Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SHELL = ("sh", "bash", "console")
# A block has one of these languages, so that no command hides in another.
LANGUAGES = (*SHELL, "python", "yaml", "json", "text", "{eval-rst}")
IN_TEXT = ("analogjax", "make", "python")

_SEPARATORS = set("|&;")
_REDIRECTIONS = set("<>")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z_0-9]*=")


class Block(typing.NamedTuple):
  """A fenced block of code."""

  page: str  # Its path from the root.
  line: int  # Line of its fence, from 1.
  language: str
  marks: tuple[str, ...]  # Text behind the language.
  text: str

  @property
  def where(self) -> str:
    return f"{self.page}:{self.line}"


class Command(typing.NamedTuple):
  """One program with its arguments."""

  where: str  # Page and line.
  words: tuple[str, ...]  # Without assignments before and redirections after.


def name_of(page: pathlib.Path) -> str:
  return page.relative_to(ROOT).as_posix()


def blocks_of(page: str, text: str) -> list[Block]:
  """The fenced blocks of a page.

  Raises:
    AssertionError: a block without an end, or of an unknown language.
  """
  found, lines, begin, words = [], text.splitlines(), None, []
  for number, line in enumerate(lines, 1):
    if not line.lstrip().startswith("```"):
      continue
    if begin is None:
      begin, words = number, line.strip().removeprefix("```").split()
      assert words and words[0] in LANGUAGES, (
        f"{page}:{number}: a block of {' '.join(words[:1]) or 'no language'};"
        f" known: {', '.join(LANGUAGES)}"
      )
    else:
      body = "\n".join(lines[begin : number - 1]) + "\n"
      found.append(Block(page, begin, words[0], tuple(words[1:]), body))
      begin = None
  assert begin is None, f"{page}:{begin}: a block without an end"
  return found


def without_blocks(text: str) -> str:
  """The text with an empty line for each line of a block."""
  return re.sub(
    r"^ *```.*?^ *```$",
    lambda match: "\n" * match[0].count("\n"),
    text,
    flags=re.MULTILINE | re.DOTALL,
  )


def commands_of(page: str, text: str) -> Iterator[Command]:
  """All commands of a page."""
  for block in blocks_of(page, text):
    if block.language in SHELL:
      yield from commands_in(block)
    elif block.language == "yaml":
      for document in yaml.safe_load_all(block.text):
        for words in _lists_of_yaml(document):
          yield Command(block.where, words)
  prose = without_blocks(text)
  for match in re.finditer(r"`([^`]+)`", prose):
    words = match[1].split()
    if len(words) > 1 and words[0] in IN_TEXT:
      line = prose.count("\n", 0, match.start()) + 1
      yield Command(f"{page}:{line}", tuple(shlex.split(match[1])))


def _lists_of_yaml(value: typing.Any) -> Iterator[tuple[str, ...]]:
  """Every list under `command`, joined with that under `args`."""
  if isinstance(value, list):
    for item in value:
      yield from _lists_of_yaml(item)
  elif isinstance(value, dict):
    command, arguments = value.get("command"), value.get("args") or []
    if isinstance(command, list):
      yield tuple(map(str, [*command, *arguments]))
    for item in value.values():
      yield from _lists_of_yaml(item)


def commands_in(block: Block) -> Iterator[Command]:
  """The commands of a block; for console the lines behind a `$`."""
  for number, words in _sentences(block):
    where = f"{block.page}:{number}"
    command: list[str] = []
    words = [*words, ";"]
    while words:
      word = words.pop(0)
      if set(word) <= _SEPARATORS:
        if command:
          yield Command(where, tuple(command))
        command = []
      elif set(word) <= _REDIRECTIONS | {"&"}:
        words.pop(0)
        if command and command[-1].isdecimal():
          command.pop()  # As in 2> file.
      elif set(word) <= {"(", ")"}:
        raise ValueError(f"{where}: a subshell; write one command a line.")
      elif command or not _ASSIGNMENT.match(word):
        command.append(word)


def _sentences(block: Block) -> Iterator[tuple[int, list[str]]]:
  """(line, words) of each command line, continuation lines included."""
  text, begin = "", 0
  for number, line in enumerate(block.text.splitlines(), block.line + 1):
    if block.language == "console":
      if text:
        line = line.removeprefix("> ")
      elif not line.startswith("$ "):
        continue  # What it printed.
      else:
        line = line.removeprefix("$ ")
    begin = begin if text else number
    text += line + "\n"
    if line.endswith("\\"):
      text = text.removesuffix("\\\n") + " "
      continue
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
      words = list(lexer)
    except ValueError:
      continue  # A quotation that continues.
    if words:
      yield begin, words
    text = ""
  if text:
    raise ValueError(f"{block.page}:{begin}: a quotation without an end.")


def all_commands() -> list[Command]:
  return [
    command
    for page in PAGES
    for command in commands_of(name_of(page), page.read_text("utf-8"))
  ]


def all_blocks() -> list[Block]:
  return [
    block
    for page in PAGES
    for block in blocks_of(name_of(page), page.read_text("utf-8"))
  ]
