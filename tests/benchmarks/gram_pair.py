"""The demo with two more phases: distillation that matches Grams as well.

A config, for tests/benchmarks/gram_ab.py. All phases but `pretrain` start from
there and see the same rows in the same order.
"""

import copy
from pathlib import Path
import runpy

DEMO = Path(__file__).parents[2] / "configs/demo.py"

# The weight of the Gram term in each arm; that of the first is 0.
ARMS = {"distill": 0.0, "gram": 1.0, "gram_strong": 10.0}


def get_config():
  cfg = runpy.run_path(str(DEMO))["get_config"]()
  with cfg.unlocked():
    for name, weight in ARMS.items():
      cfg.train[name] = copy.deepcopy(cfg.train.distill)
      cfg.train[name].loss.gram_weight = weight
  cfg.train.phases = ("pretrain", "control", *ARMS)
  cfg.measure.phases = ("control", *ARMS)
  cfg.measure.domains = {}
  cfg.cache.gram_positions = 32
  return cfg
