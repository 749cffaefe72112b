"""Checkpoints: orbax v1, asynchronous, each with the data position.

orbax writes and reads one step at a time. Which steps exist, which are kept,
and what a failure or damage means is decided here, alike on all processes:
orbax's manager keeps a failed step in its list, and waits for processes that
will not come.
"""

from collections.abc import Callable, Mapping
from concurrent import futures
import logging
import math
from pathlib import Path
import re
from typing import Any, NamedTuple

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from analogjax.distributed import processes
from analogjax.workdir import checkpoint_seal, checkpoint_store, store

_log = logging.getLogger(__name__)

# Out of memory, on the host or on a device; a store that does not answer.
_NOT_DAMAGE = (MemoryError, jax.errors.JaxRuntimeError, store.StoreError)

# Timeout after which a save has failed. The others also wait this long for a
# process whose disk refused.
_SAVE_SECONDS = 1200

# How TensorStore's ValueErrors begin if a disk or a server failed.
_DISK = re.compile(
  r"(ABORTED|CANCELLED|DATA_LOSS|DEADLINE_EXCEEDED|FAILED_PRECONDITION|INTERNAL"
  r"|NOT_FOUND|PERMISSION_DENIED|RESOURCE_EXHAUSTED|UNAVAILABLE|UNKNOWN): "
  r"|.*\[os_error_code=",
  re.S,
)
# How jax's errors begin if a process does not reach a barrier.
_BARRIER = re.compile(r"(ABORTED|CANCELLED|DEADLINE_EXCEEDED|UNAVAILABLE): ")


class CheckpointError(ValueError):
  """A checkpoint whose bytes cannot be read."""


class SaveError(OSError):
  """The last checkpoint of a phase was not saved."""


class _Save(NamedTuple):
  """A save that has begun."""

  step: int
  score: float
  doomed: list[int]  # Steps that it makes superfluous.
  result: futures.Future  # Result: None or the exception.


class Checkpoints:
  """The checkpoints of one phase, in one place, by step.

  Every process calls every method except `close`.

  Attributes:
    failed_saves: saves of this object that a disk or a store refused.
  """

  def __init__(
    self,
    place: Path | store.Place,
    *,
    keep: int | None,
    keep_best: int = 0,
    staging: Path | None = None,
  ):
    """Opens a place, and removes what a killed save left in it.

    Args:
      place: a folder, or a place in a bucket.
      keep: how many of the newest are kept. None: all; for readers, removes
        nothing.
      keep_best: how many of those with the lowest scores are kept in addition.
      staging: folder for the transfer to and from a bucket, used by this object
        only; on a file system that every process sees.
    """
    self._home = checkpoint_store.open_home(place, staging)
    self._keep, self._keep_best = keep, keep_best
    if keep is not None:
      processes.all_or_none(_on_process_0(self._home.clean))
    # Whole steps and their scores; NaN: none.
    self._scores: dict[int, float] = self._find()
    # One thread: no two saves at a time.
    self._thread = futures.ThreadPoolExecutor(1, "checkpoint")
    self._running: _Save | None = None
    self._failure: tuple[int, str] | None = None
    self.failed_saves = 0

  def _find(self) -> dict[int, float]:
    """The steps that process 0 sees, on every process."""

    def score(step):
      try:
        return self._facts(step)["score"]
      except CheckpointError:
        return None  # `restore_latest` reports it.

    def find():
      return [(step, score(step)) for step in self._home.steps()]

    found = processes.all_or_none(_on_process_0(find)) or []
    count = int(processes.from_first(np.array(len(found), np.int32)))
    found = found or [(0, None)] * count
    steps = processes.from_first(np.array([s for s, _ in found], np.int32))
    scores = [math.nan if x is None else x for _, x in found]
    scores = processes.from_first(np.array(scores, np.float32))
    return dict(zip(steps.tolist(), scores.tolist(), strict=True))

  def save(
    self,
    step: int,
    state: Any,
    about: Mapping[str, Any],
    score: float | None = None,
  ) -> None:
    """Starts saving; returns once the arrays are copied off the device.

    A step that exists already is not saved again. If the disk or the store
    refuses, now or later, a warning says so, the training continues, and the
    next save tries again.

    Args:
      step: updates that `state` has seen.
      about: JSON facts: data position and fingerprints.
      score: of the state; lower is better.
    """
    self._settle()
    if step in self._scores:
      return
    if score is not None and not math.isfinite(score):
      score = None
    # Stored values have no checksum of their own: a flipped bit would load.
    facts = checkpoint_seal.seal(
      {"about": about, "score": score, "sums": checkpoint_seal.checksums(state)}
    )
    # As it comes back from process 0, because every process must see the same
    # order.
    rank = math.nan if score is None else float(np.float32(score))
    kept = _kept({**self._scores, step: rank}, self._keep, self._keep_best)
    doomed = [s for s in self._scores if s not in kept]
    context = ocp.Context()
    # In the background, writers would notice only after five minutes that a
    # folder cannot be made.
    context.asynchronous.create_directories_asynchronously = False
    context.asynchronous.timeout_secs = _SAVE_SECONDS
    try:
      with context:
        saving = ocp.save_async(
          str(self._home.local(step)), state, custom_metadata=facts
        )
    except Exception as error:
      result = futures.Future()
      result.set_result(self._refused(step, error))
    else:
      call = self._complete, step, saving, facts, doomed
      result = self._thread.submit(*call)
    self._running = _Save(step, rank, doomed, result)

  def _complete(
    self, step: int, saving: Any, facts: dict[str, Any], doomed: list[int]
  ) -> Exception | None:
    """The rest of a save, beside the training."""
    try:
      saving.result()
      if jax.process_index() == 0:
        self._home.publish(step, facts)
    except Exception as error:
      return self._refused(step, error)
    if jax.process_index() == 0:
      for old in doomed:
        try:
          self._home.remove(old)
        except (OSError, store.StoreError) as error:
          _log.warning("%s: step %d is not removed: %s", self._home, old, error)
    return None

  def _refused(self, step: int, error: Exception) -> Exception:
    """The error, if a disk or a store is at fault; else raises it."""
    if not _is_refusal(error):
      raise error
    _log.warning(
      "%s: THE CHECKPOINT OF STEP %d IS NOT SAVED: %s. The training goes on,"
      " and the next save tries again; until then a restart goes on from %s.",
      self._home,
      step,
      _reason(error),
      f"step {max(self._scores)}" if self._scores else "the start",
    )
    return error

  def _settle(self) -> None:
    """Waits for the current save."""
    if self._running is None:
      return
    (step, score, doomed, result), self._running = self._running, None
    error = processes.all_or_none(result.result)
    # Process 0 completes a step after every other process has written its part.
    if processes.all_gather([error is None])[0, 0]:
      self._failure = None
      self._scores[step] = score
      for old in doomed:
        del self._scores[old]
      return
    self.failed_saves += 1
    self._failure = (
      step,
      _reason(error) if error else "another process says why",
    )
    if jax.process_index() == 0:
      self._home.clean(step)

  def finish(self) -> None:
    """Waits for the current save, the last one of a phase.

    Raises:
      SaveError: it failed.
    """
    self._settle()
    if self._failure is not None:
      step, reason = self._failure
      latest = f"step {max(self._scores)}" if self._scores else "the start"
      raise SaveError(
        f"{self._home}: the last checkpoint, of step {step}, could not be"
        f" saved: {reason}. Make room there, or see to the store; then the same"
        f" command goes on from {latest}."
      )

  def close(self) -> None:
    """Waits for this process's current work; `finish` reports its result."""
    if self._running is not None:
      self._running.result.result()
    self._thread.shutdown()

  def steps(self) -> list[int]:
    """Steps that were saved whole, oldest first."""
    return sorted(self._scores)

  def best(self) -> int | None:
    """The step with the lowest score, the newest of equals."""
    return next(iter(_by_score(self._scores)), None)

  def about(self, step: int) -> dict[str, Any]:
    """The facts that were saved with a step."""
    return self._facts(step)["about"]

  def _facts(self, step: int) -> dict[str, Any]:
    return self._checked(
      step, lambda: checkpoint_seal.unseal(self._home.facts(step))
    )

  def restore(self, step: int, abstract: Any, shardings: Any) -> Any:
    """The state of a step, on the mesh of `shardings`, whichever wrote it."""
    return self._load(step, _targets(abstract, shardings))

  def restore_params(self, step: int, abstract: Any, shardings: Any) -> Any:
    """The parameters of a step; the optimizer's moments stay on disk."""
    target = {"params": _targets(abstract, shardings)}
    return self._load(step, target, partial=True)["params"]

  def _load(self, step: int, target: Any, *, partial: bool = False) -> Any:
    context = ocp.Context()
    context.pytree.loading.partial_load = partial
    # No barriers: a process that finds damage would not reach them.
    context.multiprocessing.primary_host = jax.process_index()
    context.multiprocessing.active_processes = {jax.process_index()}

    def load():
      with context:
        return ocp.load(str(self._home.fetched(step)), target)

    expected = self._together(step, lambda: self._facts(step))["sums"]
    try:
      self._together(step, _on_process_0(lambda: self._home.fetch(step)))
      state = self._together(step, load)
    finally:
      if jax.process_index() == 0:
        self._home.release(step)
    for name, found in checkpoint_seal.checksums(state).items():
      if found != expected.get(name):
        reason = f"the checksum of {name} is {found}, not {expected.get(name)}"
        raise self._damaged(step, ValueError(reason))
    return state

  def _checked(self, step: int, call: Callable[[], Any]) -> Any:
    try:
      return call()
    except (*_NOT_DAMAGE, CheckpointError):
      raise
    # orbax, TensorStore and zstd raise any kind of exception on damaged bytes.
    except Exception as error:
      raise self._damaged(step, error) from error

  def _together(self, step: int, call: Callable[[], Any]) -> Any:
    """Runs call() on every process; damage found by one counts for all."""

    def attempt():
      try:
        return self._checked(step, call), None
      except CheckpointError as error:
        return None, error

    value, damage = processes.all_or_none(attempt)
    found = processes.all_gather([damage is not None])[:, 0]
    if damage is not None:
      raise damage
    if found.any():
      who = f"process {int(found.argmax())} says why"
      raise self._damaged(step, ValueError(who))
    return value

  def restore_latest(
    self,
    abstract: Any,
    shardings: Any,
    check: Callable[[Mapping[str, Any]], None] = lambda about: None,
  ) -> tuple[int, Any, dict[str, Any]] | None:
    """The newest step that can be read: (step, state, about), or None.

    A damaged one is skipped with a warning and set aside, so that the loop can
    save that step again.

    Args:
      check: raises if a checkpoint with these facts is not for this state,
        which would look like damage.

    Raises:
      ValueError: there were checkpoints, and all of them are damaged.
    """
    for step in reversed(self.steps()):
      try:
        about = self._together(step, lambda s=step: self.about(s))
      except CheckpointError as error:
        self._set_aside(step, error)
        continue
      check(about)
      try:
        return step, self.restore(step, abstract, shardings), about
      except CheckpointError as error:
        self._set_aside(step, error)
    damaged = processes.all_or_none(self._home.damaged)
    if processes.all_gather([damaged]).any():
      raise ValueError(
        f"{self._home}: there is no checkpoint that can be read, and damaged"
        f" ones are kept in {self._home.aside}. To train from the start, delete"
        " them or move them away."
      )
    return None

  def _set_aside(self, step: int, error: CheckpointError) -> None:
    """Moves a damaged step away. Not deleted: the disk may be at fault."""
    aside = processes.all_or_none(
      _on_process_0(lambda: self._home.set_aside(step))
    )
    del self._scores[step]
    _log.warning(
      "%s It is moved to %s; going back to the one before.",
      error,
      aside or self._home.aside,
    )

  def _damaged(self, step: int, error: Exception) -> CheckpointError:
    return CheckpointError(
      f"{self._home}: the checkpoint of step {step} is damaged"
      f" ({_reason(error)})."
    )


def _on_process_0(call: Callable[[], Any]) -> Callable[[], Any]:
  return call if jax.process_index() == 0 else lambda: None


def _kept(
  scores: Mapping[int, float], keep: int | None, keep_best: int
) -> set[int]:
  """The newest `keep` steps (None: all), and the best that have a score."""
  newest = sorted(scores)[-keep:] if keep else scores
  return {*newest, *_by_score(scores)[:keep_best]}


def _by_score(scores: Mapping[int, float]) -> list[int]:
  """The steps that have a score, the best first; of equals, the newest."""
  scored = [s for s in scores if not math.isnan(scores[s])]
  return sorted(scored, key=lambda s: (scores[s], -s))


def _is_refusal(error: BaseException) -> bool:
  """Whether a disk, a store or another process is at fault, not the program."""
  if isinstance(error, OSError | store.StoreError):
    return True
  kinds = {ValueError: _DISK, jax.errors.JaxRuntimeError: _BARRIER}
  begins = kinds.get(type(error))
  return begins is not None and begins.match(str(error)) is not None


def _reason(error: BaseException) -> str:
  # orbax's first sentence says that no reader it has would work.
  while inner := error.__cause__ or error.__context__:
    error = inner
  lines = store.reason(error).splitlines() or [type(error).__name__]
  return lines[0][:300].rstrip(".")


def _targets(abstract: Any, shardings: Any) -> Any:
  return jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
    abstract,
    shardings,
  )
