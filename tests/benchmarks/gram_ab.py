"""Does a Gram loss make an analog that stands in better for its teacher?

  python tests/benchmarks/gram_ab.py --workdir=runs/gram_ab

Logits only against logits and Gram (arXiv:2509.25253), on the demo's pair, at
equal tokens: for each seed one student, from the same start and over the same
rows in every arm. Measured as `analogjax measure` does; prints a table of the
means over seeds, and of the differences to the arm without a Gram with their
95 % t-intervals.
"""

import argparse
from collections.abc import Iterator
import json
import math
from pathlib import Path
import sys
from typing import Any

from gram_pair import ARMS
import numpy as np

from analogjax import main
from analogjax.fidelity import mappers

CONFIG = Path(__file__).parent / "gram_pair.py"
_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # 97.5 % of Student's, n - 1.


def run(folder: Path, seed: int, more: list[str]) -> dict[str, Any]:
  """fidelity.json of a seed; the caches are shared, they are of no seed."""
  workdir = folder / f"seed{seed}"
  arguments = [f"--config={CONFIG}", f"--workdir={workdir}"]
  arguments.append(f"--config.cache.location={folder / 'caches'}")
  arguments.append(f"--config.student.seed={seed}")
  arguments.append(f"--config.train.pretrain.seed={100 + seed}")
  for phase in ("control", *ARMS):
    arguments.append(f"--config.train.{phase}.seed={200 + seed}")
  teacher = folder / "seed0" / "teacher"
  if seed:
    arguments.append(f"--config.teacher.path={teacher}")
  for command, given in (("cache", []), ("train", []), ("measure", more)):
    if main.main([command, *arguments, *given]):
      sys.exit(1)
  return json.loads((workdir / "fidelity.json").read_text())


def numbers(fidelity: dict[str, Any], arm: str) -> Iterator[tuple[str, float]]:
  """What is compared, by name."""
  for name in ("kl_to_teacher_nats", "cross_entropy_nats", "top1_agreement"):
    yield name, fidelity["output"]["models"][arm]["metrics"][name]["value"]
  outcomes = fidelity["output"]["models"][arm]["outcomes"]
  yield "AUC of the teacher's failures", outcomes["auc"]["value"]
  similarity = fidelity["similarity"]
  for name, found in similarity["models"][arm].items():
    yield f"{name}, calibrated", found["calibrated"]
    yield f"{name}, last depths", found["matrix"][-1][-1]
  yield "embeddings", similarity["embeddings"][arm]["calibrated"]
  last = similarity["maps"][arm][-1]
  yield "unexplained, last depths", last["unexplained"]
  for name, found in fidelity["steering"]["behaviours"].items():
    for transfer in found["transfer"]:
      of_arm = transfer["model"] == arm and transfer["matched"] == "perplexity"
      of_arm = of_arm and transfer["mapper"] in mappers.MAPPERS
      if of_arm and transfer["ratio"]["value"] is not None:
        where = f"{name}, {transfer['mapper']}"
        yield f"transfer ratio, {where}", transfer["ratio"]["value"]
  for stitch in fidelity["stitching"]["models"][arm]:
    where = f"{stitch['teacher_depth']:.2f}, {stitch['fit']}"
    yield f"recovered, {where}", stitch["recovered"]["value"]


def table(found: list[dict[str, Any]]) -> list[str]:
  """Lines in Markdown."""
  first, *others = ARMS
  control = {"control": 0.0}
  columns = ["control", first, *others, *(f"{arm} - {first}" for arm in others)]
  lines = [f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
  of_arm = {
    arm: [dict(numbers(one, arm)) for one in found] for arm in control | ARMS
  }
  for name in of_arm[first][0]:
    values = {
      arm: np.asarray([one.get(name, math.nan) for one in ones])
      for arm, ones in of_arm.items()
    }
    cells = [f"{values[arm].mean():.3f}" for arm in columns[: 2 + len(others)]]
    for arm in others:
      difference = values[arm] - values[first]
      half = 0.0
      if len(difference) > 1:
        half = _T[len(difference)] * difference.std(ddof=1)
        half /= math.sqrt(len(difference))
      cells.append(f"{difference.mean():+.3f} +- {half:.3f}")
    lines.append(f"| {name} | {' | '.join(cells)} |")
  return lines


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--workdir", type=Path, required=True)
  parser.add_argument("--seeds", type=int, default=3, help="2 to 5")
  parser.add_argument("--quick", action="store_true", help="for measure")
  parsed = parser.parse_args()
  flags = ["--quick"] if parsed.quick else []
  results = [run(parsed.workdir, seed, flags) for seed in range(parsed.seeds)]
  print("\n".join(table(results)))
