"""One small student, trained in many ways: what a benchmark's arms share."""

import dataclasses
import time
from typing import NamedTuple

from analogjax.cache import sampling

PIPELINE = "analogjax.demo.docstrings:packed_rows"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """What every arm has in common."""

  teacher: str  # Hugging Face folder.
  rows: int = 144  # Rows of an arm with as many epochs as all have.
  epochs: int = 3
  held_out_rows: int = 32
  pretrain_rows: int = 640  # Other rows, hard labels, one pass: the start.
  L: int = 256  # Tokens of a row.
  batch_rows: int = 4
  D: int = 64
  Y: int = 4
  N: int = 4
  F: int = 192
  chunk: int = 32  # Tokens of a row whose logits are held at once.
  pretrain_learning_rate: float = 3e-3

  @property
  def num_steps(self) -> int:
    return self.rows * self.epochs // self.batch_rows


# About 100 times the work: 25 million parameters, all rows there are.
LARGE = dict(
  **dict(rows=1024, held_out_rows=128, pretrain_rows=768),
  **dict(D=256, Y=8, N=8, F=768, chunk=256),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
  """One way to train the student."""

  # "start" (nothing is trained), "hard", "dense", "threshold", "random" or
  # "topk".
  kind: str
  value: float = 0.0  # tau, or how many ids are drawn or kept.
  alpha: float = 1.0  # Weight of the teacher against hard labels.
  alpha_schedule: str = "constant"
  divergence: str = "forward_kl"
  # topk: whose probabilities of the K ids are stretched to sum to one,
  # "teacher" or "both"; "": nobody's, all other ids are one bin more.
  renormalised: str = ""
  replicas: int = 1  # Epoch e reads replica e modulo this.
  data: int = 1  # So many times the rows in so many times fewer epochs.


class Draw(NamedTuple):
  """What a cache is filled with."""

  sampler: sampling.Sampler
  replicas: int = 1

  @property
  def name(self) -> str:
    values = vars(self.sampler).values()
    return "_".join(map(str, (self.sampler.kind, *values, self.replicas)))


def draw_of(arm: Arm) -> Draw | None:
  """What the arm reads; None where no cache."""
  if arm.kind in ("start", "hard", "dense"):
    return None
  sampler = sampling.make_sampler(
    arm.kind, tau=arm.value, num_draws=int(arm.value), top_k=int(arm.value)
  )
  return Draw(sampler, arm.replicas)


def say(text: str) -> None:
  print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
