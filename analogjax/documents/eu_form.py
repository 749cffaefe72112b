"""The EU's Model Documentation Form, answered from the record.

templates/eu_form.toml has the items and their answers.
"""

from collections.abc import Mapping
import tomllib
from typing import Any

from analogjax.documents import pages

_FORM = "eu_form.toml"
_AUTHORITIES = ("AI Office", "national authorities")
_READERS = {
  "everyone": (*_AUTHORITIES, "downstream"),
  "authorities": _AUTHORITIES,
  "office": _AUTHORITIES[:1],
  "national": _AUTHORITIES[1:],
  "downstream": ("downstream",),
}
_REGULATOR_ALONE = ("compute", "energy")  # Sections.
NOT_RECORDED = "not recorded"


def items(record: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The answers that a reader of this view gets, in the form's order."""
  form = tomllib.loads((pages.TEMPLATES / _FORM).read_text(encoding="utf-8"))
  titles, found = form.pop("section"), []
  for section, asked in form.items():
    if section in _REGULATOR_ALONE and record["view"] != "regulator":
      continue
    for name, item in asked.items():
      answer = pages.filled_in(item.get("answer", ""), record)
      found.append(
        {
          "id": f"{section}.{name}",
          "section": titles[section],
          "item": item["item"],
          "for": list(_READERS[item.get("for", "everyone")]),
          "status": "stated" if answer else NOT_RECORDED,
          "answer": answer or f"{NOT_RECORDED.capitalize()}.",
        }
      )
  return found
