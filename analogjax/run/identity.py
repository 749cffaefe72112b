"""The student of a config, and the values that its checkpoints depend on."""

from collections.abc import Mapping
import dataclasses
import importlib.metadata
from pathlib import Path
from typing import Any

import analogjax
from analogjax.config import loading, model
from analogjax.config.schema import Sections
from analogjax.models import decoder
from analogjax.workdir import store

_SOFTWARE = ("jax", "flax", "grain", "tensorstore", "tokenizers")


def student_config(config: Sections) -> decoder.DecoderConfig:
  """Builds the decoder config of the student."""
  fields = {f.name for f in dataclasses.fields(decoder.DecoderConfig)}
  values = dataclasses.asdict(config.student)
  if values["rope_scaling"] is not None:
    values["rope_scaling"] = model.RopeScaling(**values["rope_scaling"])
  return decoder.DecoderConfig(
    **{name: value for name, value in values.items() if name in fields}
  )


def student_identity(config: Sections) -> dict[str, Any]:
  """Fields of the student that its parameters depend on, as JSON values."""
  student = dataclasses.asdict(config.student)
  # These change no number, except by the rounding of another kernel.
  for free in ("size_window", "remat", "attention"):
    del student[free]
  return student


def check_identity(
  place: Path | store.Place, found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
  """Refuses checkpoints that another config made; names the fields.

  Args:
    place: the checkpoints, for the message.
    found: fingerprints of a checkpoint: sections of plain values.

  Raises:
    ValueError: a value differs.
  """
  before = loading.leaves({name: found.get(name) for name in wanted})
  now = loading.leaves(wanted)
  differs = [
    f"{field} is {before.get(field)!r} there and {now.get(field)!r} now"
    for field in {**before, **now}
    if before.get(field) != now.get(field)
  ]
  if differs:
    raise ValueError(
      f"{place}: these checkpoints were made with another config:"
      f" {'; '.join(differs)}. Set it back, use another --workdir, or move that"
      " folder away to train anew."
    )


def software_versions() -> dict[str, str]:
  """Versions of analogjax and of the packages that numbers depend on."""
  others = {name: importlib.metadata.version(name) for name in _SOFTWARE}
  return {"analogjax": analogjax.__version__, **others}
