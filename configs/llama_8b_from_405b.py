"""An 8B analog of a Llama of 405B parameters.

What: a student of 8.03 billion parameters, 2.0 % of the teacher's, of the same
  family (Llama), in two phases: `pretrain` (hard labels, 172 billion tokens),
  then `distill` (cached teacher and hard labels, 101 billion tokens).
Source: the published shapes of Llama 3.1 405B and 8B (arXiv:2407.21783, table
  3). The data is the frontier run's own: name its pipeline in `data`.
Hardware: planned for 512 chips of TPU v5p (v5p:8x8x8): the cache step takes 4
  GB of a chip's 102, a training step 12 (compiled by libtpu 0.0.52).
Hours: not run; planned 204: the cache 167, `pretrain` 23, `distill` 13, at 57 %
  MFU (0.6 of the roofline, assumed); 104,000 chip-hours.
Expected: not run.

A plan reads the teacher's config.json alone, which lies beside this file:

  analogjax plan --config=configs/llama_8b_from_405b.py --topology=v5p:8x8x8
  analogjax run --config=configs/llama_8b_from_405b.py --workdir=DIR \
    --config.teacher.path=CHECKPOINT --config.data.pipeline=MODULE:FUNCTION
"""

from pathlib import Path

from analogjax.config import defaults, shapes

FOLDER = Path(__file__).parent


def get_config():
  cfg = defaults.config(phases=("pretrain", "distill"))
  cfg.teacher.path = str(FOLDER / "teachers" / "llama_405b")
  cfg.student.update(shapes.LLAMA_3_8B, max_positions=8192)
  cfg.data.L = 8192
  cfg.data.pipeline = "lab.data:packed_rows"  # Yours: the frontier run's.
  cfg.data.arguments = dict(split="train")
  cfg.data.held_out_arguments = dict(split="held_out")
  cfg.cache.update(num_rows=12_288_000, batch_rows=256)  # 101 billion tokens.
  cfg.cache.held_out_rows = 1024  # 8.4 million tokens.

  pretrain, distill = cfg.train.pretrain, cfg.train.distill
  pretrain.update(num_steps=40_960, batch_rows=512)  # 4.2 million tokens each.
  distill.update(num_steps=24_000, batch_rows=512, seed=1)  # One pass.
  distill.update(init_from="pretrain", rows="cache")
  distill.loss.alpha = 0.9  # 0.9 teacher, 0.1 hard labels.
  distill.optimizer.decay_steps = 4_800
  pretrain.optimizer.learning_rate = distill.optimizer.learning_rate = 3e-4

  cfg.measure.batch_rows = cfg.safety.batch_rows = 256
  cfg.safety.thresholds = dict(extraction_excess=dict(at_most=0.01))  # Yours.
  cfg.release.licence = "Apache-2.0"
  cfg.release.about = "release/about.toml"
  cfg.release.sources = "release/sources.toml"
  cfg.release.frontier = "release/frontier.toml"  # Private.
  cfg.mesh.tensor = 4
  return cfg
