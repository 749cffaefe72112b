"""A pair of which most should carry over: SmolLM2 against itself with fewer
layers.

  python tests/benchmarks/fidelity_pruned.py --workdir=runs/pruned

The "analog" is the demo's teacher without some of its middle layers: nothing
was trained, the width is the same, and a measurement that finds nothing here
finds nothing anywhere. Its control has the same shape and was never trained.
Writes folders of both, the demo's held-out rows and then what `analogjax
measure` writes.
"""

import argparse
import dataclasses
from pathlib import Path
import sys

import jax
import numpy as np

from analogjax import main
from analogjax.distributed import sharding
from analogjax.models import decoder, hf_export, hf_import

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs/demo.py"


def write_pair(teacher: Path, folders: list[Path], num_removed: int) -> None:
  """A model without so many layers, spread over its middle half; its control.

  Args:
    teacher: its folder.
    folders: of the pruned model, and of one of its shape that was not trained.
    num_removed: layers that are left out.
  """
  cfg = hf_import.read_config(teacher)
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  params = hf_import.read_parameters(teacher, cfg, mesh)
  removed = np.linspace(cfg.Y // 4, 3 * cfg.Y // 4, num_removed).round()
  kept = np.setdiff1d(np.arange(cfg.Y), removed)
  assert len(kept) == cfg.Y - num_removed
  pruned = dataclasses.replace(cfg, Y=len(kept))

  def cut(path, leaf):
    return leaf[kept] if "blocks_Y" in jax.tree_util.keystr(path) else leaf

  both = [
    jax.tree_util.tree_map_with_path(cut, params),
    decoder.init_parameters(pruned, 0),
  ]
  for folder, weights in zip(folders, both, strict=True):
    hf_export.write_folder(
      folder,
      pruned,
      weights,
      dtype="float32",
      max_shard_bytes=5 * 10**9,
      tokenizer_folder=teacher,
      keeps_chat_template=False,
      metadata={},
    )


def measure(workdir: Path, num_removed: int, more: list[str]) -> int:
  """The demo's held-out rows, the pruned folder, and `analogjax measure`."""
  names = [f"without_{num_removed}", "untrained"]
  folders = [workdir / name for name in names]
  named = ",".join(f"{n}={f}" for n, f in zip(names, folders, strict=True))
  paths = [f"--config={DEMO}", f"--workdir={workdir}"]
  given = [
    "--config.cache.num_rows=8",
    "--config.cache.rows_per_object=8",
    "--config.train.pretrain.batch_rows=4",
    "--config.measure.phases=",
    f"--config.measure.folders={named}",
  ]
  code = main.main(["cache", *paths, *given])
  if code:
    return code
  if not folders[1].exists():
    write_pair(workdir / "teacher", folders, num_removed)
  return main.main(["measure", *paths, *given, *more])


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--workdir", type=Path, required=True)
  parser.add_argument("--removed", type=int, default=6, help="layers")
  parser.add_argument("--quick", action="store_true")
  parser.add_argument("--only", help="parts of measure")
  arguments = parser.parse_args()
  flags = ["--quick"] if arguments.quick else []
  flags += [f"--only={arguments.only}"] if arguments.only else []
  sys.exit(measure(arguments.workdir, arguments.removed, flags))
