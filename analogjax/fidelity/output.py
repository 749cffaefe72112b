"""Output fidelity: what the students say, beside what the teacher says."""

import functools
from typing import Any

import jax
import numpy as np

from analogjax import steps
from analogjax.fidelity.study import Study, everywhere


def measure(study: Study) -> dict[str, Any]:
  """Every student against the teacher, live and dense, on held-out rows."""
  teacher, students = study.teacher, study.students
  alike = {m.cfg for m in students.values()}
  assert len(alike) == 1
  step = jax.jit(
    functools.partial(
      steps.compare_step,
      teacher_graphdef=teacher.graphdef,
      graphdef=study.analog.graphdef,
      chunk=64,
    ),
    out_shardings=everywhere(study.mesh),
  )
  params = {name: model.params for name, model in students.items()}
  sums: dict[str, Any] = {}
  for batch, _ in study.batches(study.test, teacher, *students.values()):
    with jax.set_mesh(study.mesh):
      out = jax.device_get(step(teacher.params, params, batch))
    for name, part in out.items():
      sums[name] = np.add(sums.get(name, 0.0), np.asarray(part, np.float64))
  models = {}
  for name, total in sums.items():
    hard, kl, agree, correct, weight = total.tolist()
    models[name] = {
      "cross_entropy_nats": hard / weight,
      "kl_to_teacher_nats": kl / weight,
      "top1_agreement": agree / weight,
      "accuracy": correct / weight,
      "label_tokens": weight,
    }
  return {"models": models}
