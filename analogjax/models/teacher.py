"""The teacher of a run, as the stages pass it on."""

import dataclasses
from pathlib import Path

from analogjax.models import decoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
  """An opened, checked teacher; its weights are read on demand."""

  folder: Path
  cfg: decoder.DecoderConfig
  digest: str
  tokenizer_digest: str
