"""What a training run notices about itself: bad steps, spikes, slow hosts."""

from collections import deque
from collections.abc import Sequence
import math
import statistics

from analogjax.config import train

_WINDOW = 128  # Steps that a loss is compared with.
_LEAST = 32  # Of these have to be there.
_SIGMA = 1.4826  # Standard deviations of a normal distribution in one MAD.


class LossWatch:
  """Follows the loss of each step; counts steps that were skipped."""

  def __init__(self, cfg: train.WatchConfig):
    self._cfg = cfg
    self._recent: deque[float] = deque(maxlen=_WINDOW)
    self._in_spike = False
    self.skipped = self.skipped_in_a_row = self.spikes = 0

  @property
  def gives_up(self) -> bool:
    """Whether too many steps in a row were skipped."""
    return self.skipped_in_a_row >= self._cfg.skipped_steps

  def see(self, loss: float, skipped: bool) -> str | None:
    """Takes a step's loss in nats; returns a warning, if there is one.

    A spike is warned of once, however many steps it lasts.
    """
    if skipped:
      self.skipped += 1
      self.skipped_in_a_row += 1
      return f"the loss ({loss}) or its gradient is not finite; skipped"
    self.skipped_in_a_row = 0
    center, sigma = self._expected()
    was_in_spike = self._in_spike
    self._in_spike = loss > center + self._cfg.spike_sigmas * sigma
    self._recent.append(loss)
    if not self._in_spike or was_in_spike:
      return None
    self.spikes += 1
    return (
      f"the loss is {loss:.3f} nats, {(loss - center) / sigma:.0f} sigmas above"
      f" its median of {center:.3f}"
    )

  def _expected(self) -> tuple[float, float]:
    """Median of the last losses and their spread; infinite until it is known.

    Source: the median absolute deviation, Hampel 1974, "The influence curve and
    its role in robust estimation": a spike does not widen it.
    """
    if len(self._recent) < _LEAST or not self._cfg.spike_sigmas:
      return 0.0, math.inf
    median = statistics.median(self._recent)
    mad = statistics.median(abs(x - median) for x in self._recent)
    # A loss that hardly moves makes no noise of its own to compare with.
    return median, max(_SIGMA * mad, 1e-3 * abs(median), 1e-9)


def slow_hosts(busy_P: Sequence[float], step_seconds: float) -> list[int]:
  """Processes that the others wait for, by number.

  In a synchronous step all take the same time; what differs is how long a
  process was busy before it could take part. One is slow if the typical other
  process waits a quarter of the step for it.

  Args:
    busy_P: seconds a step that each process was busy on the host, waiting for
      data included, waiting for devices not.
    step_seconds: of a step, by the clock.
  """
  slow = []
  for i, busy in enumerate(busy_P):
    others = [*busy_P[:i], *busy_P[i + 1 :]]
    if others and busy - statistics.median(others) > 0.25 * step_seconds:
      slow.append(i)
  return slow
