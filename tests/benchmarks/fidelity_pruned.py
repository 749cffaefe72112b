"""A pair of which most should carry over: SmolLM2 against itself with fewer
layers.

  python tests/benchmarks/fidelity_pruned.py --workdir=runs/pruned

The "analog" is the demo's teacher without some of its middle layers: nothing
was trained, the width is the same, and a measurement that finds nothing here
finds nothing anywhere. Writes a folder of that model, the demo's held-out rows
and then what `analogjax measure` writes.
"""

import argparse
import dataclasses
from pathlib import Path
import sys

import jax
import numpy as np

from analogjax import main, sharding
from analogjax.models import hf_export, hf_folder

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs/demo.py"


def prune(teacher: Path, folder: Path, num_removed: int) -> None:
  """Writes a model without so many layers, spread over its middle half."""
  cfg = hf_folder.read_config(teacher)
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  params = hf_folder.read_parameters(teacher, cfg, mesh)
  removed = np.linspace(cfg.Y // 4, 3 * cfg.Y // 4, num_removed).round()
  kept = np.setdiff1d(np.arange(cfg.Y), removed)
  assert len(kept) == cfg.Y - num_removed

  def cut(path, leaf):
    return leaf[kept] if "blocks_Y" in jax.tree_util.keystr(path) else leaf

  hf_export.write_folder(
    folder,
    dataclasses.replace(cfg, Y=len(kept)),
    jax.tree_util.tree_map_with_path(cut, params),
    dtype="float32",
    max_shard_bytes=5 * 10**9,
    tokenizer_folder=teacher,
    metadata={},
  )


def measure(workdir: Path, num_removed: int, more: list[str]) -> int:
  """The demo's held-out rows, the pruned folder, and `analogjax measure`."""
  name = f"without_{num_removed}"
  folder = workdir / name
  paths = [f"--config={DEMO}", f"--workdir={workdir}"]
  given = [
    "--config.cache.num_rows=8",
    "--config.cache.rows_per_object=8",
    "--config.train.pretrain.batch_rows=4",
    "--config.measure.phases=",
    f"--config.measure.folders={name}={folder}",
  ]
  code = main.main(["cache", *paths, *given])
  if code:
    return code
  if not folder.exists():
    prune(workdir / "teacher", folder, num_removed)
  return main.main(["measure", *paths, *given, *more])


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--workdir", type=Path, required=True)
  parser.add_argument("--removed", type=int, default=6, help="layers")
  arguments, rest = parser.parse_known_args()
  sys.exit(measure(arguments.workdir, arguments.removed, rest))
