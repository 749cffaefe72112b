"""The section of a config that a plan for machines reads: prices and limits.

Nothing of it changes what a stage computes.
"""

from collections.abc import Mapping
import dataclasses
from typing import Annotated

from analogjax.config.fields import check


@dataclasses.dataclass(frozen=True, kw_only=True)
class PriceConfig:
  """What one device of a kind costs, a section of `plan` named after it."""

  dollars_per_hour: Annotated[float, "of one device; 0: not known"]
  watts: Annotated[
    float, "of one device with its share of the host; 0: as plan assumes"
  ]

  def __post_init__(self):
    for field, value in dataclasses.asdict(self).items():
      check(value >= 0, field, ">= 0", value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanConfig:
  """Prices, and how far from the machine's limits a run is taken to stay."""

  efficiency: Annotated[float, "speed of a run over the roofline's bound"]
  memory_fraction: Annotated[float, "of a device's memory, for one program"]
  pue: Annotated[float, "power of the site over that of its machines"]
  cache_months: Annotated[float, "that the cache is kept"]
  dollars_per_gb_month: Annotated[float, "of a store, 1e9 bytes a month"]
  dollars_per_million_reads: Annotated[float, "of a store, requests"]
  dollars_per_million_writes: Annotated[float, "of a store, requests"]
  hosting_months: Annotated[float, "that the analog can be fetched"]
  hosting_egress_gb: Annotated[float, "that are fetched in all, 1e9 bytes"]
  dollars_per_egress_gb: Annotated[float, "1e9 bytes"]
  chip: Annotated[Mapping[str, PriceConfig], "the sections, by name"]

  def __post_init__(self):
    for field in ("efficiency", "memory_fraction"):
      value = getattr(self, field)
      check(0 < value <= 1, field, "above 0, and at most 1", value)
    check(self.pue >= 1, "pue", ">= 1", self.pue)
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if isinstance(value, float):
        check(value >= 0, field.name, ">= 0", value)
