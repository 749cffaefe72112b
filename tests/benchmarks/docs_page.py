"""Writes a benchmark's output into a page, between its two markers."""

from pathlib import Path


def put(page: Path, name: str, text: str) -> None:
  """Replaces all between `<!-- name: begin -->` and `<!-- name: end -->`.

  Raises:
    ValueError: the page has no such markers.
  """
  begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
  old = page.read_text(encoding="utf-8")
  if old.count(begin) != 1 or old.count(end) != 1:
    raise ValueError(f"{page}: expected {begin} and {end}, once each.")
  head, rest = old.split(begin)
  _, tail = rest.split(end)
  new = f"{head}{begin}\n\n{text.strip()}\n\n{end}{tail}"
  page.write_text(new, encoding="utf-8")
