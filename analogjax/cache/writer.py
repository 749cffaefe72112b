"""Writes to the logit cache in the background."""

from collections.abc import Callable
import concurrent.futures

from analogjax.cache.logit_cache import LogitCache, Stored


class CacheWriter:
  """Writes objects in the background, a few at a time, in order.

  Encoding and writing overlap with the caller's work. At most `depth` objects
  are held in memory beside the one that the caller fills.
  """

  def __init__(self, cache: LogitCache, *, depth: int = 2):
    self._cache, self._depth = cache, depth
    self._pool = concurrent.futures.ThreadPoolExecutor(1)
    self._pending: list[tuple[concurrent.futures.Future, Callable]] = []

  def __enter__(self) -> "CacheWriter":
    return self

  def __exit__(self, *_) -> None:
    # Writes that have begun are finished, so that the store sees no half-made
    # request.
    self._pool.shutdown(cancel_futures=True)

  def submit(
    self,
    start: int,
    make: Callable[[], Stored],
    committed: Callable[[], None],
  ) -> None:
    """Writes make() at `start`; calls `committed` here once it is safe.

    Raises:
      CacheError: this object, or one before, could not be written.
    """

    def work():
      self._cache.write_stored(start, make())

    self._pending.append((self._pool.submit(work), committed))
    self._wait(self._depth)

  def finish(self) -> None:
    """Waits until everything submitted is written; raises as `submit` does."""
    self._wait(0)

  def _wait(self, most: int) -> None:
    while self._pending:
      future, committed = self._pending[0]
      if len(self._pending) <= most and not future.done():
        return
      self._pending.pop(0)
      future.result()
      committed()
