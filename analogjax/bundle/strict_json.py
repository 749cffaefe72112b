"""Parses JSON from untrusted files.

Python's parser accepts duplicate keys, NaN, nesting as deep as the stack and
numbers of any length. Two programs may then read different values from one
file, or one of them may crash; here such a file is refused.
"""

import json
import math
import re
from typing import Any

MOST_BYTES = 16 << 20
MOST_DEPTH = 64
MOST_VALUES = 2_000_000  # Each takes some hundred bytes once it is parsed.
# Limit for documents validated by a schema, at about 10,000 values per second.
MOST_IN_DOCUMENTS = 200_000
MOST_DIGITS = 400  # Digits of a number; the largest float64 has 309.

# A complete string, or else a structural character. Possessive, so that no text
# causes backtracking; a quote that does not begin a string ends the search.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["\[\]{}]', re.DOTALL)


class Refused(ValueError):
  """An untrusted file is not acceptable; the text says why."""


def parse(data: bytes, *, most_values: int = MOST_VALUES) -> Any:
  """The value of a JSON text (RFC 8259) in UTF-8.

  `most_values` limits the values, counted by their commas and brackets.

  Raises:
    Refused: it is not JSON, or larger or deeper than a bundle needs.
  """
  if len(data) > MOST_BYTES:
    raise Refused(f"{len(data):,} bytes of JSON, expected <= {MOST_BYTES:,}")
  _check_structure(data, most_values)
  try:
    text = data.decode("utf-8")
    value = json.loads(
      text,
      object_pairs_hook=_to_dict,
      parse_int=_to_int,
      parse_float=_to_float,
      parse_constant=_no_constant,
    )
    if b"\\ud" in data.lower():
      # An escape may hold half a character, which no file or screen can show.
      json.dumps(value, ensure_ascii=False).encode()
  except (UnicodeDecodeError, UnicodeEncodeError) as error:
    raise Refused(f"not text in UTF-8: {error.reason}") from None
  except json.JSONDecodeError as error:
    raise Refused(f"not JSON: {error}") from None
  return value


def parse_object(
  data: bytes, *, most_values: int = MOST_VALUES
) -> dict[str, Any]:
  """Parses a text whose value must be an object; see `parse`."""
  value = parse(data, most_values=most_values)
  if not isinstance(value, dict):
    raise Refused(f"expected a JSON object, found {type(value).__name__}")
  return value


def _check_structure(data: bytes, most_values: int) -> None:
  values = data.count(b",") + data.count(b"[") + data.count(b"{")
  if values > most_values:
    raise Refused(f"{values:,} JSON values, expected <= {most_values:,}")
  depth = 0
  for match in _TOKEN.finditer(data):
    sign = match.group()
    if sign in (b"[", b"{"):
      depth += 1
      if depth > MOST_DEPTH:
        raise Refused(f"JSON nested deeper than {MOST_DEPTH}")
    elif sign in (b"]", b"}"):
      depth -= 1
    elif sign == b'"':
      raise Refused("not JSON: a string that does not end")


def _to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  value = dict(pairs)
  if len(value) != len(pairs):
    seen = set()
    twice = next(k for k, _ in pairs if k in seen or seen.add(k))
    raise Refused(f"the key {twice[:80]!r} stands twice in one object")
  return value


def _to_int(text: str) -> int:
  if len(text) > MOST_DIGITS:
    raise Refused(f"a number of {len(text):,} digits")
  return int(text)


def _to_float(text: str) -> float:
  value = float(text) if len(text) <= MOST_DIGITS else math.inf
  if not math.isfinite(value):
    raise Refused(f"a number that no float64 holds: {text[:40]}")
  return value


def _no_constant(name: str) -> None:
  raise Refused(f"{name} is no JSON number")
