"""The section of a config about rows."""

import dataclasses
import re
from typing import Annotated

from analogjax.config.fields import (
  FreeForm,
  check,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
  """The frontier run's pipeline of packed rows."""

  L: Annotated[int, "row length, tokens"]
  pipeline: Annotated[str, "package.module:function that returns the dataset"]
  arguments: Annotated[FreeForm, "keyword arguments of the function"]
  held_out_arguments: Annotated[FreeForm, "laid over arguments: held-out rows"]

  def __post_init__(self):
    check(self.L >= 2, "L", "at least 2 tokens", self.L)
    ok = re.fullmatch(r"\w+(\.\w+)*:\w+", self.pipeline) is not None
    check(ok, "pipeline", "'package.module:function'", self.pipeline)
