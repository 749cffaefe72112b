"""The lines of the paper's Table 1, and those that it lacks.

A plan fills them from shapes (planning/costs.py), a release from the ledger
(costs.py).

Source: "Require Frontier AI Labs To Release Small Analog Models", Table 1.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Protocol

SCRATCH = "Train analog model from scratch"
DISTIL = "Distill frontier model to analog"
TUNING = "Safety fine-tune/RLHF"
TEACHER = "Teacher inference"
CACHE = "Logit cache: storage and requests"
MEASUREMENT = "Measurement"
SAFETY = "Safety evaluation"
EXPORT = "Export"
OTHERS = "Other stages"
HOSTING = "Weight hosting and bandwidth"
TOTAL = "Total analog cost"
COMPARED = "Phases to compare with"

PAPER_S = (SCRATCH, DISTIL, TUNING, HOSTING, TOTAL)


class StorePrices(Protocol):
  """The fields of PlanConfig that a store's cost follows from."""

  @property
  def pue(self) -> float: ...
  @property
  def cache_months(self) -> float: ...
  @property
  def dollars_per_gb_month(self) -> float: ...
  @property
  def dollars_per_million_reads(self) -> float: ...
  @property
  def dollars_per_million_writes(self) -> float: ...
  @property
  def hosting_months(self) -> float: ...
  @property
  def hosting_egress_gb(self) -> float: ...
  @property
  def dollars_per_egress_gb(self) -> float: ...


class Loss(Protocol):
  """What a phase learns from."""

  @property
  def has_teacher(self) -> bool: ...


class Phase(Protocol):
  """The fields of PhaseConfig that say which line a phase belongs to."""

  @property
  def init_from(self) -> str: ...
  @property
  def loss(self) -> Loss: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseLines:
  """Names of phases by the line that they belong to, in running order."""

  scratch: tuple[str, ...]
  distil: tuple[str, ...]
  compared: tuple[str, ...]


def phase_lines(
  names: Sequence[str], phases: Mapping[str, Phase], released: str
) -> PhaseLines:
  """Phases that the released one begins from are the analog's.

  Those with a teacher distil, the others train from scratch. The rest is there
  to compare with.

  Args:
    names: of the phases that run.
    phases: by name.
    released: the phase whose student goes out.
  """
  chain, name = [], released
  while name:
    chain.append(name)
    name = phases[name].init_from
  chain.reverse()
  return PhaseLines(
    scratch=tuple(n for n in chain if not phases[n].loss.has_teacher),
    distil=tuple(n for n in chain if phases[n].loss.has_teacher),
    compared=tuple(n for n in names if n not in chain),
  )


def hosting_dollars(prices: StorePrices, weights_bytes: float) -> float:
  """Room for the weights for `hosting_months`, and what is fetched of them."""
  stored = weights_bytes / 1e9 * prices.dollars_per_gb_month
  egress = prices.hosting_egress_gb * prices.dollars_per_egress_gb
  return stored * prices.hosting_months + egress


def store_dollars(
  prices: StorePrices, *, size: float, reads: float, writes: float
) -> float:
  """Room for a cache of `size` bytes for `cache_months`, and its requests."""
  dollars = size / 1e9 * prices.dollars_per_gb_month * prices.cache_months
  dollars += reads / 1e6 * prices.dollars_per_million_reads
  return dollars + writes / 1e6 * prices.dollars_per_million_writes
