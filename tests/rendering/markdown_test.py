"""Tests for analogjax/rendering/markdown.py: texts stay texts."""

import pathlib

import hypothesis
from hypothesis import strategies as st
import markdown_it
import pytest

from analogjax.rendering import html, markdown, templates

NASTY = (
  *("# a", "- x", "1. y", "2) y", "a|b", "a\\|b", "\\", "`x`", "``a`", "```"),
  *("---", "===", "a\n\n# b", "[x](javascript:1)", "![x](y)", "*a*", "__b__"),
  *("~~~", "~~s~~", "&lt;", "&#35;", "+", "=", ":--", "> q", "$x$", "#"),
  *("<script>alert(1)</script>", "<!-- x -->", "<a href=x>", "a\\", "- - -"),
  *("http://a.b/c_d", "x\u202ey", "\x00\x07", "| - | - |", "[a]: b", "***"),
  *("    code", "\ttab", "a  \nb", "%%%", "{{x}}", "----- -", "a #", "# a #"),
)
WORDS = st.one_of(
  st.sampled_from(NASTY),
  st.text(st.characters(exclude_categories=["Cs"]), max_size=60),
  st.lists(st.sampled_from([*NASTY, "word"]), max_size=20).map(" ".join),
)


def parsed(page):
  """(kind of block, its text) of a page; the text as a reader sees it."""
  parser = markdown_it.MarkdownIt("commonmark").enable(
    ["table", "strikethrough"]
  )
  found = []
  for token in parser.parse(page):
    children = token.children or ()
    kinds = {c.type for c in children} - {"text", "softbreak", "code_inline"}
    seen = "".join(
      " " if c.type == "softbreak" else c.content for c in children
    )
    assert not kinds, (kinds, page)
    found.append((token.type, seen if children else ""))
  return found


def shown(words):
  return " ".join(html.printable(words).split())


@pytest.mark.parametrize("words", NASTY)
def test_nasty_texts_stay_texts(words):
  check(words)


@hypothesis.given(WORDS)
@hypothesis.settings(max_examples=80, deadline=None)
def test_any_text_stays_a_text(words):
  check(words)


PAGE = """
# {{ x }}

Then {{ x }} {{ x | code }}

{{ x }}

- {{ x }}
- and
  {{ x }}

| a | b |
| --- | --- |
| {{ x }} | 1 |
| 2 | {{ x }} |

{{ [[x, "1"], ["2", x]] | table(["a", "b"]) }}
"""


def rendered(source, **values):
  """A page from a template."""
  environment = templates.markdown_pages(pathlib.Path())
  return markdown.page(environment.from_string(source).render(values))


def check(words):
  if not shown(words):
    return
  page, benign = rendered(PAGE, x=words), rendered(PAGE, x="x")
  found, expected = parsed(page), parsed(benign)
  assert [kind for kind, _ in found] == [kind for kind, _ in expected]
  replaced = [
    seen.replace("x", shown(words)) if kind == "inline" else seen
    for kind, seen in expected
  ]
  assert [seen for _, seen in found] == replaced
  # A word may be longer than a line, and stays whole.
  escaped = f"{markdown.text(words)} {markdown.code(words)}"
  longest = max(map(len, escaped.split()))
  for line in page.splitlines():
    if not line.startswith(("|", "#")) and "`" not in line:
      assert len(line) <= max(81, longest + 3), line


def test_code_keeps_a_bar_in_a_table():
  page = rendered("| a |\n| --- |\n| {{ x | code }} |", x="a|b")
  assert ("inline", "a|b") in parsed(page)


@hypothesis.given(st.lists(WORDS, min_size=1, max_size=4))
@hypothesis.example(["a", "```", "````", "b"])
@hypothesis.settings(max_examples=50, deadline=None)
def test_a_fence_holds_any_lines(lines):
  page = rendered('{{ x | fence("sh") }}\n\nafter', x=lines)
  kinds = [kind for kind, _ in parsed(page)]
  assert kinds == ["fence", "paragraph_open", "inline", "paragraph_close"]
