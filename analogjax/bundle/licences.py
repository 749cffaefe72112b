"""Licences under which an analog may be released, with their texts.

licence_texts/ has the text of each permissive licence, so that anyone can check
whether the LICENSE of a bundle is the one that it names. Any other licence is
`other`: the lab provides its text, which nobody here has read, and it is always
flagged as one with limited safeguards.
"""

from collections.abc import Mapping
import dataclasses
import difflib
import hashlib
from pathlib import Path
import types

PERMISSIVE: Mapping[str, str] = types.MappingProxyType(
  {
    "Apache-2.0": "Apache License 2.0",
    "BSD-2-Clause": 'BSD 2-Clause "Simplified" License',
    "BSD-3-Clause": 'BSD 3-Clause "New" or "Revised" License',
    "ISC": "ISC License",
    "MIT": "MIT License",
  }
)
OTHER = "other"
IS_PERMISSIVE, IS_LIMITED = "permissive", "limited safeguards"

_MOST_CHARACTERS = 200_000  # The longest texts in use have 60,000.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Licence:
  """The licence of a bundle."""

  spdx: str  # Or OTHER.
  name: str
  category: str  # IS_PERMISSIVE or IS_LIMITED.
  text: str  # LICENSE.

  @property
  def text_sha256(self) -> str:
    return hashlib.sha256(self.text.encode()).hexdigest()


def find(
  spdx: str, *, holder: str, year: int, name: str = "", text: str = ""
) -> Licence:
  """The licence of an identifier, with its text filled in.

  Args:
    spdx: identifier of the SPDX licence list, or `other`.
    name: the name of a licence that is `other`.
    text: the text of a licence that is `other`.

  Raises:
    ValueError: the identifier is unknown, or `other` lacks a name or a text;
      names the field of the config.
  """
  if spdx == OTHER:
    return _other(name, text)
  if spdx not in PERMISSIVE:
    raise ValueError(f"release.licence: {_unknown(spdx)}")
  line = " ".join(holder.split())
  return Licence(
    spdx=spdx,
    name=PERMISSIVE[spdx],
    category=IS_PERMISSIVE,
    text=_template(spdx).replace("{year} {holder}", f"{year} {line}"),
  )


def has_holder(spdx: str) -> bool:
  """Whether the text of a permissive licence has a copyright line."""
  return "{holder}" in _template(spdx)


def problem(spdx: str, text: str, *, holder: str, year: int) -> str:
  """What is wrong with a bundle's LICENSE; "" if nothing is.

  Spaces and line breaks do not count. All other characters do, also in the
  copyright line, so that no condition can be hidden there.

  Args:
    holder: the provider of the model, by the record.
  """
  if spdx == OTHER:
    return "" if text.strip() else "LICENSE: the text is empty."
  if spdx not in PERMISSIVE:
    return f"LICENSE: {_unknown(spdx)}"
  wanted = find(spdx, holder=holder, year=year).text
  if text.split() == wanted.split():
    return ""
  return (
    f"LICENSE: expected the text of {spdx} ({PERMISSIVE[spdx]}), found another"
    f" one; the first words that differ are {_difference(wanted, text)}."
  )


def _other(name: str, text: str) -> Licence:
  if not name.strip():
    raise ValueError(
      "release.licence_name: expected the licence's name, as release.licence is"
      f" 'other', found {name!r}."
    )
  if not text.strip() or len(text) > _MOST_CHARACTERS:
    raise ValueError(
      "release.licence_file: expected a text of 1 to"
      f" {_MOST_CHARACTERS:,} characters, as release.licence is 'other', found"
      f" {len(text):,}."
    )
  for spdx, known in PERMISSIVE.items():
    if name.strip().lower() in (spdx.lower(), known.lower()):
      raise ValueError(
        f"release.licence_name: {name!r} is a permissive licence; set"
        f" release.licence={spdx}, and its text is the one that is known here."
      )
  return Licence(spdx=OTHER, name=name.strip(), category=IS_LIMITED, text=text)


def _unknown(spdx: str) -> str:
  by_letters = {
    word.lower(): known
    for known, name in PERMISSIVE.items()
    for word in (known, name)
  }
  asked = str(spdx).lower().replace(" ", "-")
  near = [word for word in by_letters if asked and word.startswith(asked)]
  near = near or difflib.get_close_matches(asked, list(by_letters), n=2)
  names = list(dict.fromkeys(by_letters[word] for word in near))
  meant = f" Did you mean {' or '.join(names)}?" if names else ""
  return (
    f"expected one of {', '.join(PERMISSIVE)}, or 'other', found {spdx!r}."
    f"{meant} A licence whose text is not known here goes out as 'other', with"
    " release.licence_name and release.licence_file."
  )


def _template(spdx: str) -> str:
  path = Path(__file__).with_name("licence_texts") / f"{spdx}.txt"
  return path.read_text(encoding="utf-8")


def _difference(wanted: str, found: str) -> str:
  theirs, ours = found.split(), wanted.split()
  same = 0
  for one, other in zip(ours, theirs, strict=False):
    if one != other:
      break
    same += 1

  def shown(words: list[str]) -> str:
    return repr(" ".join(words[same : same + 4])[:80])

  return f"{shown(theirs)} instead of {shown(ours)}"
