"""Energy of this machine, metered by codecarbon where it is installed.

codecarbon reads the counters of NVIDIA's and AMD's GPUs and of Intel's CPUs
where it may, and estimates the rest, all of it where there are none; it knows
no TPU. It is the extra `energy`. Without it a release estimates energy from
device-hours (release/costs.py).
"""

from collections.abc import Callable
import functools
import logging

import jax

from analogjax.cli import progress

# Of emissions, which are not used; codecarbon wants a country all the same.
_COUNTRY = "USA"


@functools.cache
def open_meter() -> Callable[[], float] | None:
  """A function that says how many kWh went since the first call of this one.

  None where codecarbon is not installed, or where this process is one of
  several: it would count one host of many.
  """
  if jax.process_count() > 1:
    return None
  try:
    import codecarbon  # pyright: ignore[reportMissingImports]
  except ImportError:
    return None
  # It says much, on standard error, and something before it reads `log_level`.
  logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
  tracker = codecarbon.OfflineEmissionsTracker(
    country_iso_code=_COUNTRY,
    output_methods=[],
    log_level="critical",
    allow_multiple_runs=True,  # Its lock file would stop a second run.
  )
  try:
    return _Meter(tracker).read
  except AttributeError:
    # Its constructor swallows what goes wrong in it.
    progress.warn("energy: codecarbon does not start; energy is estimated.")
    return None


class _Meter:
  """Sums codecarbon's tasks; it measures as one begins and as it ends."""

  def __init__(self, tracker):
    self._tracker, self._tasks, self._kwh = tracker, 0, 0.0
    self._begin()

  def _begin(self) -> None:
    self._tasks += 1
    self._tracker.start_task(f"{self._tasks}")

  def read(self) -> float:
    found = self._tracker.stop_task()
    if found is not None:
      self._kwh += found.energy_consumed
    self._begin()
    return self._kwh
