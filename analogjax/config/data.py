"""The section `data` of a config: the frontier run's rows."""

import dataclasses
import re
from typing import Annotated

from analogjax.config.fields import (
  PUBLIC,
  Bound,
  FreeForm,
  Private,
  Section,
)

_MIXTURE = Private("sources, mixture and places of the data")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
  """The frontier run's pipeline of packed rows."""

  L: Annotated[
    int,
    "row length, tokens",
    Bound(lambda n: n >= 2, "at least 2 tokens"),
    PUBLIC,
  ]
  pipeline: Annotated[
    str,
    "package.module:function that returns the dataset",
    Bound(
      lambda spec: re.fullmatch(r"\w+(\.\w+)*:\w+", spec) is not None,
      "'package.module:function'",
    ),
    Private("the name of the lab's code"),
  ]
  arguments: Annotated[
    FreeForm, "keyword arguments of the function", _MIXTURE
  ] = dataclasses.field(default_factory=dict)
  held_out_arguments: Annotated[
    FreeForm, "replace some of these for the held-out rows", _MIXTURE
  ] = dataclasses.field(default_factory=dict)
