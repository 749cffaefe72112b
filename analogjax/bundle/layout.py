"""Paths of a bundle's files, and a check that refuses what is wrong."""

from analogjax.bundle.strict_json import Refused

RECORD = "record.json"
FIDELITY = "fidelity.json"
SAFETY = "safety.json"
ROWS = "rows/held_out.safetensors"
CONFIG = "model/config.json"
INDEX = "model/model.safetensors.index.json"  # Grows with the model's depth.


def expect(ok: bool, text: str) -> None:
  """Raises Refused unless `ok`."""
  if not ok:
    raise Refused(text)
