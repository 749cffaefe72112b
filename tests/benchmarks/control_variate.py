"""What would a control variate for the tail save? Measured on real logits.

Threshold sampling keeps the head and draws the tail. Given a static guess u of
the tail (here the unigram of the corpus), one could store nothing for c times
the tail's mass spread as u, and draw the signed residual:

  t = head + c * tail mass * u_tail + sampled(p_tail - c * tail mass * u_tail)

This is unbiased for any c. For each tau the threshold of the residual is set so
that the mean number of ids is that of plain sampling; the ratio of the summed
variances says what is won. Needs the hidden states that knee.py keeps.

  control_variate.py --teacher=FOLDER --workdir=runs/knee

Shape letters (docs/glossary.md): P positions, V vocabulary.
"""

import argparse
import json
from pathlib import Path

from flax import nnx
from grid_arms import PIPELINE, Settings
from grid_records import open_rows
import jax
import numpy as np

from analogjax.distributed import sharding
from analogjax.models import decoder, hf_import

TAUS = (0.04, 0.1, 0.2)
SHARES = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)


class Residual:
  """What is left to draw of all positions, by size."""

  def __init__(self, p_PV: np.ndarray, u_V: np.ndarray, c: float, tau: float):
    is_head_PV = p_PV >= tau
    self._positions, self._heads = len(p_PV), is_head_PV.sum()
    residual_PV = np.where(is_head_PV, 0, p_PV)
    if c:
      mass_P1 = residual_PV.sum(-1, keepdims=True)
      guess_PV = np.where(is_head_PV, 0, u_V[None])
      guess_PV *= c * mass_P1 / guess_PV.sum(-1, keepdims=True)
      residual_PV = np.abs(residual_PV - guess_PV)
    self._sorted = np.sort(residual_PV, axis=None)
    self._sums = np.cumsum(self._sorted)
    self._squares = np.cumsum(self._sorted**2)

  def sample(self, tau: float) -> tuple[float, float]:
    """Mean ids and mean summed variance of a position.

    An id is stored surely where |residual| >= tau (what the guess overstates
    by as much, say), else with probability |residual| / tau, at weight tau.
    """
    below = np.searchsorted(self._sorted, tau)
    sums, squares = self._sums[below - 1], self._squares[below - 1]
    ids = self._heads + len(self._sorted) - below + sums / tau
    return ids / self._positions, (tau * sums - squares) / self._positions


def variance_at(residual: Residual, ids: float) -> float:
  """The variance of the threshold that draws so many ids."""
  low, high = 1e-4, 1.0
  for _ in range(50):  # More ids for a lower threshold.
    middle = (low * high) ** 0.5
    is_more = residual.sample(middle)[0] > ids
    low, high = (middle, high) if is_more else (low, middle)
  return residual.sample(high)[1]


def main() -> None:
  parser = argparse.ArgumentParser(description="see the top of the file")
  parser.add_argument("--teacher", required=True)
  parser.add_argument("--workdir", required=True, type=Path)
  parser.add_argument("--positions", type=int, default=512)
  args = parser.parse_args()
  settings = json.loads((args.workdir / "settings.json").read_text())
  s = Settings(**settings | {"teacher": args.teacher})
  folder = Path(args.teacher)
  cfg = hf_import.read_config(folder)
  params = hf_import.read_parameters(
    folder,
    cfg,
    sharding.make_mesh({}, devices=jax.devices()[:1]),
    dtype="float32",
  )
  model = nnx.merge(decoder.graphdef(cfg), params)
  head_VW = np.asarray(model.head_VD)
  hidden = np.load(args.workdir / "held_out.npy", mmap_mode="r")
  hidden = hidden.reshape(-1, hidden.shape[-1])
  chosen = np.linspace(0, len(hidden) - 1, args.positions).astype(int)

  def softmax(x_PW):
    logits_PV = (x_PW @ head_VW.T).astype(np.float64)
    p_PV = np.exp(logits_PV - logits_PV.max(-1, keepdims=True))
    return p_PV / p_PV.sum(-1, keepdims=True)

  # The guesses see the training rows alone.
  rows = open_rows(s, "train").read(range(s.rows * 3))
  counts_V = np.bincount(rows.tokens_BL.ravel(), minlength=cfg.V) + 0.1
  train = np.load(args.workdir / "train.npy", mmap_mode="r")
  train = train.reshape(-1, train.shape[-1])
  mean_V = np.zeros(cfg.V)
  pick = np.linspace(0, len(train) - 1, 2048).astype(int)
  for part in np.split(pick, 8):
    mean_V += softmax(train[part]).sum(0)
  guesses = {"unigram": counts_V, "teacher's mean": mean_V}

  p_PV = softmax(hidden[chosen])
  print(f"{PIPELINE}, {args.positions} held-out positions")
  shares = " | ".join(f"c = {c:g}" for c in SHARES)
  print(f"| tau | ids | variance | guess | {shares} |")
  for tau in TAUS:
    ids, variance = Residual(p_PV, counts_V, 0, tau).sample(tau)
    for name, u_V in guesses.items():
      left = (Residual(p_PV, u_V, c, tau) for c in SHARES)
      factors = [variance / variance_at(r, ids) for r in left]
      cells = " | ".join(f"{f:.3f}" for f in factors)
      print(
        f"| {tau} | {ids:.2f} | {variance:.4g} | {name} | {cells} |", flush=True
      )


if __name__ == "__main__":
  main()
