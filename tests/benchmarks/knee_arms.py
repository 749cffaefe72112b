"""What the arms of knee.py have in common, and in what they differ."""

import dataclasses
import time
from typing import NamedTuple

PIPELINE = "analogjax.data.docstrings:packed_rows"


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
  rows=1024, held_out_rows=128, pretrain_rows=768, D=256, Y=8, N=8, F=768
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
  """One way to train the student."""

  kind: str  # "hard", "dense", "threshold" or "topk".
  value: float = 0.0  # tau, or how many entries are kept.
  alpha: float = 1.0  # Weight of the teacher against hard labels.
  replicas: int = 1  # Epoch e reads replica e modulo this.
  data: int = 1  # So many times the rows in so many times fewer epochs.


def _arms() -> dict[str, Arm]:
  def tau(value, **more):
    return Arm(kind="threshold", value=value, **more)

  arms = {
    "hard": Arm(kind="hard", alpha=0.0),
    "tau 0.01": tau(0.01),
    "tau 0.2": tau(0.2),
    "dense": Arm(kind="dense"),
    "tau 0.04": tau(0.04),
    "tau 1": tau(1.0),
    "tau 0.1": tau(0.1),
    "tau 0.5": tau(0.5),
    "top-16": Arm(kind="topk", value=16),
    "tau 0.2, 3 replicas": tau(0.2, replicas=3),
    "tau 0.5, 3 replicas": tau(0.5, replicas=3),
    "tau 0.2, 3x rows": tau(0.2, data=3),
    "tau 0.04, 3x rows": tau(0.04, data=3),
    "hard, 3x rows": Arm(kind="hard", alpha=0.0, data=3),
    "tau 0.2, alpha 0.9": tau(0.2, alpha=0.9),
    "tau 0.2, alpha 0.5": tau(0.2, alpha=0.5),
    "tau 1, alpha 0.9": tau(1.0, alpha=0.9),
    "tau 1, alpha 0.5": tau(1.0, alpha=0.5),
    "tau 0.02": tau(0.02),
    # One pass over all rows: what a cache that is read once looks like.
    "dense, 3x rows": Arm(kind="dense", data=3),
    "tau 0.1, 3x rows": tau(0.1, data=3),
    "tau 0.5, 3x rows": tau(0.5, data=3),
    "tau 1, 3x rows": tau(1.0, data=3),
  }
  return arms


ARMS = _arms()


class Draw(NamedTuple):
  """One set of records."""

  kind: str
  value: float
  replica: int


def draws_of(arm: Arm) -> list[Draw]:
  if arm.kind in ("hard", "dense"):
    return []
  return [Draw(arm.kind, arm.value, m) for m in range(arm.replicas)]


def say(text: str) -> None:
  print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
