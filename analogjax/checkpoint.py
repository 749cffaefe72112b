"""Checkpoints: orbax v1, asynchronous, each with the data position."""

from collections.abc import Callable, Mapping
import logging
from pathlib import Path
import shutil
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

_log = logging.getLogger(__name__)


_CHECKSUMS = "checksums"

# Out of memory, on the host or on a device.
_NOT_DAMAGE = (MemoryError, jax.errors.JaxRuntimeError)


class CheckpointError(ValueError):
  """A checkpoint whose bytes cannot be read."""


class Checkpoints:
  """The checkpoints of one phase, in one folder, by step."""

  def __init__(self, folder: Path, *, keep: int | None):
    """Opens a folder; the newest `keep` stay (None: all, for readers)."""
    # Any: orbax's policies do not have the types that its Checkpointer names.
    policies: Any = ocp.training.save_decision_policies
    preserve: Any = ocp.training.preservation_policies
    # The loop decides when; orbax's default would save on every call.
    self._checkpointer = ocp.training.Checkpointer(
      str(folder.absolute()),
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
    # Stored values carry no checksum of their own: a flipped bit would load.
    sums = _checksums(state)
    facts = {**about, _CHECKSUMS: sums}
    self._checkpointer.save_async(step, state, custom_metadata=facts)

  def steps(self) -> list[int]:
    """Steps that were saved whole, oldest first."""
    return sorted(c.step for c in self._checkpointer.checkpoints)

  def about(self, step: int) -> dict[str, Any]:
    """The facts that were saved with a step."""
    facts = self._facts(step)
    del facts[_CHECKSUMS]
    return facts

  def _facts(self, step: int) -> dict[str, Any]:
    try:
      facts: Any = self._checkpointer.metadata(step).custom_metadata or {}
    except _NOT_DAMAGE:
      raise
    except Exception as error:
      raise self._damaged(step, error) from error
    if _CHECKSUMS not in facts:
      raise self._damaged(step, ValueError("its metadata is missing"))
    return dict(facts)

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
      state = self._checkpointer.load(step, target)
    except _NOT_DAMAGE:
      raise
    # orbax, TensorStore and zstd raise what they like on damaged bytes.
    except Exception as error:
      raise self._damaged(step, error) from error
    expected = self._facts(step)[_CHECKSUMS]
    for name, found in _checksums(state).items():
      if found != expected.get(name):
        reason = f"the checksum of {name} is {found}, not {expected.get(name)}"
        raise self._damaged(step, ValueError(reason))
    return state

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
    # What orbax says first is that no reader it has would do.
    root: BaseException = error
    while inner := root.__cause__ or root.__context__:
      root = inner
    # TensorStore appends its spec as JSON.
    text = str(root).split(" [tensorstore_spec", 1)[0]
    reason = (text.splitlines() or [type(root).__name__])[0][:300].rstrip(".")
    return CheckpointError(
      f"{self._checkpointer.directory}: the checkpoint of step {step} is"
      f" damaged ({reason})."
    )

  def close(self) -> None:
    """Waits for the save that is running."""
    self._checkpointer.close()


def _checksums(state: Any) -> dict[str, int]:
  """Path -> sum of the words of an array, modulo 2**32.

  The same on every mesh; a change of one word, or of one bit, changes it.
  """
  leaves = jax.tree_util.tree_leaves_with_path(state)
  names = (
    jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in leaves
  )
  sums = jax.device_get(_sum_words([leaf for _, leaf in leaves]))
  return {n: int(s) for n, s in zip(names, sums, strict=True)}


@jax.jit
def _sum_words(leaves: list[jax.Array]) -> list[jax.Array]:
  def sum_words(x):
    word = jnp.uint16 if x.dtype.itemsize == 2 else jnp.uint32
    words = jax.lax.bitcast_convert_type(x, word)
    return jnp.sum(words, dtype=jnp.uint32)

  return [sum_words(x) for x in leaves]


def _targets(abstract: Any, shardings: Any) -> Any:
  return jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
    abstract,
    shardings,
  )
