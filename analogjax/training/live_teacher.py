"""A teacher in the loop: its hidden states beside the student's training step.

What travels is [B, L, W] in the teacher's compute dtype, once a step; the loss
applies the teacher's unembedding to a chunk at a time, so the teacher's logits
exist no more than the student's do.
"""

import jax
from jax.sharding import Mesh, NamedSharding

from analogjax.cache import batches, teacher_programs
from analogjax.distributed import sharding
from analogjax.models import decoder, hf_import, sizes, teacher as teacher_lib
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
      teacher: opened and checked.
      mesh: where it runs.
      student_mesh: where its hidden states are wanted.
      gram_layers: depths of its Gram, for batches that want one.
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
    """What the student's step needs of the teacher for these rows.

    Returns at once; on devices of its own the teacher is a step ahead while
    the student works.

    Args:
      batch: on the host, or on the student's mesh.
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
    """Devices that the student has no part in."""
    return 0 if self._mesh is self._student_mesh else self._mesh.size

  def flops_per_token(self, L: int) -> int:
    """Of its forward pass; the formula is in models/sizes.py."""
    return sizes.forward_flops_per_token(self.cfg, L)
