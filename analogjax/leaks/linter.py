"""Reads a folder and reports every private fact that it reveals."""

import bisect
from collections import Counter
from collections.abc import Iterator
import functools
import itertools
from pathlib import Path
import re

from analogjax.leaks import (
  arithmetic,
  containers,
  names,
  numerals,
  quantities,
  reading,
  sizes,
)
from analogjax.leaks.secrets import Leak, Secrets

_MOST_OF_A_KIND = 20  # Listed findings of one rule in one file.
_MOST_OF_A_PAGE = 2000  # Findings of one kind of rule in one text.
_MOST_DEPTH = 3  # Encodings within encodings.
# Characters of all pages without vocabularies, and quantities in them. A bundle
# has a few million and a few hundred; many more would take hours.
_MOST_TEXT, _MOST_FIGURES = 16 << 20, 5000
_LEAST_OF_BYTES = 8  # Characters in a row that are text in a binary file.


def lint(folder: Path, secrets: Secrets) -> list[Leak]:
  """Finds everything private that a folder reveals or implies.

  `folder` is a bundle, or any files that are to be published.

  Returns:
    Findings in the order of the files. They quote what they found, so they are
    as private as the facts.

  Raises:
    ValueError: the folder does not exist.
  """
  linter = _Linter(secrets)
  found = dict.fromkeys(linter.all_of(folder))
  seen = Counter()
  listed = []
  for leak in found:
    kind = leak.rule, leak.file
    seen[kind] += 1
    if seen[kind] <= _MOST_OF_A_KIND:
      listed.append(leak)
  return listed


class _Linter:
  """Applies all rules to all pages, and counts how much text it has read."""

  def __init__(self, secrets: Secrets):
    self._secrets = secrets
    self._names = names.NameRules(secrets)
    self._sizes = sizes.SizeRules(secrets)
    self._shapes = sizes.ShapeRules(secrets)
    self._days = names.DayRules(secrets)
    self._stated: list[quantities.Statement] = []
    self._left = _MOST_TEXT

  def all_of(self, folder: Path) -> Iterator[Leak]:
    for page in reading.pages(folder):
      yield from self._page(page)
    stated = list(dict.fromkeys(self._stated))
    if len(stated) > _MOST_FIGURES:
      file = stated[_MOST_FIGURES].scope[0]
      what = f"{len(stated):,} figures; {_MOST_FIGURES:,} are tried"
      yield Leak("unread", file, "", what)
    yield from arithmetic.find(stated[:_MOST_FIGURES], self._secrets)

  def _page(self, page: reading.Page, depth: int = 0) -> Iterator[Leak]:
    yield from page.found
    if page.header is not None:
      yield from self._shapes.find(page.file, page.header)
    for entry in page.vocabulary:
      if name := self._names.whole(entry):
        what = f"the entry {entry!r} is {name!r}"
        yield Leak("name", page.file, "vocabulary", what)
    if not page.text:
      return
    self._left -= len(page.text)
    if self._left < 0:
      what = f"more than {_MOST_TEXT:,} characters of text in the folder"
      yield Leak("unread", page.file, page.inside, what)
      return
    text = reading.plain(page.text)
    decoded = reading.decoded(text)
    views = [text] if decoded == text else [text, decoded]
    for view in views:
      yield from self._leaks(page, view, self._names.find(view))
      if page.binary:  # Short runs of letters occur by chance.
        runs = view.split("\n")
        view = "\n".join(x for x in runs if len(x) >= _LEAST_OF_BYTES)
      yield from self._leaks(page, view, self._names.find_places(view))
      counted = numerals.digits(reading.without_geometry(view))
      found = itertools.chain(
        self._sizes.find(counted), self._days.find(counted)
      )
      yield from self._leaks(page, counted, found)
    readable = numerals.digits(reading.without_geometry(views[-1]))
    self._stated += quantities.statements(page, readable)
    if depth < _MOST_DEPTH:
      yield from self._encoded(page, text, depth)

  def _leaks(self, page, text: str, found) -> Iterator[Leak]:
    line_of = _lines(text)
    for rule, offset, what in itertools.islice(found, _MOST_OF_A_PAGE):
      yield Leak(rule, page.file, page.where(line_of(offset)), what)

  def _encoded(self, page, text: str, depth: int) -> Iterator[Leak]:
    line_of = _lines(text)
    for offset, encoding, data in containers.encoded(text):
      where = f"{page.where(line_of(offset))}, in {encoding}"
      if size := self._is_size(data):
        what = f"the bytes are the frontier's number of parameters, {size:,}"
        yield Leak("parameters", page.file, where, what)
      inner = containers.readable(data)
      if inner is not None:
        inside = reading.Page(page.file, inner, (where,))
        yield from self._page(inside, depth + 1)
      elif containers.pieces(data) is not None:
        for part in reading.of_bytes(page.file, data, where, 1):
          yield from self._page(part, depth + 1)

  def _is_size(self, data: bytes) -> int:
    if not 3 <= len(data) <= 16:
      return 0
    numbers = int.from_bytes(data, "little"), int.from_bytes(data, "big")
    return next((size for size in self._secrets.sizes if size in numbers), 0)


def _lines(text: str):
  """Returns a function from an offset to its line number, from 0."""
  ends = [match.start() for match in re.finditer("\n", text)]

  @functools.cache
  def line_of(offset: int) -> int:
    return bisect.bisect_left(ends, offset)

  return line_of
