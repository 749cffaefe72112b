"""Pages of Markdown, whatever the texts on them hold.

Texts come from configs and files: they may hold markup of any kind, and must
come out as the letters that they are. A page is a list of blocks; only
functions of this module make one, so no text can begin a heading, a table or a
tag. The Markdown is CommonMark with the tables of GitHub's.
"""

from collections.abc import Iterable, Sequence
import re
import textwrap

from analogjax.rendering import html

WIDTH = 80
# What has a meaning inside a line, and is shown by itself behind a backslash.
_INLINE = re.compile(r"([\\`*_\[\]|~$])")
# What has one at the beginning of a line, if a space or nothing follows.
_LEADING = re.compile(r"([-+=:]+|\d{1,9}[.)])(?= |$)")

# Stands for a space where a line must not be broken; `printable` leaves none.
_KEPT = "\0"


def text(words: str) -> str:
  """Words as they are, within a line; newlines are spaces.

  A word stays one word, also of addresses, which some viewers make links of.
  """
  return " ".join(map(_word, html.printable(words).split()))


def _word(word: str) -> str:
  shown = word.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
  shown = _INLINE.sub(r"\\\1", shown)
  # Signs of a heading, which count at its end, too.
  return f"\\{shown}" if set(shown) == {"#"} else shown


def sentence(words: str) -> str:
  """Words as they are, with a full stop if they end without one."""
  shown = text(words)
  return shown if shown.endswith((".", "!", "?")) else f"{shown}."


def code(words: str) -> str:
  """A name or a digest, in the type of code."""
  shown = " ".join(html.printable(words).split())
  longest = max(map(len, re.findall("`+", shown)), default=0)
  mark = "`" * (longest + 1)
  # A space keeps a name's own backticks from the marks.
  space = " " if "`" in shown else ""
  whole = f"{mark}{space}{shown}{space}{mark}" if shown else ""
  return whole.replace(" ", _KEPT)  # No line begins in the middle of it.


def heading(level: int, words: str) -> str:
  """A heading of words that are escaped already."""
  return f"{'#' * level} {words}"


def paragraph(*sentences: str) -> str:
  """Sentences that are escaped already, in lines of at most 80 letters."""
  return _wrapped(" ".join(filter(None, sentences)))


def _wrapped(words: str, first: str = "", rest: str = "") -> str:
  """Lines, none of which begins a block by what it happens to begin with."""
  lines = textwrap.wrap(
    words,
    WIDTH - len(first),
    break_long_words=False,
    break_on_hyphens=False,
  )
  ends = (_LEADING.match(line) for line in lines)
  safe = (
    f"{line[: m.end() - 1]}\\{line[m.end() - 1 :]}" if m else line
    for line, m in zip(lines, ends, strict=True)
  )
  return first + f"\n{rest}".join(safe)


def bullets(items: Iterable[str]) -> str:
  return "\n".join(_wrapped(item, "- ", "  ") for item in items)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """A table of cells that are escaped already."""
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(words: str) -> str:
  """A cell; only code can still hold a bar that would end it."""
  return re.sub(r"(?<!\\)\|", r"\\|", words) if words else " "


def fence(language: str, lines: Iterable[str]) -> str:
  """Lines of code, which may hold anything but newlines."""
  body = [html.printable(line) for line in lines]
  longest = max((len(m) for s in body for m in re.findall("`+", s)), default=0)
  mark = "`" * max(3, longest + 1)
  return "\n".join([f"{mark}{language}", *body, mark])


def page(blocks: Iterable[str]) -> str:
  """The text of a page."""
  return "\n\n".join(filter(None, blocks)).replace(_KEPT, " ") + "\n"
