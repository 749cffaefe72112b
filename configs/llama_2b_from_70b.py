"""A 2B analog of a Llama of 70B parameters.

What: a student of 2.02 billion parameters, 2.9 % of the teacher's, trained as
  in llama_8b_from_405b.py: 43 billion tokens, then 25 billion.
Source: the published shape of Llama 3.1 70B (arXiv:2407.21783, table 3); the
  student's is our own.
Hardware: planned for 64 GPUs of kind H100 (gpu:h100:64): the cache step takes 6
  GB of a GPU's 80, a training step 23 (counted).
Hours: not run; planned 37: the cache 28, `pretrain` 6, `distill` 3.5, at 57 %
  MFU (0.6 of the roofline, assumed); 2,400 GPU-hours.
Expected: not run.

  analogjax plan --config=configs/llama_2b_from_70b.py --topology=gpu:h100:64
"""

import llama_8b_from_405b


def get_config():
  cfg = llama_8b_from_405b.get_config()
  folder = llama_8b_from_405b.FOLDER
  cfg.teacher.path = str(folder / "teachers" / "llama_70b")
  cfg.student.update(D=2048, Y=28, N=16, F=8192, tie_embeddings=True)
  cfg.cache.update(num_rows=3_072_000, batch_rows=128)  # 25 billion tokens.
  cfg.train.pretrain.update(num_steps=20_480, batch_rows=256)
  cfg.train.distill.update(num_steps=12_000, batch_rows=256)  # One pass.
  cfg.train.distill.optimizer.decay_steps = 2_400
  cfg.measure.batch_rows = cfg.safety.batch_rows = 128
  cfg.release.about.name = "example-analog-2b"
  return cfg
