"""Salted commitments: facts that are private now and can be checked later.

The bundle holds a hash of each fact; the regulator holds its opening, which is
the value and a salt. Both together show that the value was fixed when the
bundle was signed. The bundle alone reveals nothing: the salt is 32 random
bytes, so trying every size or date does not help.

The hash is SHA-256 over `analogjax.commitment.v1`, a zero byte, the name of the
field, a zero byte, the 32 bytes of salt and the value in UTF-8. The salt has
one length, so no two triples give the same bytes. The scheme hides and binds as
far as SHA-256 is a random function that is hard to collide (Halevi and Micali,
CRYPTO 1996, prove this of a close relative).
"""

from collections.abc import Mapping
import datetime
import hashlib
import hmac
import re
import secrets
from typing import Any

_DOMAIN = b"analogjax.commitment.v1\0"
_SALT_BYTES = 32

Opening = dict[str, str]  # value, and salt in hexadecimal.


def make(
  values: Mapping[str, str],
  before: Mapping[str, Opening] = {},  # noqa: B006 (never written to)
) -> tuple[dict[str, str], dict[str, Opening]]:
  """Commits to texts, with a fresh salt for each.

  Args:
    values: name of a field -> its value, in the form that `canonical` gives.
    before: earlier openings. An unchanged value keeps its salt; otherwise each
      call would give another commitment.

  Returns:
    The public commitments (name -> 64 hexadecimal digits) and the private
    openings (name -> value and salt).
  """
  commitments, openings = {}, {}
  for name, value in values.items():
    assert name and "\0" not in name, name
    known = before.get(name)
    if known is not None and known["value"] == value:
      salt = bytes.fromhex(known["salt"])
    else:
      salt = secrets.token_bytes(_SALT_BYTES)
    commitments[name] = _digest(name, salt, value)
    openings[name] = {"value": value, "salt": salt.hex()}
  return commitments, openings


def canonical(value: int | datetime.date | str) -> str:
  """The canonical text of a value to commit to.

  Two texts of one number would give two commitments: integers are written in
  decimal digits, days as YYYY-MM-DD, and texts as they are.
  """
  assert not isinstance(value, bool | float | datetime.datetime), value
  if isinstance(value, datetime.date):
    return value.isoformat()
  return str(value)


def problems(commitments: Any, openings: Any) -> list[str]:
  """Finds what does not fit between commitments and their openings.

  Both are untrusted and may be anything that JSON can hold.

  Returns:
    One sentence for each field that is missing on a side, malformed, or whose
    opening belongs to another value, salt or name. They never hold a value.
  """
  for what, found in (("commitments", commitments), ("openings", openings)):
    if not isinstance(found, Mapping):
      return [
        f"{what}: expected an object of fields, found {type(found).__name__}."
      ]
  wrong = []
  for name in sorted({*commitments, *openings}):
    if name not in openings:
      wrong.append(f"{name}: there is a commitment, but no opening of it.")
    elif name not in commitments:
      wrong.append(f"{name}: there is an opening, but no commitment to it.")
    else:
      wrong.append(_problem(name, commitments[name], openings[name]))
  return [text for text in wrong if text]


def _problem(name: str, commitment: Any, opening: Any) -> str:
  if not _is_hex(commitment, hashlib.sha256().digest_size):
    return f"{name}: expected a commitment of 64 lower-case hex digits."
  if not isinstance(opening, Mapping) or set(opening) != {"value", "salt"}:
    return f"{name}: expected an opening of value and salt."
  if not isinstance(opening["value"], str):
    return f"{name}: expected a text as the opening's value."
  if not _is_hex(opening["salt"], _SALT_BYTES):
    return f"{name}: expected a salt of 64 lower-case hex digits."
  try:
    salt = bytes.fromhex(opening["salt"])
    found = _digest(name, salt, opening["value"])
  except UnicodeEncodeError:  # A lone surrogate, which JSON can hold.
    return f"{name}: the name or the value is not Unicode text."
  if not hmac.compare_digest(found, commitment):
    return (
      f"{name}: the opening does not fit the commitment; another value, salt or"
      " name was committed to."
    )
  return ""


def _digest(name: str, salt: bytes, value: str) -> str:
  parts = (_DOMAIN, name.encode(), b"\0", salt, value.encode())
  return hashlib.sha256(b"".join(parts)).hexdigest()


def _is_hex(text: Any, num_bytes: int) -> bool:
  pattern = f"[0-9a-f]{{{2 * num_bytes}}}"
  return isinstance(text, str) and re.fullmatch(pattern, text) is not None
