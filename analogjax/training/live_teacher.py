"""A live teacher: its hidden states for each training step of the student.

Each step moves [B, L, W] in the teacher's compute dtype. The loss applies the
teacher's unembedding to one chunk at a time, so the full logits are never in
memory.
"""

import jax
from jax.sharding import Mesh, NamedSharding

from analogjax.cache import batches, teacher_programs
from analogjax.distributed import sharding
from analogjax.models import decoder, hf_import, teacher as teacher_lib
from analogjax.training import losses, steps


class LiveTeacher:
  """Runs the teacher on a mesh, its own or the student's."""

  def __init__(
    self,
    teacher: teacher_lib.Teacher,
    mesh: Mesh,
    student_mesh: Mesh,
    *,
    gram_layers: int,
  ):
    """Reads the weights.

    Args:
      student_mesh: mesh that its hidden states go to.
      gram_layers: number of depths of the Gram, for batches that have one.
    """
    self.cfg = teacher.cfg
    self._mesh, self._student_mesh = mesh, student_mesh
    self._params = hf_import.read_parameters(
      teacher.folder, teacher.cfg, mesh, dtype=teacher.cfg.dtype
    )
    self._step = teacher_programs.make_hidden_step(
      teacher.cfg, mesh, gram_layers=gram_layers
    )
    head_VW = steps.head(self._params, decoder.graphdef(teacher.cfg))
    spec = sharding.weight_spec("VD")
    self._head_VW = jax.device_put(head_VW, NamedSharding(student_mesh, spec))

  def hidden(self, batch: batches.Batch) -> losses.Teacher:
    """Starts the teacher on these rows; returns input of the student's step.

    Returns at once: on its own devices the teacher works a step ahead of the
    student.
    """
    if self._mesh is not self._student_mesh:
      batch = batch._replace(targets=None)
      rows = NamedSharding(self._mesh, sharding.ROWS)
      batch = jax.device_put(batch, rows)
    with jax.set_mesh(self._mesh):
      said = self._step(self._params, batch)
    if self._mesh is not self._student_mesh:
      rows = NamedSharding(self._student_mesh, sharding.ROWS)
      said = jax.device_put(said, rows)
    x_BLW, gram_BZP = said
    return losses.Teacher(x_BLW, self._head_VW, gram_BZP)

  @property
  def num_own_devices(self) -> int:
    """Number of devices that the student does not use."""
    return 0 if self._mesh is self._student_mesh else self._mesh.size
