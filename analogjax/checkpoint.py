"""Checkpoints: orbax v1, asynchronous, each with the data position."""

from collections.abc import Callable, Mapping
import logging
from pathlib import Path
import shutil
from typing import Any

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

_log = logging.getLogger(__name__)


# Out of memory, on the host or on a device.
_NOT_DAMAGE = (MemoryError, jax.errors.JaxRuntimeError)


class CheckpointError(ValueError):
  """A checkpoint whose bytes cannot be read."""


class Checkpoints:
  """The checkpoints of one phase, in one folder, by step."""

  def __init__(self, folder: Path, *, keep: int | None):
    """Opens a folder; the newest `keep` stay (None: all, for readers)."""
    policies = ocp.training.save_decision_policies
    preserve = ocp.training.preservation_policies
    # The loop decides when; orbax's default would save on every call.
    self._checkpointer = ocp.training.Checkpointer(
      folder.absolute(),
      save_decision_policy=policies.FixedIntervalPolicy(1),
      preservation_policy=preserve.LatestN(keep)
      if keep
      else preserve.PreserveAll(),
      # What a killed save left behind.
      cleanup_tmp_directories=True,
    )

  def save(self, step: int, state: Any, about: Mapping[str, Any]) -> None:
    """Starts saving; returns once the arrays are copied off the device.

    Args:
      step: updates that `state` has seen.
      state: a tree of arrays.
      about: JSON facts: data position and fingerprints.
    """
    self._checkpointer.save_async(step, state, custom_metadata=dict(about))

  def steps(self) -> list[int]:
    """Steps that were saved whole, oldest first."""
    return sorted(c.step for c in self._checkpointer.checkpoints)

  def about(self, step: int) -> dict[str, Any]:
    """The facts that were saved with a step."""
    try:
      return dict(self._checkpointer.metadata(step).custom_metadata)
    except _NOT_DAMAGE:
      raise
    except Exception as error:
      raise self._damaged(step, error) from error

  def restore(self, step: int, abstract: Any, shardings: Any) -> Any:
    """The state of a step, on the mesh of `shardings`, whatever it was on."""
    return self._load(step, _targets(abstract, shardings))

  def restore_params(self, step: int, abstract: Any, shardings: Any) -> Any:
    """The parameters of a step alone; the optimizer's moments stay on disk."""
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
      target = {"params": _targets(abstract, shardings)}
      return self._load(step, target)["params"]

  def _load(self, step: int, target: Any) -> Any:
    try:
      return self._checkpointer.load(step, target)
    except _NOT_DAMAGE:
      raise
    # orbax, TensorStore and zstd raise what they like on damaged bytes.
    except Exception as error:
      raise self._damaged(step, error) from error

  def restore_latest(
    self,
    abstract: Any,
    shardings: Any,
    check: Callable[[Mapping[str, Any]], None] = lambda about: None,
  ) -> tuple[int, Any, dict[str, Any]] | None:
    """The newest step that can be read: (step, state, about), or None.

    A damaged one is passed over with a warning and set aside, so that the loop
    can save that step again.

    Args:
      abstract: shapes and dtypes of the state.
      shardings: where it goes.
      check: raises if a checkpoint with these facts is not for this state,
        which would look like damage.
    """
    for step in reversed(self.steps()):
      try:
        about = self.about(step)
      except CheckpointError as error:
        self._set_aside(step, error)
        continue
      check(about)
      try:
        return step, self.restore(step, abstract, shardings), about
      except CheckpointError as error:
        self._set_aside(step, error)
    return None

  def _set_aside(self, step: int, error: CheckpointError) -> None:
    """Moves a step out of the way, not deleted: the disk may be at fault."""
    folder = Path(self._checkpointer.directory)
    aside = folder.with_name(f"{folder.name}_damaged") / str(step)
    _log.warning(
      "%s It is moved to %s; going back to the one before.", error, aside
    )
    if jax.process_index() == 0:
      shutil.rmtree(aside, ignore_errors=True)
      aside.parent.mkdir(exist_ok=True)
      (folder / str(step)).rename(aside)
    multihost_utils.sync_global_devices(f"set aside {aside}")
    self._checkpointer.reload()

  def _damaged(self, step: int, error: Exception) -> CheckpointError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
    return CheckpointError(
      f"{self._checkpointer.directory}: the checkpoint of step {step} is"
      f" damaged ({reason})."
    )

  def close(self) -> None:
    """Waits for the save that is running."""
    self._checkpointer.close()


def _targets(abstract: Any, shardings: Any) -> Any:
  return jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
    abstract,
    shardings,
  )
