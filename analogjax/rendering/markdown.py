"""Values in a page of Markdown, and the layout of the page.

Texts come from configs and files and may hold any markup; readers must see them
literally. `text` and `code` escape a value, and mark its beginning, so that
`page` does not take a value that begins with a dash for a list. The Markdown is
CommonMark with the tables of GitHub's.
"""

from collections.abc import Iterable, Sequence
import re
import textwrap

from analogjax.rendering import html

WIDTH = 80
# Characters with a meaning inside a line; a backslash removes it.
_INLINE = re.compile(r"([\\`*_\[\]|~$])")
# Starts of a block at the start of a line, if a space or nothing follows.
_LEADING = re.compile(r"([-+=:]+|\d{1,9}[.)])(?= |$)")

# Signs for `page`; `html.printable` leaves no control character in a value.
_BEGIN = "\1"  # A value begins here.
_SPACE = "\2"  # A space at which no line may be broken.
_NEWLINE = "\3"  # The end of a line of code.
_BAR = "\4"  # A bar in code, which would end the cell of a table.


def text(words: str) -> str:
  """Escapes words for use within a line; newlines become spaces.

  Each word is escaped separately and stays one word, including addresses, which
  some viewers turn into links.
  """
  return _BEGIN + " ".join(map(_word, html.printable(words).split()))


def _word(word: str) -> str:
  shown = word.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
  shown = _INLINE.sub(r"\\\1", shown)
  # Signs of a heading, which also count at its end.
  return f"\\{shown}" if set(shown) == {"#"} else shown


def sentence(words: str) -> str:
  """Words with a full stop added if they have none; not escaped."""
  shown = " ".join(html.printable(words).split())
  return shown if shown.endswith((".", "!", "?")) else f"{shown}."


def code(words: str) -> str:
  """A name or a digest, in the type of code."""
  shown = " ".join(html.printable(words).split())
  mark = "`" * (_longest_run([shown]) + 1)
  # A space separates a name's own backticks from the delimiters.
  space = " " if "`" in shown else ""
  whole = f"{mark}{space}{shown}{space}{mark}" if shown else ""
  return _BEGIN + whole.replace(" ", _SPACE).replace("|", _BAR)


def fence(lines: Iterable[str], language: str) -> str:
  """A block of code, whose lines may hold anything but newlines."""
  body = [html.printable(line) for line in lines]
  mark = "`" * max(3, _longest_run(body) + 1)
  return _NEWLINE.join([f"{mark}{language}", *body, mark])


def table(rows: Iterable[Sequence[str]], head: Sequence[str]) -> str:
  """A table whose columns are only known at run time."""
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(f"| {' | '.join(map(text, line))} |" for line in lines)


def _longest_run(lines: Iterable[str]) -> int:
  """The length of the longest run of backticks."""
  return max((len(m) for s in lines for m in re.findall("`+", s)), default=0)


def page(source: str) -> str:
  """Lays a page out.

  Args:
    source: blocks with empty lines between them. Headings, tables and code are
      kept; the words of a paragraph and of each item of a list may be spread
      over lines in any way, and are filled anew.

  Returns:
    The page: lines of at most 80 characters, unless a word is longer, and one
      empty line between blocks.
  """
  blocks = (b.strip() for b in re.split(r"\n\s*\n", source))
  whole = "\n\n".join(filter(None, map(_laid_out, blocks)))
  for sign, meaning in ((_SPACE, " "), (_NEWLINE, "\n"), (_BAR, "|")):
    whole = whole.replace(sign, meaning)
  return whole + "\n"


def _laid_out(block: str) -> str:
  lines = [line.strip() for line in block.splitlines()]
  if block.startswith("```"):
    return block.replace(_BEGIN, "")
  if block.startswith("|"):
    return "\n".join(map(_row, lines))
  if block.startswith("#"):
    return " ".join(block.replace(_BEGIN, "").split())
  if not block.startswith("- "):
    return _filled(block)
  items: list[str] = []
  for line in lines:
    if line.startswith("- "):
      items.append(line[2:])
    else:
      items[-1] += f" {line}"
  return "\n".join(_filled(item, "- ", "  ") for item in items)


def _row(line: str) -> str:
  """A row of a table; a cell without words is not left empty."""
  shown = line.replace(_BEGIN, "").replace(_BAR, r"\|")
  return re.sub(r"(?<=\|)  (?=\|)", "   ", shown)


def _filled(words: str, first: str = "", rest: str = "") -> str:
  """Filled lines, none of which begins a block by accident."""
  lines = textwrap.wrap(
    " ".join(words.replace(_BEGIN, "").split()),
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
