"""The jitted, sharded steps that the stages run and a plan compiles.

Both must use the same programs, so nothing else calls `jax.jit` on a step.
"""

import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import Mesh
import optax

from analogjax.cache import teacher_programs
from analogjax.config import train
from analogjax.distributed import sharding
from analogjax.models import decoder
from analogjax.training import losses, objective as objectives, optimizer, steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
  """The step of a phase, and the state that it updates."""

  cfg: decoder.DecoderConfig
  mesh: Mesh
  tx: optax.GradientTransformation
  objective: losses.Objective
  alpha: optax.Schedule
  gram_weight: float = 0.0
  microbatches: int = 1
  seed: int = 0  # Seed of the initial parameters.

  def init(self) -> steps.TrainState:
    """The state before the first step."""
    params = decoder.init_parameters(self.cfg, self.seed)
    return steps.TrainState(
      step=jax.numpy.zeros((), "int32"),
      params=params,
      opt_state=self.tx.init(params),
    )

  @functools.cached_property
  def abstract(self) -> steps.TrainState:
    """Shapes of the state, with shardings; ValueError names what cannot be."""
    shapes = jax.eval_shape(self.init)
    where = sharding.state_shardings(shapes, self.mesh)
    return jax.tree.map(teacher_programs.shape_of, shapes, where)

  @functools.cached_property
  def shardings(self) -> Any:
    return jax.tree.map(lambda x: x.sharding, self.abstract)

  def start(self) -> steps.TrainState:
    """The state before the first step, created in its sharding."""
    return jax.jit(self.init, out_shardings=self.shardings)()

  @functools.cached_property
  def step(self):
    """(state, batch, losses.Teacher or None) -> state, metrics."""
    return jax.jit(
      functools.partial(
        steps.train_step,
        graphdef=decoder.graphdef(self.cfg),
        tx=self.tx,
        objective=self.objective,
        alpha=self.alpha,
        gram_weight=self.gram_weight,
        microbatches=self.microbatches,
      ),
      donate_argnums=0,
      out_shardings=(self.shardings, teacher_programs.everywhere(self.mesh)),
    )


def make_training(
  phase: train.PhaseConfig,
  cfg: decoder.DecoderConfig,
  mesh: Mesh,
  *,
  seed: int,
  teacher_softcap: float | None,
) -> Training:
  """The training of a phase.

  Args:
    seed: of the initial parameters.
    teacher_softcap: of the logits of a live teacher.
  """
  return Training(
    cfg=cfg,
    mesh=mesh,
    tx=optimizer.make_optimizer(phase.optimizer, phase.num_steps),
    objective=objectives.make_objective(
      phase.loss, teacher_softcap=teacher_softcap
    ),
    alpha=objectives.make_alpha(phase.loss, phase.optimizer, phase.num_steps),
    gram_weight=phase.loss.gram_weight,
    microbatches=phase.microbatches,
    seed=seed,
  )


def make_eval_step(
  cfg: decoder.DecoderConfig, mesh: Mesh, *, temperature: float, chunk: int
):
  """(params, batch) -> steps.EvalSums, of a student on held-out records.

  Every phase is evaluated alike, whatever it minimizes.
  """
  objective = losses.Objective(temperature=temperature, chunk=chunk)
  return jax.jit(
    functools.partial(
      steps.eval_step, graphdef=decoder.graphdef(cfg), objective=objective
    ),
    out_shardings=teacher_programs.everywhere(mesh),
  )
