"""Watches a training run for bad steps, loss spikes and slow hosts."""

from collections import deque
from collections.abc import Sequence
import math
import statistics

import numpy as np

from analogjax.config import train

_WINDOW = 128  # Steps that a loss is compared with.
_LEAST = 32  # At least this many of them must exist.
# Steps over which a host has to be slow to be reported.
_BUSY_STEPS = 10
_SIGMA = 1.4826  # Standard deviations of a normal distribution in one MAD.


class LossWatch:
  """Follows the loss of each step; counts skipped steps and spikes."""

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
    """Takes the loss of a step, in nats; returns a warning, or None.

    A spike is reported once, however many steps it lasts.
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
    """Median of the last losses and their spread, infinite with too few.

    Source: the median absolute deviation, Hampel 1974, "The influence curve and
    its role in robust estimation": a spike does not widen it.
    """
    if len(self._recent) < _LEAST or not self._cfg.spike_sigmas:
      return 0.0, math.inf
    median = statistics.median(self._recent)
    mad = statistics.median(abs(x - median) for x in self._recent)
    # The floor is for a loss that hardly moves.
    return median, max(_SIGMA * mad, 1e-3 * abs(median), 1e-9)


class HostWatch:
  """Tracks how long the host of each process is busy before each step."""

  def __init__(self, num_processes: int):
    self._busy_P, self._steps = np.zeros(num_processes), 0
    self._slow: list[int] = []

  def add(self, busy_P: np.ndarray) -> None:
    """Takes the seconds of a step by process."""
    self._busy_P += busy_P
    self._steps += 1

  def read(self, step_seconds: float) -> tuple[float | None, list[str]]:
    """Mean seconds of the busiest host, and warnings about newly slow ones.

    Returns None and no warnings if there were too few steps. `step_seconds` is
    the mean duration of a step.
    """
    if self._steps < _BUSY_STEPS:
      return None, []
    busy_P = self._busy_P / self._steps
    slow = slow_hosts(busy_P.tolist(), step_seconds)
    warnings = [
      f"all wait for process {process}: its host takes {busy_P[process]:.2f} s"
      f" of {step_seconds:.2f} s a step before it can begin; its rows come"
      " slowly, or other work runs there."
      for process in sorted(set(slow) - set(self._slow))
    ]
    self._slow = slow
    self._busy_P, self._steps = np.zeros_like(self._busy_P), 0
    return float(busy_P.max()), warnings


def slow_hosts(busy_P: Sequence[float], step_seconds: float) -> list[int]:
  """Numbers of the processes that the others wait for.

  A synchronous step takes the same time everywhere; processes differ in how
  long they were busy before they could take part. A process is slow if the
  median other process waits a quarter of the step for it.

  Args:
    busy_P: seconds of a step that each host was busy. Waiting for data counts,
      waiting for devices does not.
  """
  slow = []
  for i, busy in enumerate(busy_P):
    others = [*busy_P[:i], *busy_P[i + 1 :]]
    if others and busy - statistics.median(others) > 0.25 * step_seconds:
      slow.append(i)
  return slow
