"""A fidelity.json of random numbers, as from a pair that transfers.

Nothing in it was measured. It has every section, every kind of row, and
undefined values; `python tests/kit/synthetic_report.py FOLDER` writes it and
its page.
"""

import copy
import pathlib
import sys

import numpy as np

from analogjax.fidelity import document
from analogjax.fidelity.report import page

ANALOG, CONTROL, RANDOM = "distill", "control", "random"
METRICS = (
  *("cross_entropy_nats", "cross_entropy_gap_nats", "kl_to_teacher_nats"),
  *("jensen_shannon_nats", "top1_agreement", "top5_agreement", "accuracy"),
  "expected_calibration_error",
)
# How far each student comes, from 0 to 1.
REACH = {ANALOG: 0.8, CONTROL: 0.3, RANDOM: 0.0}


def estimate(rng, value, spread=0.02, n=32):
  low, high = value - spread * (1 + rng.random()), value + spread
  return {"value": value, "low": low, "high": float(high), "n": n}


def undefined(why):
  return {"value": None, "low": None, "high": None, "n": 0, "why": why}


def _metrics(rng, reach, *, teacher=False, shift=0.0):
  values = {
    "cross_entropy_nats": 4.1 - 1.6 * reach + shift,
    "cross_entropy_gap_nats": 1.6 - 1.6 * reach,
    "kl_to_teacher_nats": 1.9 - 1.7 * reach + shift,
    "jensen_shannon_nats": 0.4 - 0.35 * reach,
    "top1_agreement": 0.1 + 0.7 * reach,
    "top5_agreement": 0.2 + 0.7 * reach,
    "accuracy": 0.1 + 0.35 * reach,
    "expected_calibration_error": 0.08 - 0.05 * reach,
  }
  assert set(values) == set(METRICS)
  own = ("cross_entropy_nats", "accuracy", "expected_calibration_error")
  return {
    name: estimate(rng, value + 0.01 * rng.random())
    for name, value in values.items()
    if not teacher or name in own
  }


def output(rng, reach):
  models = {}
  for name, r in {"teacher": 1.0, **reach}.items():
    teacher = name == "teacher"
    edges = [0, 0.5, 1, 2, 3, 4, None]
    models[name] = {
      "metrics": _metrics(rng, r, teacher=teacher),
      "by_entropy": [
        {
          "from": low,
          "to": high,
          "tokens": float(rng.integers(100, 2000)),
          "metrics": _metrics(rng, r, teacher=teacher, shift=0.2 * i),
        }
        for i, (low, high) in enumerate(zip(edges, edges[1:], strict=False))
      ],
      "by_domain": {
        domain: _metrics(rng, r, teacher=teacher, shift=shift)
        for domain, shift in (("code", 0.3), ("prose", 0.1))
      },
      "reliability": [
        {
          "confidence": (i + 0.5) / 10,
          "accuracy": ((i + 0.5) / 10) ** (1.6 - 0.6 * r),
          "tokens": float(rng.integers(50, 900)),
        }
        for i in range(10)
      ],
    }
    if not teacher:
      models[name]["outcomes"] = {
        "kappa": estimate(rng, 0.05 + 0.6 * r),
        "spearman": estimate(rng, 0.1 + 0.8 * r),
        "auc": estimate(rng, 0.52 + 0.4 * r),
      }
  return {"models": models}


def _against_chance(rng, raw, chance, number=99):
  null = [
    round(float(x), 4) for x in chance + 0.01 * rng.standard_normal(number)
  ]
  q95 = float(np.quantile(null, 0.95))
  return {
    "raw": raw,
    "null_q95": q95,
    "calibrated": (raw - q95) / (1 - q95),
    "p": (1 + sum(x >= raw for x in null)) / (1 + number),
    "null": null,
  }


def similarity(rng, reach):
  depths = [0.25, 0.5, 0.75, 1.0]
  tops = {"mutual_knn": 0.5, "unbiased_cka": 0.9, "procrustes": 0.7}
  models = {}
  for name, r in reach.items():
    models[name] = {}
    for metric, top in tops.items():
      near = 1 - np.abs(np.subtract.outer(depths, depths))
      matrix = 0.04 + top * r * near + 0.02 * rng.random(near.shape)
      p, q = np.unravel_index(matrix.argmax(), matrix.shape)
      models[name][metric] = {
        "matrix": matrix.tolist(),
        "best": {"student_depth": depths[p], "teacher_depth": depths[q]},
        **_against_chance(rng, float(matrix.max()), 0.04),
        "same_depth": [
          {"student_depth": d, "teacher_depth": d}
          | _against_chance(rng, float(matrix[i, i]), 0.03)
          for i, d in enumerate(depths)
        ],
      }
      for line in models[name][metric]["same_depth"]:
        del line["null"]
  return {
    "points": 1024,
    "permutations": 99,
    "depths": {name: depths for name in ("teacher", *reach)},
    "models": models,
    "embeddings": {
      name: {**_against_chance(rng, 0.05 + 0.6 * r, 0.01), "tokens": 1024}
      for name, r in reach.items()
    },
    "maps": {
      name: [
        {
          "student_depth": depth,
          "teacher_depth": depth,
          "unexplained": 1 - 0.8 * r + 0.1 * depth,
        }
        for depth in depths
      ]
      for name, r in reach.items()
    },
  }


def _arm(rng, name, kind, slope, *, model=None, mapper=None):
  strengths = [-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0]
  score = [2 * slope * float(np.tanh(s / 2)) for s in strengths]
  spread = [0.1 + 0.1 * float(rng.random()) for _ in strengths]
  return {
    "name": name,
    "kind": kind,
    "model": model,
    "mapper": mapper,
    "strengths": strengths,
    "score": score,
    "score_low": [x - d for x, d in zip(score, spread, strict=True)],
    "score_high": [x + d for x, d in zip(score, spread, strict=True)],
    "perplexity_ratio": [1 + 0.03 * s * s * (0.5 + slope) for s in strengths],
  }


def steering(rng, reach):
  mappers = ("embedding", "affine", "autoencoder")
  analog = next(iter(reach))
  vectors = [("native", "teacher", None, 1.0), ("random", "teacher", None, 0.0)]
  vectors += [
    ("mapped", name, mapper, r)
    for name, r in reach.items()
    for mapper in mappers
  ]
  vectors += [
    ("shuffled", analog, "shuffled", 0.02),
    ("wrong_behaviour", "teacher", "wrong_behaviour", -0.1),
  ]
  arms, transfer = [], []
  for kind, model, mapper, r in vectors:
    arms.append(
      _arm(rng, f"{kind} {model}", kind, r, model=model, mapper=mapper)
    )
    if mapper:
      transfer += [
        {
          "kind": kind,
          "model": model,
          "mapper": mapper,
          "matched": by,
          "ratio": estimate(rng, r + 0.05, 0.08, 64),
          "common_cost_nats": 0.3 if by == "perplexity" else None,
        }
        for by in ("norm", "perplexity")
      ]
  behaviour = {
    "depth": 0.5,
    "prompts": 64,
    "pairs": 48,
    "native_effect": estimate(rng, 1.9, 0.2, 64),
    "undefined": None,
    "own": {
      model: {"depth": 0.5, "effect": estimate(rng, 1.5, 0.2, 64)}
      for model in ("teacher", *reach)
    },
    "arms": arms,
    "transfer": transfer,
  }
  silent = copy.deepcopy(behaviour)
  silent["undefined"] = "the native vector does not move the score"
  silent["native_effect"] = estimate(rng, 0.01, 0.1, 64)
  for item in silent["transfer"]:
    item["ratio"] = undefined("the native effect is not above chance")
  return {
    "behaviours": {"sentiment": behaviour, "refusal": silent},
    "maps": {
      name: {
        mapper: {"unexplained": 1 - 0.7 * r, "cosine": 0.1 + 0.8 * r}
        for mapper in mappers
      }
      for name, r in reach.items()
    },
  }


def stitching(rng, reach):
  depths = [0.25, 0.5, 0.75]
  return {
    "cross_entropy_nats": {
      "teacher": 2.5,
      "mean_ablated": {f"{depth}": 9.5 + depth for depth in depths},
    },
    "models": {
      name: [
        {
          "student_depth": depth,
          "teacher_depth": depth,
          "fit": fit,
          "recovered": estimate(rng, 0.3 + 0.5 * r + more - 0.1 * depth),
        }
        for fit, more in (("least_squares", 0.0), ("trained", 0.1))
        for depth in depths
      ]
      for name, r in reach.items()
    },
  }


MAKERS = {
  "output": output,
  "similarity": similarity,
  "steering": steering,
  "stitching": stitching,
}


def inputs(reach, controls, *, quick=False):
  return {
    "analog": next(iter(reach)),
    "controls": list(controls),
    "random": RANDOM,
    "quick": quick,
    "teacher_digest": "9f" * 32,
    "teacher_dtype": "float32",
    "students": {name: {"step": 160} for name in reach},
    "rows": {"test": {"number": 32, "digest": "ab" * 32}},
    "options": {"seed": 0, "points": 1024, "phases": list(reach)},
  }


def parts(reach=REACH, seed=0):
  rng = np.random.default_rng(seed)
  return {name: maker(rng, reach) for name, maker in MAKERS.items()}


def make(found, reach=REACH, controls=(CONTROL,), **options):
  """The document of parts, as the stage makes it."""
  return document.make(
    found,
    inputs=inputs(reach, controls, **options),
    cost={
      name: {"seconds": 12.5, "device_seconds": 25.0, "tokens": 65_536}
      for name in found
    },
    software={"jax": "0.10.2", "analogjax": "0.2.0"},
  )


if __name__ == "__main__":
  folder = pathlib.Path(sys.argv[1])
  (folder / "fidelity.html").write_text(page.render(make(parts())), "utf-8")
