"""The release window of an analog: 1 to 3 months after the frontier model.

Months are calendar months: the day of the month stays, and a month without such
a day uses its last. Three months after 30 November is 28 February, or the 29th.
"""

import calendar
import dataclasses
import datetime

from analogjax.config.window import MONTHS

EARLY, WITHIN, LATE = "early", "within", "late"


def add_months(day: datetime.date, months: int) -> datetime.date:
  """The same day of the month after some months, or that month's last day."""
  index = 12 * day.year + day.month - 1 + months
  year, month = index // 12, index % 12 + 1
  last = calendar.monthrange(year, month)[1]
  return datetime.date(year, month, min(day.day, last))


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowVerdict:
  """A release day compared with the window of its frontier model."""

  deployed_on: datetime.date
  released_on: datetime.date

  @property
  def first(self) -> datetime.date:
    return add_months(self.deployed_on, MONTHS[0])

  @property
  def last(self) -> datetime.date:
    return add_months(self.deployed_on, MONTHS[1])

  @property
  def where(self) -> str:
    """EARLY, WITHIN or LATE; both ends belong to the window."""
    if self.released_on < self.first:
      return EARLY
    return LATE if self.released_on > self.last else WITHIN


def verdict(deployed_on: str, released_on: str) -> WindowVerdict:
  """Compares a release day with its window.

  Both days are YYYY-MM-DD.

  Raises:
    ValueError: a text is not a day, or is too late for a window; names the
      field of the config.

  Source: "Require Frontier AI Labs To Release Small Analog Models": "released
  within 1-3 months following the deployment of their corresponding frontier
  model".
  """
  days = {}
  for field, text in (
    ("release.frontier.deployed_on", deployed_on),
    ("release.date", released_on),
  ):
    try:
      # Only this format: fromisoformat also takes 20261126 and 2026-W48-4.
      days[field] = datetime.datetime.strptime(text, "%Y-%m-%d").date()
    except (TypeError, ValueError):
      raise ValueError(
        f"{field}: expected a day, YYYY-MM-DD, found {text!r}."
      ) from None
    if days[field].isoformat() != text or days[field].year > 9998:
      raise ValueError(f"{field}: expected a day, YYYY-MM-DD, found {text!r}.")
  deployed, released = days.values()
  return WindowVerdict(deployed_on=deployed, released_on=released)
