"""Traces some steps of a loop for xprof."""

from pathlib import Path

import jax

from analogjax.cli import progress


class Tracer:
  """Traces the wanted steps; each process has its own files."""

  def __init__(self, folder: Path, wanted: range | None):
    """Traces those steps of `wanted` that are run, into `folder`."""
    self._folder, self._wanted = folder, wanted or range(0)
    self._is_on = False

  def before(self, step: int) -> None:
    """Called when a step is about to be dispatched."""
    if step in self._wanted and not self._is_on:
      jax.profiler.start_trace(self._folder)
      self._is_on = True

  def after(self, step: int) -> None:
    """A step was dispatched; waits for the devices if it was the last."""
    if self._is_on and step + 1 not in self._wanted:
      self.close()

  def close(self) -> None:
    """Writes the trace."""
    if self._is_on:
      jax.profiler.stop_trace()
      self._is_on = False
      progress.say(f"profile: {self._folder}")
