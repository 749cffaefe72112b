"""Energy of this machine, metered by codecarbon if it is installed.

codecarbon reads the counters of NVIDIA's and AMD's GPUs and of Intel's CPUs
where it may, and estimates the rest; it does not know TPUs. It is the extra
`energy`. Without it a release estimates energy from device-hours
(workdir/costs.py).
"""

from collections.abc import Callable
import functools
import logging

import jax

from analogjax.cli import progress

# For emissions, which are not used; codecarbon requires a country.
_COUNTRY = "USA"


@functools.cache
def open_meter() -> Callable[[], float] | None:
  """Returns a function that gives the kWh used since its first call.

  Returns None if codecarbon is not installed, or if this process is one of
  several: it would count one host of many.
  """
  if jax.process_count() > 1:
    return None
  try:
    import codecarbon  # pyright: ignore[reportMissingImports]
  except ImportError:
    return None
  # It logs much to standard error, some of it before it reads `log_level`.
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
    # Its constructor swallows exceptions.
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
