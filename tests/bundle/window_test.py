"""Tests for analogjax/bundle/window.py."""

import pytest

from analogjax.bundle import window

# Deployed, first day, last day; by a calendar, not by the code.
WINDOWS = (
  ("2026-08-15", "2026-09-15", "2026-11-15"),
  ("2026-11-30", "2026-12-30", "2027-02-28"),
  ("2027-11-30", "2027-12-30", "2028-02-29"),  # 2028 is a leap year.
  ("2026-01-31", "2026-02-28", "2026-04-30"),
  ("2028-01-31", "2028-02-29", "2028-04-30"),
  ("2028-02-29", "2028-03-29", "2028-05-29"),
  ("2099-11-30", "2099-12-30", "2100-02-28"),  # 2100 is not a leap year.
  ("1999-11-30", "1999-12-30", "2000-02-29"),  # 2000 was one.
  ("2026-12-31", "2027-01-31", "2027-03-31"),
  ("2026-10-31", "2026-11-30", "2027-01-31"),
  ("2026-03-31", "2026-04-30", "2026-06-30"),
)
DAY_BEFORE = {
  "2026-09-15": "2026-09-14",
  "2026-12-30": "2026-12-29",
  "2027-12-30": "2027-12-29",
  "2026-02-28": "2026-02-27",
  "2028-02-29": "2028-02-28",
  "2028-03-29": "2028-03-28",
  "2099-12-30": "2099-12-29",
  "1999-12-30": "1999-12-29",
  "2027-01-31": "2027-01-30",
  "2026-11-30": "2026-11-29",
  "2026-04-30": "2026-04-29",
}
DAY_AFTER = {
  "2026-11-15": "2026-11-16",
  "2027-02-28": "2027-03-01",
  "2028-02-29": "2028-03-01",
  "2026-04-30": "2026-05-01",
  "2028-04-30": "2028-05-01",
  "2028-05-29": "2028-05-30",
  "2100-02-28": "2100-03-01",
  "2000-02-29": "2000-03-01",
  "2027-03-31": "2027-04-01",
  "2027-01-31": "2027-02-01",
  "2026-06-30": "2026-07-01",
}


@pytest.mark.parametrize(("deployed", "first", "last"), WINDOWS)
def test_both_ends_are_within_and_no_day_beyond(deployed, first, last):
  where = {
    day: window.verdict(deployed, day).where
    for day in (deployed, DAY_BEFORE[first], first, last, DAY_AFTER[last])
  }
  assert list(where.values()) == ["early", "early", "within", "within", "late"]
  found = window.verdict(deployed, first)
  assert (str(found.first), str(found.last)) == (first, last)


def test_a_release_before_the_deployment_is_early():
  assert window.verdict("2026-06-01", "2025-06-01").where == "early"


@pytest.mark.parametrize(
  "text", ("", "2026-13-01", "2026-02-29", "20261126", "2026-1-2", None, 3)
)
def test_what_is_no_day_is_refused_by_field(text):
  with pytest.raises(ValueError, match="release.date: expected a day"):
    window.verdict("2026-06-01", text)
  with pytest.raises(ValueError, match="release.frontier.deployed_on: expe"):
    window.verdict(text, "2026-06-01")


def test_the_last_year_of_the_calendar_has_no_window():
  with pytest.raises(ValueError, match="deployed_on"):
    window.verdict("9999-11-30", "9999-12-01")
