"""The section `plan` of a config: prices, and limits of the machines.

It changes nothing that a stage computes.
"""

from collections.abc import Mapping
import dataclasses
from typing import Annotated

from analogjax.config.fields import (
  ABOVE_0_TO_1,
  NOT_NEGATIVE,
  Section,
  at_least,
)

_WHY = "prices and machines, from which the frontier's size follows"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PriceConfig(Section, private=_WHY):
  """Price and power of one device of a kind, a section of `plan`."""

  dollars_per_hour: Annotated[
    float, "price of one device; 0: not known", NOT_NEGATIVE
  ] = 0.0
  watts: Annotated[
    float,
    "power of one device with its share of the host; 0: as plan assumes",
    NOT_NEGATIVE,
  ] = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanConfig(Section, private=_WHY):
  """Prices, and a run's margins to the machine's limits."""

  prices: Annotated[
    str,
    "table of prices for the fields that the file does not set: one of"
    " analogjax by its name, a TOML file, or '' for none",
  ] = "2026_11"
  efficiency: Annotated[
    float, "speed of a run over the roofline's bound; assumed", ABOVE_0_TO_1
  ] = 0.6
  memory_fraction: Annotated[
    float, "part of a device's memory that one program may take", ABOVE_0_TO_1
  ] = 0.92
  pue: Annotated[
    float, "power of the site over that of its machines; assumed", at_least(1)
  ] = 1.2
  cache_months: Annotated[
    float, "months of keeping the cache", NOT_NEGATIVE
  ] = 2.0
  dollars_per_gb_month: Annotated[
    float, "store: 1e9 bytes for a month", NOT_NEGATIVE
  ] = 0.0
  dollars_per_million_reads: Annotated[
    float, "store: a million read requests", NOT_NEGATIVE
  ] = 0.0
  dollars_per_million_writes: Annotated[
    float, "store: a million write requests", NOT_NEGATIVE
  ] = 0.0
  hosting_months: Annotated[
    float, "months of hosting the analog; the paper's three years", NOT_NEGATIVE
  ] = 36.0
  hosting_egress_gb: Annotated[
    float, "1e9 bytes fetched in all; the paper's 20 TB", NOT_NEGATIVE
  ] = 20_480.0
  dollars_per_egress_gb: Annotated[
    float, "1e9 bytes that are fetched", NOT_NEGATIVE
  ] = 0.0
  chip: Annotated[Mapping[str, PriceConfig], "the sections, by name"]
