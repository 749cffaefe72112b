"""Checkpoints: orbax v1, asynchronous, each with the data position."""

from collections.abc import Mapping
import logging
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

_log = logging.getLogger(__name__)


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
    return dict(self._checkpointer.metadata(step).custom_metadata or {})

  def restore(self, step: int, abstract: Any, shardings: Any) -> Any:
    """The state of a step, on the mesh of `shardings`, whatever it was on."""
    return self._checkpointer.load(step, _targets(abstract, shardings))

  def restore_params(self, step: int, abstract: Any, shardings: Any) -> Any:
    """The parameters of a step alone; the optimizer's moments stay on disk."""
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
      target = {"params": _targets(abstract, shardings)}
      return self._checkpointer.load(step, target)["params"]

  def restore_latest(
    self, abstract: Any, shardings: Any
  ) -> tuple[int, Any, dict[str, Any]] | None:
    """The newest step that can be read: (step, state, about), or None.

    A damaged one is passed over with a warning and deleted, so that the loop
    can save that step again.
    """
    for step in reversed(self.steps()):
      try:
        return step, self.restore(step, abstract, shardings), self.about(step)
      # orbax, TensorStore and zstd raise what they like on damaged bytes.
      except Exception as error:  # noqa: BLE001
        _log.warning(
          "%s: checkpoint of step %d is damaged (%s); going back to the one"
          " before.",
          self._checkpointer.directory,
          step,
          str(error).splitlines()[0][:300],
        )
        self._checkpointer.delete(step)
    return None

  def close(self) -> None:
    """Waits for the save that is running."""
    self._checkpointer.close()


def _targets(abstract: Any, shardings: Any) -> Any:
  return jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
    abstract,
    shardings,
  )
